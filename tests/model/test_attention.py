import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.model import attention

tree_attention = jax.jit(attention.tree_attention)


def _spelled_out(q_NTH, k_KTH, v_KTH, segments, branches):
    """The rule of the rows, one query at a time."""
    N, T, H = q_NTH.shape
    out = np.zeros((N, T, H))
    for n in range(N):
        k_TH, v_TH = k_KTH[n * len(k_KTH) // N], v_KTH[n * len(v_KTH) // N]
        for i in range(T):
            seen = [
                j
                for j in range(i + 1)
                if segments[i] == segments[j] and branches[j] in (0, branches[i])
            ]
            scores = k_TH[seen] @ q_NTH[n, i] / np.sqrt(H)
            shares = np.exp(scores - scores.max())
            out[n, i] = shares @ v_TH[seen] / shares.sum()
    return out


def _rows(T, seed=0):
    """Two packed rows of trees with padding at their ends; some branches cross a block's border."""
    draw = np.random.default_rng(seed)
    segments, branches = np.zeros((2, T), np.int32), np.zeros((2, T), np.int32)
    for b in range(2):
        border = int(T * (0.55 + 0.1 * b))
        segments[b, :border], segments[b, border : T - 5] = 1, 2
        for segment in (1, 2):
            where = np.flatnonzero(segments[b] == segment)
            for branch, start in enumerate(range(7, len(where), 23), 1):
                branches[b, where[start : start + int(draw.integers(3, 15))]] = branch
    return segments, branches


def test_the_drawn_row():
    names = ["a", "b", "x", "y", "c", "d", "z", "p", "q", "."]
    segments = jnp.array([[1, 1, 1, 1, 1, 1, 1, 2, 2, 0]])
    branches = jnp.array([[0, 0, 1, 1, 0, 0, 2, 0, 0, 0]])
    seen = np.array(attention.visible(segments, branches, segments, branches)[0]) & np.tri(
        10, dtype=bool
    )
    sees = {
        name: "".join(names[j] for j in np.flatnonzero(row))
        for name, row in zip(names, seen, strict=True)
    }
    assert (sees["y"], sees["d"], sees["z"], sees["q"]) == ("abxy", "abcd", "abcdz", "pq")
    assert not any(row[9] for row in seen[:9])  # nothing real sees padding


@pytest.mark.parametrize("T", [17, attention.CHUNK + 29])
def test_equals_the_rule_spelled_out(T):
    draw = np.random.default_rng(1)
    q, k, v = (draw.normal(size=(2, heads, T, 8)).astype(np.float32) for heads in (4, 2, 2))
    segments, branches = _rows(T)
    out = tree_attention(q, k, v, segments, branches)
    for b in range(2):
        expected = _spelled_out(q[b], k[b], v[b], segments[b], branches[b])
        np.testing.assert_allclose(out[b], expected, atol=2e-6)


def test_gradients_equal_those_of_plain_softmax():
    T = 2 * attention.CHUNK + 11
    draw = np.random.default_rng(2)
    q, k, v, weights = (
        jnp.asarray(draw.normal(size=(2, heads, T, 8)), jnp.float32) for heads in (4, 2, 2, 4)
    )
    segments, branches = map(jnp.asarray, _rows(T))

    def plain(q, k, v):
        seen = (
            attention.visible(segments, branches, segments, branches) & jnp.tri(T, dtype=bool)[None]
        )
        scores = jnp.einsum("BNTH,BNSH->BNTS", q, jnp.repeat(k, 2, axis=1)) / np.sqrt(8)
        shares = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
        return jnp.einsum("BNTS,BNSH->BNTH", shares, jnp.repeat(v, 2, axis=1))

    def gradients(attend):
        return jax.jit(
            jax.grad(lambda q, k, v: (attend(q, k, v) * weights).sum(), argnums=(0, 1, 2))
        )(q, k, v)

    ours = gradients(lambda q, k, v: tree_attention(q, k, v, segments, branches))
    for got, expected in zip(ours, gradients(plain), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_bfloat16_is_near_float32():
    draw = np.random.default_rng(3)
    q, k, v = (jnp.asarray(draw.normal(size=(2, heads, 40, 8)), jnp.float32) for heads in (4, 2, 2))
    segments, branches = _rows(40)
    half = tree_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), segments, branches)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        half.astype(jnp.float32), tree_attention(q, k, v, segments, branches), atol=0.05
    )


@pytest.mark.parametrize("lengths", [(5, 0), (0, 0)])
def test_prefill_attention_is_attention_over_both_parts(lengths):
    draw = np.random.default_rng(4)
    lengths, M, S = np.array(lengths), 3, 6
    q, fresh_k, fresh_v = (
        draw.normal(size=(2, heads, M, 8)).astype(np.float32) for heads in (4, 2, 2)
    )
    k, v = (draw.normal(size=(2, 2, S, 8)).astype(np.float32) for _ in range(2))
    cached = (
        (k.swapaxes(2, 3), v, np.arange(S)[None, :] < lengths[:, None]) if lengths.any() else None
    )
    out = jax.jit(attention.prefill_attention)(
        q, fresh_k.swapaxes(2, 3), fresh_v, jnp.tri(M, dtype=bool)[None], cached
    )
    for b, length in enumerate(lengths):
        keys, values = (
            np.concatenate([old[b, :, :length], new[b]], axis=1)
            for old, new in ((k, fresh_k), (v, fresh_v))
        )
        padded = np.concatenate([np.zeros((4, length, 8)), q[b]], axis=1)
        whole = _spelled_out(padded, keys, values, np.ones(length + M), np.zeros(length + M))
        np.testing.assert_allclose(out[b], whole[:, length:], atol=2e-6)


def test_step_attention_is_attention_over_what_is_seen():
    draw = np.random.default_rng(5)
    S, seen = 12, np.array([[1] * 7 + [0] * 5, [1] * 2 + [0] * 6 + [1] * 4], bool)
    q = draw.normal(size=(2, 4, 1, 8)).astype(np.float32)
    k, v = (draw.normal(size=(2, 2, S, 8)).astype(np.float32) for _ in range(2))
    k_BKCHY = k.reshape(2, 2, 3, 4, 8).swapaxes(3, 4)
    out = jax.jit(
        lambda q, k, v, seen: attention.step_attention(q, k, v, attention.hidden_bias(seen))
    )(q, k_BKCHY, v, seen)
    for b in range(2):
        keys, values, count = (
            k[b, :, seen[b]].swapaxes(0, 1),
            v[b, :, seen[b]].swapaxes(0, 1),
            seen[b].sum(),
        )
        padded = np.concatenate([np.zeros((4, count - 1, 8)), q[b]], axis=1)
        whole = _spelled_out(padded, keys, values, np.ones(count), np.zeros(count))
        np.testing.assert_allclose(out[b], whole[:, -1:], atol=2e-6)
