"""One rule, three kernels: what each computes here is compared with the rule spelled out by plain
softmax.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.errors import UsageError
from cotjax.model import decoder, kernels
from cotjax.model.attention import visible
from cotjax.model.layers import REMAT
from cotjax.model.params import abstract_params, init_params
from cotjax.model.sharding import make_mesh

# cuDNN itself needs a GPU; what is ours of it, the mask and the layout, goes through the same
# function of jax.
KERNELS = {
    "xla": kernels.attend_by("xla"),
    "splash": kernels.attend_by("splash", interpret=True),
    "cudnn": partial(kernels._cudnn, implementation="xla"),
}


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


def test_each_platform_gets_its_kernel():
    class Device:
        def __init__(self, platform):
            self.platform = platform

    class Mesh:
        def __init__(self, platform):
            self.devices = np.array([Device(platform)])

    wide, narrow = tiny.model_config(), tiny.model_config(compute_dtype="bfloat16")
    assert kernels.kernel_for(wide, make_mesh(devices=jax.devices()[:1])) == "xla"
    assert [kernels.kernel_for(narrow, Mesh(platform)) for platform in ("cpu", "tpu", "gpu")] == [
        "xla",
        "splash",
        "cudnn",
    ]
    assert kernels.kernel_for(wide, Mesh("gpu")) == "xla"  # cuDNN has no float32
    with pytest.raises(
        UsageError, match="there is no kernel 'flash'; there are xla, splash, cudnn"
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
