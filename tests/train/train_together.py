"""Run by test_several_processes.py: trains as one of several processes, or alone with a count of 1.

ADDRESS COUNT PROCESS FOLDER SHAPE KILL_AFTER, where SHAPE is the mesh as JSON and the process kills
itself when the step KILL_AFTER is logged (0: never).
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
from helpers.training import MODEL, run

from cotjax.data.tfds_agent import AgentConfig, prepare_dataset
from cotjax.model.sharding import make_mesh
from cotjax.runtime import distributed
from cotjax.runtime.joining import check, join
from cotjax.train.checkpoint import Checkpoints

STEPS, SAVE_EVERY = 6, 2


def main(address: str, count: int, process: int, folder: Path, shape: str, kill_after: int) -> None:
    if count > 1:
        join(address, count, process, heartbeat_s=30)
        check(processes=count)
    data = folder.parent / "data"
    config = AgentConfig(
        name="t",
        sources={"train": str(data / "t.jsonl")},
        tokenizer=str(data / "tokenizer"),
        max_length=128,
    )
    source = prepare_dataset(config, data / "tfds").as_data_source(split="train")

    def report(step: int, steps: int, row: dict) -> None:
        if step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    run(
        folder,
        source,
        steps=STEPS,
        save_every=SAVE_EVERY,
        eval_every=3,
        eval_share=0.3,
        mesh_shape=json.loads(shape),
        report=report,
    )
    # Every process restores onto its own devices at any time: here one after another, and some of
    # them other steps.
    checkpoints = Checkpoints(folder / "checkpoints", alone=count > 1)
    mesh = make_mesh(-1, 1, 1, devices=jax.local_devices())
    for step in (STEPS, 0) if distributed.first() else (STEPS,):
        params = checkpoints.restore_params(step, MODEL, mesh)
    assert all(x.is_fully_addressable for x in jax.tree.leaves(params))
    if process == count - 1:
        (folder / f"sum-{count}").write_text(
            repr(float(jax.device_get(sum(x.sum() for x in jax.tree.leaves(params)))))
        )
    distributed.barrier("over")


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        Path(sys.argv[4]),
        sys.argv[5],
        int(sys.argv[6]),
    )
