import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from cotjax.masking import target_weights, targets
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.objectives.supervised import masked_cross_entropy, normalized
from cotjax.train.step import init_state, make_train_step

#                 segment 1: trunk, branch 1, trunk, branch 2   | segment 2: one branch | padding
ROLES = np.array([[1, 1, 3, 5, 7, 1, 1, 3, 3, 5, 7, 1, 3, 5, 7, 0]])
BRANCH = np.array([[0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 2, 0, 1, 1, 1, 0]])
SEGMENT = np.array([[1] * 11 + [2] * 4 + [0]])
LOSSES = np.arange(1.0, 17.0, dtype=np.float32)[None]


def _sum_and_weight(normalizer, drop):
    full = target_weights(ROLES, segment_ids=SEGMENT, branches=BRANCH)
    weights = target_weights(ROLES, segment_ids=SEGMENT, branches=BRANCH, drop_tokens=drop)
    batch = {
        "weights": weights,
        "budget": full.sum(-1, keepdims=True),
        "segment_ids": SEGMENT,
        "branches": BRANCH,
        "roles": targets(ROLES),
    }
    total, weight = normalized(
        normalizer,
        jnp.asarray(LOSSES * weights),
        {name: jnp.asarray(array) for name, array in batch.items()},
    )
    return float(total), float(weight)


def test_an_example_of_the_mean_is_a_response():
    # Targets of the three responses stand at positions 1-3, 6-9 and 11-13.
    nothing = np.zeros(ROLES.shape, bool)
    assert _sum_and_weight("token_sum", nothing) == (2 + 3 + 4 + 7 + 8 + 9 + 10 + 12 + 13 + 14, 10)
    assert _sum_and_weight("example_mean", nothing) == (3 + 8.5 + 13, 3)
    assert _sum_and_weight("fixed_budget", nothing) == _sum_and_weight("token_sum", nothing)


def test_dropping_changes_the_denominator_as_the_name_says():
    drop = (ROLES == 5) & (BRANCH == 2)
    assert _sum_and_weight("token_sum", drop) == (82 - 9, 9)
    assert _sum_and_weight("example_mean", drop) == (pytest.approx(3 + (7 + 8 + 10) / 3 + 13), 3)
    assert _sum_and_weight("fixed_budget", drop) == (82 - 9, 10), "what stays weighs what it did"
    gone = (BRANCH == 2) & (ROLES > 2)
    assert _sum_and_weight("example_mean", gone) == (3 + 13, 2), (
        "a response without a target counts for nothing"
    )


def test_an_example_of_the_mean_is_a_response_without_branches_too():
    """The responses of one line, with an observation that is trained on, and two examples in the row."""
    roles = np.array([[1, 3, 5, 7, 1, 3, 3, 5, 7, 1, 2, 3, 7, 1, 3, 5, 7, 0]])
    segments = np.array([[1] * 13 + [2] * 4 + [0]])
    losses = np.arange(1.0, 19.0, dtype=np.float32)[None]
    for supervised, means in (((3, 5, 7), (2, 6.5, 11.5, 15)), ((2, 3, 5, 7), (2, 6.5, 11, 15))):
        weights = target_weights(roles, segment_ids=segments, supervised=supervised)
        batch = {
            "weights": weights,
            "segment_ids": segments,
            "branches": np.zeros_like(roles),
            "roles": targets(roles),
        }
        total, weight = normalized(
            "example_mean", jnp.asarray(losses * weights), jax.tree.map(jnp.asarray, batch)
        )
        assert (float(total), float(weight)) == (sum(means), 4)


@pytest.mark.parametrize("normalizer", ["fixed_budget", "example_mean"])
def test_a_train_step_divides_by_what_the_normalizer_names(normalizer):
    """The same batch, by a step that was made with another normalizer, has the loss that the weights say."""
    config, rng = tiny.model_config(), np.random.default_rng(0)
    lengths = {"long": 12, "short": 3}
    roles, weights = np.zeros((2, 16), np.int8), np.zeros((2, 16), np.float32)
    for row, length in enumerate(lengths.values()):
        roles[row, 1 : 1 + length], weights[row, 1 : 1 + length] = 3, 1
    ids = rng.integers(1, 61, (2, 16)).astype(np.int32)
    zeros, ones = np.zeros((2, 16), np.int32), np.ones((2, 16), np.int32)
    batch = {
        "ids": ids, "targets": targets(ids), "weights": weights, "budget": np.full((2, 1), 10.0, np.float32), "roles": roles,
        "segment_ids": ones, "branches": zeros, "positions": np.tile(np.arange(16, dtype=np.int32), (2, 1)),
        "dropped": np.zeros((2, 3), np.int32),
    }  # fmt: skip
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = optax.sgd(0.0)
    params = init_params(config, jax.random.key(0))

    def step(normalizer, **one_row):
        made = make_train_step(
            config, optimizer, params, mesh, remat="none", normalizer=normalizer, kernel="xla"
        )
        with jax.set_mesh(mesh):
            state = init_state(config, optimizer, jax.tree.map(jnp.copy, params), mesh)
            return float(made(state, batch | one_row)[1]["loss"])

    long, short = (
        step("token_sum", weights=weights * (np.arange(2)[:, None] == row)) for row in (0, 1)
    )
    expected = {"fixed_budget": (12 * long + 3 * short) / 20, "example_mean": (long + short) / 2}[
        normalizer
    ]
    assert step(normalizer) == pytest.approx(expected, rel=1e-5)
    assert step("token_sum") == pytest.approx((12 * long + 3 * short) / 15, rel=1e-5)


def test_what_weighs_nothing_adds_nothing_however_wrong_the_logits():
    logits = jnp.array([[[0.0, jnp.inf], [0.0, 0.0]]])
    losses, _ = masked_cross_entropy(logits, jnp.array([[0, 1]]), jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(losses, [[0.0, np.log(2)]], rtol=1e-6)


@pytest.mark.parametrize("wrong", [jnp.inf, -jnp.inf, jnp.nan])
def test_logits_that_are_not_finite_get_a_gradient_of_0_where_they_weigh_nothing(wrong):
    logits, weights = jnp.array([[[0.0, wrong], [0.0, 0.0]]]), jnp.array([[0.0, 1.0]])
    gradient = jax.grad(
        lambda logits: masked_cross_entropy(logits, jnp.array([[0, 1]]), weights)[0].sum()
    )(logits)
    np.testing.assert_allclose(gradient, [[[0.0, 0.0], [0.5, -0.5]]])
