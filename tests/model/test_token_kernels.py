"""An accelerator's kernels over a cache by token compute what the blocks of a CPU's do.

The Pallas kernel is interpreted here, and the places of cuDNN (model/token_kernels.py) and of a
TPU's kernel (model/ragged.py) are taken by XLA.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.model import cache as kv
from cotjax.model import decoder, platform, token_kernels
from cotjax.model.cache_layouts import Blocks, Pairs, Tokens
from cotjax.model.config import LoRA
from cotjax.model.fused import fuse, fuses, joined
from cotjax.model.layers import Raw
from cotjax.model.params import are_fused, declared, init_params, leaf
from cotjax.model.sharding import make_mesh

LENGTHS = [[0, 5], [3, 20]]  # tokens that two pieces read into each of two slots


@pytest.fixture
def gpu(monkeypatch):
    """Give this machine a GPU's forms, with these kernels."""

    def forced(*kernels):
        forms = replace(platform.FORMS["gpu"], cache_block=4, token_kernels=kernels)
        monkeypatch.setattr(platform, "FORMS", {"cpu": forms})

    return forced


def _computed(config, params, layout):
    """Read two pieces and decode two tokens; return every hidden state and logprob."""
    draw = np.random.default_rng(0)
    cache, hidden = kv.empty(config, 2, 32, 3, layout), jnp.zeros((2, config.width))
    hidden = hidden.astype(config.compute_as)
    states = []
    for counts in np.array(LENGTHS).T:
        ids = draw.integers(1, 50, (2, 20)).astype(np.int32)
        cache, hidden, logprobs = jax.jit(kv.score, static_argnums=0)(
            config, params, cache, hidden, ids, counts.astype(np.int32)
        )
        states += [hidden, *(logprobs[slot, :count] for slot, count in enumerate(counts))]
    ids = draw.integers(1, 50, (2, 4)).astype(np.int32)
    cache, hidden = jax.jit(kv.prefill, static_argnums=0)(
        config, params, cache, hidden, ids, np.array([4, 2], np.int32)
    )
    states.append(hidden)
    for index in range(2):
        cache, hidden = jax.jit(kv.step, static_argnums=0)(
            config, params, cache, np.array([7, 9], np.int32), index
        )
        states.append(hidden)
    return [np.asarray(state, np.float32) for state in states]


MODELS = {
    "norms": tiny.model_config(qk_norm=True),
    "biases, one head a key": tiny.model_config(qk_norm=False, qkv_bias=True, kv_heads=4),
    "a key for all, bfloat16": tiny.model_config(kv_heads=1, compute_dtype="bfloat16"),
}


@pytest.mark.parametrize("kernels", [(), ("cudnn",), ("triton", "cudnn")])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_reading_and_decoding_are_the_same_in_every_form(gpu, config, kernels):
    params = init_params(config, jax.random.key(0))
    expected = _computed(config, params, Blocks(4))
    gpu(*kernels)
    kernel = token_kernels.step_kernel_here(config, fused=True)
    assert kernel == next(iter(kernels), "xla")
    own = fuse(config, tiny.mesh(), jax.tree.map(jnp.copy, params))
    tolerance = 0.05 if config.compute_dtype == "bfloat16" else 1e-5
    for got, wanted in zip(_computed(config, own, Tokens(4)), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance)


