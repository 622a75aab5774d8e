"""The decoder as a Flax user takes it: called, differentiated, trained, sharded by its metadata."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import tiny
from helpers.processes import ended, start_process

from cotjax.errors import DataError, UsageError
from cotjax.model import decoder
from cotjax.model.config import LoRA
from cotjax.model.params import declared, init_params
from cotjax.weights.huggingface import save_hf
from cotjax.weights.pretrained import Decoder

CONFIG = tiny.model_config()
IDS_BT = jnp.array(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 12)), jnp.int32)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


def pure_logits(params, ids_BT, segments_BT, positions_BT):
    rows = ids_BT, positions_BT, segments_BT, jnp.zeros_like(ids_BT)
    return decoder.logits(CONFIG, params, decoder.hidden_states(CONFIG, params, *rows))


def test_five_lines_of_a_folder_give_logits(tmp_path, model):
    save_hf(tmp_path, CONFIG, model.params)
    again = Decoder.from_pretrained(tmp_path)
    logits = again(IDS_BT)
    assert logits.shape == (2, 12, CONFIG.vocab_size) and logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, model(IDS_BT))
    again.save_pretrained(tmp_path / "again")
    copy = Decoder.from_pretrained(tmp_path / "again")
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(copy.params), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UsageError, match=r"neither config\.json"):
        Decoder.from_pretrained(tmp_path / "nothing")


def test_the_module_computes_what_the_functions_do(model):
    positions_BT = jnp.broadcast_to(jnp.arange(12), (2, 12))
    whole = pure_logits(model.params, IDS_BT, jnp.ones_like(IDS_BT), positions_BT)
    np.testing.assert_allclose(model(IDS_BT), whole, atol=1e-6)
    for how in ({"remat": "block"}, {"scan": True}):
        np.testing.assert_allclose(model(IDS_BT, **how), whole, atol=1e-5)


def test_positions_start_anew_in_every_segment(model):
    segments_BT = jnp.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
    packed = model(IDS_BT, segment_ids_BT=segments_BT)
    np.testing.assert_allclose(packed[0, :5], model(IDS_BT[:1, :5])[0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 5:9], model(IDS_BT[:1, 5:9])[0], atol=1e-5)
    with pytest.raises(UsageError, match="branches need positions"):
        model(IDS_BT, branches_BT=jnp.zeros_like(IDS_BT))


def test_initial_values_are_those_of_init_params(model):
    rngs = nnx.Rngs(0)
    for a, b in zip(
        jax.tree.leaves(model.params),
        jax.tree.leaves(init_params(CONFIG, rngs.params())),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_values_of_another_model_are_refused(model):
    params = model.params
    del params["model"]["norm"]
    with pytest.raises(DataError, match=r"there is no model\.norm\.weight"):
        Decoder.from_params(CONFIG, params)


@pytest.mark.parametrize("lora", [None, LoRA(2, 4.0, r".*q_proj")], ids=["all", "lora"])
def test_a_loop_of_optax_and_nnx_trains_it(lora):
    """As a Flax user writes it: nnx.value_and_grad, nnx.Optimizer, nnx.jit."""
    model = Decoder(tiny.model_config(lora=lora), rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss(model):
        logits_BTV = model(IDS_BT[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, IDS_BT[:, 1:]).mean()

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(8)]
    assert losses[-1] < 0.6 * losses[0]


def test_it_splits_and_merges(model):
    graph, state = nnx.split(model)
    half = jax.tree.map(lambda x: x * 1.0, state)
    np.testing.assert_array_equal(nnx.merge(graph, half)(IDS_BT), model(IDS_BT))
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
    assert names == {".".join(path) for path in declared(CONFIG)}


SHARDED = """
import jax
from flax import nnx
from helpers import tiny
from cotjax.model.config import LoRA
from cotjax.model.params import leaf, param_shardings
from cotjax.model.sharding import make_mesh
from cotjax.weights.pretrained import Decoder

configs = (
    tiny.model_config(vocab_size=64, qkv_bias=True),
    tiny.model_config(vocab_size=64, lora=LoRA(2, 4.0, ".*"), tied_embeddings=False),
)
for config in configs:
    for sizes in ((2, 2, 2), (1, 4, 2), (8, 1, 1)):
        mesh = make_mesh(*sizes)
        ours = param_shardings(config, mesh)
        model = lambda: Decoder(config, rngs=nnx.Rngs(0))
        _, abstract = nnx.get_abstract_model(model, mesh)
        specs = nnx.to_flat_state(nnx.get_partition_spec(nnx.state(model())))
        shapes = nnx.to_flat_state(abstract)
        assert len(specs) == len(shapes) == len(jax.tree.leaves(ours))
        for (path, spec), (_, shape) in zip(specs, shapes, strict=True):
            where = leaf(ours, tuple(map(str, path)))
            assert spec.get_value() == where.spec, (path, spec, where)
            assert shape.get_value().sharding == where, (path, shape, where)
print("equal")
"""


def test_flax_metadata_are_the_shardings_of_every_parameter_on_eight_devices():
    ((code, printed, error),) = ended([start_process(["-c", SHARDED], devices=8)])
    assert code == 0 and printed.split() == ["equal"], error


def test_logits_are_those_of_transformers(tmp_path, model):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(IDS_BT), dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(Decoder.from_pretrained(tmp_path)(IDS_BT), expected, atol=2e-4)
