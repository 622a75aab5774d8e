"""Run by test_on_several_devices.py in a process with two or eight CPU devices: FOLDER.

Each objective's update is the same on one device and on two that share rows and parameters
(`fsdp`); the policy's also where they share rows alone (`data`) or split matrices (`tensor`), and
where eight do all three.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax
from helpers import tiny
from helpers.objective_rows import made_pairs, pairs, stored, trees

from cotjax.model.params import init_params
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.objectives.frodo import Frodo
from cotjax.objectives.policy import Policy
from cotjax.objectives.preference import Preference
from cotjax.rl.update import Update
from cotjax.runtime.arrays import global_batch
from cotjax.train.step import init_state, make_train_step

FSDP, OTHERS, EIGHT = (1, 2, 1), ((2, 1, 1), (1, 1, 2)), (2, 2, 2)
MODEL = tiny.model_config(vocab_size=64, layers=1)


def updated(spec, batch, mesh):
    """Return metrics and parameters after an update of plain descent."""
    optimizer = optax.sgd(1.0)
    with jax.set_mesh(mesh):
        params = init_params(MODEL, jax.random.key(0), mesh)
        state = init_state(MODEL, optimizer, params, mesh)
        objective = spec.make(MODEL, mesh, kernel="xla")
    host = {name: np.asarray(array) for name, array in batch.items()}
    if spec.kind == "policy":
        # As `cotjax rl` does: two micro-batches, added up.
        half = len(host["ids"]) // 2
        parts = [{name: array[at : at + half] for name, array in host.items()} for at in (0, half)]
        after, metrics = Update(MODEL, optimizer, params, mesh, objective)(state, parts)
    else:
        step = make_train_step(MODEL, optimizer, params, mesh, objective, kind=spec.kind)
        with jax.set_mesh(mesh):
            rows = global_batch(host, batch_sharding(mesh), len(host["ids"]))
            after, metrics = step(state, rows)
    return jax.tree.map(np.asarray, (jax.device_get(metrics), after.params))


def check(name, spec, batch, meshes):
    """Check that the update on each mesh, by the sizes of its axes, is that on one device."""
    metrics, params = updated(spec, batch, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    assert metrics["grad_norm"] > 1e-3
    for sizes in meshes:
        found, others = updated(spec, batch, make_mesh(*sizes))
        assert found.keys() == metrics.keys()
        for key, value in metrics.items():
            for one, two in zip(*map(jax.tree.leaves, (value, found[key])), strict=True):
                np.testing.assert_allclose(
                    two, one, rtol=2e-4, atol=1e-5, err_msg=f"{name} {sizes} {key}"
                )
        for one, two in zip(*map(jax.tree.leaves, (params, others)), strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-3, atol=2e-5, err_msg=f"{name} {sizes}")
    print(name)


def main(folder: Path) -> None:
    codec = tiny.word_codec(folder, tiny.TINY_WORDS)
    policy = Policy("trajectory", kl=0.1, entropy=0.01)
    if jax.device_count() == 8:
        twice = {name: np.concatenate([array] * 2) for name, array in trees(codec).items()}
        check("policy", policy, twice, [EIGHT])
        return
    triples = made_pairs(codec, triples=True)[:4]
    cases = {
        "policy": (policy, trees(codec)),
        "dpo": (Preference(nll=0.5), pairs(codec)),
        "frodo": (Frodo(), stored([[each] for each in triples])),
    }
    for name, (spec, batch) in cases.items():
        assert len(batch["ids"]) == 4 and (batch["weights"].sum(1) > 0).sum() > 1
        check(name, spec, batch, [FSDP, *(OTHERS if name == "policy" else ())])


if __name__ == "__main__":
    assert jax.device_count() in (2, 8)
    main(Path(sys.argv[1]))
