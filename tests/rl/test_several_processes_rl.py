"""`cotjax rl` by two processes plays, learns and evaluates what one does with the same devices."""

import json

import jax
import numpy as np
import pytest
from helpers.doors import MODEL, arguments, rows
from helpers.processes import ended, free_address, start_process
from helpers.training import params_at

# A row a play of a step: each device has as many slots, however the processes divide them.
CHANGES = ["--config.rl.tasks=4", "--config.rl.slots=12", "--config.rl.old=trainer"]


def together(count, folder):
    """Run the command on two devices in all; return the folder of its run."""
    folder.mkdir()
    given = [*arguments(folder), *CHANGES, f"--config.cpu_devices={2 // count}"]
    if count > 1:
        given += ["--coordinator", free_address(), "--processes", count]
    numbers = [["--process-id", process] if count > 1 else [] for process in range(count)]
    command = ["-m", "cotjax.cli", "rl", *given]
    results = ended([start_process([*command, *number], None) for number in numbers])
    assert [code for code, _, _ in results] == [0] * count, results
    return folder / "run"


def files(arm):
    return {path.name: path.read_bytes() for path in (arm / "rollouts").glob("*.npz")}


def evaluations(arm):
    lines = map(json.loads, (arm / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if "evaluated" in row]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    runs = together(1, tmp_path / "one"), together(2, tmp_path / "two")
    one, two = (run / "arms/grpo" for run in runs)
    assert files(two) == files(one) and len(files(one)) == 2
    for mine, theirs in zip(rows(two), rows(one), strict=True):
        assert mine["success"] == theirs["success"]
        for name in ("loss", "grad_norm", "tokens", "stream", "kl"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
    ours, theirs = (params_at(arm / "checkpoints", 2, MODEL) for arm in (two, one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)
    # The panel is divided among the processes too, and the first one writes the report.
    assert evaluations(two) == evaluations(one) and len(evaluations(one)) == 3
    assert "<html" in (runs[1] / "report.html").read_text()
