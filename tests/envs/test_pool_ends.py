"""How a pool ends: environments are closed, what they have started ends with them, and an interrupt is heard at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from test_pool import ended, game, is_running

from cotjax.envs.base import Game, Observation
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.errors import UsageError

SLEEPS = ("-c", "import time; time.sleep(1000)")
# A process with a child of its own; with "session" that child is a session leader, and its parent ends at once.
SPAWNS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session="session" in sys.argv)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n{child.pid}\\n")
if "session" not in sys.argv:
    time.sleep(1000)
"""


class Spawner:
    """An environment with processes of its own, whose ids it writes to `folder`/pids; `close` notes itself and ends none of them."""

    def __init__(self, folder: str, spawns: bool = True):
        self._folder = Path(folder)
        self._spawns = spawns

    def reset(self, game: Game) -> tuple[str, Observation]:
        for mode in ("group", "session") * self._spawns:
            pids = self._folder / f"pids-{os.getpid()}-{mode}"
            subprocess.Popen([sys.executable, "-c", SPAWNS, str(pids), mode])
            while not pids.exists() or pids.read_text().count("\n") < 2:
                time.sleep(0.01)
        if self._spawns and not (child := os.fork()):
            while True:
                time.sleep(1000)
        elif self._spawns:
            (self._folder / f"pids-{os.getpid()}-fork").write_text(f"{child}\n")
        return "play", Observation("begin", (), False, False)

    def step(self, action: str) -> Observation:
        if action == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
            while True:
                time.sleep(1000)
        if action == "exit":
            os._exit(3)
        return Observation(action, (), False, False)

    def close(self) -> None:
        if self._folder.is_dir():
            (self._folder / f"closed-{os.getpid()}").touch()


def spawned(folder: Path, workers: int = 1) -> set[int]:
    """The processes of the environments: of each a child with a child, an orphan in a session of its own, and a fork."""
    found = {int(pid) for pids in folder.glob("pids-*") for pid in pids.read_text().split()}
    assert len(found) == 5 * workers
    return found


def closed(folder: Path) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.glob("closed-*")}


def test_environments_are_closed_when_their_pool_is_and_what_they_started_ends(tmp_path):
    with EnvPool(partial(Spawner, str(tmp_path)), 2, 2) as pool:
        pool.reset({0: game("a"), 1: game("b")})
        left, pids = spawned(tmp_path, 2), set(pool.pids().values())
    assert pids <= closed(tmp_path)
    assert not any(map(is_running, left | pids))


def test_environments_of_this_process_are_closed_though_one_of_them_fails_to(tmp_path):
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
def test_what_a_failed_environment_started_ends_with_it(tmp_path, what):
    with EnvPool(partial(Spawner, str(tmp_path)), 1, 1, Limits(step=1.0)) as pool:
        pool.reset({0: game("a")})
        left = spawned(tmp_path)
        assert pool.faults(0) == ()
        pool.step({0: what})
        assert len(pool.faults(0)) == 1 and ended(left), "while the pool lives on"


RUNS = """
import os, sys, threading, time
from functools import partial
from test_pool_ends import EnvPool, Spawner, game
pool = EnvPool(partial(Spawner, sys.argv[1]), 1, 1)
pool.reset({0: game("a")})
print(pool.pids()[0], flush=True)
"""


def run(code: str, folder: Path, **options) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(__file__).parent), *map(str, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", RUNS + code, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("group", [False, True])
def test_all_of_it_ends_with_a_caller_that_is_killed(tmp_path, group):
    """The caller alone, or its whole process group."""
    caller = run("time.sleep(1000)", tmp_path, start_new_session=True)
    with caller.stdout:
        worker = int(caller.stdout.readline())
    left = spawned(tmp_path) | {worker, parent(worker)}
    (os.killpg if group else os.kill)(caller.pid, signal.SIGKILL)
    caller.wait()
    assert ended(left)
    assert worker in closed(tmp_path), "it was idle, and had time to close"
    assert not list(tmp_path.glob("cotjax-envs-*"))


def test_no_folder_is_removed_but_the_pools_own(tmp_path, monkeypatch):
    """The pool's temporary folder is gone before the pool is: what temporary files fall back to stays as it is."""
    fallback = tmp_path / "fallback"
    (fallback / "precious").mkdir(parents=True)
    monkeypatch.setenv("TEMP", str(fallback))
    caller = run("time.sleep(1000)", tmp_path)
    with caller.stdout:
        worker = int(caller.stdout.readline())
    left = spawned(tmp_path) | {worker, parent(worker)}
    (own,) = tmp_path.glob("cotjax-envs-*")
    own.rename(tmp_path / "moved")
    caller.kill()
    caller.wait()
    assert ended(left)
    assert (fallback / "precious").is_dir()


def test_all_of_it_ends_when_the_process_that_forks_is_killed(tmp_path):
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
    caller = run(code, tmp_path, stderr=subprocess.DEVNULL)
    with caller.stdout:
        worker = int(caller.stdout.readline())
    time.sleep(0.5)
    left = spawned(tmp_path) | {worker, parent(worker)}
    caller.send_signal(signal.SIGINT)
    caller.wait(timeout=15)
    assert ended(left)


class Slow:
    """Its making never ends, and has a process of its own."""

    def __init__(self, folder: str):
        child = subprocess.Popen([sys.executable, *SLEEPS])
        (Path(folder) / "pids-slow").write_text(f"{child.pid}\n")
        time.sleep(1000)


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_pool_ends_while_its_first_environment_is_being_made(tmp_path, how):
    code = """
from test_pool_ends import Slow
os.mkdir(sys.argv[1] + "/slow")
slow = EnvPool(partial(Slow, sys.argv[1] + "/slow"), 1, 1)
slow.reset({0: game("a")})
"""
    caller = run(code, tmp_path, stderr=subprocess.DEVNULL)
    with caller.stdout:
        caller.stdout.readline()
    pids = tmp_path / "slow" / "pids-slow"
    limit = time.monotonic() + 30
    while not pids.exists() or not pids.read_text():
        assert time.monotonic() < limit
        time.sleep(0.01)
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
