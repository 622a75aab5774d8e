from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.model import shares
from cotjax.model.config import RopeScaling
from cotjax.model.params import bind, init_params
from cotjax.model.shares import Asked

CONFIGS = {
    "grouped heads, norms of queries and keys, tied": tiny.model_config(),
    "biases, scaled positions, untied": tiny.model_config(
        qk_norm=False,
        qkv_bias=True,
        tied_embeddings=False,
        kv_heads=4,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
    ),
}
REASONING, GROUPS = 2, 5
# Prompt 0 and 1, tags 3, reasoning 2, tags 3, action 4; padding. Two queries, and one that is none.
ROW = [0] * 7 + [1] * 6 + [3] + [2] * 9 + [3, 3] + [4, 4] + [-1] * 5
T, REAL = len(ROW), len(ROW) - 5
QUERIES = [REAL - 3, REAL - 2, T]

_attention = jax.jit(partial(shares.attention, groups=GROUPS, kernel="xla"), static_argnums=0)
_gradients = jax.jit(partial(shares.gradients, groups=GROUPS, kernel="xla"), static_argnums=0)


def rows(masked=False, blocked=False, seed=0, padding=0) -> Asked:
    """Two rows with the same groups and other ids."""
    draw = np.random.default_rng(seed)
    groups = np.array([ROW + [-1] * padding] * 2, np.int32)
    ids = draw.integers(1, 61, (2, T)).astype(np.int32)
    at = np.array([QUERIES] * 2, np.int32)
    return Asked(
        ids_BT=jnp.asarray(np.pad(ids, ((0, 0), (0, padding)))),
        groups_BT=jnp.asarray(groups),
        branches_BT=jnp.asarray((groups == REASONING) & blocked, jnp.int32),
        masked_BT=jnp.asarray((groups == REASONING) & masked),
        at_BQ=jnp.asarray(np.where(at == T, T + padding, at)),
    )


def parameters(config):
    """Return other weights than the initial ones, so that no norm and no bias is left out."""
    return jax.tree.map(
        lambda x: x * 1.2 + 0.1 if x.ndim == 1 else x * 1.2, init_params(config, jax.random.key(1))
    )


def spelled_out(config, params, asked, more_LBKTH, more_BTD):
    """Return nats [B, Q] and attention [L, B, N, T, T], by dense attention.

    The queries read values to which `more_LBKTH` is added, all others the values alone.
    """
    B, T = asked.ids_BT.shape
    at = np.array(QUERIES[:2])
    reasoning = asked.groups_BT == REASONING
    seen_BTT = jnp.tri(T, dtype=bool)[None] & (asked.groups_BT >= 0)[:, None, :]
    query_T = jnp.zeros(T, bool).at[at].set(True)
    seen_BTT &= ~(asked.masked_BT[:, None, :] & query_T[None, :, None])
    behind_T = jnp.arange(T) > jnp.flatnonzero(reasoning[0], size=9)[-1]
    seen_BTT &= ~((asked.branches_BT > 0)[:, None, :] & behind_T[None, :, None])
    alphas = []

    def attend(index, q_BNTH, k_BKTH, v_BKTH):
        served = config.heads // config.kv_heads
        k, v, more = (jnp.repeat(x, served, axis=1) for x in (k_BKTH, v_BKTH, more_LBKTH[index]))
        scores = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k) / np.sqrt(config.head_size)
        alpha = jax.nn.softmax(jnp.where(seen_BTT[:, None], scores, -jnp.inf), axis=-1)
        alpha = jnp.where(seen_BTT.any(-1)[:, None, :, None], alpha, 0)
        alphas.append(alpha)
        out = jnp.einsum("BNTS,BNSH->BNTH", alpha, v)
        return out + query_T[None, None, :, None] * jnp.einsum("BNTS,BNSH->BNTH", alpha, more)

    model = bind(config, params)
    # The embedding is looked up as ever; its gradient is that of what is added to it.
    look_up = model.embedded
    model.embedded = lambda ids: look_up(ids) + more_BTD
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    logits = model.logits(model.hidden_states(asked.ids_BT, positions, attend))
    logprobs = jax.nn.log_softmax(logits[:, at], axis=-1)
    nats = -jnp.take_along_axis(logprobs, asked.ids_BT[:, at + 1][..., None], axis=-1)[..., 0]
    return nats, jnp.stack(alphas)


