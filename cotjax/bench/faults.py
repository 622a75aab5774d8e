"""`cotjax bench faults`: many episodes, while environments are killed, stopped and made to speak garbage at random.

The rollout loop plays made games by a scripted policy, with real ALFWorld environments in processes of their own. Before each request
a seeded draw picks some of these processes and sends them SIGKILL (a crash), SIGSTOP (a hang) or SIGUSR1, on which they write random
bytes, or the head of a frame that never ends, into their own pipe. Afterwards:

* every episode has exactly one record;
* one that the environment did not end is the same, step by step, as when it is played in peace;
* no process and no file is left;
* memory is where it was.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer

from cotjax.data.codec import Codec
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.alfworld.words import alfworld_words
from cotjax.envs.base import TASK_TYPES, Game, Observation
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.errors import EnvError, UsageError
from cotjax.formats import ACTION_CLOSE, CHATML, first_turn
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.loop import play
from cotjax.rollout.record import (
    Episode,
    Heading,
    Record,
    read_records,
    record_path,
    write_record,
)
from cotjax.runtime.files import is_running
from cotjax.runtime.progress import Reporter

KINDS = {"killed": signal.SIGKILL, "hung": signal.SIGSTOP, "garbled": signal.SIGUSR1}
_LIMITS = Limits(start=60.0, reset=20.0, step=1.0)
_HEADING = Heading(
    world="alfworld", arm="scripted", checkpoint=0, checkpoint_hash="", games_hash="", domain=""
)


@dataclass
class Outcome:
    """What came of it. `injected`: kind -> faults; memory in MB, of this process and of the environments' together."""

    episodes: int = 0
    records: int = 0
    won: int = 0
    steps: int = 0
    injected: Counter = field(default_factory=Counter)
    faults: int = 0
    recovered: int = 0
    env_errors: int = 0
    different: int = 0
    leaked_processes: int = 0
    leaked_files: int = 0
    memory: tuple[float, float] = (0.0, 0.0)
    environments_memory: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        whole = self.records == self.episodes and self.recovered + self.env_errors >= min(
            1, self.injected.total()
        )
        return whole and not (self.different or self.leaked_processes or self.leaked_files)


def run(
    episodes: int,
    *,
    folder: Path,
    games: list[Game] | None = None,
    slots: int = 16,
    rate: float = 0.02,
    retries: int = 2,
    max_steps: int = 12,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Play `episodes` episodes twice, in peace and under fire, and compare.

    Args:
      folder: for the games (made there unless given), the records and the translations.
      rate: share of requests before which the environment is struck.
      progress: called with (episodes done, in all), both times of play together.
    """
    if games is None:
        games = make_games(folder / "games", {"train": dict.fromkeys(TASK_TYPES[:3], 2)}, seed, 1)
    played = [
        replace(games[number % len(games)], id=f"{games[number % len(games)].id}#{number}")
        for number in range(episodes)
    ]
    factory = partial(Struck, max_steps=max_steps, cache_dir=str(folder / "pddl"), games_kept=4)
    peace: dict[str, list] = {}
    with EnvPool(factory, slots, slots, _LIMITS) as pool:
        _play(
            played,
            pool,
            slots,
            max_steps,
            seed,
            lambda game, record: peace.__setitem__(game.id, _told(record)),
            progress,
            0,
        )
    outcome, temporary = Outcome(episodes), folder / "temporary"
    temporary.mkdir()
    started = time.perf_counter()
    with _temporary_files_in(temporary), EnvPool(factory, slots, slots, _LIMITS, retries) as pool:
        fire = Fire(pool, rate, seed, outcome.injected)

        def keep(game: Game, episode: Episode) -> None:
            path = record_path(
                folder / "records", arm=_HEADING.arm, checkpoint=0, driver="prompt", game_id=game.id
            )
            write_record(path, Record.of(_HEADING, episode))
            memory.append((_memory([os.getpid()]), _memory(set(pool.pids().values()))))

        memory: list[tuple[float, float]] = []
        _play(played, fire, slots, max_steps, seed, keep, progress, episodes)
    outcome.seconds = time.perf_counter() - started
    outcome.leaked_processes = sum(map(is_running, fire.met))
    outcome.leaked_files = len(list(temporary.iterdir())) + len(list(folder.rglob("*.partial")))
    _count(outcome, list(read_records(folder / "records")), peace)
    outcome.memory, outcome.environments_memory = (
        (kind[len(kind) // 10], kind[-1]) for kind in zip(*memory, strict=True)
    )
    return outcome


class Fire:
    """A pool whose processes are struck, by a seeded draw, before they are asked."""

    def __init__(self, pool: EnvPool, rate: float, seed: int, injected: Counter):
        self._pool, self._rate, self._injected = pool, rate, injected
        self._random = random.Random(f"faults/{seed}")
        self.met: set[int] = set()  # every process seen
        self.faults = pool.faults

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation] | EnvError]:
        self._strike(games)
        return self._pool.reset(games)

    def step(self, actions: dict[int, str]) -> dict[int, Observation | EnvError]:
        self._strike(actions)
        return self._pool.step(actions)

    def _strike(self, slots) -> None:
        pids = self._pool.pids()
        self.met |= set(pids.values())
        for slot in sorted(slots):
            if self._random.random() < self._rate and slot in pids:
                kind = self._random.choice(sorted(KINDS))
                os.kill(pids[slot], KINDS[kind])
                self._injected[kind] += 1


class Struck(AlfworldEnv):
    """An ALFWorld environment that writes garbage into its process's pipe when it is told to by SIGUSR1."""

    def __init__(self, **settings):
        super().__init__(**settings)
        signal.signal(signal.SIGUSR1, _garble)


def _garble(*_) -> None:
    rng = random.Random(f"{os.getpid()}")
    garbage = rng.choice(
        (
            rng.randbytes(3),
            rng.randbytes(40),
            struct.pack(">II", 1000, 7) + b'{"number": 1',
            b"\0" * 8 + b"[]",
        )
    )
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), garbage)
        except OSError:
            continue


