"""Against transformers, on a tiny random model of each family that transformers itself saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.model import decoder
from cotjax.model.sharding import make_mesh
from cotjax.sample.sampler import Sampler
from cotjax.weights.huggingface import load_hf, save_hf

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
torch = pytest.importorskip("torch")


SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAMILIES = {
    "qwen3 tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 untied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": False}),
    "qwen2.5": (
        "qwen2",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "llama 3.1": ("llama", {"tie_word_embeddings": False, "rope_parameters": SCALED}),
    "llama 3.2": (
        "llama",
        {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": SCALED | {"factor": 32.0}},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def theirs(request, tmp_path_factory):
    """(folder, model), with norms, biases and projections far enough from their initial values to
    tell mistakes apart.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    family, options = FAMILIES[request.param]
    config = AutoConfig.for_model(
        family,
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=131_072,
        attn_implementation="eager",
        **options,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return folder, model


IDS = np.random.default_rng(0).integers(0, 61, (3, 40)).astype(np.int32)


def _ours(config, params, ids, start=0):
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32) + start, ids.shape)
    return decoder.logits(
        config,
        params,
        decoder.hidden_states(
            config, params, ids, positions, jnp.ones_like(ids), jnp.zeros_like(ids)
        ),
    )


@pytest.mark.parametrize("start", [0, 8_180, 100_000])
def test_logits(theirs, start):
    folder, model = theirs
    config, params = load_hf(folder)
    positions = torch.arange(start, start + IDS.shape[1])[None].expand(IDS.shape)
    with torch.no_grad():
        expected = model(torch.tensor(IDS, dtype=torch.long), position_ids=positions).logits.numpy()
    np.testing.assert_allclose(
        jax.jit(_ours, static_argnums=(0, 3))(config, params, IDS, start), expected, atol=5e-5
    )


def test_padded_and_packed_rows(theirs):
    """Rows of two examples and of padding, against each example alone."""
    folder, model = theirs
    config, params = load_hf(folder)
    lengths = (13, 22)
    ids, segments, positions = np.zeros((3, 1, 40), np.int32)
    for number, (length, at) in enumerate(zip(lengths, (0, 13), strict=True)):
        ids[0, at : at + length], segments[0, at : at + length] = IDS[number, :length], number + 1
        positions[0, at : at + length] = np.arange(length)
    hidden = decoder.hidden_states(config, params, ids, positions, segments, np.zeros_like(ids))
    packed = np.asarray(decoder.logits(config, params, hidden))
    for number, (length, at) in enumerate(zip(lengths, (0, 13), strict=True)):
        with torch.no_grad():
            expected = model(
                torch.tensor(IDS[number : number + 1, :length], dtype=torch.long)
            ).logits.numpy()
        np.testing.assert_allclose(packed[:, at : at + length], expected, atol=5e-5)


def test_loss_and_gradients(theirs, tmp_path):
    folder, model = theirs
    config, params = load_hf(folder)
    model.zero_grad()
    ids = torch.tensor(IDS, dtype=torch.long)
    expected = model(ids, labels=ids).loss
    expected.backward()

    def loss(params):
        logprobs = jax.nn.log_softmax(_ours(config, params, IDS)[:, :-1])
        return -jnp.take_along_axis(logprobs, IDS[:, 1:, None], axis=-1).mean()

    ours, gradients = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(ours, expected.item(), rtol=1e-5)
    save_hf(tmp_path, config, gradients)  # the weight map turns gradients as it turns weights
    from safetensors.numpy import load_file

    written = load_file(tmp_path / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert written.keys() == parameters.keys()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(written[name], parameter.grad.numpy(), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("part", [10**9, 9_000], ids=["whole", "in parts"])
def test_export_is_what_transformers_saved(theirs, tmp_path, part):
    from transformers import AutoModelForCausalLM

    folder, model = theirs
    config, params = load_hf(folder)
    save_hf(tmp_path, config, params, max_shard_bytes=part)
    assert (tmp_path / "model.safetensors").exists() == (part > 9_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    again = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    again_config, again_params = load_hf(tmp_path)
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again_params, params)


LIMITED = {"repetition_penalty": 1.1, "no_repeat_ngram_size": 2}


@pytest.mark.parametrize(
    "slots, how", [(1, {}), (32, {}), (1, {"repetition_penalty": 1.3}), (1, LIMITED)], ids=str
)
def test_greedy_text_of_unequal_lengths(theirs, slots, how):
    folder, model = theirs
    config, params = load_hf(folder)
    sampler = Sampler(
        config,
        make_mesh(devices=jax.devices()[:1]),
        slots=slots,
        max_length=128,
        stop=[],
        pad_id=0,
        max_new=12,
    )
    sampler.load(params)
    draw = np.random.default_rng(slots)
    prompts = [draw.integers(0, 61, length).tolist() for length in draw.integers(3, 60, slots)]
    sampler.extend(dict(enumerate(prompts)))
    made = sampler.sample({slot: [] for slot in range(slots)}, max_new=12, **how)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        whole = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **how,
        )
    assert [made[slot].ids for slot in range(slots)] == whole[:, longest:].tolist()