@partial(jax.jit, static_argnums=0)
@partial(jax.grad, argnums=(3, 4), has_aux=True)
def _by_autodiff(*arguments):
    nats, alphas = spelled_out(*arguments)
    return nats.sum(), (nats, alphas)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("hidden", ["", "masked", "blocked"])
def test_gradients_and_attention_equal_autodiff_through_dense_attention(name, hidden):
    config = CONFIGS[name]
    params, asked = parameters(config), rows(**({hidden: True} if hidden else {}))
    shape = (config.layers, 2, config.kv_heads, T, config.head_size)

    zeros = jnp.zeros(shape), jnp.zeros((2, T, config.width))
    (d_v_LBKTH, d_x_BTD), (nats_BQ, alphas_LBNTT) = _by_autodiff(config, params, asked, *zeros)
    found = _gradients(config, params, asked)
    np.testing.assert_allclose(found.nats_BQ[:, :2], nats_BQ, rtol=1e-5)
    assert not found.nats_BQ[:, 2].any(), "the third is no query"
    x_BTD = params["model"]["embed_tokens"]["weight"][asked.ids_BT]
    norms_LBT = jnp.sqrt((d_v_LBKTH**2).sum((2, 4)))
    product_BT = jnp.abs((d_x_BTD * x_BTD).sum(-1))
    mean_LBT = alphas_LBNTT[..., QUERIES[:2], :].mean((2, 3))
    for group in range(GROUPS):
        own_T = np.array(ROW) == group
        for got, expected in (
            (found.gradient_BLR, norms_LBT.swapaxes(0, 1)),
            (found.attention_BLR, mean_LBT.swapaxes(0, 1)),
            (found.input_BR, product_BT),
        ):
            np.testing.assert_allclose(
                got[..., group], expected[..., own_T].sum(-1), rtol=1e-3, atol=1e-5
            )
    assert (found.gradient_BLR[..., [0, 1, 3, 4]] > 5e-4).all(), "nothing is trivial"
    np.testing.assert_allclose(found.attention_BLR.sum(-1), 1, rtol=1e-5)
    if hidden:
        assert not found.attention_BLR[..., REASONING].any()
        assert not found.gradient_BLR[..., REASONING].any()


# ---- wrong implementations


