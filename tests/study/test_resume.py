"""An evaluation that is killed, interrupted or damaged keeps finished work and ends the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.configs import STUDY

import cotjax
from cotjax.cli.main import main


def started(arguments: list[str], scratch: Path) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": str(Path(cotjax.__file__).parents[1]),
        "TMPDIR": str(scratch),
    }
    command = [sys.executable, "-m", "cotjax.cli", *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def records_of(run: Path) -> list[Path]:
    return sorted((run / "records").rglob("*.json"))


def wait_for_records(run: Path, count: int, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 240
    while len(records_of(run)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit, "the evaluation takes too long"
        time.sleep(0.005)


def of(scratch: Path) -> list[int]:
    """Processes whose TMPDIR is in this folder: a run, its environments and server; no zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = (folder / "environ").read_bytes().split(b"\0")
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
        if alive and any(entry.startswith(f"TMPDIR={scratch}".encode()) for entry in named):
            found.append(int(folder.name))
    return found


def nothing_is_left(scratch: Path, seconds: float = 15.0) -> bool:
    """Whether the processes and temporary files of a run are gone, also after it was killed."""
    limit = time.monotonic() + seconds
    while (of(scratch) or list(scratch.glob("cotjax-*"))) and time.monotonic() < limit:
        time.sleep(0.05)
    return not of(scratch) and not list(scratch.glob("cotjax-*"))


@pytest.mark.slow
def test_killed_damaged_and_interrupted_it_ends_as_if_undisturbed(tmp_path, capfd):
    config, calm, run, scratch = (
        tmp_path / "tiny.py",
        tmp_path / "calm",
        tmp_path / "run",
        tmp_path / "tmp",
    )
    config.write_text(STUDY)
    scratch.mkdir()
    assert main(["train", "--config", str(config), "--out", str(calm)]) == 0
    shutil.copytree(calm, run)
    arguments = [
        "evaluate",
        "--config",
        str(config),
        "--out",
        str(run),
        f"--config.games.root={run / 'games'}",
    ]
    for folder in (calm, run):  # the folder of the games is part of a run's config
        text = json.loads((folder / "config.json").read_text())
        text["games"]["root"] = str(run / "games")
        (folder / "config.json").write_text(json.dumps(text))
    same = f"--config.games.root={run / 'games'}"
    assert main(["evaluate", "--config", str(config), "--out", str(calm), same]) == 0

    process = started([*arguments, "--config.workers=1"], scratch)
    wait_for_records(run, 7, process)
    process.kill()
    process.communicate()
    assert nothing_is_left(scratch)
    assert 7 <= len(records_of(run)) < len(records_of(calm))
    for path in records_of(run)[7:]:
        path.unlink()  # so that there is much to interrupt, however far it had come
    finished = {path: path.stat().st_mtime_ns for path in records_of(run)}

    cut = min(finished)
    cut.write_bytes(cut.read_bytes()[:-200])
    process = started([*arguments, "--config.workers=1"], scratch)
    wait_for_records(run, len(finished) + 5, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert (
        f"of {len(records_of(calm))} episodes are finished and kept" in said
        and said.count("\n") == 1
    ), said
    assert nothing_is_left(scratch)
    assert len(list(cut.parent.glob("*.damaged-1"))) == 1
    assert "set aside as" in (run / "log.txt").read_text()

    assert main(arguments) == 0
    assert all(
        path.stat().st_mtime_ns == stamp for path, stamp in finished.items() if path != cut
    ), "what was finished is kept"
    assert [path.relative_to(run) for path in records_of(run)] == [
        path.relative_to(calm) for path in records_of(calm)
    ]
    for folder in (run, calm):
        assert main(["report", "--config", str(config), "--out", str(folder), same]) == 0
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, calm))
    for name in ("points", "changes", "arm_differences", "elicitation", "warnings"):
        assert ours[name] == theirs[name], name
    assert list(run.rglob("*.partial")) == []
