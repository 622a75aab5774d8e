"""`cotjax rl` by two processes plays and learns what one does with the same devices."""

import jax
import numpy as np
import pytest
from helpers.doors import MODEL, rows
from helpers.processes import run_together
from helpers.training import params_at

SCRIPT = "rl/rl_together.py"


def together(count, folder, steps):
    results = run_together(SCRIPT, count, folder, steps, devices=2 // count)
    assert [code for code, _, _ in results] == [0] * count, results


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()}


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    together(1, one, 2)
    together(2, two, 2)
    assert files(two) == files(one) and len(files(one)) == 2
    for mine, theirs in zip(rows(two), rows(one), strict=True):
        assert mine["success"] == theirs["success"]
        for name in ("loss", "grad_norm", "tokens", "stream", "kl"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
    ours, theirs = (params_at(folder / "checkpoints", 2, MODEL) for folder in (two, one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)