def test_pairs_of_keys_and_values_hold_what_blocks_do():
    config = MODELS["norms"]
    params = init_params(config, jax.random.key(0))
    expected = _computed(config, params, Blocks(4))
    for got, wanted in zip(_computed(config, params, Pairs(4)), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_fused_weights_are_the_apart_ones_side_by_side(gpu):
    config = tiny.model_config(qkv_bias=True)
    params = init_params(config, jax.random.key(0))
    assert not fuses(config, tiny.mesh()) and not are_fused(params)
    gpu()
    assert fuses(config, tiny.mesh())
    assert not fuses(replace(config, lora=LoRA(2, 4.0, ".*")), tiny.mesh())
    own = fuse(config, tiny.mesh(), jax.tree.map(jnp.copy, params))
    assert are_fused(own)
    for path, weight in declared(config, fused=True).items():
        assert leaf(own, path).shape == weight.shape
    layer, fused = params["model"]["layers"]["1"], own["model"]["layers"]["1"]
    qkv_DKgH = fused["self_attn"]["qkv_proj"]["weight"]
    attention, G = layer["self_attn"], config.heads // config.kv_heads
    np.testing.assert_array_equal(qkv_DKgH[:, 1, :G], attention["q_proj"]["weight"][:, G : 2 * G])
    np.testing.assert_array_equal(qkv_DKgH[:, :, G], attention["k_proj"]["weight"])
    np.testing.assert_array_equal(qkv_DKgH[:, :, G + 1], attention["v_proj"]["weight"])
    np.testing.assert_array_equal(fused["mlp"]["gate_up"][:, 1], layer["mlp"]["up_proj"]["weight"])


@pytest.mark.parametrize("scan", [False, True])
def test_a_train_step_may_join_projections_without_a_change_of_its_gradients(monkeypatch, scan):
    config = tiny.model_config(qkv_bias=True)
    params = init_params(config, jax.random.key(0))
    ids = np.arange(24, dtype=np.int32).reshape(2, 12)
    rows = ids % 12, np.ones_like(ids), np.zeros_like(ids)

    def pulled():
        def total(params):
            hidden = decoder.hidden_states(config, params, ids, *rows, "dots", scan)
            return jnp.sin(hidden).sum(), hidden

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    apart = pulled()
    forms = replace(platform.FORMS["cpu"], joined_in_training=True)
    monkeypatch.setattr(platform, "FORMS", {"cpu": forms})
    for got, wanted in zip(*map(jax.tree.leaves, (pulled(), apart)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * float(np.abs(wanted).max()) + 1e-6)
    own = joined(config, params)
    assert are_fused(own) and not are_fused(params) and joined(config, own) is own
    adapted = replace(config, lora=LoRA(2, 4.0, ".*"))
    assert joined(adapted, params) is params


def test_the_kernel_is_the_fastest_that_runs(monkeypatch):
    """What a GPU computes by what, and where Triton or cuDNN is missing."""
    half, single = (
        tiny.model_config(head_size=64, compute_dtype=dtype) for dtype in ("bfloat16", "float32")
    )
    monkeypatch.setattr(token_kernels, "platform_here", lambda: "gpu")
    runs = {"gpu": True}
    monkeypatch.setattr(
        token_kernels,
        "_cudnn_runs",
        lambda config, platform: runs[platform] and config.compute_dtype != "float32",
    )

    def chosen(config, fused=True):
        reads = token_kernels.reads_by_cudnn(config, "gpu")
        return token_kernels.step_kernel_here(config, fused), "cudnn" if reads else "xla"

    assert chosen(half) == ("triton", "cudnn")
    assert chosen(half, fused=False) == ("cudnn", "cudnn")
    assert chosen(replace(half, head_size=96)) == ("cudnn", "cudnn")
    assert chosen(single) == ("xla", "xla")
    runs["gpu"] = False
    assert chosen(half) == ("triton", "xla")
    monkeypatch.setattr(token_kernels, "has_triton", lambda: False)
    assert chosen(half) == ("xla", "xla")


def test_no_cudnn_here():
    """Asked of a machine that has none, jax refuses, and that is seen before anything runs."""
    assert not token_kernels._cudnn_runs(tiny.model_config(compute_dtype="bfloat16"), "gpu")


def test_the_kernels_run_over_several_devices(gpu):
    """Under a mesh each device has its own slots and heads; with one device that is all of them."""
    config = MODELS["norms"]
    params = init_params(config, jax.random.key(0))
    gpu("triton", "cudnn")
    own = fuse(config, tiny.mesh(), jax.tree.map(jnp.copy, params))
    expected = _computed(config, own, Tokens(4))
    with jax.set_mesh(make_mesh(1, 1, 1, devices=jax.devices()[:1])):
        for got, wanted in zip(_computed(config, own, Tokens(4)), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_kernel_lowers_for_a_gpu_that_is_not_here():
    """At a published model's sizes, under a mesh, with a slice of the heads on each device."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1]).abstract_mesh
    device = type(mesh.abstract_device)(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    B, S, K, G, H = 64, 640, 8, 4, 128
    half = jnp.bfloat16
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((B, 1, K, G + 2, H), half),
            ((B, 1, 1, H), jnp.float32),
            ((B, 1, 1, H), jnp.float32),
            ((H,), half),
            ((B, S, K, H), half),
            ((B, S, K, H), half),
            ((B,), jnp.int32),
        )
    ]

    def run(qkv, cos, sin, norm, keys, values, places):
        raw = Raw(qkv, (cos, sin), norm, norm)
        return token_kernels.raw_step_attention(raw, keys, values, places, 1e-6)

    with jax.sharding.use_abstract_mesh(mesh.update(abstract_device=device)):
        lowered = jax.jit(run).trace(*shapes).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "triton" in text and "output_operand_aliases" in text


def test_a_row_that_several_programs_share_is_the_whole_row(gpu, monkeypatch):
    gpu("triton")
    draw = np.random.default_rng(3)
    qkv, keys, values = (
        draw.normal(size=size).astype(np.float32)
        for size in ((3, 1, 2, 4, 8), (3, 300, 2, 8), (3, 300, 2, 8))
    )
    cos, sin = draw.normal(size=(2, 3, 1, 1, 8)).astype(np.float32)
    places = np.array([0, 70, 299], np.int32)  # no key, of one block and a bit, of the last token

    def attended():
        raw = Raw(qkv, (cos, sin), None, None)
        return jax.jit(
            lambda *cached: token_kernels.raw_step_attention(raw, *cached, places, 1e-6)
        )(keys, values)

    whole = attended()
    monkeypatch.setattr(token_kernels, "_LEAST", 100)
    for got, expected in zip(attended(), whole, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    rows = np.arange(3)
    np.testing.assert_array_equal(whole[2][rows, places], qkv[:, 0, :, -1])
