"""Run by test_distributed.py as each of several processes: ADDRESS COUNT PROCESS SCENE FOLDER."""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import PartitionSpec

from cotjax.errors import CotjaxError, UsageError
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.runtime import distributed
from cotjax.runtime.arrays import global_batch, local_rows
from cotjax.runtime.joining import check, join
from cotjax.runtime.stopping import stop_all

B, T = 8, 3


def arrays(folder: Path) -> None:
    """Every mesh gets the right batch, and each process provides only the rows it holds."""
    for shape in ((4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4), (1, 4, 1)):
        # In the order of the devices, and so that the last axis crosses the processes.
        devices = np.array(jax.devices())
        for placed in (devices, devices.reshape(2, 2).T.ravel()):
            mesh = make_mesh(*shape, devices=placed)
            sharding = batch_sharding(mesh)
            whole = {
                "ids": np.arange(B * T).reshape(B, T),
                "budget": np.arange(B, dtype=np.float32)[:, None],
            }
            rows = local_rows(sharding, B)
            arrays = global_batch({name: x[rows] for name, x in whole.items()}, sharding, B)
            held = {
                row
                for shard in arrays["ids"].addressable_shards
                for row in range(*shard.index[0].indices(B))
            }
            assert held == set(rows), (shape, held, rows)
            for name, x in arrays.items():
                everywhere = jax.jit(
                    lambda x: x, out_shardings=jax.NamedSharding(mesh, PartitionSpec())
                )(x)
                np.testing.assert_array_equal(np.asarray(everywhere), whole[name])
    print("rows", len(local_rows(batch_sharding(make_mesh(4, 1, 1)), B)))


def turns(folder: Path) -> None:
    """Process 0 is done before the others begin; a barrier is passed by all or none."""
    for round_ in range(2):
        with distributed.in_turn("file"):
            if distributed.first():
                time.sleep(0.5)
                (folder / f"{round_}").write_text("made")
            assert (folder / f"{round_}").read_text() == "made"
        (folder / f"{round_}-{jax.process_index()}").touch()
        distributed.barrier("passed")
        assert len(list(folder.glob(f"{round_}-*"))) == distributed.count()
    assert [distributed.share(at) for at in range(4)].count(True) == 4 // distributed.count()


def fails(folder: Path) -> None:
    """Process 0 fails where the others wait for it."""
    with distributed.in_turn("file"):
        raise UsageError("the disk is full")


def last_fails(folder: Path) -> None:
    """The last process fails, and the others are in the middle of something."""
    if jax.process_index() == distributed.count() - 1:
        raise UsageError("host z has no memory left")
    time.sleep(60)


def folders(folder: Path) -> None:
    """Each host has a folder of its own under the same name."""
    own = folder / str(jax.process_index())
    own.mkdir()
    distributed.check_folder(folder)  # which all see
    distributed._FOLDER_S = 1.0
    distributed.check_folder(own)


def configs(folder: Path) -> None:
    distributed.check_same("config", {"seed": 0, "train.steps": 5})
    distributed.check_same("config", {"seed": 0, "train.steps": 5 + jax.process_index()})


def dies(folder: Path) -> None:
    """Process 1 is killed while the others wait for it."""
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier("never")


def main(address: str, count: int, process: int, scene: str, folder: Path) -> None:
    try:
        join(address, count, process, heartbeat_s=5)
        check(processes=count)
        globals()[scene](folder)
        distributed.barrier("over")
    except CotjaxError as error:
        print(f"cotjax: {error}", file=sys.stderr)
        stop_all(str(error), error.exit_code)
    except Exception as error:
        stop_all(str(error), 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
