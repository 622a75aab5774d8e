"""What each kind of device prefers, in one table: plain forms by default, a CPU's where it differs.

Only how something is computed is decided here, never what. Every form passes the same tests.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.sharding import Mesh

from cotjax.errors import UsageError


@dataclass(frozen=True)
class Forms:
    """How a program is written for one kind of device. The defaults are the plain forms."""

    # Fold the batch and length axes of a projection into one before its matmul.
    flat_rows: bool = False
    # Spread cosines over a head by a matmul, which the compiler cannot repeat in every layer.
    rope_by_matmul: bool = False
    # Transpose attention's operands in memory before its backward matmuls, not inside them.
    transpose_in_memory: bool = False
    # Products of bfloat16 have float32 results, and no operand is read crosswise (products.py).
    wide_products: bool = False
    # Compute a decode step's mask once, not in every layer's softmax.
    mask_once: bool = False
    # argmax as a maximum and a minimum: two reductions of one result each.
    argmax_by_max: bool = False
    # Tokens of a block of cached keys. 128 is the width of a TPU's vector, so none is padding.
    cache_block: int = 128
    # Supervised positions of each row whose logits exist at a time.
    loss_chunk: int = 128
    # What `train.remat = "auto"` recomputes at least (layers.REMAT).
    least_remat: str = "none"
    # Cache keys and values by token, [B, S, K, H] (cache_layouts.Tokens), not in blocks.
    cache_by_token: bool = False
    # Kernels of attention over a cache by token, the fastest first (token_kernels.KERNELS);
    # "ragged" is a TPU's own, with a layout of its own (model/ragged.py).
    token_kernels: tuple[str, ...] = ()
    # Project q, k and v by one matmul, and gate and up by one, in the sampler.
    fused_projections: bool = False
    # The same in a train step, which joins the weights each time (fused.joined).
    joined_in_training: bool = False
    # Tokens of all slots together that a pass over prompts reads, about, where a kernel holds no
    # scores.
    read_at_once: int = 2048


FORMS: dict[str, Forms] = {
    "cpu": Forms(
        flat_rows=True,
        rope_by_matmul=True,
        transpose_in_memory=True,
        wide_products=True,
        mask_once=True,
        argmax_by_max=True,
        cache_block=64,
        least_remat="dots",
    ),
    "gpu": Forms(
        cache_block=64,
        loss_chunk=512,
        cache_by_token=True,
        token_kernels=("triton", "cudnn"),
        fused_projections=True,
        read_at_once=32_768,
    ),
    "tpu": Forms(token_kernels=("ragged",)),
}
"""jax's platform -> its forms; other platforms have the plain ones. Why some differ:

flat_rows            the weight gradient of an einsum over [B, T, D] sums over two axes, for which
                     XLA's CPU compiler copies the larger operand crosswise
rope_by_matmul       the compiler fuses the cosines into every layer, where they cost more than the
                     attention's softmax
transpose_in_memory  a CPU matmul with a transposed operand takes twice the time
wide_products        other products of bfloat16 are computed in float32, from widened operands
mask_once            the same fusion, into every layer's exponentials
argmax_by_max        a reduction with two results is not vectorised
cache_block          a CPU reads 64 tokens fastest
least_remat          a CPU moves element-wise results through memory more slowly than it computes
                     them again

And why a GPU's do (docs/performance.md has the figures):

loss_chunk           each chunk adds to a float32 gradient of the output projection, whose traffic a
                     GPU's memory has room to spare it
cache_by_token       cuDNN reads this layout alone, and new tokens directly behind a slot's own make
                     the valid part of a row one stretch, of which kernels read no more
token_kernels        XLA's two matmuls and its softmax between them take twice the time
fused_projections    a matmul of few rows is bound by its weights, and a larger one reads them at a
                     higher bandwidth
joined_in_training   off everywhere until a card has timed it (`cotjax bench forms`)
read_at_once         every pass over prompts reads all weights again
cache_block          a multiple of what a kernel reads at once

And a TPU's one (not timed on one: docs/accelerators.md):

token_kernels        a step reads the tokens that each slot holds; the plain form reads the capacity
"""


GPUS = ("gpu", "cuda", "rocm")


def forms_of(platform: str) -> Forms:
    """Return the forms of a platform: "cpu", "gpu" (jax also says "cuda" or "rocm") or "tpu"."""
    return FORMS.get("gpu" if platform in GPUS else platform, Forms())


def has_triton() -> bool:
    """Say whether this jax has Pallas' Triton lowering, whose place Mosaic is to take."""
    return find_spec("jax.experimental.pallas.triton") is not None


