"""Environments that crash, hang and start processes, and what has become of these processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cotjax.envs.base import Game, Observation
from cotjax.envs.pool.pool import EnvPool
from cotjax.errors import DataError

_SLEEPS = ("-c", "import time; time.sleep(1000)")
# A process with a child of its own. With "session", the child leads a session, and its parent ends.
_SPAWNS = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(1000)"],
    start_new_session="session" in sys.argv,
)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n{child.pid}\\n")
if "session" not in sys.argv:
    time.sleep(1000)
"""


def game(id_: str) -> Game:
    """Return a game of this id."""
    return Game(id_, f"/games/{id_}", "train", "pick_and_place_simple")


class Echo:
    """Repeats its commands; some make it sleep, exit, raise, or name its process or its modules."""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, game: Game) -> tuple[str, Observation]:
        if game.id == "broken":
            raise DataError(f"{game.path}: broken")
        self.game, self.steps = game, 0
        return f"play {game.id}", Observation("begin", (), False, False)

    def step(self, action: str) -> Observation:
        word, _, argument = action.partition(" ")
        self.steps += 1
        text = f"{self.game.id} {self.steps} {action}"
        if word == "sleep":
            time.sleep(float(argument))
        elif word == "exit":
            os._exit(int(argument))
        elif word == "raise":
            raise RuntimeError(f"cannot {argument}")
        elif word == "pid":
            text = str(os.getpid())
        elif word == "modules":
            text = " ".join(sys.modules)
        return Observation(text, (), False, False)

    def close(self) -> None:
        pass


class Counter:
    """Counts its steps.

    On SIGUSR1 it writes garbage into its channel, on SIGUSR2 half a message, and stops.
    `slow`: method -> seconds; `moody`: another process of it counts from another number.
    """

    def __init__(self, slow: tuple[str, float] = ("", 0.0), moody: bool = False):
        self._slow, self._moody = slow, moody
        self._dawdle("start")
        signal.signal(signal.SIGUSR1, lambda *_: _write_to_channel(b"\xff" * 20))
        signal.signal(signal.SIGUSR2, _stop_within_a_message)

    def reset(self, game: Game) -> tuple[str, Observation]:
        self._dawdle("reset")
        self._count = os.getpid() if self._moody else 0
        return f"count in {game.id}", Observation(str(self._count), ("more",), False, False)

    def step(self, action: str) -> Observation:
        self._dawdle("step")
        self._count += 1
        if action == "raise":
            raise RuntimeError("the floor gives way")
        return Observation(f"{self._count} {action}", ("more",), False, False)

    def close(self) -> None:
        pass

    def _dawdle(self, method: str) -> None:
        if self._slow[0] == method:
            time.sleep(self._slow[1])


def _stop_within_a_message(*_: Any) -> None:
    _write_to_channel(b'{"number": 2, "slot":')
    os.kill(os.getpid(), signal.SIGSTOP)


def _write_to_channel(data: bytes) -> None:
    for name in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{name}").rpartition("/")[2].startswith("socket:"):
            os.write(int(name), data)


class Spawner:
    """Starts processes, whose ids it writes to `folder`/pids-*, and ends none of them.

    `close` leaves `folder`/closed-<process id>.
    """

    def __init__(self, folder: str, spawns: bool = True):
        self._folder = Path(folder)
        self._spawns = spawns

    def reset(self, game: Game) -> tuple[str, Observation]:
        if self._spawns:
            self._spawn()
        return "play", Observation("begin", (), False, False)

    def _spawn(self) -> None:
        for mode in ("group", "session"):
            pids = self._folder / f"pids-{os.getpid()}-{mode}"
            subprocess.Popen([sys.executable, "-c", _SPAWNS, str(pids), mode])
            while not pids.exists() or pids.read_text().count("\n") < 2:
                time.sleep(0.01)
        if child := os.fork():
            (self._folder / f"pids-{os.getpid()}-fork").write_text(f"{child}\n")
        else:
            while True:
                time.sleep(1000)

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


class NeverMade:
    """Its constructor starts a process, writes its id to `folder`/pids-slow, and hangs."""

    def __init__(self, folder: str):
        child = subprocess.Popen([sys.executable, *_SLEEPS])
        (Path(folder) / "pids-slow").write_text(f"{child.pid}\n")
        time.sleep(1000)


def spawned(folder: Path, workers: int = 1) -> set[int]:
    """Return the processes of the Spawners: five of each worker.

    They are a child with a child, an orphan with a child in a session of its own, and a fork.
    """
    pids = {int(pid) for file in folder.glob("pids-*") for pid in file.read_text().split()}
    assert len(pids) == 5 * workers
    return pids


def closed(folder: Path) -> set[int]:
    """Return the processes whose Spawner was closed."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("closed-*")}


def started(pool: EnvPool, slots: int) -> dict[int, int]:
    """Reset every slot of Echo to game g<slot>; returns slot -> process id of its worker."""
    pool.reset({slot: game(f"g{slot}") for slot in range(slots)})
    answers = pool.step(dict.fromkeys(range(slots), "pid"))
    return {slot: int(seen.text) for slot, seen in answers.items()}


def exists(pid: int) -> bool:
    """Return whether there is such a process, or its zombie."""
    return Path(f"/proc/{pid}").exists()


def is_running(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(pids: Iterable[int], seconds: float = 15.0) -> bool:
    """Return whether all these processes end in time."""
    pids, limit = set(pids), time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < limit:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def parent(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def run(
    code: str | Path, *arguments: str, temporary: Path | None = None, **options: Any
) -> subprocess.Popen:
    """Run Python code, or a script, that can import the helpers.

    `temporary`: folder for its temporary files; `options`: of `subprocess.Popen`.
    """
    path = os.pathsep.join(map(str, sys.path))
    environment = {**os.environ, "PYTHONPATH": path}
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if isinstance(code, str) else [code]), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until the condition holds; fails after `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


class Stairs:
    """Won after as many steps as the game's number; game "9" fails at its second step."""

    def __init__(self, max_steps: int):
        self._max_steps = max_steps

    def reset(self, game: Game) -> tuple[str, Observation]:
        self._goal, self._steps = int(game.id), 0
        return f"climb {game.id} stairs", Observation("begin", ("up",), False, False)

    def step(self, action: str) -> Observation:
        self._steps += 1
        if self._goal == 9 and self._steps == 2:
            raise RuntimeError("a stair broke")
        won = self._steps == self._goal
        return Observation("up", ("up",), won, won or self._steps >= self._max_steps)

    def close(self) -> None:
        pass
