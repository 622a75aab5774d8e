"""Run by test_eight_devices.py in a process of its own: one device and eight must give the same
numbers and the same text.
"""

from tempfile import TemporaryDirectory

import jax
import numpy as np
from helpers import tiny

from cotjax.errors import UsageError
from cotjax.model import decoder, lora
from cotjax.model.config import LoRA
from cotjax.model.kernels import attend_by
from cotjax.model.layers import REMAT
from cotjax.model.params import init_params, join_params, param_shardings, split_params
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.model.shares import Asked, lower
from cotjax.objectives.supervised import supervised
from cotjax.sample.sampler import Sampler
from cotjax.weights.peft import load_peft, save_peft

CONFIG = tiny.model_config(vocab_size=64, heads=8, kv_heads=8)
ONE = make_mesh(devices=jax.devices()[:1])
SHAPES = [(1, 1, 8), (1, 8, 1), (8, 1, 1), (2, 2, 2)]  # every axis alone, and all
MESHES = {
    f"data {data}, fsdp {fsdp}, tensor {tensor}": make_mesh(data, fsdp, tensor)
    for data, fsdp, tensor in SHAPES
}
FSDP = MESHES["data 1, fsdp 8, tensor 1"]
LENGTH = 40


def rows():
    draw = np.random.default_rng(0)
    ids = draw.integers(0, CONFIG.vocab_size, (8, LENGTH))
    segments = np.where(np.arange(LENGTH) < 35, 1 + (np.arange(LENGTH) >= 20), 0)[None].repeat(
        8, axis=0
    )
    branches = np.where((np.arange(LENGTH) % 10) > 6, 1 + np.arange(LENGTH) // 10, 0)[None].repeat(
        8, axis=0
    )
    positions = np.arange(LENGTH)[None].repeat(8, axis=0)
    return [x.astype(np.int32) for x in (ids, positions, segments, branches)]


def forward_and_gradients(params, mesh, **how):
    """Hidden states, and the train step's own loss with its gradients."""
    ids, positions, segments, branches = rows()
    weights = np.where((ids % 3 > 0) & (segments > 0), 0.5 + ids % 2, 0).astype(np.float32)
    batch = {
        "ids": ids,
        "positions": positions,
        "segment_ids": segments,
        "branches": branches,
        "weights": weights,
    }
    batch |= {
        "targets": np.roll(ids, -1, axis=1),
        "roles": (ids % 7).astype(np.int8),
        "budget": weights.sum(-1, keepdims=True),
    }
    batch["dropped"] = np.zeros((len(ids), 3), np.int32)
    batch = {name: jax.device_put(x, batch_sharding(mesh)) for name, x in batch.items()}

    def loss(params):
        arrays = (batch[name] for name in ("ids", "positions", "segment_ids", "branches"))
        total, _ = supervised(CONFIG, params, batch, **how)["loss"]
        return total, decoder.hidden_states(CONFIG, params, *arrays, **how)

    with jax.set_mesh(mesh):
        (total, hidden_BTD), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return np.asarray(hidden_BTD)[segments > 0], float(total), jax.tree.map(np.asarray, gradients)


def attention_by_a_kernel(mesh):
    """Splash attention, which is told what lies where."""
    _, _, segments, branches = rows()
    draw = np.random.default_rng(1)
    arrays = [draw.normal(size=(8, 8, LENGTH, 8)).astype(np.float32) for _ in range(3)] + [
        segments,
        branches,
    ]
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(attend_by("splash", interpret=True))(*arrays))[:, :, :35]


def texts(params, mesh):
    sampler = Sampler(CONFIG, mesh, slots=8, max_length=64, stop=[[3]], pad_id=0)
    sampler.load(jax.tree.map(lambda x: 3 * x, params))
    made = []
    for turn in range(2):
        sampler.extend({slot: [slot + 1, turn + 1, 5 * slot] for slot in range(turn, 8)})
        made.append(sampler.sample({slot: [7] * slot for slot in range(1, 8)}, max_new=8))
        made.append(
            sampler.sample(
                {slot: [] for slot in range(6)},
                max_new=8,
                temperature=1.0,
                seeds={slot: slot for slot in range(6)},
            )
        )
        sampler.reset([4])
        sampler.extend({4: [1, 2, 3]})
        made.append(sampler.sample({slot: [7, 9] for slot in range(1, 8)}, max_new=8, back=2))
    return [{slot: generation.ids for slot, generation in turn.items()} for turn in made]


