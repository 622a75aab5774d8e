"""The clipped ratio, the estimators of a KL divergence, and a bandit whose optimum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.masking import (
    MaskError,
    clipped,
    kl_estimates,
    log_ratios,
    policy_losses,
    truncated_importance,
)

RATIOS = np.array([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.3, 2.9, 3.5])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def gradient_at(ratios, advantage, **clip):
    """d loss / d log-prob at each ratio, over -advantage: 0 where the clip takes it, else ratio."""

    def loss(log_probs):
        old = jnp.zeros_like(log_probs)
        return policy_losses(log_probs, old, jnp.array([advantage]), **clip).sum()

    return -np.asarray(jax.grad(loss)(jnp.log(jnp.asarray(ratios))[None]))[0] / advantage


def test_the_clip_takes_the_gradient_of_exactly_the_tokens_outside_on_the_wrong_side(float64):
    up, down = (RATIOS <= 1.28, RATIOS >= 0.8)
    clip = {"clip": 0.2, "clip_high": 0.28}
    np.testing.assert_allclose(gradient_at(RATIOS, 2.0, **clip), np.where(up, RATIOS, 0))
    np.testing.assert_allclose(gradient_at(RATIOS, -2.0, **clip), np.where(down, RATIOS, 0))
    cut = down & (RATIOS < 3)
    np.testing.assert_allclose(
        gradient_at(RATIOS, -2.0, dual_clip=3.0, **clip), np.where(cut, RATIOS, 0)
    )
    np.testing.assert_allclose(
        gradient_at(RATIOS, 2.0, dual_clip=3.0, **clip), np.where(up, RATIOS, 0)
    )
    for advantage, (low, high) in {1.0: (False, ~up), -1.0: (~down, False)}.items():
        found = clipped(np.log(RATIOS)[None], np.array([advantage]), **clip)
        np.testing.assert_array_equal(found[0][0], np.broadcast_to(low, RATIOS.shape))
        np.testing.assert_array_equal(found[1][0], np.broadcast_to(high, RATIOS.shape))


def test_at_ratio_1_the_gradient_is_the_score_functions(float64):
    rng = np.random.default_rng(0)
    logits, ids = jnp.asarray(rng.normal(size=(3, 4, 7))), rng.integers(0, 7, (3, 4))
    advantages = jnp.asarray(rng.normal(size=3))

    def log_probs(logits):
        return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]

    old = log_probs(logits)
    surrogate = jax.grad(lambda x: policy_losses(log_probs(x), old, advantages).sum())(logits)
    score = jax.grad(lambda x: -(advantages[:, None] * log_probs(x)).sum())(logits)
    np.testing.assert_allclose(surrogate, score, atol=1e-15)


def test_a_dual_clip_inside_the_interval_is_refused():
    with pytest.raises(MaskError, match=r"dual_clip is 1\.1; it must be more than 1 \+ 0\.2"):
        policy_losses(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1), dual_clip=1.1)


def test_estimates_are_the_divergence_and_k2_alone_has_its_gradient_as_a_loss(float64):
    rng = np.random.default_rng(1)
    logits, other = jnp.asarray(rng.normal(size=9)), jnp.asarray(rng.normal(size=9))
    log_ref = jax.nn.log_softmax(other)

    def kl(logits):
        p = jax.nn.softmax(logits)
        return (p * (jnp.log(p) - log_ref)).sum()

    def reverse(logits):
        return (jnp.exp(log_ref) * (log_ref - jax.nn.log_softmax(logits))).sum()

    sampled = jax.nn.softmax(logits)  # each id as often as it is sampled

    def estimate(logits, name):
        return (sampled * kl_estimates(jax.nn.log_softmax(logits), log_ref, name)).sum()

    for name in ("k1", "k3"):
        assert estimate(logits, name) == pytest.approx(float(kl(logits)), abs=1e-12)
    gradients = {name: jax.grad(estimate)(logits, name) for name in ("k1", "k2", "k3")}
    np.testing.assert_allclose(gradients["k1"], np.zeros(9), atol=1e-12)
    np.testing.assert_allclose(gradients["k2"], jax.grad(kl)(logits), atol=1e-12)
    np.testing.assert_allclose(gradients["k3"], jax.grad(reverse)(logits), atol=1e-12)

    def in_reward(logits):
        log_probs = jax.nn.log_softmax(logits)
        return (sampled * log_probs * jax.lax.stop_gradient(log_probs - log_ref)).sum()

    np.testing.assert_allclose(jax.grad(in_reward)(logits), jax.grad(kl)(logits), atol=1e-12)


def solved(estimator, beta, *, scaled=False, in_reward=False):
    """Distance from the optimum after descent along the expected gradient of 5 arms.

    `in_reward`: the divergence, by k1, is a cost of the arm that was drawn.
    """
    rewards = jnp.array([0.0, 0.2, 0.5, 0.9, 1.0])
    log_ref = jax.nn.log_softmax(jnp.array([1.5, 0.5, 0.0, -0.5, -1.5]))
    best = jax.nn.softmax(log_ref + rewards / beta)

    def loss(logits, old):
        log_probs, old_probs = jax.nn.log_softmax(logits), jnp.exp(old)
        costs = beta * kl_estimates(old, log_ref, "k1") if in_reward else 0.0
        advantages = rewards - costs
        advantages -= (old_probs * advantages).sum()
        if scaled:
            advantages /= jnp.sqrt((old_probs * advantages**2).sum())
        losses = policy_losses(log_probs, old, advantages)
        if not in_reward:
            losses += beta * kl_estimates(log_probs, log_ref, estimator)
        return (old_probs * losses).sum()

    def update(logits, _):
        return logits - jax.grad(loss)(logits, jax.nn.log_softmax(logits)), None

    policy = jax.nn.softmax(jax.lax.scan(update, log_ref, length=3000)[0])
    return float(jnp.abs(policy - best).sum() / 2)


def test_a_bandit_reaches_its_optimum_with_k2_and_not_with_k3_or_scaled_advantages(float64):
    """The optimum of reward - beta KL(policy || ref) is ref exp(reward / beta) / Z."""
    assert solved("k2", 0.3) < 1e-6
    assert solved("k3", 0.3) > 0.05
    assert solved("k1", 0.3) > 0.05, "without any pull it goes to the best arm"
    assert solved("k2", 0.3, scaled=True) > 0.05
    assert solved("k1", 0.3, in_reward=True) < 1e-6


def test_importance_weights_are_cut_above_and_carry_no_gradient():
    new, old = jnp.log(jnp.array([[0.5, 1.0, 3.0]])), jnp.zeros((1, 3))
    np.testing.assert_allclose(truncated_importance(new, old), [[0.5, 1.0, 2.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: truncated_importance(x, old).sum())(new)
    assert not np.asarray(gradient).any()
    ignored = truncated_importance(jnp.array([[jnp.nan]]), old[:, :1], weights=jnp.zeros((1, 1)))
    assert ignored == 1.0


def test_an_impossible_token_gives_finite_numbers_and_no_gradient():
    for wrong in (-jnp.inf, -100.0, 98.0):
        for estimator in ("k1", "k2", "k3"):

            def total(log_probs, wrong=wrong, estimator=estimator):
                other = jnp.array([[wrong]])
                losses = policy_losses(log_probs, other, jnp.ones(1))
                return (losses + kl_estimates(log_probs, other, estimator)).sum()

            value, gradient = jax.value_and_grad(total)(jnp.array([[-2.0]]))
            assert np.isfinite(value) and gradient == 0.0


def test_the_library_of_the_input_computes_the_same():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    new, old, advantages = rng.normal(size=(2, 5)), rng.normal(size=(2, 5)), rng.normal(size=2)
    weights = (rng.random((2, 5)) < 0.7).astype(np.float64)

    def everything(new, old, advantages, weights):
        ratios = log_ratios(new, old, weights=weights)
        clip = {"clip": 0.1, "clip_high": 0.3}
        return [
            policy_losses(new, old, advantages, dual_clip=1.5, weights=weights, **clip),
            *clipped(ratios, advantages, **clip),
            *(kl_estimates(new, old, name, weights=weights) for name in ("k1", "k2", "k3")),
            truncated_importance(new, old, 1.5, weights=weights),
        ]

    arrays = (new, old, advantages, weights)
    expected = everything(*arrays)
    for of in (jnp.asarray, torch.tensor):
        for one, other in zip(everything(*map(of, arrays)), expected, strict=True):
            np.testing.assert_allclose(np.asarray(one), other, rtol=1e-5, atol=1e-6)
    tensor = torch.tensor(new, requires_grad=True)
    assert not truncated_importance(tensor, torch.tensor(old)).requires_grad