def platform_here() -> str:
    """Return the platform of the mesh set around the trace; without one, of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def forms_here() -> Forms:
    """Return the forms of `platform_here`."""
    return forms_of(platform_here())


def platform_of(mesh: Mesh) -> str:
    """Return the platform of a mesh's devices."""
    return mesh.devices.flat[0].platform


def tuned_as(mesh: Mesh) -> str:
    """Return the platform by which tables of options name a mesh's devices.

    jax may call NVIDIA's "cuda" or "gpu"; ROCm's have their own name, as no option was tried there.
    """
    platform = platform_of(mesh)
    return "gpu" if platform == "cuda" else platform


Options = dict[str, str | bool]
OPTIONS: dict[tuple[str, str], Options] = {
    ("train", "cpu"): {"xla_disable_hlo_passes": "all-reduce-promotion"},
    ("decode", "gpu"): {"xla_gpu_enable_triton_gemm": False},
}
"""(Program, jax's platform) -> options of XLA; without an entry the compiler's own. The reasons:

train, cpu           the pass that widens sums of bfloat16 over devices ends the process ("Invalid
                     binary instruction opcode copy"); without it they are computed as they are
decode, gpu          cuBLAS multiplies few rows by a large matrix faster than the kernels that XLA
                     would generate: 4.20 ms a step of 36 layers at 64 rows, against 4.35
"""


def compiler_options(mesh: Mesh) -> Options | None:
    """Return the options that a train step is compiled with; None for the compiler's own.

    Beside OPTIONS: on one device of a CPU jax 0.10 orders work by how much of it could run at once,
    which keeps three times the memory alive and makes remat save nothing. On several devices of a
    CPU the order that saves memory is not used: with it, sums over devices begin before the
    gradients that they add are complete, so that large models got wrong gradients, other ones in
    each run. Later versions order well by themselves.
    """
    options = _options("train", mesh)
    if platform_of(mesh) == "cpu" and jax.__version_info__ < (0, 11) and mesh.size == 1:
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    return options or None


def decode_options(mesh: Mesh) -> Options | None:
    """Return the options that a sampler's decode is compiled with; None for the compiler's own."""
    return _options("decode", mesh) or None


def _options(program: str, mesh: Mesh) -> Options:
    return dict(OPTIONS.get((program, tuned_as(mesh)), {}))


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system (glibc; nothing elsewhere).

    A compiler that runs on the host leaves hundreds of MB with the process, which a step on CPU
    would take a second time; and so do two programs of other sizes that take turns.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


# Parameters of glibc's mallopt, by their numbers in malloc.h: one heap for all threads, no array
# outside it, and no end of it given back.
_KEEP = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_freed_memory() -> None:
    """Have this process take memory that it has freed for its next arrays (glibc; else nothing).

    By default glibc gives each large array back to the system, which clears the same pages again
    for the next one. XLA allocates a program's temporaries, gigabytes of a train step, whenever the
    program runs. Call it before threads have allocated anything: a heap of their own stays theirs.
    `return_freed_memory` still gives memory back: where programs of other sizes take turns, which
    find no place among each other's, it is called between them.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for number, value in _KEEP.values():
            mallopt(number, value)


def split_cpu(devices: int) -> None:
    """Let jax show this host's CPU as this many devices, and the process keep memory that it frees.

    Call it before any device is used.

    Each computes its part of a batch by itself, which is faster than all cores at one small matmul
    after the other: two devices on two cores decode 32 slots of a small model 1.3 times as fast as
    one. A number from the environment (JAX_NUM_CPU_DEVICES, XLA_FLAGS) wins, and so do devices
    that exist already.

    Raises UsageError for a number below one.
    """
    if devices < 1:
        raise UsageError(f"cpu_devices is {devices}; it must be at least 1")
    keep_freed_memory()
    flags = os.environ.get("XLA_FLAGS", "")
    if (
        devices == 1
        or jax.config.values["jax_num_cpu_devices"] != -1
        or "xla_force_host_platform_device_count" in flags
    ):
        return
    with suppress(RuntimeError):  # jax has its devices
        jax.config.update("jax_num_cpu_devices", devices)
        # On a busy machine a device may wait longer for another than XLA's default of 40 seconds,
        # after which it ends the process.
        os.environ["XLA_FLAGS"] = (
            f"--xla_cpu_collective_call_terminate_timeout_seconds=600 {flags}".strip()
        )
