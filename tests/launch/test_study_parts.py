"""`launch/study_parts.sh`: parts in processes of their own, resumed, and then the report."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "study_parts.sh"
# Stands in the place of Python: prints two parts, does a part or fails, and writes the report.
PYTHON = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$*" in
    *--parts*) printf 'a/seed-1\\na/seed-2,b/seed-2\\n' ;;
    *a/seed-2*) [ ! -e "$BROKEN" ] ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the script, and returns (exit code, output, new calls)."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = os.environ | {
        **{"PYTHON": str(python), "CALLS": str(calls), "BROKEN": str(tmp_path / "broken")},
    }

    def start(*arguments):
        calls.write_text("")
        command = ["bash", str(SCRIPT), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return start


def test_a_part_that_fails_is_tried_again_and_the_report_comes_last(run, tmp_path):
    out = tmp_path / "my run"
    (tmp_path / "broken").touch()
    code, said, calls = run("c.py", str(out), "2", "60", "--", "--config.seed=3")
    assert code == 75
    assert "done: a/seed-1" in said and "not done: a/seed-2,b/seed-2 (exit code 1" in said
    assert "1 of 2 parts are done" in said
    assert all("--config.seed=3" in call for call in calls)
    assert sum("--arms" in call for call in calls) == 2 and len(calls) == 3
    (tmp_path / "broken").unlink()
    code, said, calls = run("c.py", str(out), "2", "60")
    assert code == 0
    assert [call for call in calls if "--arms" in call] == [
        f"-m cotjax.cli study --config c.py --out {out} --arms a/seed-2,b/seed-2 --config.workers=0"
    ]
    assert calls[-1] == f"-m cotjax.cli study --config c.py --out {out}"


def test_without_arguments_it_says_how_it_is_used(run):
    code, said, calls = run()
    assert code == 0 and said.startswith("Runs a study in parts") and not calls
    code, said, _ = run("c.py")
    assert code == 2 and "OUT is missing" in said
