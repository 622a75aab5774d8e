"""The gradient from samples of an older policy, and terms whose weight is the batch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.errors import UsageError
from cotjax.objectives.policy import Policy, policy_pairs

ARMS = 6
RANDOM = np.random.default_rng(0)
LOGITS, PLAYED = RANDOM.normal(0, 0.2, (2, ARMS))
ADVANTAGES = RANDOM.normal(size=(1, ARMS))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))[None]


def loss_of(settings, old, sampler, **fields):
    """Return (logits) -> the loss in expectation over what the policy PLAYED samples.

    Each arm is a token whose weight is its probability.
    """
    weights = np.exp(log_softmax(PLAYED))
    batch = {
        "weights": weights,
        "kl_weights": weights,
        "advantages": ADVANTAGES,
        "old": old,
        "sampler": sampler,
        "reference": log_softmax(PLAYED[::-1]),
        "budget": np.ones((1, 1)),
        "roles": np.full((1, ARMS), 3, np.int8),
        **fields,
    }

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        entropies = jnp.full(ARMS, -(jnp.exp(log_probs) * log_probs).sum())
        arrays = jax.tree.map(jnp.asarray, batch)
        total, weight = policy_pairs(settings, log_probs[None], entropies[None], arrays)["loss"]
        return total / weight

    return loss


def wanted(logits):
    """Return minus what the policy of these logits expects to win: its gradient is sought."""
    return -(jnp.exp(jax.nn.log_softmax(logits)) * ADVANTAGES[0]).sum()


@pytest.mark.parametrize("old", ["sampler", "trainer"])
def test_samples_of_an_older_policy_have_the_gradient_of_the_present_one(old):
    """By the ratio to what played, or by the importance weight of a ratio that is 1."""
    settings = Policy(kl=0.0, clip=0.99, clip_high=50.0, truncation=50.0)
    played = log_softmax(PLAYED)
    loss = loss_of(settings, played if old == "sampler" else log_softmax(LOGITS), played)
    gradient = jax.grad(wanted)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(LOGITS)), gradient, atol=1e-12)
    # Log-probabilities of the present policy in the place of the sampler's hide how old it is.
    hidden = loss_of(settings, log_softmax(LOGITS), log_softmax(LOGITS))
    assert np.abs(jax.grad(hidden)(jnp.asarray(LOGITS)) - gradient).max() > 0.01


def test_a_weight_of_the_batch_is_as_good_as_one_of_the_settings():
    played = log_softmax(PLAYED)
    settings = Policy(kl=0.3, entropy=0.05)
    given = {"coefficients": np.array([[0.3, 0.05]])}
    adaptive = Policy(kl=9.0, entropy=0.0, adaptive=("kl", "entropy"))
    one, other = loss_of(settings, played, played), loss_of(adaptive, played, played, **given)
    for each in (lambda loss: loss(jnp.asarray(LOGITS)), lambda loss: jax.grad(loss)(LOGITS)):
        np.testing.assert_allclose(each(one), each(other), rtol=1e-12)
    half = {"coefficients": np.array([[0.3, 7.0]])}
    of_kl = loss_of(Policy(kl=9.0, entropy=0.05, adaptive=("kl",)), played, played, **half)
    np.testing.assert_allclose(of_kl(LOGITS), one(LOGITS), rtol=1e-12)


def test_a_term_without_a_weight_to_adapt_is_refused():
    with pytest.raises(UsageError, match=r"adaptive is .'lr',.; there are kl, entropy"):
        Policy(adaptive=("lr",))
