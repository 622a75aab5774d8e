"""Training attention by the kernels of each kind of device, behind one function.

The rule of who sees whom is `attention.visible`, for all of them:

    xla      attention.tree_attention, left to the compiler: CPU, and float32 on GPU
    splash   Pallas splash attention (part of jax): TPU
    pallas   tree_kernel.kernel_attention, of this package: GPU, bfloat16 or float16
    cudnn    cuDNN's flash attention through jax.nn.dot_product_attention: the same, for head sizes
             that the kernel of this package does not take
    causal   the same with no rule but causality: GPU, where the caller knows that each row holds
             one example without branches (`kernel_for`)

Letters are those of model/decoder.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from cotjax.errors import UsageError
from cotjax.model.attention import ATTENDED, tree_attention, visible
from cotjax.model.config import ModelConfig
from cotjax.model.platform import GPUS, has_triton, platform_here, platform_of
from cotjax.model.sharding import on_each_device

KERNELS = ("xla", "splash", "pallas", "cudnn")
# Only chosen, never asked for: wrong where rows hold more than an example.
_CAUSAL = "causal"
# Head sizes of "pallas" (tree_kernel.py): powers of two.
_PALLAS_SIZES = (16, 32, 64, 128)

_QUERIES = ("batch", "heads", "length", "head_size")
_KEYS = ("batch", "kv_heads", "length", "head_size")
_ROWS = ("batch", "length")

# Splash attention cuts queries and keys into blocks of these sizes, the largest that divides the
# row. Rows are filled up to a multiple of the smallest.
_SPLASH_BLOCKS = (512, 256, 128)
# Bits of a branch's number that splash attention tells apart; a row holds fewer branches than
# tokens.
_BRANCH_BITS = 16
# Added to a score for each differing bit: past every real score, and exact in bfloat16.
_APART = -(2.0**15)


def kernel_for(
    config: ModelConfig,
    mesh: Mesh,
    asked: str = "auto",
    *,
    alone: Callable[[], bool] = lambda: False,
) -> str:
    """Return the kernel asked for; for "auto" the fastest of KERNELS on this mesh's devices.

    `alone`: says whether every row holds one example without branches, and padding behind it; it is
    asked only where that decides.
    """
    if asked != "auto":
        return asked
    fastest = _fastest(config, platform_of(mesh))
    # Padding is behind the example, so causality hides it: 8.2 ms a layer where a kernel with a
    # rule takes 11.7 (docs/performance.md).
    return _CAUSAL if fastest in ("pallas", "cudnn") and alone() else fastest


def kernel_here(asked: str, config: ModelConfig) -> str:
    """Return `kernel_for` of the mesh set around the trace, or of the default device."""
    return _fastest(config, platform_here()) if asked == "auto" else asked


def _fastest(config: ModelConfig, platform: str) -> str:
    if platform == "tpu":
        return "splash"
    # The kernels for GPUs have no float32.
    if platform not in GPUS or config.compute_dtype == "float32":
        return "xla"
    return "pallas" if has_triton() and config.head_size in _PALLAS_SIZES else "cudnn"


def check_kernel(kernel: str) -> None:
    """Raise UsageError unless `kernel` is one of KERNELS, or what `kernel_for` returns."""
    if kernel not in (*KERNELS, _CAUSAL):
        raise UsageError(
            f"attention: there is no kernel {kernel!r}; there are {', '.join(KERNELS)}"
        )


def attend_by(kernel: str, *, interpret: bool = False) -> Callable[..., jax.Array]:
    """Return the kernel of this name.

    It maps (q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT) to [B, N, T, H]. Under
    `jax.set_mesh(mesh)` each device computes its own rows and heads. `interpret` runs the Pallas
    kernels ("splash", "pallas") on any device, slowly. Raises UsageError for an unknown name.
    """
    check_kernel(kernel)
    if kernel == "xla":
        return tree_attention
    library = partial(jax.nn.dot_product_attention, implementation="cudnn")
    own = {
        "splash": partial(_splash, interpret=interpret),
        "pallas": partial(_pallas, interpret=interpret),
        "cudnn": partial(_masked, library),
        _CAUSAL: partial(_causal, library),
    }
    return partial(on_each_device, own[kernel], (_QUERIES, _KEYS, _KEYS, _ROWS, _ROWS), _QUERIES)


def _pallas(*arrays: jax.Array, interpret: bool) -> jax.Array:
    # Imported here: Pallas takes a seventh of the time that this module's import takes.
    from cotjax.model.tree_kernel import kernel_attention

    return kernel_attention(*arrays, interpret=interpret)


def _splash(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
    *,
    interpret: bool,
) -> jax.Array:
    """Splash attention, with branches encoded in the heads.

    Its segment ids and causal mask cover the rule except branches. A score is a sum over the head
    size, and a few more positions of it add a large negative number where branches differ, and
    exactly 0 where they do not.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    N, T, H = q_BNTH.shape[1:]
    q_BNTX, k_BKTX = _tell_branches(q_BNTH * (1 / sqrt(H)), k_BKTH, branches_BT)
    short = -T % _SPLASH_BLOCKS[-1]
    q_BNTX, k_BKTX, v_BKTH = (
        jnp.pad(x, ((0, 0), (0, 0), (0, short), (0, 0))) for x in (q_BNTX, k_BKTX, v_BKTH)
    )
    segment_ids_BT = jnp.pad(segment_ids_BT, ((0, 0), (0, short)))
    block = next(size for size in _SPLASH_BLOCKS if (T + short) % size == 0)
    attention = splash.make_splash_mha(
        mask=splash.MultiHeadMask([splash.CausalMask((T + short, T + short))] * N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    segments = splash.SegmentIds(q=segment_ids_BT, kv=segment_ids_BT)
    return jax.vmap(attention)(q_BNTX, k_BKTX, v_BKTH, segments)[:, :, :T].astype(v_BKTH.dtype)


def _tell_branches(
    q_BNTH: jax.Array, k_BKTH: jax.Array, branches_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys with two places a bit more, whose products are 0 where the bits of query and
    key agree or the key is on the trunk, and _APART where they differ.

        query bit   places        key bit   places
        0           1 0           0         0 _APART
        1           0 1           1         _APART 0      (on the trunk: 0 0)

    A product of what should be seen is 0 in every place: a sum that cancels would take the score's
    own digits with it.
    """
    bits_BTb = ((branches_BT[..., None] >> jnp.arange(_BRANCH_BITS)[None, None, :]) & 1).astype(
        q_BNTH.dtype
    )
    query_BTX = jnp.concatenate([1 - bits_BTb, bits_BTb], axis=-1)
    off_trunk_BT1 = (branches_BT > 0)[..., None]
    key_BTX = jnp.where(
        off_trunk_BT1, _APART * jnp.concatenate([bits_BTb, 1 - bits_BTb], axis=-1), 0
    ).astype(k_BKTH.dtype)

    def widened(x_BNTH: jax.Array, more_BTX: jax.Array) -> jax.Array:
        wide = jnp.broadcast_to(more_BTX[:, None], (*x_BNTH.shape[:-1], more_BTX.shape[-1]))
        return jnp.concatenate([x_BNTH, wide], axis=-1)

    return widened(q_BNTH, query_BTX), widened(k_BKTH, key_BTX)


def _masked(
    attention: Callable[..., jax.Array],
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
) -> jax.Array:
    """A library's attention with the rule as a mask [B, 1, T, T], which all layers share.

    `attention` is called as jax.nn.dot_product_attention is.
    """
    seen_B1TT = visible(segment_ids_BT, branches_BT, segment_ids_BT, branches_BT)[:, None]
    q_BTNH, k_BTKH, v_BTKH = (x.swapaxes(1, 2) for x in (q_BNTH, k_BKTH, v_BKTH))
    return _keeping(attention)(q_BTNH, k_BTKH, v_BTKH, seen_B1TT).swapaxes(1, 2)


def _causal(
    attention: Callable[..., jax.Array],
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
) -> jax.Array:
    """A library's causal attention. Segments and branches are not read."""
    arrays = (x.swapaxes(1, 2) for x in (q_BNTH, k_BKTH, v_BKTH))
    return _keeping(attention)(*arrays, None).swapaxes(1, 2)


def _keeping(attention: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return (q_BTNH, k_BTKH, v_BTKH, mask or None) -> [B, T, N, H] with results that remat can
    keep.

    A library's kernel does not name its result and normalisers, and without names a layer that is
    computed again in the backward pass computes its attention again too.
    """

    def causal(mask: jax.Array | None) -> Callable[..., jax.Array]:
        return partial(attention, mask=mask, is_causal=True)

    @jax.custom_vjp
    def kept(*arrays: jax.Array) -> jax.Array:
        return causal(arrays[-1])(*arrays[:-1])

    def forward(*arrays: jax.Array) -> tuple[jax.Array, Any]:
        out, back = jax.vjp(causal(arrays[-1]), *arrays[:-1])
        leaves, structure = jax.tree.flatten(back)

        def named(x: jax.Array) -> jax.Array:
            given = any(x is array for array in arrays) or not jnp.issubdtype(x.dtype, jnp.floating)
            return x if given else checkpoint_name(x, ATTENDED)

        return out, jax.tree.unflatten(structure, [named(x) for x in leaves])

    def backward(back: Any, d_out: jax.Array) -> tuple[jax.Array | None, ...]:
        return *back(d_out), None

    kept.defvjp(forward, backward)
    return kept
