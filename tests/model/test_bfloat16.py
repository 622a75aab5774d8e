"""In bfloat16, against transformers in bfloat16, each measured from the same weights computed in
float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.model.params import abstract_params, init_params
from cotjax.weights.huggingface import load_hf, save_hf

# What must see more than bfloat16's eight bits, forward and backward: norms, rotary angles, softmax
# and its normaliser.
WIDE = {
    "exp",
    "exp2",
    "log",
    "log1p",
    "rsqrt",
    "sqrt",
    "cos",
    "sin",
    "reduce_max",
    "div",
    "integer_pow",
}
FAMILIES = {
    "qwen3": {"qk_norm": True},
    "qwen2.5": {"qk_norm": False, "qkv_bias": True},
    "llama": {"qk_norm": False},
}
IDS = np.random.default_rng(0).integers(0, 512, (4, 96)).astype(np.int32)


def _config(family, **changes):
    sizes = {
        "vocab_size": 512,
        "width": 128,
        "layers": 4,
        "heads": 8,
        "kv_heads": 2,
        "head_size": 32,
        "feed_forward": 256,
    }
    return ModelConfig(
        **sizes, tied_embeddings=False, rope_theta=1e6, **FAMILIES[family], **changes
    )


def _ours(config, params, remat="none"):
    positions = np.broadcast_to(np.arange(IDS.shape[1], dtype=np.int32), IDS.shape)
    hidden = decoder.hidden_states(
        config, params, IDS, positions, np.ones_like(IDS), np.zeros_like(IDS), remat=remat
    )
    return decoder.logits(config, params, hidden)


def _scattered(config):
    """Parameters far enough from their initial values that biases and norms matter."""
    params = init_params(config, jax.random.key(1))
    draw = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: (
            x + 0.3 * draw.standard_normal(x.shape) * (x.ndim < 3 and x.shape[0] < 400)
        ).astype(x.dtype),
        params,
    )


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_further_from_float32_than_transformers(family, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = _config(family, param_dtype="bfloat16")
    save_hf(tmp_path, config, _scattered(config))

    def theirs(dtype):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=dtype, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            return model(torch.tensor(IDS, dtype=torch.long)).logits.float().numpy()

    def ours(**dtypes):
        return np.asarray(jax.jit(_ours, static_argnums=0)(*load_hf(tmp_path, **dtypes)))

    truth = theirs(torch.float32)

    def error(logits):
        return np.sqrt(np.mean((logits - truth) ** 2))

    assert load_hf(tmp_path)[0] == config, "the folder says bfloat16"
    # Weights in bfloat16, arithmetic in float32: nothing is lost, for a bfloat16 number is a
    # float32 number.
    np.testing.assert_allclose(ours(compute_dtype="float32"), truth, atol=1e-4)
    np.testing.assert_allclose(ours(param_dtype="float32"), truth, atol=1e-4)
    own, other = error(ours(compute_dtype="bfloat16")), error(theirs(torch.bfloat16))
    print(f"{family}: from float32 {own:.5f}, transformers {other:.5f}, logits {truth.std():.3f}")
    assert 0 < own <= 1.5 * other < 0.05 * truth.std()


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                yield from _equations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_rotary_positions_and_softmax_stay_wide(family):
    config = _config(family, param_dtype="bfloat16", compute_dtype="bfloat16")

    def loss(params):
        return jax.nn.logsumexp(_ours(config, params), axis=-1).sum()

    traced = jax.make_jaxpr(jax.value_and_grad(loss))(abstract_params(config))
    seen, narrow = set(), []
    for equation in _equations(traced.jaxpr):
        if equation.primitive.name in WIDE:
            seen.add(equation.primitive.name)
            narrow += [str(equation)[:200] for x in equation.invars if x.aval.dtype == jnp.bfloat16]
    assert {"exp", "rsqrt", "cos", "sin"} <= seen, "these are what the model is known to compute"
    assert not narrow, narrow


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_dots_computes_no_product_again(compute):
    """A wide product has a gradient of its own, inside which a remat policy sees no product."""
    config = _config("qwen3", compute_dtype=compute)

    def products(remat):
        def loss(params):
            return _ours(config, params, remat).sum()

        traced = jax.make_jaxpr(jax.grad(loss))(abstract_params(config))
        return sum(each.primitive.name == "dot_general" for each in _equations(traced.jaxpr))

    assert products("dots") == products("none") < products("mlp") < products("block")
