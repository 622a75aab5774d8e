"""How a pool ends: environments are closed, and no process or file is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.pools import (
    Spawner,
    closed,
    ended,
    game,
    is_running,
    parent,
    run,
    spawned,
    wait_for,
)

from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.errors import UsageError

# A caller whose worker has started processes, and is idle. It prints the worker's process id.
POOL = """
import os, sys, threading, time
from functools import partial
from helpers.pools import EnvPool, NeverMade, Spawner, game
pool = EnvPool(partial(Spawner, sys.argv[1]), 1, 1)
pool.reset({0: game("a")})
print(pool.pids()[0], flush=True)
"""


def run_pool(code: str, folder: Path, **options) -> tuple[subprocess.Popen, int]:
    """Run POOL, then `code`; returns the caller and its worker's process id."""
    caller = run(POOL + code, str(folder), temporary=folder, **options)
    with caller.stdout:
        return caller, int(caller.stdout.readline())


def test_closing_a_pool_closes_its_environments_and_ends_what_they_have_started(tmp_path):
    with EnvPool(partial(Spawner, str(tmp_path)), 2, 2) as pool:
        pool.reset({0: game("a"), 1: game("b")})
        left, pids = spawned(tmp_path, 2), set(pool.pids().values())
    assert pids <= closed(tmp_path)
    assert not any(map(is_running, left | pids))


def test_an_environment_that_fails_to_close_does_not_keep_others_open(tmp_path):
    class Stubborn(Spawner):
        def close(self) -> None:
            super().close()
            raise RuntimeError("the door is stuck")

    pool = EnvPool(partial(Stubborn, str(tmp_path), spawns=False), 2, 0)
    pool.reset({0: game("a")})
    pool.close()
    assert closed(tmp_path) == {os.getpid()}
    with pytest.raises(UsageError, match="closed"):
        pool.step({0: "x"})


@pytest.mark.parametrize("what", ["hang", "exit"])
def test_what_a_failed_environment_has_started_ends_with_it(tmp_path, what):
    with EnvPool(partial(Spawner, str(tmp_path)), 1, 1, Limits(step=1.0)) as pool:
        pool.reset({0: game("a")})
        left = spawned(tmp_path)
        assert pool.faults(0) == ()
        pool.step({0: what})
        assert len(pool.faults(0)) == 1 and ended(left), "while the pool lives on"


@pytest.mark.parametrize("group", [False, True])
def test_nothing_outlives_a_caller_that_is_killed(tmp_path, group):
    """The caller alone, or its whole process group."""
    caller, worker = run_pool("time.sleep(1000)", tmp_path, start_new_session=True)
    left = spawned(tmp_path) | {worker, parent(worker)}
    (os.killpg if group else os.kill)(caller.pid, signal.SIGKILL)
    caller.wait()
    assert ended(left)
    assert worker in closed(tmp_path), "it was idle, and had time to close"
    assert not list(tmp_path.glob("cotjax-envs-*"))


def test_only_the_pools_own_folder_is_removed(tmp_path, monkeypatch):
    """With the pool's folder gone, Python's temporary files go to another, which is not removed."""
    fallback = tmp_path / "fallback"
    (fallback / "precious").mkdir(parents=True)
    monkeypatch.setenv("TEMP", str(fallback))
    caller, worker = run_pool("time.sleep(1000)", tmp_path)
    left = spawned(tmp_path) | {worker, parent(worker)}
    (own,) = tmp_path.glob("cotjax-envs-*")
    own.rename(tmp_path / "moved")
    caller.kill()
    caller.wait()
    assert ended(left)
    assert (fallback / "precious").is_dir()


def test_nothing_outlives_a_server_that_is_killed(tmp_path):
    with EnvPool(partial(Spawner, str(tmp_path)), 1, 1) as pool:
        pool.reset({0: game("a")})
        left = spawned(tmp_path)
        os.kill(parent(pool.pids()[0]), signal.SIGKILL)
    assert ended(left)


@pytest.mark.parametrize("where", ["main", "background"])
def test_an_interrupt_is_heard_while_an_environment_hangs(tmp_path, where):
    """Long before the time limit, which is a minute; whichever thread asks the environment."""
    code = {
        "main": """
with pool:
    pool.step({0: "hang"})
""",
        "background": """
with pool:
    threading.Thread(target=pool.step, args=({0: "hang"},)).start()
    while True:
        time.sleep(1000)
""",
    }[where]
    caller, worker = run_pool(code, tmp_path, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    left = spawned(tmp_path) | {worker, parent(worker)}
    caller.send_signal(signal.SIGINT)
    caller.wait(timeout=15)
    assert ended(left)


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_pool_ends_while_its_first_environment_is_being_made(tmp_path, how):
    code = """
os.mkdir(sys.argv[1] + "/slow")
slow = EnvPool(partial(NeverMade, sys.argv[1] + "/slow"), 1, 1)
slow.reset({0: game("a")})
"""
    caller, _ = run_pool(code, tmp_path, stderr=subprocess.DEVNULL)
    pids = tmp_path / "slow" / "pids-slow"
    wait_for(lambda: pids.exists() and pids.read_text())
    child = int(pids.read_text())
    left = {child, parent(child), *spawned(tmp_path)}
    caller.send_signal(signal.SIGINT if how == "closed" else signal.SIGKILL)
    caller.wait(timeout=15)
    assert ended(left)
    assert not list(tmp_path.glob("cotjax-envs-*"))


def test_a_call_gives_up_when_another_thread_closes_the_pool(tmp_path):
    pool = EnvPool(partial(Spawner, str(tmp_path), spawns=False), 2, 2)
    pool.reset({0: game("a"), 1: game("b")})
    pids, raised = set(pool.pids().values()), []

    def ask() -> None:
        try:
            pool.step({0: "hang"})
        except UsageError as error:
            raised.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    pool.close()
    asking.join(timeout=10)
    assert raised == ["the pool is closed"] and not any(map(is_running, pids))
    assert pool.pids() == {}
