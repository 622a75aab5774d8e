"""Run by test_on_two_devices.py in a process with two CPU devices: FOLDER.

Each objective's update is the same on one device and on two that share rows and parameters
(`fsdp`); the policy's also where they share rows alone (`data`) or split matrices (`tensor`).
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

FSDP, OTHERS = (1, 2, 1), ((2, 1, 1), (1, 1, 2))
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
        # As `cotjax rl` does: micro-batches of two rows, added up.
        parts = [{name: array[at : at + 2] for name, array in host.items()} for at in (0, 2)]
        after, metrics = Update(MODEL, optimizer, params, mesh, objective)(state, parts)
    else:
        step = make_train_step(MODEL, optimizer, params, mesh, objective, kind=spec.kind)
        with jax.set_mesh(mesh):
            rows = global_batch(host, batch_sharding(mesh), len(host["ids"]))
            after, metrics = step(state, rows)
    return jax.tree.map(np.asarray, (jax.device_get(metrics), after.params))


def main(folder: Path) -> None:
    codec = tiny.word_codec(folder, tiny.TINY_WORDS)
    triples = made_pairs(codec, triples=True)[:4]
    cases = {
        "policy": (Policy("trajectory", kl=0.1, entropy=0.01), trees(codec)),
        "dpo": (Preference(nll=0.5), pairs(codec)),
        "frodo": (Frodo(), stored([[each] for each in triples])),
    }
    for name, (spec, batch) in cases.items():
        assert len(batch["ids"]) == 4 and (batch["weights"].sum(1) > 0).sum() > 1
        metrics, params = updated(spec, batch, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
        assert metrics["grad_norm"] > 1e-3
        for sizes in (FSDP, *(OTHERS if name == "policy" else ())):
            found, others = updated(spec, batch, make_mesh(*sizes))
            assert found.keys() == metrics.keys()
            for key, value in metrics.items():
                for one, two in zip(*map(jax.tree.leaves, (value, found[key])), strict=True):
                    np.testing.assert_allclose(
                        two, one, rtol=2e-4, atol=1e-5, err_msg=f"{name} {sizes} {key}"
                    )
            for one, two in zip(*map(jax.tree.leaves, (params, others)), strict=True):
                np.testing.assert_allclose(
                    two, one, rtol=1e-3, atol=2e-5, err_msg=f"{name} {sizes}"
                )
        print(name)


if __name__ == "__main__":
    assert jax.device_count() == 2
    main(Path(sys.argv[1]))
