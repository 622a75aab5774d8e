"""Each step has the config's fraction, rate and normalizer, recomputed from its batches."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from helpers.training import MODEL, make_source, params_at, run

from cotjax.data.pipeline import batches, dropped_weights
from cotjax.masking import Dropping, Role
from cotjax.model.params import init_params
from cotjax.objectives.supervised import token_losses
from cotjax.train.metrics import read_metrics

SIZES = {"batch": 4, "row_length": 96}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("data"))


def read(source, dropping, count):
    """The first batches of a run, as the pipeline makes them."""
    iterator = iter(batches(source, dropping=dropping, seed=3, **SIZES))
    return [next(iterator) for _ in range(count)]


def test_the_fraction_and_the_rate_follow_their_schedules(source, tmp_path):
    dropping = Dropping.of(last_fraction=0.9, fraction_steps=3)
    changes = SIZES | {
        "steps": 4,
        "save_every": 1,
        "warmup": 2,
        "schedule": "linear",
        "learning_rate": 4e-3,
    }
    checkpoints = run(tmp_path, source, dropping=dropping, **changes)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    left = []
    for row, batch, fraction in zip(
        rows, read(source, dropping, 4), (0.0, 0.3, 0.6, 0.9), strict=True
    ):
        action = (batch["roles"] == Role.ACTION) & (batch["weights"] > 0)
        kept = action & (batch["draws"] >= np.float32(fraction))
        left.append(kept.sum() / action.sum())
        assert row["supervised"].get("ACTION", 0) == kept.sum()
        assert row["dropped"]["tokens"] == action.sum() - kept.sum()
    assert left[0] == 1 > left[3]
    # Row n has the rate that update n was made at: the first is made at 0, and moves nothing.
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 2e-3, 4e-3, 2.2e-3])
    saved = [params_at(checkpoints, step)["model"]["embed_tokens"]["weight"] for step in range(5)]
    moved = [np.abs(after - before).max() for before, after in pairwise(saved)]
    assert moved[0] == 0 and moved[1] > 1e-3


def _losses(batch):
    """[B, T] of the first parameters, times their weights."""

    losses = jax.jit(lambda params, batch: token_losses(MODEL, params, batch) * batch["weights"])
    return np.asarray(losses(init_params(MODEL, jax.random.key(0)), batch), np.float64)


@pytest.mark.slow
def test_the_loss_is_divided_as_the_normalizer_says(source, tmp_path):
    found, batch = {}, dropped_weights(read(source, Dropping.of(fraction=0.5), 1)[0], 0.5)
    for normalizer in ("token_sum", "example_mean", "fixed_budget"):
        dropping = Dropping.of(fraction=0.5)
        run(
            tmp_path / normalizer,
            source,
            dropping=dropping,
            normalizer=normalizer,
            steps=1,
            save_every=1,
            warmup=0,
            **SIZES,
        )
        found[normalizer] = read_metrics(tmp_path / normalizer / "metrics.jsonl")[0]["loss"]
    losses, weights = _losses(batch), batch["weights"].astype(np.float64)
    # A response begins behind a prompt, and ends with the end of its turn.
    means = []
    for row in range(len(weights)):
        ends = np.flatnonzero((batch["roles"][row] == Role.END) & (weights[row] > 0))
        for begin, end in zip([0, *(ends[:-1] + 1)], ends + 1, strict=True):
            means.append(losses[row, begin:end].sum() / weights[row, begin:end].sum())
    assert found == {
        "token_sum": pytest.approx(losses.sum() / weights.sum(), rel=1e-5),
        "example_mean": pytest.approx(np.mean(means), rel=1e-5),
        "fixed_budget": pytest.approx(losses.sum() / batch["budget"].sum(), rel=1e-5),
    }
    assert len({round(loss, 4) for loss in found.values()}) == 3