def own_heads_alone(shares_BNQT, delta_BNQH, K):
    """Add the norms of heads, where a value vector has one norm over all of them."""
    B, N, Q, T = shares_BNQT.shape
    reached = jnp.einsum(
        "BKXT,BKXH->BKTH",
        shares_BNQT.reshape(B, K, N // K * Q, T),
        delta_BNQH.reshape(B, K, N // K * Q, -1),
    )
    return jnp.sqrt(jnp.square(reached).sum(axis=3)).sum(axis=1)


def norms_before_the_sum(shares_BNQT, delta_BNQH, K):
    """Add the norms of what each query sends, where the gradients of all queries add up."""
    each = [
        _AT_VALUES(shares_BNQT[:, :, [q]], delta_BNQH[:, :, [q]], K)
        for q in range(shares_BNQT.shape[2])
    ]
    return sum(each)


_AT_VALUES, _SEEN, _BY_GROUP = shares._at_values, shares._seen, shares._by_group
# What is wrong -> (the function of `shares`, the wrong one, the field that shows it).
WRONG = {
    "D6: the first query alone": (
        "_attended",
        lambda alpha, asked, groups: _BY_GROUP(alpha[:, :, 0].mean(axis=1), asked, groups),
        "attention_BLR",
    ),
    "D6: the strongest head": (
        "_attended",
        lambda alpha, asked, groups: _BY_GROUP(alpha[:, :, :2].mean(2).max(1), asked, groups),
        "attention_BLR",
    ),
    "D6: queries see the future": (
        "_seen",
        lambda asked: _SEEN(asked) | (asked.groups_BT >= 0)[:, None],
        "attention_BLR",
    ),
    "D7: attention left out": (
        "_at_values",
        lambda alpha, delta, K: _AT_VALUES((alpha > 0).astype(alpha.dtype), delta, K),
        "gradient_BLR",
    ),
    "D7: attention alone": (
        "_at_values",
        lambda alpha, delta, K: _AT_VALUES(alpha, jnp.ones_like(delta), K),
        "gradient_BLR",
    ),
    "D7: norms by head": ("_at_values", own_heads_alone, "gradient_BLR"),
    "D7: norms by query": ("_at_values", norms_before_the_sum, "gradient_BLR"),
    "D7: means of groups": (
        "_by_group",
        lambda values, asked, groups: (
            _BY_GROUP(values, asked, groups)
            / jnp.maximum(jax.nn.one_hot(asked.groups_BT, groups).sum(1), 1)
        ),
        "gradient_BLR",
    ),
}


@pytest.fixture(scope="module")
def by_hand():
    """Return config, parameters, rows, and the shares that autodiff gives, by field."""
    config = tiny.model_config(layers=1)
    params, asked = parameters(config), rows()
    zeros = jnp.zeros((1, 2, config.kv_heads, T, config.head_size)), jnp.zeros((2, T, config.width))
    (d_v_LBKTH, _), (_, alphas_LBNTT) = _by_autodiff(config, params, asked, *zeros)
    of_groups_TR = np.eye(GROUPS + 1)[ROW][:, :GROUPS]
    norms_BLT = jnp.sqrt((d_v_LBKTH**2).sum((2, 4))).swapaxes(0, 1)
    mean_BLT = alphas_LBNTT[..., QUERIES[:2], :].mean((2, 3)).swapaxes(0, 1)
    expected = {
        "gradient_BLR": np.asarray(norms_BLT) @ of_groups_TR,
        "attention_BLR": np.asarray(mean_BLT) @ of_groups_TR,
    }
    return config, params, asked, expected


@pytest.mark.parametrize("name", ["", *WRONG])
def test_a_wrong_share_is_not_that_of_autodiff(by_hand, monkeypatch, name):
    config, params, asked, expected = by_hand
    if name:
        monkeypatch.setattr(shares, *WRONG[name][:2])
    found = shares.gradients(config, params, asked, groups=GROUPS, kernel="xla")
    near = {
        field: np.allclose(getattr(found, field), right, rtol=1e-2, atol=1e-5)
        for field, right in expected.items()
    }
    assert all(near.values()) if not name else not near[WRONG[name][2]]


def test_attention_without_gradients_is_the_same_and_padding_changes_nothing():
    config = tiny.model_config()
    params = parameters(config)
    alone = _attention(config, params, rows())
    padded = _attention(config, params, rows(padding=90))
    whole = _gradients(config, params, rows())
    assert alone.gradient_BLR is None
    for other in (padded, whole):
        np.testing.assert_allclose(other.nats_BQ, alone.nats_BQ, rtol=1e-5)
        np.testing.assert_allclose(other.attention_BLR, alone.attention_BLR, rtol=1e-4)
        np.testing.assert_array_equal(other.likeliest_BQ[:, :2], alone.likeliest_BQ[:, :2])


def test_uniform_attention_gives_each_group_its_share_of_tokens():
    config = tiny.model_config()
    params = parameters(config)
    for layer in params["model"]["layers"].values():
        for name in ("q_proj", "k_proj"):
            layer["self_attn"][name]["weight"] *= 0
    for masked in (False, True):
        found = _attention(config, params, rows(masked=masked))
        seen = np.array([group if not masked or group != REASONING else -1 for group in ROW])
        expected = [
            np.mean([(seen[: t + 1] == group).sum() / (seen[: t + 1] >= 0).sum()
                     for t in QUERIES[:2]])
            for group in range(GROUPS)
        ]  # fmt: skip
        np.testing.assert_allclose(
            found.attention_BLR, np.broadcast_to(expected, (2, 2, GROUPS)), rtol=1e-5
        )


def test_what_is_blocked_reaches_nothing_and_what_is_masked_reaches_the_tags():
    config = tiny.model_config()
    params = parameters(config)

    def nats(hidden, thought):
        asked = rows(**{hidden: True})
        other = rows(seed=9).ids_BT
        ids = jnp.where(asked.groups_BT == REASONING, other, asked.ids_BT) if thought else None
        asked = asked if ids is None else Asked(**(vars(asked) | {"ids_BT": ids}))
        return np.asarray(_attention(config, params, asked).nats_BQ[:, :2])

    np.testing.assert_array_equal(nats("blocked", False), nats("blocked", True))
    assert np.abs(nats("masked", False) - nats("masked", True)).min() > 1e-4


def test_bfloat16_is_near_float32():
    config = tiny.model_config()
    half = tiny.model_config(compute_dtype="bfloat16")
    params = parameters(config)
    wide = _gradients(config, params, rows())
    narrow = _gradients(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), rows())
    for name in ("attention_BLR", "gradient_BLR"):
        one, other = (
            getattr(found, name) / getattr(found, name).sum(-1, keepdims=True)
            for found in (wide, narrow)
        )
        np.testing.assert_allclose(one, other, atol=0.03)
