"""Training by several processes equals that by one process with the same mesh, killed or not."""

import json

import jax
import numpy as np
import pytest
from helpers.processes import run_together
from helpers.training import make_source, params_at

from cotjax.train.metrics import read_held_out, read_metrics

SCRIPT = "train/train_together.py"
# Four devices on axes where each process reads its own rows; and two that shard the weights, where
# both read the same rows.
SHAPES = {
    "rows apart": {"data": 2, "fsdp": 2, "tensor": 1},
    "rows shared": {"data": 1, "fsdp": 1, "tensor": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    make_source(folder / "data")
    return folder


def train(folder, shape, count, kill_after=0):
    devices = int(np.prod(list(shape.values()))) // count
    return run_together(SCRIPT, count, folder, json.dumps(shape), kill_after, devices=devices)


@pytest.fixture(scope="module")
def alone(folder):
    """What one process makes on each mesh: name -> its folder."""
    for name, shape in SHAPES.items():
        results = train(folder / f"alone, {name}", shape, count=1)
        assert results[0][0] == 0, results
    return {name: folder / f"alone, {name}" for name in SHAPES}


def measured(folder):
    keys = ("step", "loss", "grad_norm", "learning_rate", "tokens", "supervised")
    return [{key: row[key] for key in keys} for row in read_metrics(folder / "metrics.jsonl")]


def same(one, other, step):
    """Equal metrics and parameters up to rounding: processes sum in another order."""
    rows, expected = measured(one), measured(other)
    assert [row["step"] for row in rows] == list(range(1, 7))
    for row, wanted in zip(rows, expected, strict=True):
        assert row.pop("supervised") == wanted.pop("supervised")
        assert row == pytest.approx(wanted, rel=1e-6)
    held, wanted = (
        [(row["step"], row["held_out"]) for row in read_held_out(folder / "metrics.jsonl")]
        for folder in (one, other)
    )
    assert [at for at, _ in held] == [at for at, _ in wanted] == [0, 2, 3, 4, 6]
    for (_, row), (_, other_row) in zip(held, wanted, strict=True):
        assert row.pop("supervised") == other_row.pop("supervised")
        assert row.pop("loss_by_role") == pytest.approx(other_row.pop("loss_by_role"), rel=1e-6)
        assert row == pytest.approx(other_row, rel=1e-6)
    ours, theirs = (params_at(folder / "checkpoints", step) for folder in (one, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_two_processes_train_what_one_trains(folder, alone, shape):
    results = train(folder / f"two, {shape}", SHAPES[shape], count=2)
    assert [code for code, _, _ in results] == [0, 0], results
    same(folder / f"two, {shape}", alone[shape], 6)


@pytest.mark.slow
def test_killed_with_two_processes_and_resumed_with_four(folder, alone):
    """Process 0 dies at step 5, after the checkpoint of step 4; jax ends process 1. Four resume."""
    shape, mine = SHAPES["rows apart"], folder / "resumed"
    results = train(mine, shape, count=2, kill_after=5)
    assert results[0][0] == -9 and results[1][0] != 0, results
    assert [row["step"] for row in measured(mine)] == [1, 2, 3, 4, 5]
    results = train(mine, shape, count=4)
    assert [code for code, _, _ in results] == [0] * 4, results
    same(mine, alone["rows apart"], 6)
    total = sum(
        x.astype(np.float64).sum() for x in jax.tree.leaves(params_at(mine / "checkpoints", 6))
    )
    assert float((mine / "sum-4").read_text()) == pytest.approx(total, rel=1e-3, abs=1e-2), (
        "a process restores alone"
    )
