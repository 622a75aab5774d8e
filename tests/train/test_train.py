"""Training on tiny data: it learns, is the same on any mesh, and resumes where it was."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.training import MODEL, make_source, params_at, run

from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.runtime.claim import checkpoint_steps
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.metrics import read_metrics


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder, source, steps=12)


def test_the_loss_falls_and_every_step_is_logged_once(finished):
    folder, _ = finished
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert set(rows[0]["loss_by_role"]) == {
        "REASONING",
        "ACTION_OPEN",
        "ACTION",
        "ACTION_CLOSE",
        "END",
    }
    total = sum(
        rows[0]["loss_by_role"][role] * count for role, count in rows[0]["supervised"].items()
    )
    assert rows[0]["loss"] == pytest.approx(total / sum(rows[0]["supervised"].values()), rel=1e-5)


def test_checkpoints_hold_the_base_and_every_interval(finished, source):
    _, checkpoints = finished
    manager = Checkpoints(checkpoints)
    assert manager.steps() == checkpoint_steps(12, 4) == [0, 4, 8, 12]
    manager.close()
    start = jax.tree.map(np.asarray, init_params(MODEL, jax.random.key(0)))
    jax.tree.map(tiny.assert_same_draws, params_at(checkpoints, 0), start)


def test_stopped_and_resumed_equals_uninterrupted(finished, source, tmp_path):
    """An exception stops it at step 7, after the checkpoint of step 4; then it resumes."""
    folder, checkpoints = finished

    def stop(step, steps, row):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source, steps=12, report=stop)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 8))
    resumed = run(tmp_path, source, steps=12)
    jax.tree.map(np.testing.assert_array_equal, params_at(resumed, 12), params_at(checkpoints, 12))
    measured = [
        [
            {key: value for key, value in row.items() if key != "time"}
            for row in read_metrics(one / "metrics.jsonl")
        ]
        for one in (folder, tmp_path)
    ]
    assert measured[0] == measured[1]


def test_reduced_supervision_removes_action_tokens_only(finished, source, tmp_path):
    def supervised(folder):
        return read_metrics(folder / "metrics.jsonl")[0]["supervised"]

    def reduced(fraction):  # by the program that was compiled for `finished`
        folder, dropping = tmp_path / str(fraction), Dropping.of(fraction=fraction)
        run(folder, source, steps=12, save_every=12, dropping=dropping)
        return supervised(folder)

    full, part, none = supervised(finished[0]), reduced(0.5), reduced(1.0)
    assert 0 < part["ACTION"] < full["ACTION"] and "ACTION" not in none
    assert all(full[role] == part[role] == none[role] for role in full if role != "ACTION")


def test_a_folder_with_another_run_is_left_alone(finished, source):
    folder, _ = finished
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"train\.learning_rate is 0\.003 there, 0\.1 here.*--out"):
        run(folder, source, steps=12, learning_rate=0.1)
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "train.steps is 0"),
        ({"batch": 0}, "train.batch is 0"),
        ({"save_every": 0}, "train.save_every is 0"),
        ({"warmup": 8}, "train.warmup"),
        ({"schedule": "step"}, "train.schedule"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(source, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path, source, **changes)


def test_data_without_a_supervised_token_is_refused_at_once(source, tmp_path):
    untrained = [
        dict(example, roles=np.ones_like(example["roles"]))
        for example in (source[number] for number in range(9))
    ]
    with pytest.raises(DataError, match="no example holds a supervised token"):
        run(tmp_path / "run", untrained)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("normalizer", ["token_sum", "example_mean", "fixed_budget"])
def test_a_step_that_a_control_leaves_nothing_of_is_one_of_gradient_zero(
    source, tmp_path, normalizer
):
    """It has no loss, Adam's momentum moves the parameters, and the run continues to its end."""
    dropping = Dropping.of(fraction=0.8, unit="example", control="examples")
    said = []
    small = {
        "batch": 1,
        "row_length": 96,
        "steps": 6,
        "save_every": 1,
        "warmup": 0,
        "schedule": "constant",
    }
    checkpoints = run(
        tmp_path, source, dropping=dropping, normalizer=normalizer, say=said.append, **small
    )
    read = read_metrics(tmp_path / "metrics.jsonl")
    empty = [row["step"] for row in read if row["loss"] is None]
    assert 0 < len(empty) < 6 and f"{len(empty)} updates had no supervised token left" in said[-1]
    for row in read:
        assert (row["loss"] is None) == (row["grad_norm"] == 0) == (not row["supervised"])
    params = [params_at(checkpoints, step) for step in range(7)]
    moved = [
        max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in pairwise(params)
    ]
    assert all(np.isfinite(moved))
    assert [step for step, far in enumerate(moved, 1) if far == 0] == [
        step for step in empty if step < min(set(range(1, 7)) - set(empty))
    ]