class Scripted:
    """A policy that takes a random admissible command, the same one for the same game, turn and seed."""

    max_length = 1 << 30

    def __init__(self, codec: Codec, slots: int):
        self.slots, self._codec = slots, codec
        self._ids: list[list[int]] = [[] for _ in range(slots)]
        self.commands: dict[int, tuple[str, ...]] = {}

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self._ids])

    def prompt(self, slot: int) -> list[int]:
        return self._ids[slot]

    def reset(self, slots) -> None:
        for slot in slots:
            self._ids[slot] = []

    def extend(self, pieces) -> None:
        for slot, ids in pieces.items():
            self._ids[slot] += ids

    def branch(self, prefixes, *, seeds, **how):
        made = {}
        for slot in prefixes:
            rng = random.Random(seeds[slot])
            verbs = sorted({command.split()[0] for command in self.commands[slot]})
            verb = rng.choice(verbs)  # a verb first, since nine commands of ten are "go to"
            action = rng.choice(
                [command for command in self.commands[slot] if command.split()[0] == verb]
            )
            ids = self._codec.encode(action) + self._codec.encode(ACTION_CLOSE)
            made[slot] = SimpleNamespace(ids=ids, logprobs=None, stopped=True)
        return made


class _Telling:
    """Environments that tell the scripted policy what is admissible."""

    def __init__(self, environments, policy: Scripted):
        self._environments, self._policy = environments, policy
        self.faults = environments.faults

    def reset(self, games):
        answers = self._environments.reset(games)
        self._tell(
            {
                slot: answer[1]
                for slot, answer in answers.items()
                if not isinstance(answer, EnvError)
            }
        )
        return answers

    def step(self, actions):
        answers = self._environments.step(actions)
        self._tell(
            {slot: answer for slot, answer in answers.items() if not isinstance(answer, EnvError)}
        )
        return answers

    def _tell(self, seen: dict[int, Observation]) -> None:
        self._policy.commands |= {
            slot: observation.admissible_commands for slot, observation in seen.items()
        }


def benchmark(episodes: int, rate: float, retries: int, slots: int, seed: int) -> bool:
    """Run it in a temporary folder and print what came of it; returns whether all is as it should be."""
    if episodes < 1 or slots < 1 or retries < 0 or not 0 <= rate <= 1:
        raise UsageError(
            "bench faults: give --episodes and --slots of 1 or more, --retries of 0 or more, and a --rate between 0 and 1"
        )
    reporter = Reporter()
    with (
        tempfile.TemporaryDirectory(prefix="cotjax-faults-") as folder,
        reporter.stage("faults", "Playing in peace, then under fire") as stage,
    ):
        outcome = run(
            episodes, folder=Path(folder), slots=slots, rate=rate, retries=retries, seed=seed,
            progress=lambda done, total: stage.update(done, total, "episodes"),
        )  # fmt: skip
    injected = ", ".join(f"{n} {kind}" for kind, n in sorted(outcome.injected.items())) or "none"
    for line in (
        f"episodes {outcome.episodes}, records {outcome.records}, steps {outcome.steps}, in {outcome.seconds:.0f} s",
        f"faults injected: {injected}; seen by the pool: {outcome.faults}",
        f"episodes with a fault that ended as if there had been none: {outcome.recovered}; given up: {outcome.env_errors}",
        f"episodes that differ from the undisturbed run: {outcome.different}",
        f"left behind: {outcome.leaked_processes} processes, {outcome.leaked_files} files",
        f"memory of this process: {outcome.memory[0]:.0f} MB after a tenth of the episodes, {outcome.memory[1]:.0f} MB at the end",
        f"memory of the environments: {outcome.environments_memory[0]:.0f} MB, {outcome.environments_memory[1]:.0f} MB",
        "all accounted for" if outcome.good else "NOT all accounted for",
    ):
        reporter.say(line)
    return outcome.good


def _play(games, environments, slots, max_steps, seed, keep, progress, before) -> None:
    codec = Codec(_tokenizer(), CHATML)
    policy = Scripted(codec, slots)
    done = 0

    def on_record(game: Game, episode: Episode) -> None:
        nonlocal done
        keep(game, episode)
        done += 1
        progress(before + done, 2 * len(games))

    play(
        games, policy=policy, codec=codec, environments=_Telling(environments, policy), driver="prompt",
        elicitation=Elicitation(max_steps=max_steps), seed=seed, on_record=on_record,
    )  # fmt: skip


def _tokenizer() -> Tokenizer:
    return build_word_tokenizer([*alfworld_words(), first_turn("", "")])


def _told(episode: Episode) -> list:
    """What happened in an episode, apart from how long it took and what went wrong on the way."""
    return [episode.ended, episode.final_observation, episode.steps]


def _count(outcome: Outcome, records: list[Record], peace: dict[str, list]) -> None:
    outcome.records = len({record.game.id for record in records} & set(peace))
    for record in records:
        outcome.steps += len(record.steps)
        outcome.won += record.success
        outcome.faults += len(record.env_faults)
        if record.ended == "env_error":
            outcome.env_errors += 1
        else:
            outcome.recovered += bool(record.env_faults)
            outcome.different += _told(record) != peace[record.game.id]


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _memory(pids) -> float:
    """Resident MB of these processes; pages that they share are counted in each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGE_SIZE"
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e6
