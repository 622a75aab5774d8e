"""`cotjax bench faults`: many episodes, while environments are killed, stopped and garbled.

The rollout loop plays generated games by a scripted policy, with ALFWorld environments in processes
of their own. Before each request, a seeded draw picks some of these processes and sends them
SIGKILL (a crash), SIGSTOP (a hang) or SIGUSR1, on which they write random bytes, or the beginning
of a message, into their own channel. Afterwards:

* every episode has exactly one record;
* an episode that no environment ended equals, step by step, the one played without faults;
* no process and no file is left behind;
* memory has not grown.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cotjax.bench.scripted import Observed, ScriptedPolicy
from cotjax.data.codec import Codec
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.alfworld import WORLD, AlfworldEnv
from cotjax.envs.base import Game, Observation, Play, plays_of
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.errors import EnvError, UsageError
from cotjax.formats import CHATML, first_turn
from cotjax.rollout.contracts import Environments
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.loop import OnRecord, play
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
    """What the episodes with faults came to.

    Attributes:
      episodes, records, won, steps: counts.
      injected: faults by kind.
      faults: those that the pool noticed.
      recovered: episodes with a fault that ended like any other.
      env_errors: episodes given up.
      different: episodes that differ from the ones without faults.
      leaked_processes, leaked_files: what was left behind.
      memory, environments_memory: of this process and of the environments together, in MB: after a
        tenth of the episodes, and at the end.
      seconds: wall-clock time.
    """

    episodes: int = 0
    records: int = 0
    won: int = 0
    steps: int = 0
    injected: Counter[str] = field(default_factory=Counter)
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
        """Whether every episode is accounted for, and nothing differs or is left behind."""
        noticed = self.recovered + self.env_errors >= min(1, self.injected.total())
        unwanted = self.different or self.leaked_processes or self.leaked_files
        return self.records == self.episodes and noticed and not unwanted


@dataclass(frozen=True)
class Settings:
    """What to play.

    Attributes:
      episodes, slots, max_steps: episodes, concurrent ones, steps of each.
      rate: share of requests before which a fault is injected.
      retries: restarts of an episode's environment.
      seed: of the games, the actions and the faults.
    """

    episodes: int
    slots: int = 16
    rate: float = 0.02
    retries: int = 2
    max_steps: int = 12
    seed: int = 0


def run(
    settings: Settings,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Play all episodes twice, without and with injected faults, and compare.

    Args:
      settings: what to play.
      folder: for the games, the records and the translations.
      progress: called with (episodes done, in all), of both times together.
    """
    generated = WORLD.make_games(
        folder / "games", {"train": dict.fromkeys(WORLD.task_types[:3], 2)}, settings.seed, 1
    )
    games = [
        replace(game, id=f"{game.id}#{number}")
        for number, game in zip(range(settings.episodes), cycle(generated), strict=False)
    ]
    factory = partial(
        GarblingEnv, max_steps=settings.max_steps, cache_dir=str(folder / "pddl"), games_kept=4
    )
    slots, done = settings.slots, 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, 2 * settings.episodes)

    baseline: dict[str, list[Any]] = {}

    def keep_baseline(play: Play, episode: Episode) -> None:
        baseline[play.game.id] = _comparable(episode)
        count()

    with EnvPool(factory, slots, slots, _LIMITS) as pool:
        _play(games, pool, settings, keep_baseline)
    outcome = Outcome(settings.episodes)
    temporary = folder / "temporary"
    temporary.mkdir()
    with (
        _temporary_files_in(temporary),
        EnvPool(factory, slots, slots, _LIMITS, settings.retries) as pool,
    ):
        injector = FaultInjector(pool, settings.rate, settings.seed, outcome.injected)
        _play_with_faults(games, pool, injector, settings, folder / "records", outcome, count)
    outcome.leaked_processes = sum(map(is_running, injector.pids))
    outcome.leaked_files = len(list(temporary.iterdir())) + len(list(folder.rglob("*.partial")))
    _count(outcome, list(read_records(folder / "records")), baseline)
    return outcome


