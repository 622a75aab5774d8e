"""Run by test_several_processes_rl.py: plays and trains as one of several processes, or alone.

ADDRESS COUNT PROCESS FOLDER STEPS, on two devices in all.
"""

import sys
from pathlib import Path

import jax
from helpers.doors import ELICITATION, MODEL, WORLD, Door, codec, rl_run

from cotjax.envs.pool.pool import EnvPool
from cotjax.model.sharding import make_mesh
from cotjax.rl.main import reinforce
from cotjax.rl.play import Actors
from cotjax.runtime import distributed
from cotjax.runtime.joining import check, join
from cotjax.sample.sampler import Sampler

SLOTS = 12  # a row a play of a step: each device has as many, however the processes divide them


def main(address: str, count: int, process: int, folder: Path, steps: int) -> None:
    if count > 1:
        join(address, count, process, heartbeat_s=30)
        check(processes=count)
    sampler = Sampler(
        MODEL,
        make_mesh(devices=jax.local_devices()),
        slots=SLOTS // count,
        max_length=96,
        stop=codec().stop_texts,
        pad_id=codec().pad_id,
        max_new=ELICITATION.max_new_tokens,
        pieces=codec().pieces,
    )
    run = rl_run({"steps": steps, "save_every": 2}, tasks=4, kl=0.01, old="trainer")
    with EnvPool(Door, sampler.slots, 0) as pool:
        reinforce(
            run,
            folder=folder,
            games=WORLD.games("", "train"),
            actors=Actors(sampler, [pool], codec(), ELICITATION, ("cot", "prompt")),
            mesh_shape={"data": 2, "fsdp": 1, "tensor": 1},
        )
    distributed.barrier("over")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
