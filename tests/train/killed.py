"""Trains a tiny run in children killed by SIGKILL at random moments; then once undisturbed.

`killed.py FOLDER KILLS SEED`, with the tests on PYTHONPATH, prints a JSON line: the moments of the
kills, and the folders of the runs, the undisturbed one first.
Children are forked from a process that has imported everything, which saves seconds each.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
from helpers.training import make_source, run

from cotjax.masking import Dropping

CHANGES = {"steps": 9, "save_every": 2, "row_length": 96, "batch": 4, "warmup": 2}


def child(folder: Path) -> int:
    """Fork a process that opens the data and trains in `folder`; return its id."""
    process = os.fork()
    if process:
        return process
    try:
        source = make_source(folder.parent / "data")
        run(folder, source, dropping=Dropping.of(fraction=0.4, redraw=True), **CHANGES)
    except BaseException as error:  # a fork must not come back into the caller's loop
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(folder: Path, kills: int, seed: int) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    runs = [folder / "whole"]
    # Twice: the first compiles, the second tells how long a run takes.
    for name in ("first", "whole"):
        started = time.perf_counter()
        status = wait(child(folder / name), 3600.0)
        assert status == 0, f"the undisturbed run ended with {status}"
        seconds = time.perf_counter() - started
    rng = random.Random(seed)
    moments = []
    while len(moments) < kills:
        runs.append(folder / f"run{len(runs)}")
        while True:
            process = child(runs[-1])
            # Later than its usual end only where nothing more is to be killed.
            moment = rng.uniform(0.2, 1.0) * seconds if len(moments) < kills else 3600.0
            ended = wait(process, moment)
            if ended is not None:
                assert ended == 0, f"the run ended with {ended}"
                break
            moments.append(round(moment, 3))
    print(json.dumps({"seconds": seconds, "kills": moments, "runs": [str(each) for each in runs]}))


def wait(process: int, seconds: float) -> int | None:
    """Its exit status, or None where it was killed after `seconds`."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    # It may have ended by itself in the last moment.
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
