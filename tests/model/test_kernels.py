"""One rule, four kernels: what each computes here is compared with the rule spelled out by plain
softmax.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.errors import UsageError
from cotjax.model import decoder, kernels, tree_kernel
from cotjax.model.attention import visible
from cotjax.model.layers import REMAT
from cotjax.model.params import abstract_params, init_params
from cotjax.model.sharding import make_mesh
from cotjax.model.tree_kernel import Blocks, Tiling, runs

# The libraries' kernels need a GPU; what is ours of them, the mask, the layout and what a remat
# policy keeps, goes through the same function of jax.
KERNELS = {
    "xla": kernels.attend_by("xla"),
    "splash": kernels.attend_by("splash", interpret=True),
    # Blocks of several sizes, so that rows of 128 tokens have blocks of every kind.
    "pallas": partial(
        tree_kernel.kernel_attention,
        tiling=Tiling(Blocks(32, 16, 4, 1), Blocks(16, 32, 4, 1), Blocks(32, 16, 4, 1)),
        interpret=True,
    ),
    "library": partial(
        kernels._masked, partial(jax.nn.dot_product_attention, implementation="xla")
    ),
}


RUNS = jax.jit(runs)


def _rows(T, seed=0):
    """Rows of packed trees whose branches have large numbers too, with padding at their ends."""
    draw = np.random.default_rng(seed)
    segments, branches = np.zeros((2, T), np.int32), np.zeros((2, T), np.int32)
    for b, border in enumerate((T // 2, T // 3)):
        segments[b, :border], segments[b, border : T - 9] = 1, 2
        for number, start in enumerate(range(5, T - 30, 31)):
            branches[b, start : start + int(draw.integers(4, 25))] = (1, 2, 3, 255, 256, 40_000)[
                number % 6
            ]
    return segments, branches


def _plain(q, k, v, segments, branches):
    T, G = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat(G, axis=1), v.repeat(G, axis=1)
    seen = visible(segments, branches, segments, branches) & np.tri(T, dtype=bool)[None]
    scores = jnp.einsum("BNTH,BNSH->BNTS", q, k, precision="highest") / np.sqrt(q.shape[3])
    return jnp.einsum(
        "BNTS,BNSH->BNTH",
        jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30)),
        v,
        precision="highest",
    )


def _heads(T, seed=1, dtype=jnp.float32):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=(2, heads, T, 32)), dtype) for heads in (4, 2, 2)]


@pytest.mark.parametrize("T", [128, 200])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_the_rule_in_values_and_gradients(kernel, T):
    q, k, v = _heads(T)
    segments, branches = _rows(T)
    real_BT1 = (segments > 0)[:, :, None]

    def total(attention, q, k, v):
        out = attention(q, k, v, segments, branches)
        return (jnp.sin(out) * real_BT1[:, None]).sum(), out

    def of(attention):
        return jax.jit(
            jax.value_and_grad(partial(total, attention), argnums=(0, 1, 2), has_aux=True)
        )(q, k, v)

    (_, out), gradients = of(KERNELS[kernel])
    (_, expected), others = of(_plain)
    np.testing.assert_allclose(
        out.swapaxes(1, 2)[segments > 0], expected.swapaxes(1, 2)[segments > 0], atol=5e-6
    )
    for ours, theirs in zip(gradients, others, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_rows_of_one_example_need_causality_alone():
    """Padding is behind the example, so nothing real sees it."""
    q, k, v = _heads(96)
    segments, branches = np.ones((2, 96), np.int32), np.zeros((2, 96), np.int32)
    segments[0, 80:] = 0
    real_BT1 = (segments > 0)[:, None, :, None]
    causal = partial(kernels._causal, partial(jax.nn.dot_product_attention, implementation="xla"))

    def pulled(attention):
        def total(*heads):
            return jnp.where(real_BT1, attention(*heads, segments, branches), 0)

        out, back = jax.vjp(total, q, k, v)
        return out, *back(jnp.cos(out))

    for one, two in zip(pulled(causal), pulled(_plain), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_bfloat16_the_rule_is_kept_exactly(kernel):
    """A changed value moves those who see it, and no others by a single bit: hidden scores weigh
    nothing at all.
    """
    q, k, v = _heads(256, dtype=jnp.bfloat16)
    segments, branches = _rows(256)
    seen = visible(segments, branches, segments, branches) & np.tri(256, dtype=bool)[None]
    attention = jax.jit(KERNELS[kernel])
    before = attention(q, k, v, segments, branches)
    for at in (3, 40, 130):
        after = attention(q, k.at[:, :, at].add(1), v.at[:, :, at].add(8), segments, branches)
        moved = np.asarray((after != before).any(axis=(1, 3)))
        np.testing.assert_array_equal(moved[segments > 0], np.asarray(seen[:, :, at])[segments > 0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_number_a_key_is_the_whole_rule(data):
    """On rows of any trees: empty and one-token branches, one-token segments, padding."""
    row = []
    for segment in range(1, data.draw(st.integers(1, 4)) + 1):
        for branch in range(data.draw(st.integers(1, 4))):
            trunk, written = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3))
            row += [(segment, 0)] * trunk + [(segment, branch + 1)] * written
    row += [(0, 0)] * (112 - len(row))  # one length: compiled once
    segments, branches = np.array(row, np.int32).T[:, None]
    ends, starts = (np.asarray(x[0]) for x in RUNS(segments, branches))
    index = np.arange(112)
    causal = index[:, None] >= index
    seen = causal & (index[:, None] < ends)
    rule = (segments[0][:, None] == segments[0]) & causal
    rule &= (branches[0] == 0) | (branches[0][:, None] == branches[0])
    real = segments[0] > 0
    np.testing.assert_array_equal(seen[real], rule[real])
    np.testing.assert_array_equal(starts[real], rule.argmax(axis=1)[real])
    assert (seen[~real] == np.eye(112, dtype=bool)[~real]).all()


def _pulled(attention, heads, segments, branches):
    """Return what real queries see, and the gradients of all heads."""
    real_B1T1 = (segments > 0)[:, None, :, None]

    def total(*heads):
        return jnp.where(real_B1T1, attention(*heads, segments, branches), 0)

    out, back = jax.vjp(total, *heads)
    return out, *back(jnp.cos(out))


# Compiled once for all examples.
PULLED = {name: jax.jit(partial(_pulled, kernel)) for name, kernel in KERNELS.items()}
PULLED_PLAIN = jax.jit(partial(_pulled, _plain))


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_values_and_gradients_on_random_packed_trees(data):
    """Numbers of segments that no token has, segments and branches of one token, padding."""
    row, number = [], 0
    while len(row) < 128 and data.draw(st.integers(0, 5)):
        number += data.draw(st.integers(1, 3))
        for branch in range(data.draw(st.integers(1, 4))):
            trunk, written = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 20))
            row += [(number, 0)] * trunk + [(number, branch + 1)] * written
    row = (row + [(0, 0)] * 128)[:128]
    segments, branches = (np.stack([x, x]) for x in np.array(row, np.int32).T)
    segments[1], branches[1] = 7, 0  # beside it a row of one example
    heads = _heads(128, seed=data.draw(st.integers(0, 99)))
    expected = PULLED_PLAIN(heads, segments, branches)
    for name, pulled in PULLED.items():
        for ours, theirs in zip(pulled(heads, segments, branches), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=3e-5, err_msg=name)


def test_each_platform_gets_its_kernel(monkeypatch):
    class Device:
        def __init__(self, platform):
            self.platform = platform

    class Mesh:
        def __init__(self, platform):
            self.devices = np.array([Device(platform)])

    wide = tiny.model_config(head_size=32)
    narrow = tiny.model_config(head_size=32, compute_dtype="bfloat16")
    assert kernels.kernel_for(wide, make_mesh(devices=jax.devices()[:1])) == "xla"
    assert [kernels.kernel_for(narrow, Mesh(platform)) for platform in ("cpu", "tpu", "gpu")] == [
        "xla",
        "splash",
        "pallas",
    ]
    for platform, kernel in (("cpu", "xla"), ("tpu", "splash"), ("gpu", "causal")):
        assert kernels.kernel_for(narrow, Mesh(platform), alone=lambda: True) == kernel
    assert kernels.kernel_for(narrow, Mesh("gpu"), "pallas", alone=lambda: True) == "pallas"
    assert kernels.kernel_for(wide, Mesh("gpu")) == "xla"  # the others have no float32
    odd = tiny.model_config(compute_dtype="bfloat16", head_size=24)
    assert kernels.kernel_for(odd, Mesh("cuda")) == "cudnn"  # no power of two
    monkeypatch.setattr(kernels, "has_triton", lambda: False)
    assert kernels.kernel_for(narrow, Mesh("gpu")) == "cudnn"
    with pytest.raises(
        UsageError, match="there is no kernel 'flash'; there are xla, splash, pallas, cudnn"
    ):
        kernels.attend_by("flash")


@pytest.mark.parametrize("remat", REMAT)
def test_scanned_layers_are_the_layers(remat):
    config = tiny.model_config(layers=3)
    params = init_params(config, jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 48)).astype(np.int32)
    segments, branches = (x[:, -48:] for x in _rows(80))
    positions = np.broadcast_to(np.arange(48, dtype=np.int32), ids.shape)

    def total(params, scan):
        hidden_BTD = decoder.hidden_states(
            config, params, ids, positions, segments, branches, remat, scan
        )
        return jnp.sin(hidden_BTD).sum(), hidden_BTD

    def of(scan):
        return jax.jit(jax.value_and_grad(partial(total, scan=scan), has_aux=True))(params)

    (_, scanned), gradients = of(True)
    (_, unrolled), others = of(False)
    np.testing.assert_allclose(scanned, unrolled, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()) + 1e-7),
        gradients,
        others,
    )


def test_scanned_layers_are_one_program():
    """Twice the layers: the same number of matmuls to compile."""

    def matmuls(layers, scan):
        config = tiny.model_config(layers=layers)
        rows = [jax.ShapeDtypeStruct((2, 16), jnp.int32)] * 4
        run = partial(decoder.hidden_states, config, scan=scan)
        return str(jax.make_jaxpr(run)(abstract_params(config), *rows)).count("dot_general")

    assert matmuls(6, scan=True) == matmuls(3, scan=True)
    assert matmuls(6, scan=False) > matmuls(3, scan=False)
