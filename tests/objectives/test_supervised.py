import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from cotjax.errors import UsageError
from cotjax.masking import (
    NORMALIZERS,
    Role,
    example_mean,
    fixed_budget,
    target_weights,
    targets,
    token_sum,
)
from cotjax.model import decoder
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.objectives.supervised import (
    make_objective,
    masked_cross_entropy,
    normalized,
    responses,
    supervised,
    token_losses,
)
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
        jnp.asarray(LOSSES),
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
    assert _sum_and_weight("fixed_budget", drop) == (82 - 9, 10), "the others keep their weight"
    gone = (BRANCH == 2) & (ROLES > 2)
    assert _sum_and_weight("example_mean", gone) == (3 + 13, 2), (
        "a response without a target is not counted"
    )


def test_an_example_of_the_mean_is_a_response_without_branches_too():
    """The responses of one line, with an observation that is trained on, and two examples a row."""
    roles = np.array([[1, 3, 5, 7, 1, 3, 3, 5, 7, 1, 2, 3, 7, 1, 3, 5, 7, 0]])
    segments = np.array([[1] * 13 + [2] * 4 + [0]])
    losses = np.arange(1.0, 19.0, dtype=np.float32)[None]
    for trained, means in (((3, 5, 7), (2, 6.5, 11.5, 15)), ((2, 3, 5, 7), (2, 6.5, 11, 15))):
        weights = target_weights(roles, segment_ids=segments, supervised=trained)
        batch = {
            "weights": weights,
            "segment_ids": segments,
            "branches": np.zeros_like(roles),
            "roles": targets(roles),
        }
        total, weight = normalized(
            "example_mean", jnp.asarray(losses), jax.tree.map(jnp.asarray, batch)
        )
        assert (float(total), float(weight)) == (sum(means), 4)


def test_responses_without_a_prompt_between_them_are_told_apart_by_segment_and_by_branch():
    """Two examples that are responses alone, and two branches side by side on one trunk."""
    rows = {
        "segments": {"roles": [[3, 7, 3, 7]], "segment_ids": [[1, 1, 2, 2]], "branches": [[0] * 4]},
        "branches": {
            "roles": [[1, 3, 7, 3, 7]],
            "segment_ids": [[1] * 5],
            "branches": [[0, 1, 1, 2, 2]],
        },
    }
    for name, row in rows.items():
        batch = {field: jnp.asarray(array) for field, array in row.items()}
        batch["roles"] = targets(batch["roles"])
        numbers = np.asarray(responses(batch))[0]
        first, second = {"segments": (0, 2), "branches": (1, 3)}[name]
        assert numbers[first] != numbers[second]


def test_a_row_of_one_token_responses_counts_each_of_them():
    """The most responses that a row can have: one fewer than it has targets."""
    batch = {
        "roles": jnp.full((1, 6), 3, jnp.int8),
        "segment_ids": jnp.arange(1, 7)[None],
        "branches": jnp.zeros((1, 6), jnp.int32),
        "weights": jnp.ones((1, 6), jnp.float32),
    }
    total, weight = normalized("example_mean", jnp.arange(6.0)[None], batch)
    # The last two targets are of one segment: the one behind the row is taken for its own.
    assert float(weight) == 5 and float(total) == 0 + 1 + 2 + 3 + (4 + 5) / 2


def _two_rows(weight=1.0):
    """A batch of two rows of one response each, of 12 and of 3 targets."""
    rng = np.random.default_rng(0)
    roles, weights = np.ones((2, 16), np.int8), np.zeros((2, 16), np.float32)
    for row, length in enumerate((12, 3)):
        roles[row, 1 : 1 + length], weights[row, 1 : 1 + length] = 3, weight
    ids = rng.integers(1, 61, (2, 16)).astype(np.int32)
    return {
        "ids": ids,
        "targets": targets(ids),
        "weights": weights,
        "budget": np.full((2, 1), 10.0, np.float32),
        "roles": roles,
        "segment_ids": np.ones((2, 16), np.int32),
        "branches": np.zeros((2, 16), np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (2, 1)),
        "dropped": np.zeros((2, 3), np.int32),
    }


CONFIG = tiny.model_config()


@pytest.fixture(scope="module")
def one_device():
    """(mesh, parameters)"""
    return make_mesh(devices=jax.devices()[:1]), init_params(CONFIG, jax.random.key(0))


def _step(one_device, normalizer, batch, accumulate=1):
    """(loss, parameters after an update by the gradient itself) of a train step."""
    mesh, params = one_device
    optimizer = optax.sgd(1.0)
    objective = make_objective(CONFIG, mesh, normalizer=normalizer, kernel="xla")
    step = make_train_step(CONFIG, optimizer, params, mesh, objective, accumulate)
    with jax.set_mesh(mesh):
        state = init_state(CONFIG, optimizer, jax.tree.map(jnp.copy, params), mesh)
        state, metrics = step(state, batch)
    return float(metrics["loss"]), state.params


