"""launch/measure_gpu.sh: its commands are today's, its time is kept, what is missing is named."""

import re
import shlex
from pathlib import Path

import pytest
from helpers.desk import Desk

from cotjax.bench.models import named_model
from cotjax.cli.main import _parse

FAKE = """#!/bin/bash
case "$*" in
    *rollout*) sleep 1000 & echo $! >"$SLEPT"; wait ;;
    *kernels*) exit 3 ;;
esac
echo "measured: $*"
"""


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def _listed(desk):
    """Each command's words and seconds, as --dry-run prints them."""
    run = desk.run("measure_gpu.sh", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert not list(desk.work.iterdir()), "a dry run does nothing"
    return [
        (shlex.split(line), int(seconds))
        for line, seconds in re.findall(r"^\$ cotjax (.*)\n  at most (\d+) s$", run.stdout, re.M)
    ]


def test_every_command_is_one_that_cotjax_takes(desk):
    listed = _listed(desk)
    assert len(listed) > 10
    for words, seconds in listed:
        arguments = _parse(words)
        assert arguments.command == "bench" and seconds >= 20, words
        if arguments.what in ("train", "sample"):
            assert named_model(arguments.model, arguments.dtype).layers > 0


def test_what_is_to_be_reached_has_its_time_within_eight_minutes(desk):
    listed = _listed(desk)
    kinds = [words[1] for words, _ in listed]
    needed = listed[: kinds.index("rollout") + 1]
    assert sum(seconds for _, seconds in needed) <= 480
    texts = [" ".join(words) for words, _ in needed]
    for wanted in (
        "train .*qwen3-4b",
        "train .*qwen3-8b",
        "train .*qwen3-1.7b .*--peer transformers",
        "train .*--rows trees",
        "train .*--rows packed",
        "sample .*--slots 64 .*--peer-cache static",
        "sample .*--slots 256",
        "rollout .*--slots 256",
    ):
        assert any(re.search(wanted, text) for text in texts), wanted


def test_one_that_hangs_is_stopped_and_the_rest_is_named(desk, tmp_path):
    python, slept = tmp_path / "python", tmp_path / "slept"
    python.write_text(FAKE)
    python.chmod(0o755)
    how = {"PYTHON": str(python), "MEASURE_SECONDS": "6", "SLEPT": str(slept)}
    how["MEASURE_LEAST"] = "1"
    run = desk.run("measure_gpu.sh", str(tmp_path / "out.txt"), **how)
    assert run.returncode == 0, run.stderr
    printed = (tmp_path / "out.txt").read_text()
    assert printed == run.stdout
    assert "measured: -m cotjax.cli bench train" in printed
    assert "ended with exit code 124" in printed
    missing = printed.split("Not measured:\n")[1]
    assert missing.splitlines()[0].startswith("  rollout") and "  kernels" in missing
    assert "no time left" in printed and "  sample" not in missing
    # Nothing goes on behind it; whoever is to take note of its end may not have done so yet.
    state = Path("/proc") / slept.read_text().strip() / "stat"
    assert not state.exists() or state.read_text().rpartition(") ")[2].startswith("Z")


def test_without_time_all_is_named_and_nothing_runs(desk, tmp_path):
    how = {"PYTHON": "/bin/false", "MEASURE_SECONDS": "1"}
    run = desk.run("measure_gpu.sh", str(tmp_path / "out.txt"), **how)
    assert run.returncode == 0 and run.stdout.count("no time left") == len(_listed(desk))