def branch_scores(params, mesh):
    """Log-probabilities of branches of eight slots, some of which have none."""
    sampler = Sampler(CONFIG, mesh, slots=8, max_length=64, stop=[], pad_id=0)
    sampler.load(jax.tree.map(lambda x: 3 * x, params))
    sampler.extend({slot: [slot + 1] * (slot + 1) for slot in range(8)})
    texts = {slot: [[1, 2, 3], [1, 2], [slot]] for slot in (0, 2, 3, 7)}
    scored = sampler.score_branches({2: [5, 6]}, texts)
    return np.array([x for several in scored.values() for ids in several for x in ids])


def shares_by_group(params, mesh):
    """Attention and gradient by group of tokens, of eight rows with two queries each."""
    draw = np.random.default_rng(2)
    groups = np.repeat(np.arange(4), 10)[None].repeat(8, axis=0).astype(np.int32)
    asked = Asked(
        ids_BT=draw.integers(0, CONFIG.vocab_size, (8, LENGTH)).astype(np.int32),
        groups_BT=groups,
        branches_BT=np.zeros((8, LENGTH), np.int32),
        masked_BT=groups == 2,
        at_BQ=np.array([[30, 31, LENGTH]] * 8, np.int32),
    )
    with jax.set_mesh(mesh):
        program = lower(CONFIG, mesh, 8, LENGTH, 3, 4, with_gradient=True).compile()
        found = program(params, jax.device_put(asked, batch_sharding(mesh)))
    # An id may be as likely as another, up to a bit.
    return jax.device_get((found.nats_BQ, found.attention_BLR, found.gradient_BLR, found.input_BR))


def adapters(mesh):
    """LoRA added on a mesh, sent to a folder and back, and merged: everything lies where the table
    says.
    """
    params = init_params(CONFIG, jax.random.key(0), mesh)
    adapted = lora.add(CONFIG, params, LoRA(4, 8.0, r".*_proj"), jax.random.key(1), mesh)
    trained, frozen = split_params(*adapted)
    trained = jax.tree.map(lambda x: x + 0.01, trained)
    adapted = adapted[0], join_params(adapted[0], trained, frozen)
    with TemporaryDirectory() as folder:
        save_peft(folder, *adapted, "base")
        again = load_peft(folder, CONFIG, params, mesh)
    jax.tree.map(np.testing.assert_array_equal, again[1], adapted[1])
    whole = lora.merge(*again)
    for config, placed in (again, whole):
        for x, where in zip(
            jax.tree.leaves(placed), jax.tree.leaves(param_shardings(config, mesh)), strict=True
        ):
            assert x.sharding.is_equivalent_to(where, x.ndim)
    return jax.tree.map(np.asarray, whole[1])


def main():
    reference = init_params(CONFIG, jax.random.key(0), ONE)
    hidden, total, gradients = forward_and_gradients(reference, ONE, remat="none")
    attended = attention_by_a_kernel(ONE)
    text = texts(reference, ONE)
    scored = branch_scores(reference, ONE)
    merged = adapters(ONE)
    shares = shares_by_group(reference, ONE)
    for number, (name, mesh) in enumerate(MESHES.items()):
        params = init_params(CONFIG, jax.random.key(0), mesh)
        # The same draws; jax 0.12 fuses their scaling differently for some shard shapes, which
        # moves a last bit.
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), params, reference
        )
        for x, where in zip(
            jax.tree.leaves(params), jax.tree.leaves(param_shardings(CONFIG, mesh)), strict=True
        ):
            assert x.sharding.is_equivalent_to(where, x.ndim), name
        how = {"remat": tuple(REMAT)[number % 4], "scan": number % 2 == 0}
        again, total_again, d_again = forward_and_gradients(params, mesh, **how)
        np.testing.assert_allclose(again, hidden, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(total_again, total, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(attention_by_a_kernel(mesh), attended, atol=1e-6, err_msg=name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-6),
            d_again,
            gradients,
        )
        assert texts(params, mesh) == text, name
        np.testing.assert_allclose(branch_scores(params, mesh), scored, atol=1e-4, err_msg=name)
        if number % 3 == 0:
            for one, other in zip(shares_by_group(params, mesh), shares, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5, err_msg=name)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7),
            adapters(mesh),
            merged,
        )

    up_proj = param_shardings(CONFIG, FSDP)["model"]["layers"]["0"]["mlp"]["up_proj"]["weight"]
    assert up_proj.shard_shape((32, 48)) == (4, 48)
    try:
        Sampler(CONFIG, FSDP, slots=6, max_length=64, stop=[], pad_id=0)
    except UsageError as error:
        assert "6 along 'batch', which data x fsdp = 8 devices do not divide" in str(error), error
    else:
        raise AssertionError("six slots went onto eight devices")


if __name__ == "__main__":
    main()
