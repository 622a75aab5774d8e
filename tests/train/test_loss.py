import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.masking import target_weights
from cotjax.train.loss import masked_cross_entropy, normalized

#                 segment 1: trunk, branch 1, trunk, branch 2   | segment 2: one branch | padding
ROLES = np.array([[1, 1, 3, 5, 7, 1, 1, 3, 3, 5, 7, 1, 3, 5, 7, 0]])
BRANCH = np.array([[0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 2, 0, 1, 1, 1, 0]])
SEGMENT = np.array([[1] * 11 + [2] * 4 + [0]])
LOSSES = np.arange(1.0, 17.0, dtype=np.float32)[None]


def _sum_and_weight(normalizer, drop):
    full = target_weights(ROLES, segment_ids=SEGMENT, branches=BRANCH)
    weights = target_weights(ROLES, segment_ids=SEGMENT, branches=BRANCH, drop_tokens=drop)
    batch = {"weights": weights, "budget": full.sum(-1, keepdims=True), "segment_ids": SEGMENT, "branches": BRANCH}
    total, weight = normalized(normalizer, jnp.asarray(LOSSES * weights), {name: jnp.asarray(array) for name, array in batch.items()})
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
    assert _sum_and_weight("example_mean", gone) == (3 + 13, 2), "a response without a target counts for nothing"


def test_what_weighs_nothing_adds_nothing_however_wrong_the_logits():
    logits = jnp.array([[[0.0, jnp.inf], [0.0, 0.0]]])
    losses, _ = masked_cross_entropy(logits, jnp.array([[0, 1]]), jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(losses, [[0.0, np.log(2)]], rtol=1e-6)