def test_a_checkpoint_of_another_model_is_refused(finished):
    _, checkpoints = finished
    manager = Checkpoints(checkpoints)
    other = tiny.model_config(width=64)
    with pytest.raises(DataError, match="another model"):
        manager.restore_params(4, other, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    with pytest.raises(DataError, match="no checkpoint at step 5"):
        manager.restore_params(5, MODEL, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    manager.close()


SHARDED = """
import sys
sys.path[:0] = sys.argv[3:]
import jax
jax.config.update("jax_num_cpu_devices", 8)
from pathlib import Path
from helpers.training import make_source, run
import json
shape = json.loads(sys.argv[2])
data = make_source(Path(sys.argv[1]) / "data")
run(Path(sys.argv[1]), data, steps=4, remat="auto", mesh_shape=shape)
"""


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"data": 8, "fsdp": 1, "tensor": 1}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
    ids=["8", "2x2x2"],
)
def test_eight_devices_give_the_losses_of_one(source, tmp_path, shape):
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-c",
        SHARDED,
        str(tmp_path / "eight"),
        json.dumps(shape),
        str(here),
        str(here.parent),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    run(tmp_path / "one", source, steps=4)
    losses = {
        n: [row["loss"] for row in read_metrics(tmp_path / n / "metrics.jsonl")]
        for n in ("one", "eight")
    }
    np.testing.assert_allclose(losses["eight"], losses["one"], rtol=2e-5)
    one, eight = (params_at(tmp_path / n / "checkpoints", 4) for n in ("one", "eight"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one, eight)


@pytest.mark.parametrize(
    "normalizer",
    [
        "token_sum",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("example_mean", "fixed_budget")),
    ],
)
def test_a_batch_in_parts_makes_the_step_of_the_whole_batch(source, tmp_path, normalizer):
    """The sums are divided once: a mean of means would differ, as supervised tokens are unequal."""
    dropping = Dropping.of(fraction=0.5)
    whole, parts = (
        run(
            tmp_path / f"{count}",
            source,
            steps=2,
            warmup=1,
            clip_norm=0.0,
            dropping=dropping,
            normalizer=normalizer,
            accumulate=count,
        )
        for count in (1, 4)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5),
        params_at(whole, 2),
        params_at(parts, 2),
    )
    rows = [
        [row["loss"] for row in read_metrics(folder.parent / "metrics.jsonl")]
        for folder in (whole, parts)
    ]
    np.testing.assert_allclose(*rows, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulate": 0}, "accumulate is 0"),
        ({"accumulate": 3}, "multiple of the 1 devices that share it x 3"),
        ({"remat": "all"}, "none, dots, mlp, block"),
    ],
)
def test_parts_and_remat_are_checked_before_anything_is_spent(source, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        run(tmp_path, source, **changes)
    assert not (tmp_path / "checkpoints").exists()


def test_an_implicit_transfer_in_the_loop_is_an_error(source, tmp_path, monkeypatch):
    monkeypatch.setattr("cotjax.train.main.global_batch", lambda rows, sharding, batch: rows)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path, source, steps=12)
