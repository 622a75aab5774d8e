import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.errors import DataError
from cotjax.model import decoder
from cotjax.model.layers import REMAT
from cotjax.model.params import abstract_params, init_params

CONFIG = tiny.model_config()

# A trunk of 12 tokens; branch 1 (tokens 20 21 22) leaves it after 4, branch 2 (30 31) after 8,
# branch 3 (40 41) at its end.
TRUNK = list(range(1, 13))
BRANCHES = {1: (4, [20, 21, 22]), 2: (8, [30, 31]), 3: (12, [40, 41])}

_hidden_states = jax.jit(decoder.hidden_states, static_argnums=(0, 6))


def _tree():
    """(ids, branches, positions) of the row."""
    rows = []
    for place, token in enumerate(TRUNK):
        for branch, (after, tokens) in BRANCHES.items():
            if after == place:
                rows += [(t, branch, after + i) for i, t in enumerate(tokens)]
        rows.append((token, 0, place))
    rows += [(t, 3, 12 + i) for i, t in enumerate(BRANCHES[3][1])]
    return map(np.array, zip(*rows, strict=True))


def _hidden(params, ids, positions, segments, branches, config=CONFIG, remat="none"):
    arrays = (
        jnp.asarray(np.atleast_2d(x), jnp.int32) for x in (ids, positions, segments, branches)
    )
    return _hidden_states(config, params, *arrays, remat)


def _plain(ids):
    return np.array(ids), np.arange(len(ids)), np.ones(len(ids)), np.zeros(len(ids))


def test_gradient_reaches_exactly_what_the_tree_shows():
    ids, branches, positions = _tree()

    def total_by_token(table):
        params = tiny.params() | {
            "model": tiny.params()["model"] | {"embed_tokens": {"weight": table}}
        }
        return _hidden(params, ids, positions, np.ones(len(ids)), branches)[0].sum(axis=-1)

    jacobian_TVD = jax.jit(jax.jacrev(total_by_token))(
        tiny.params()["model"]["embed_tokens"]["weight"]
    )
    reached = np.abs(np.asarray(jacobian_TVD)).sum(axis=-1) > 0
    for i in range(len(ids)):
        seen = {int(ids[j]) for j in range(i + 1) if branches[j] in (0, branches[i])}
        assert set(np.flatnonzero(reached[i])) == seen, f"token {i}"


def test_tree_row_equals_separate_step_rows():
    ids, branches, positions = _tree()
    tree = _hidden(tiny.params(), ids, positions, np.ones(len(ids)), branches)[0]
    np.testing.assert_allclose(
        tree[branches == 0], _hidden(tiny.params(), *_plain(TRUNK))[0], atol=1e-5
    )
    for branch, (after, tokens) in BRANCHES.items():
        alone = _hidden(tiny.params(), *_plain(TRUNK[:after] + tokens))[0]
        np.testing.assert_allclose(tree[branches == branch], alone[after:], atol=1e-5)


def test_packed_equals_unpacked_in_values_and_gradients():
    ids, branches, positions = _tree()
    T = len(ids)
    other = list(range(50, 60))
    packed = [
        np.concatenate(parts)
        for parts in (
            (ids, other, [0, 0]),
            (positions, np.arange(10), [0, 0]),
            (np.full(T, 1), np.full(10, 2), [0, 0]),
            (branches, np.zeros(10), [0, 0]),
        )
    ]

    def loss(hidden):
        return jnp.sin(3 * hidden).sum()

    def together(params):
        return loss(_hidden(params, *packed)[0, : T + 10])

    def apart(params):
        return loss(_hidden(params, ids, positions, np.ones(T), branches)) + loss(
            _hidden(params, *_plain(other))
        )

    (one, d_one), (two, d_two) = (
        jax.jit(jax.value_and_grad(f))(tiny.params()) for f in (together, apart)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max()) + 1e-6),
        d_one,
        d_two,
    )


def test_remat_gives_the_same_gradients():
    arrays = _plain(list(range(30)))

    def loss(remat):
        return lambda params: jnp.sin(
            decoder.logits(CONFIG, params, _hidden(params, *arrays, remat=remat))
        ).sum()

    kept, *others = (jax.jit(jax.grad(loss(remat)))(tiny.params()) for remat in REMAT)
    assert len(others) == 3
    for again in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7
            ),
            kept,
            again,
        )


def test_initial_values_depend_on_key_and_path_alone():
    untied = init_params(tiny.model_config(tied_embeddings=False), jax.random.key(0))
    assert untied.pop("lm_head")["weight"].shape == (CONFIG.vocab_size, CONFIG.width)
    jax.tree.map(tiny.assert_same_draws, untied, tiny.params())
    layers = tiny.params()["model"]["layers"]
    assert not np.array_equal(
        layers["0"]["mlp"]["up_proj"]["weight"], layers["1"]["mlp"]["up_proj"]["weight"]
    )
    another = init_params(CONFIG, jax.random.key(1))
    assert not np.array_equal(
        another["model"]["embed_tokens"]["weight"], tiny.params()["model"]["embed_tokens"]["weight"]
    )


def test_what_writes_into_the_stream_starts_small_by_depth():
    deep = tiny.model_config(layers=12, width=64, head_size=16, feed_forward=128)
    down = init_params(deep, jax.random.key(3))["model"]["layers"]["0"]["mlp"]["down_proj"][
        "weight"
    ]
    np.testing.assert_allclose(float(down.std()) * np.sqrt(128 * 2 * 12), 1, rtol=0.05)


def test_abstract_params_are_what_init_makes():
    abstract = abstract_params(CONFIG)
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(str(a)),
        abstract,
        tiny.params(),
    )


def test_biases_count_where_the_config_has_them():
    config = tiny.model_config(qkv_bias=True, qk_norm=False)
    params = init_params(config, jax.random.key(0))
    before = _hidden(params, *_plain([1, 2, 3]), config=config)
    bias = params["model"]["layers"]["0"]["self_attn"]["v_proj"]["bias"]
    params["model"]["layers"]["0"]["self_attn"]["v_proj"]["bias"] = bias + 1
    assert np.abs(_hidden(params, *_plain([1, 2, 3]), config=config) - before).max() > 0.01


def test_logits_are_float32_whatever_the_compute_dtype():
    config = tiny.model_config(compute_dtype="bfloat16")
    hidden = _hidden(tiny.params(), *_plain([1, 2, 3]), config=config)
    assert hidden.dtype == jnp.bfloat16
    logits = decoder.logits(config, tiny.params(), hidden)
    assert logits.dtype == jnp.float32
    expected = decoder.logits(CONFIG, tiny.params(), _hidden(tiny.params(), *_plain([1, 2, 3])))
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_weights_of_another_config_are_named():
    with pytest.raises(DataError, match=r"there is no lm_head\.weight"):
        decoder.logits(
            tiny.model_config(tied_embeddings=False), tiny.params(), jnp.zeros((1, CONFIG.width))
        )


def test_a_second_step_is_not_traced_again():
    traces = []

    @jax.jit
    def step(params, ids):
        traces.append(1)
        return decoder.hidden_states(CONFIG, params, ids, *(jnp.ones_like(ids),) * 3)

    for start in range(3):
        step(tiny.params(), jnp.arange(start, start + 4)[None])
    assert len(traces) == 1
