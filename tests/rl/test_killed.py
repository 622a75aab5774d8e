"""`cotjax rl` killed by SIGKILL in three places ends with the bytes of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.doors import MODEL
from helpers.training import params_at

from cotjax.rollout.record import read_records

HERE = Path(__file__).parent


@pytest.mark.slow
def test_killed_while_it_plays_between_and_while_it_saves_a_run_ends_with_the_same_bytes(tmp_path):
    places = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    ran = subprocess.run(
        [sys.executable, str(HERE / "killed_rl.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": places},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    *killed, resumed, undisturbed = json.loads(ran.stdout.splitlines()[-1])
    assert resumed["code"] == undisturbed["code"] == 0, ran.stderr[-2000:]
    assert [each["code"] for each in killed] == [-signal.SIGKILL] * 3, killed
    playing, between, saving = killed
    # The step that was being played left nothing; once it is written it is not played again.
    assert playing["rollouts"] == ["step-000001.npz"]
    assert between["rollouts"] == ["step-000001.npz", "step-000002.npz"] and between["rows"] == [1]
    assert playing["checkpoints"] == between["checkpoints"] == ["0"]
    # Step 2 was trained and logged. Its checkpoint had no name yet.
    assert saving["rows"] == [1, 2] and "2" not in saving["checkpoints"]
    assert any(name.startswith("2.") for name in saving["checkpoints"])
    assert_same_bytes(tmp_path / "run", tmp_path / "whole")


def assert_same_bytes(folder, other):
    """Assert that two runs left the same rows, rollouts, parameters and records of the panel."""
    arms = folder / "arms/grpo", other / "arms/grpo"
    one, two = map(_lines, arms)
    assert one == two
    steps = [(row["step"], "evaluated" in row) for row in one]
    assert steps == [(0, True), (1, False), (2, False), (2, True), (3, False), (3, True)]
    for name in ("rollouts", "checkpoints"):
        names = [sorted(path.name for path in (arm / name).iterdir()) for arm in arms]
        assert names[0] == names[1]
    for step in (1, 2, 3):
        file = f"rollouts/step-{step:06}.npz"
        assert (arms[0] / file).read_bytes() == (arms[1] / file).read_bytes()
    for step in (2, 3):
        found = [params_at(arm / "checkpoints", step, MODEL) for arm in arms]
        jax.tree.map(np.testing.assert_array_equal, *found)
    played = [
        [each.model_dump(exclude={"timing", "checkpoint_hash"}) for each in read_records(run)]
        for run in (folder / "records", other / "records")
    ]
    assert played[0] == played[1] and len(played[0]) == 24


def _lines(arm):
    """Return all lines of an arm's metrics without their times, those of evaluations too."""
    found = [json.loads(line) for line in (arm / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in found]
