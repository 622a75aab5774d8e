"""Runs `cotjax rl` in children that SIGKILL ends in three places of step 2; then undisturbed.

`killed_rl.py FOLDER`, with the tests on PYTHONPATH, prints a JSON line: what each child left. The
run is in FOLDER/run, the undisturbed one in FOLDER/whole. Children are forked from a process that
has imported everything, which saves seconds each.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from helpers.doors import arguments

from cotjax.cli.main import main
from cotjax.envs.pool.pool import EnvPool
from cotjax.rl import main as loop
from cotjax.rl import play
from cotjax.study import reinforcing
from cotjax.train.checkpoint import Checkpoints

CHANGES = ["--config.train.steps=3", "--config.train.save_every=2"]
STEP = 2
assert reinforcing, "imported before the forks"


def kill() -> None:
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def while_it_plays() -> None:
    """Kill between the first and the second action of the step's episodes."""
    play_step, step = play.play_step, EnvPool.step
    here = {"step": 0, "calls": 0}

    def playing(*rest, **named):
        here["step"] = named["step"]
        return play_step(*rest, **named)

    def stepping(pool, actions):
        here["calls"] += here["step"] == STEP
        return kill() if here["calls"] == 2 else step(pool, actions)

    play.play_step, EnvPool.step = playing, stepping


def between_play_and_update() -> None:
    """Kill when the step's rollouts are on the disk, and nothing is made of them yet."""
    step_batches = loop.step_batches

    def batches(run, rollouts, *rest):
        return kill() if rollouts.about.step == STEP else step_batches(run, rollouts, *rest)

    loop.step_batches = batches


def while_it_saves() -> None:
    """Kill when the checkpoint's arrays are on the disk, under its temporary name."""
    write_sums = Checkpoints._write_sums

    def sums(checkpoints):
        return kill() if checkpoints._saving == STEP else write_sums(checkpoints)

    Checkpoints._write_sums = sums


PLACES = (while_it_plays, between_play_and_update, while_it_saves)


def child(work: Callable[[], int]) -> int:
    """Return the exit code of a child that does the work, negative for a signal.

    The parent never touches jax's devices, whose threads a fork would lack.
    """
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = 1
        try:
            code = work()
        except BaseException:  # a fork must not come back into the caller's loop
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(folder: Path, out: str, place: Callable[[], None] | None = None) -> int:
    """Run `cotjax rl` in a child, into a folder; return its exit code."""

    def work() -> int:
        if place is not None:
            place()
        command = ["--config", str(folder / "doors.py"), "--out", str(folder / out)]
        return main(["rl", *command, f"--config.model.base={folder / 'base'}", *CHANGES])

    return child(work)


def left(arm: Path) -> dict[str, object]:
    """Return what a child left of its arm."""
    lines = (arm / "metrics.jsonl").read_text().splitlines()
    return {
        "rows": [row["step"] for row in map(json.loads, lines) if "evaluated" not in row],
        **{
            name: sorted(path.name for path in (arm / name).iterdir())
            for name in ("rollouts", "checkpoints")
        },
    }


def everything(folder: Path) -> None:
    """Run, kill and resume; run once more in another folder."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

    def write_base() -> int:
        arguments(folder)
        return 0

    assert child(write_base) == 0
    found = []
    for place in PLACES:
        code = run(folder, "run", place)
        found.append({"place": place.__name__, "code": code, **left(folder / "run/arms/grpo")})
    found += [{"code": run(folder, out)} for out in ("run", "whole")]
    print(json.dumps(found))


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