def _play_with_faults(
    games: Sequence[Game],
    pool: EnvPool,
    injector: FaultInjector,
    settings: Settings,
    records: Path,
    outcome: Outcome,
    count: Callable[[], None],
) -> None:
    memory: list[tuple[float, float]] = []

    def keep(play: Play, episode: Episode) -> None:
        path = record_path(
            records, arm=_HEADING.arm, checkpoint=0, driver="prompt", game_id=play.game.id
        )
        write_record(path, Record.of(_HEADING, episode))
        memory.append((resident_mb([os.getpid()]), resident_mb(pool.pids().values())))
        count()

    started = time.perf_counter()
    _play(games, injector, settings, keep)
    outcome.seconds = time.perf_counter() - started
    outcome.memory, outcome.environments_memory = (
        (kind[len(kind) // 10], kind[-1]) for kind in zip(*memory, strict=True)
    )


class FaultInjector:
    """A pool whose processes get a signal, by a seeded draw, before they are asked.

    Attributes:
      pids: every process seen.
    """

    def __init__(self, pool: EnvPool, rate: float, seed: int, injected: Counter[str]):
        self._pool, self._rate, self._injected = pool, rate, injected
        self._random = random.Random(f"faults/{seed}")
        self.pids: set[int] = set()

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Inject faults, then reset."""
        self._inject(games)
        return self._pool.reset(games)

    def step(self, actions: dict[int, str]) -> dict[int, Observation | EnvError]:
        """Inject faults, then step."""
        self._inject(actions)
        return self._pool.step(actions)

    def faults(self, slot: int) -> tuple[str, ...]:
        """Return the faults that the pool has noticed."""
        return self._pool.faults(slot)

    def _inject(self, slots: Iterable[int]) -> None:
        pids = self._pool.pids()
        self.pids |= set(pids.values())
        for slot in sorted(slots):
            if self._random.random() < self._rate and slot in pids:
                kind = self._random.choice(sorted(KINDS))
                os.kill(pids[slot], KINDS[kind])
                self._injected[kind] += 1


class GarblingEnv(AlfworldEnv):
    """An ALFWorld environment that writes garbage into its process's channel on SIGUSR1."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        signal.signal(signal.SIGUSR1, _garble)


def _garble(*_: object) -> None:
    rng = random.Random(f"{os.getpid()}")
    unfinished, unasked = b'{"number": 1', b'{"number": 0, "slot": 0}\n'
    garbage = rng.choice((rng.randbytes(3), rng.randbytes(40), unfinished, unasked))
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), garbage)
        except OSError:
            continue


def benchmark(episodes: int, rate: float, retries: int, slots: int, seed: int) -> bool:
    """Run in a temporary folder, and print the outcome; returns whether it is good."""
    if episodes < 1 or slots < 1 or retries < 0 or not 0 <= rate <= 1:
        raise UsageError(
            "bench faults: give --episodes and --slots of 1 or more, --retries of 0 or more, and a "
            "--rate between 0 and 1"
        )
    settings = Settings(episodes, slots=slots, rate=rate, retries=retries, seed=seed)
    reporter = Reporter()
    with (
        tempfile.TemporaryDirectory(prefix="cotjax-faults-") as folder,
        reporter.stage("faults", "Playing without faults, then with faults") as stage,
    ):
        outcome = run(
            settings,
            Path(folder),
            progress=lambda done, total: stage.update(done, total, "episodes"),
        )
    for line in _lines(outcome):
        reporter.say(line)
    return outcome.good


def _lines(outcome: Outcome) -> tuple[str, ...]:
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(outcome.injected.items())) or "none"
    memory = "of {}: {:.0f} MB after a tenth of the episodes, {:.0f} MB at the end"
    return (
        f"episodes {outcome.episodes}, records {outcome.records}, steps {outcome.steps}, "
        f"in {outcome.seconds:.0f} s",
        f"faults injected: {kinds}; seen by the pool: {outcome.faults}",
        f"episodes with a fault that ended as if there had been none: {outcome.recovered}; "
        f"given up: {outcome.env_errors}",
        f"episodes that differ from the undisturbed run: {outcome.different}",
        f"left behind: {outcome.leaked_processes} processes, {outcome.leaked_files} files",
        "memory " + memory.format("this process", *outcome.memory),
        "memory " + memory.format("the environments", *outcome.environments_memory),
        "all accounted for" if outcome.good else "NOT all accounted for",
    )


def _play(
    games: Sequence[Game],
    environments: Environments,
    settings: Settings,
    on_record: OnRecord,
) -> None:
    codec = Codec(_tokenizer(), CHATML)
    policy = ScriptedPolicy(codec, settings.slots)
    play(
        plays_of(games),
        policy=policy,
        codec=codec,
        environments=Observed(environments, policy),
        driver="prompt",
        elicitation=Elicitation(max_steps=settings.max_steps),
        seed=settings.seed,
        on_record=on_record,
    )


def _tokenizer() -> Tokenizer:
    return build_word_tokenizer([*WORLD.words(), first_turn("", "")])


def _comparable(episode: Episode) -> list[Any]:
    """Return what happened in an episode, without its times and its faults."""
    return [episode.ended, episode.final_observation, episode.steps]


def _count(outcome: Outcome, records: list[Record], baseline: dict[str, list[Any]]) -> None:
    outcome.records = len({record.game.id for record in records} & set(baseline))
    for record in records:
        outcome.steps += len(record.steps)
        outcome.won += record.success
        outcome.faults += len(record.env_faults)
        if record.ended == "env_error":
            outcome.env_errors += 1
        else:
            outcome.recovered += bool(record.env_faults)
            outcome.different += _comparable(record) != baseline[record.game.id]


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def resident_mb(pids: Iterable[int]) -> float:
    """Return the resident MB of these processes; shared pages count in each."""
    pages = 0
    for pid in {*pids}:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