@pytest.mark.parametrize("normalizer", ["fixed_budget", "example_mean"])
def test_a_train_step_divides_by_what_the_normalizer_names(one_device, normalizer):
    """The loss is what the losses of each row alone give, divided by hand."""
    batch = _two_rows()

    def of_row(row):
        weights = batch["weights"] * (np.arange(2)[:, None] == row)
        return _step(one_device, "token_sum", batch | {"weights": weights})[0]

    long, short = of_row(0), of_row(1)
    expected = {"fixed_budget": (12 * long + 3 * short) / 20, "example_mean": (long + short) / 2}
    loss, _ = _step(one_device, normalizer, batch)
    assert loss == pytest.approx(expected[normalizer], rel=1e-5)
    of_tokens, _ = _step(one_device, "token_sum", batch)
    assert of_tokens == pytest.approx((12 * long + 3 * short) / 15, rel=1e-5)


def test_weights_of_a_half_give_the_same_mean_in_the_library_and_in_the_trainer():
    """Losses of 2 and 4 at weight 0.5 have the mean 3: the weight is applied once."""
    losses, weights = np.array([[2.0, 4.0, 9.0]]), np.array([[0.5, 0.5, 0.0]])
    total, weight = example_mean(losses, weights)
    assert total / weight == 3.0
    batch = {
        "weights": jnp.asarray(weights),
        "segment_ids": jnp.ones((1, 3), jnp.int32),
        "branches": jnp.zeros((1, 3), jnp.int32),
        "roles": jnp.array([[3, 5, 1]]),
    }
    total, weight = normalized("example_mean", jnp.asarray(losses), batch)
    assert total / weight == 3.0


def _library(normalizer, losses, batch):
    """(sum, weight) as a user of the library alone computes it."""
    weights = jnp.asarray(batch["weights"])
    if normalizer == "fixed_budget":
        return fixed_budget(losses, weights, batch["budget"].sum())
    return {"token_sum": token_sum, "example_mean": example_mean}[normalizer](losses, weights)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_train_step_at_weight_one_half_has_the_loss_and_gradient_of_the_library(
    one_device, normalizer, accumulate
):
    """Over full logits by optax, with the weights of one row halved and those of the other not."""
    _, params = one_device
    batch = _two_rows()
    batch["weights"][0] *= 0.5

    def loss(params):
        rows = (batch[name] for name in ("ids", "positions", "segment_ids", "branches"))
        logits = decoder.logits(CONFIG, params, decoder.hidden_states(CONFIG, params, *rows))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        total, weight = _library(normalizer, losses, batch)
        return total / weight

    expected, gradients = jax.jit(jax.value_and_grad(loss))(params)
    ours, moved = _step(one_device, normalizer, batch, accumulate)
    assert ours == pytest.approx(float(expected), rel=1e-5)
    for before, after, gradient in zip(
        *map(jax.tree.leaves, (params, moved, gradients)), strict=True
    ):
        np.testing.assert_allclose(before - after, gradient, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(
    ("normalizer", "share"), [("token_sum", 1.0), ("example_mean", 1.0), ("fixed_budget", 0.5)]
)
def test_halving_all_weights_halves_only_what_a_fixed_budget_divides(one_device, normalizer, share):
    ones, before = _step(one_device, normalizer, _two_rows())
    halves, after = _step(one_device, normalizer, _two_rows(0.5))
    assert halves == pytest.approx(share * ones, rel=1e-6)
    for old, new, start in zip(*map(jax.tree.leaves, (before, after, one_device[1])), strict=True):
        np.testing.assert_allclose(start - new, share * (start - old), rtol=1e-3, atol=1e-6)


def test_the_totals_by_role_are_weighted_once(one_device):
    _, params = one_device
    batch = _two_rows(0.5)
    losses, weights = jax.jit(lambda params: supervised(CONFIG, params, batch)["by_role"])(params)
    expected = np.asarray(jax.jit(lambda params: token_losses(CONFIG, params, batch))(params))
    assert weights.tolist() == [7.5 * (role == Role.REASONING) for role in Role]
    np.testing.assert_allclose(losses.sum(), 0.5 * expected.sum(), rtol=1e-5)


def test_an_unknown_normalizer_is_refused(one_device):
    with pytest.raises(UsageError, match="unknown normalizer 'mean'; there are token_sum"):
        make_objective(CONFIG, one_device[0], normalizer="mean")


def test_an_unsupervised_position_has_loss_0_however_wrong_the_logits():
    logits = jnp.array([[[0.0, jnp.inf], [0.0, 0.0]]])
    losses = masked_cross_entropy(logits, jnp.array([[0, 1]]), jnp.array([[False, True]]))
    np.testing.assert_allclose(losses, [[0.0, np.log(2)]], rtol=1e-6)


@pytest.mark.parametrize("wrong", [jnp.inf, -jnp.inf, jnp.nan])
def test_logits_that_are_not_finite_get_a_gradient_of_0_where_nothing_is_supervised(wrong):
    logits, mask = jnp.array([[[0.0, wrong], [0.0, 0.0]]]), jnp.array([[False, True]])
    gradient = jax.grad(
        lambda logits: masked_cross_entropy(logits, jnp.array([[0, 1]]), mask).sum()
    )(logits)
    np.testing.assert_allclose(gradient, [[[0.0, 0.0], [0.5, -0.5]]])
