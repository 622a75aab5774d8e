"""The mask does not care how examples lie in arrays, nor which library's arrays they are."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.masking import (
    NORMALIZERS,
    Dropping,
    MaskError,
    Role,
    example_mean,
    fixed_budget,
    labels,
    policy_losses,
    spread,
    target_weights,
    targets,
    token_sum,
)
from cotjax.model import decoder
from cotjax.model.params import init_params

ROLES = st.integers(1, 7)
EXAMPLES = st.lists(st.lists(ROLES, min_size=1, max_size=12), min_size=1, max_size=6)


def pack(examples, length, *, left=False):
    """Pack examples into rows -> (roles, segment_ids, where[example] = (row, slice))."""
    rows, where = [[]], {}
    for number in range(len(examples)):
        if sum(len(examples[i]) for i in rows[-1]) + len(examples[number]) > length:
            rows.append([])
        rows[-1].append(number)
    roles, segments = np.zeros((2, len(rows), length), np.int32)
    for row, held in enumerate(rows):
        at = length - sum(len(examples[i]) for i in held) if left else 0
        for place, number in enumerate(held):
            where[number] = (row, slice(at, at + len(examples[number])))
            roles[where[number]] = examples[number]
            segments[where[number]] = place + 1
            at += len(examples[number])
    return roles, segments, where


@given(EXAMPLES, st.booleans(), st.sampled_from([12, 17, 40]), st.floats(0, 1))
def test_weights_are_those_of_the_single_example_under_any_packing_and_padding_side(
    examples, left, length, fraction
):
    roles, segments, where = pack(examples, length, left=left)
    dropping = Dropping(fraction=fraction)
    drops = [dropping.tokens(np.array(example), f"{i}") for i, example in enumerate(examples)]
    dropped = np.zeros(roles.shape, bool)
    for number, place in where.items():
        dropped[place] = drops[number]
    weights = target_weights(roles, segment_ids=segments, drop_tokens=dropped)
    for number, place in where.items():
        np.testing.assert_array_equal(
            weights[place], target_weights(np.array(examples[number]), drop_tokens=drops[number])
        )
        weights[place] = 0
    assert not weights.any(), "padding weighs nothing"


@given(EXAMPLES, st.integers(1, 5))
def test_an_array_split_over_hosts_keeps_its_weights(examples, hosts):
    roles, segments, _ = pack(examples, 12)
    whole = target_weights(roles, segment_ids=segments)
    parts = [
        target_weights(r, segment_ids=s)
        for r, s in zip(np.array_split(roles, hosts), np.array_split(segments, hosts), strict=True)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def _everything(xp, roles, segments, ids, drop, rows, losses):
    weights = target_weights(
        roles,
        drop_tokens=drop,
        drop_action=rows,
        segment_ids=segments,
        supervised=(Role.REASONING, Role.ACTION),
    )
    counts = xp.stack([(segments == s).sum(-1) for s in range(1, 17)], axis=-1)
    return {
        "weights": weights,
        "targets": targets(ids),
        "labels": labels(ids, weights),
        "spread": spread(counts, segments),
        "sums": [
            xp.stack(list(pair))
            for pair in (
                token_sum(losses, weights),
                example_mean(losses, weights, segments, segments=16),
                example_mean(losses, weights),
                fixed_budget(losses, weights, 64.0),
            )
        ],
        "policy": policy_losses(
            -losses, -losses[..., ::-1], xp.asarray(rows, dtype=xp.float32) - 0.5
        ),
    }


_JITTED = jax.jit(partial(_everything, jnp))


@settings(max_examples=25, deadline=None)
@given(EXAMPLES, st.integers(0, 2**31))
def test_numpy_jax_and_jitted_jax_say_the_same(examples, seed):
    roles, segments = (
        np.pad(rows, ((0, 6 - len(rows)), (0, 0))) for rows in pack(examples, 16)[:2]
    )  # one shape, one program
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 99, roles.shape).astype(np.int32)
    drop, draws = rng.random(roles.shape) < 0.3, rng.random(len(roles)) < 0.5
    losses = rng.random(roles.shape).astype(np.float32)

    arguments = (roles, segments, ids, drop, draws, losses)
    of_numpy = _everything(np, *arguments)
    of_jax = _everything(jnp, *map(jnp.asarray, arguments))
    jitted = _JITTED(*arguments)
    for other in (of_jax, jitted):
        assert (
            isinstance(other["weights"], jax.Array)
            and other["weights"].dtype == of_numpy["weights"].dtype == np.float32
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), of_numpy, other
        )


NORMALIZE = {
    "token_sum": lambda losses, batch: token_sum(losses, batch["weights"]),
    "example_mean": lambda losses, batch: example_mean(
        losses, batch["weights"], batch["segments"], segments=8
    ),
    "fixed_budget": lambda losses, batch: fixed_budget(
        losses, batch["weights"], batch["full"].sum()
    ),
}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_packed_is_unpacked_in_loss_and_gradient(normalizer):
    config = tiny.model_config()
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    examples = [
        [1] * rng.integers(2, 6)
        + [3] * rng.integers(2, 6)
        + [4]
        + [5] * rng.integers(1, 4)
        + [6, 7]
        for _ in range(6)
    ]
    text = [rng.integers(1, 61, len(example)) for example in examples]
    dropping = Dropping(fraction=0.5)

    def batch_of(length):
        roles, segments, where = pack(examples, length)
        ids, positions, dropped = (
            np.zeros_like(roles),
            np.zeros_like(roles),
            np.zeros(roles.shape, bool),
        )
        for number, place in where.items():
            ids[place], positions[place] = text[number], np.arange(len(text[number]))
            dropped[place] = dropping.tokens(np.array(examples[number]), f"{number}")
        full = target_weights(roles, segment_ids=segments)
        weights = target_weights(roles, segment_ids=segments, drop_tokens=dropped)
        return {
            "ids": ids,
            "positions": positions,
            "segments": segments,
            "weights": weights,
            "full": full,
        }

    def loss(params, batch):
        hidden = decoder.hidden_states(
            config,
            params,
            batch["ids"],
            batch["positions"],
            batch["segments"],
            jnp.zeros_like(batch["ids"]),
        )
        log_probs = jax.nn.log_softmax(decoder.logits(config, params, hidden).astype(jnp.float32))
        losses = -jnp.take_along_axis(log_probs, targets(batch["ids"])[..., None], axis=-1)[..., 0]
        total, weight = NORMALIZE[normalizer](losses, batch)
        return total / weight

    single, packed = (
        jax.jit(jax.value_and_grad(loss))(params, batch_of(length))
        for length in (max(map(len, examples)), 48)
    )
    np.testing.assert_allclose(single[0], packed[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), single[1], packed[1]
    )
    dropped_away = batch_of(48)
    assert dropped_away["weights"].sum() < dropped_away["full"].sum()


def test_a_loss_that_is_not_finite_is_no_loss_where_it_weighs_nothing():
    losses, weights = (
        np.array([[np.inf, 2.0, np.nan]], np.float32),
        np.array([[0.0, 1.0, 0.0]], np.float32),
    )
    assert token_sum(losses, weights) == (2.0, 1.0)
    assert example_mean(losses, weights) == (2.0, 1.0)


@pytest.mark.parametrize("filler", [-100.0, -jnp.inf, jnp.inf, 0.0])
def test_the_policy_loss_of_an_impossible_token_is_finite_and_its_gradient_at_weight_0_is_0(filler):
    old, weights = jnp.array([[-1.0, -1.0, filler]]), jnp.array([[1.0, 1.0, 0.0]])

    def loss(log_probs, advantage):
        total, weight = token_sum(policy_losses(log_probs, old, jnp.array([advantage])), weights)
        return total / weight

    for advantage in (1.0, -1.0):
        value, gradient = jax.value_and_grad(loss)(jnp.full((1, 3), -1.0), advantage)
        assert value == -advantage
        np.testing.assert_allclose(gradient, [[-advantage / 2, -advantage / 2, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("wrong", [jnp.nan, -jnp.inf])
def test_with_its_weights_the_policy_loss_does_not_look_at_what_weighs_nothing(wrong):
    weights = jnp.array([[1.0, 0.0, 1.0]])

    def loss(log_probs, old):
        return token_sum(policy_losses(log_probs, old, jnp.array([1.0]), weights=weights), weights)[
            0
        ]

    log_probs = jnp.array([[-1.0, wrong, -2.0]])
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(log_probs, log_probs)
    assert value == -2.0
    for gradient in gradients:
        assert np.isfinite(gradient).all() and gradient[0, 1] == 0.0
    _, seen = jax.value_and_grad(loss)(jnp.array([[jnp.nan, -1.0, -1.0]]), jnp.full((1, 3), -1.0))
    assert np.isnan(seen[0, 0]), "what weighs is not hidden"


@pytest.mark.parametrize("name", ["token_sum", "example_mean", "fixed_budget"])
def test_a_loss_that_is_not_finite_has_no_gradient_where_it_weighs_nothing(name):
    weights, segments = jnp.array([[1.0, 0.0, 1.0, 0.0]]), jnp.array([[1, 1, 2, 3]])
    divide = {
        "token_sum": lambda losses: token_sum(losses, weights),
        "example_mean": lambda losses: example_mean(losses, weights, segments, segments=3),
        "fixed_budget": lambda losses: fixed_budget(losses, weights, 4.0),
    }[name]
    value, gradient = jax.value_and_grad(lambda losses: divide(losses)[0])(
        jnp.array([[2.0, jnp.nan, 3.0, jnp.inf]])
    )
    assert value == 5.0
    np.testing.assert_array_equal(gradient, [[1.0, 0.0, 1.0, 0.0]])


def test_the_ratio_is_clipped_where_asked_and_only_there():
    new, old = np.array([[0.0, 0.0, -1.0, -0.1]]), np.array([[-1.0, -0.1, 0.0, 0.0]])
    ratio = np.exp(new - old)
    for clip, advantage in itertools.product((0.05, 0.5, 3.0), (1.0, -1.0)):
        expected = -np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
        np.testing.assert_allclose(
            policy_losses(new, old, np.array([advantage]), clip=clip), expected
        )


def test_advantages_are_of_each_sample_or_of_each_token_and_nothing_else():
    log_probs = np.zeros((2, 3))
    by_token = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(policy_losses(log_probs, log_probs, by_token), -by_token)
    np.testing.assert_array_equal(
        policy_losses(log_probs, log_probs, np.array([1.0, 2.0])), [[-1.0] * 3, [-2.0] * 3]
    )
    for wrong in ((3,), (1,), (2, 1), (1, 3), (2, 4), (), (2, 3, 1)):
        with pytest.raises(MaskError, match="advantages have shape"):
            policy_losses(log_probs, log_probs, np.zeros(wrong))
    for wrong in ((2, 1), (3,), (2, 4)):
        with pytest.raises(MaskError, match="old_log_probs have shape"):
            policy_losses(log_probs, np.zeros(wrong), np.zeros(2))
        with pytest.raises(MaskError, match="weights have shape"):
            token_sum(log_probs, np.zeros(wrong))


def test_a_batch_of_which_all_is_dropped_is_a_step_of_gradient_0():
    nothing, segments = jnp.zeros((1, 3)), jnp.ones((1, 3), jnp.int32)
    for divide in (
        token_sum,
        partial(example_mean, segment_ids=segments, segments=1),
        partial(fixed_budget, budget=3.0),
    ):

        def loss(losses, divide=divide):
            total, weight = divide(losses, nothing)
            return total / jnp.maximum(weight, 1)

        value, gradient = jax.value_and_grad(loss)(jnp.ones((1, 3)))
        assert value == 0.0
        np.testing.assert_array_equal(gradient, nothing)


def test_normalizers_on_a_worked_example():
    losses = np.array([[1.0, 2.0, 3.0, 9.0], [4.0, 9.0, 9.0, 9.0]], np.float32)
    weights = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], np.float32)
    assert token_sum(losses, weights) == (10.0, 4.0)
    assert example_mean(losses, weights) == (2.0 + 4.0, 2.0)
    assert fixed_budget(losses, weights, 8.0) == (10.0, 8.0)
    # Two examples in the first row, the second without a supervised token: it is not counted.
    segments = np.array([[1, 1, 2, 3], [1, 1, 1, 1]])
    assert example_mean(losses, weights, segments) == (1.5 + 3.0 + 4.0, 3.0)


def test_the_policy_loss_loses_the_dropped_tokens_and_nothing_else():
    rng = np.random.default_rng(1)
    roles = np.array([[1, 3, 3, 4, 5, 5, 6, 7]] * 2)
    new, old = rng.normal(-1, 0.3, (2, 2, 8))
    advantages = np.array([1.5, -0.5])
    elements = policy_losses(new, old, advantages)
    ratio = np.exp(new - old)
    clipped = np.clip(ratio, 0.8, 1.2)
    np.testing.assert_allclose(
        elements, -np.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    )
    full, dropped = (
        target_weights(roles),
        target_weights(roles, drop_action=np.array([True, False])),
    )
    gone = (full - dropped).astype(bool)
    np.testing.assert_array_equal(targets(roles)[gone], [Role.ACTION] * 2)
    assert token_sum(elements, full)[0] - token_sum(elements, dropped)[0] == pytest.approx(
        elements[gone].sum(), rel=1e-5
    )
