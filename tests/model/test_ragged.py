"""Decoding on a TPU: what its kernel is given, where it is taken, and that it compiles."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.planning import compiler, environment

from cotjax.model import ragged
from cotjax.model.cache_layouts import Blocks, Pairs, layout_of
from cotjax.model.sharding import MESH_AXES

HERE = Path(__file__).parent
LENGTHS = [1, 8, 9, 32]  # one token, a page, one more, all


def test_jaxs_own_reference_of_the_kernel_gives_the_softmax_of_each_slot():
    """The order of heads, the pages of a slot, lengths and scale: as jax's kernel reads them."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

    draw, page = np.random.default_rng(0), 8
    q, keys, values = (
        draw.normal(size=size).astype(np.float32)
        for size in ((4, 6, 1, 16), (4, 32, 2, 16), (4, 32, 2, 16))
    )
    seen = jnp.array(LENGTHS, jnp.int32)
    pairs = jnp.stack([keys, values], axis=3).reshape(4, 32, 4, 16)
    arrays = ragged.pages_of(jnp.asarray(q), pairs, seen, page)
    reference = ref_ragged_paged_attention(*arrays, sm_scale=1 / 4)
    ours = ragged.ragged_step_attention(jnp.asarray(q), pairs, seen, page)
    np.testing.assert_allclose(ours[:, :, 0], reference, atol=1e-5)
    for slot, count in enumerate(LENGTHS):
        scores = np.einsum("KGH,SKH->KGS", q[slot, :, 0].reshape(2, 3, 16), keys[slot, :count]) / 4
        shares = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
        plain = np.einsum("KGS,SKH->KGH", shares, values[slot, :count]).reshape(6, 16)
        np.testing.assert_allclose(reference[slot], plain, atol=1e-5)


def test_what_lies_behind_a_slots_length_plays_no_part():
    q, pairs = jnp.ones((2, 2, 1, 16)), jnp.ones((2, 16, 2, 16))
    seen = jnp.array([3, 16], jnp.int32)
    before = ragged.ragged_step_attention(q, pairs, seen, 8)
    after = ragged.ragged_step_attention(q, pairs.at[0, 3:].set(1e4), seen, 8)
    np.testing.assert_array_equal(before, after)


def _mesh(platform, tensor=1):
    """A mesh of devices of a platform, with heads over `tensor` of them."""
    device = type("Device", (), {"platform": platform})()
    shape = dict(zip(MESH_AXES, (1, 1, tensor), strict=True))
    return type("Mesh", (), {"devices": np.array([device]), "shape": shape})()


def test_a_tpus_cache_is_of_pairs_where_the_kernel_takes_the_model():
    model = tiny.model_config(heads=16, kv_heads=8, head_size=128, compute_dtype="bfloat16")
    assert layout_of(model, _mesh("tpu")) == Pairs(128)
    assert layout_of(model, _mesh("tpu", tensor=4)) == Pairs(128)
    for other in (
        {"head_size": 64},
        {"compute_dtype": "float32"},
        {"kv_heads": 3, "heads": 3},
    ):
        assert layout_of(replace(model, **other), _mesh("tpu")) == Blocks(128)
    # Key heads that do not divide are refused by the shardings, with both numbers.
    assert layout_of(model, _mesh("tpu", tensor=16)) == Blocks(128)
    assert layout_of(model, _mesh("cpu")) == Blocks(64)


@pytest.mark.skipif(compiler() is None, reason="the TPU compiler (libtpu) is not here")
@pytest.mark.slow
def test_the_kernels_of_decoding_and_of_training_compile_for_every_kind_of_tpu():
    """With the sizes of a published model: heads on one chip and over four, and splash attention
    with branches, forward and backward.
    """
    run = subprocess.run(
        [sys.executable, HERE / "kernels_for_a_tpu.py"],
        capture_output=True,
        text=True,
        env=environment(compiler()) | {"PYTHONPATH": str(HERE.parents[1])},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines() == [
        f"{kind}: {what}"
        for kind in ("v5e:2x2", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1")
        for what in ("ragged, 8 key heads", "ragged, 2 key heads", "splash with branches")
    ]


def test_the_reference_runs_without_a_mesh_and_on_one():
    """Under a mesh each device has its own slots and heads."""
    q, pairs = jnp.ones((2, 2, 1, 16)), jnp.ones((2, 16, 2, 16))
    seen = jnp.array([3, 16], jnp.int32)
    alone = ragged.ragged_step_attention(q, pairs, seen, 8)
    with jax.set_mesh(tiny.mesh()):
        under = jax.jit(ragged.ragged_step_attention, static_argnums=3)(q, pairs, seen, 8)
    np.testing.assert_array_equal(alone, under)
