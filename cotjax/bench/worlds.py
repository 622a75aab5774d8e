"""`cotjax bench worlds`: many episodes of a world's scripted expert, in many environments.

Environments live in processes of their own, as in a rollout, and the expert sends them its actions.
Printed: how many episodes it won, within which steps; steps a second and resident memory near the
start and at the end; and whether a process was left behind. Time counts while environments are
waited for, so that an expert that searches for its path does not count. A world may add lines of
its own.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from cotjax.bench.faults import resident_mb
from cotjax.envs.base import Agent, Game, Observation
from cotjax.envs.pool.descendants import descendants
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.envs.worlds import AgentSettings, World
from cotjax.errors import EnvError, UsageError
from cotjax.runtime.files import is_running
from cotjax.runtime.progress import Reporter

EARLY = 0.2  # share of the episodes after which "near the start" is measured
WITHIN = 30  # steps within which an episode is also counted as won
_LIMITS = Limits(start=120.0, reset=120.0, step=60.0)
_ENDING_S = 10.0  # for processes to end, before they count as left behind
_MADE = 3  # games of each task type that are made by default
_GAMES_KEPT = 2  # loaded games in each process, as in an evaluation: with more, memory grows longer


@dataclass(frozen=True)
class Mark:
    """What was spent up to a moment.

    Attributes:
      seconds: waited for environments.
      cpu: seconds of CPU time of all processes below this one.
      steps: taken.
      memory: resident MB of this process and of all below it.
    """

    seconds: float
    cpu: float
    steps: int
    memory: float


@dataclass
class Figures:
    """What was measured.

    Attributes:
      episodes, won, won_within, steps: counts; `won_within`: won within `WITHIN` steps.
      scores: sum of the last scores; a won game of a world without scores counts 1.
      faults: messages of environments that failed.
      marks: after the first episodes, one an environment, or after the first step where these are
        most of those near the start; after `EARLY` of the episodes; and at the end.
      left: processes that still ran after the environments were closed.
    """

    episodes: int = 0
    won: int = 0
    won_within: int = 0
    steps: int = 0
    scores: float = 0.0
    faults: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    left: int = 0

    @property
    def speeds(self) -> tuple[float, float]:
        """Steps a second from the first mark to the second, and from there to the end."""
        return self._speeds([mark.seconds for mark in self.marks])

    @property
    def cpu_speeds(self) -> tuple[float, float]:
        """The same by CPU time, which other work on the machine does not change as much."""
        return self._speeds([mark.cpu for mark in self.marks])

    @property
    def memory(self) -> tuple[float, float]:
        """Resident MB after `EARLY` of the episodes, and at the end."""
        return self.marks[1].memory, self.marks[-1].memory

    def _speeds(self, times: Sequence[float]) -> tuple[float, float]:
        """Return steps a unit of `times` in both spans; 0 where a span is too short to tell."""
        steps = [mark.steps for mark in self.marks]
        spans = [(times[n + 1] - times[n], steps[n + 1] - steps[n]) for n in range(2)]
        first, last = (taken / span if span > 0 else 0.0 for span, taken in spans)
        return first, last


def run(
    world: World,
    games: Sequence[Game],
    *,
    episodes: int,
    slots: int,
    max_steps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Figures:
    """Play `episodes` episodes, the games one after another and again, in `slots` environments.

    `progress`: called with (episodes done, in all) after each turn.

    Raises UsageError for no games, too few episodes, or a world without an expert.
    """
    if not games:
        raise UsageError(f"world {world.name!r}: there are no games to play")
    if min(slots, max_steps) < 1 or episodes < 3:
        raise UsageError(
            "bench worlds: give --episodes of 3 or more, --environments and --steps of 1 or more"
        )
    world.check_agent("expert")
    slots = min(slots, episodes)
    # Mixed, so that the episodes of every part of the run are of all kinds.
    games = random.Random(seed).sample(games, len(games))
    figures, seen, early = Figures(), set[int](), max(1, int(EARLY * episodes))
    # The first episodes are left out, where enough others are near the start: their resets come
    # before the first step, so the speed would be that of more steps a reset.
    marks = [slots if 2 * slots <= early else 0, early, episodes]
    waiting = islice(cycle(games), episodes)
    others = descendants()  # those that ran before, such as another world's engine
    with EnvPool(
        world.make_env(max_steps, _GAMES_KEPT), slots, world.processes_for(slots), _LIMITS
    ) as pool:
        playing = _Playing(world, pool, seed, figures)
        free: Iterable[int] = range(slots)
        while free or playing.agents:
            playing.begin(dict(zip(free, waiting, strict=False)))
            free = playing.turn()
            while len(figures.marks) < 3 and figures.episodes >= marks[len(figures.marks)]:
                below = descendants() - others
                seen |= below
                memory, cpu = resident_mb([os.getpid(), *below]), _cpu_seconds(below)
                figures.marks.append(Mark(playing.waited, cpu, figures.steps, memory))
            progress(figures.episodes, episodes)
    world.close()
    # On a busy machine killed processes take a moment to end.
    given_up = time.monotonic() + _ENDING_S
    while any(map(is_running, seen)) and time.monotonic() < given_up:
        time.sleep(0.05)
    figures.left = sum(map(is_running, seen))
    return figures


class _Playing:
    """Experts at their environments.

    Attributes:
      agents: slot -> the expert, the last answer, and the steps taken.
      waited: seconds for environments.
    """

    def __init__(self, world: World, pool: EnvPool, seed: int, figures: Figures):
        self._world, self._pool, self._seed, self._figures = world, pool, seed, figures
        self._games: dict[int, Game] = {}
        # Experts of games that are not played now: to make one may take seconds.
        self._idle: defaultdict[str, list[Agent]] = defaultdict(list)
        self.agents: dict[int, tuple[Agent, Observation, int]] = {}
        self.waited = 0.0

    def begin(self, games: dict[int, Game]) -> None:
        """Start a game in each of these slots."""
        started = time.perf_counter()
        begun = self._pool.reset(games) if games else {}
        self.waited += time.perf_counter() - started
        self._games |= games
        for slot, first in begun.items():
            if isinstance(first, EnvError):
                self._end(slot, first)
                continue
            task, seen = first
            agent = self._expert(games[slot])
            agent.start(task, seen)
            self.agents[slot] = agent, seen, 0

    def _expert(self, game: Game) -> Agent:
        if idle := self._idle[game.id]:
            return idle.pop()
        return self._world.agent("expert", self._seed, AgentSettings(game=game))

    def turn(self) -> list[int]:
        """Send an action to every environment; return the slots whose episode is over."""
        actions = {slot: agent.act(seen).action for slot, (agent, seen, _) in self.agents.items()}
        over = []
        started = time.perf_counter()
        answers = self._pool.step(actions)
        self.waited += time.perf_counter() - started
        for slot, answer in answers.items():
            agent, _, steps = self.agents[slot]
            if isinstance(answer, EnvError):
                self._end(slot, answer)
            elif answer.done or answer.won:
                self._end(slot, answer, steps + 1)
            else:
                self.agents[slot] = agent, answer, steps + 1
                continue
            over.append(slot)
        self._figures.steps += len(actions)
        return over

    def _end(self, slot: int, last: Observation | EnvError, steps: int = 0) -> None:
        if slot in self.agents:
            agent, *_ = self.agents.pop(slot)
            self._idle[self._games[slot].id].append(agent)
        figures = self._figures
        figures.episodes += 1
        if isinstance(last, EnvError):
            figures.faults.append(str(last))
            return
        figures.won += last.won
        figures.won_within += last.won and steps <= WITHIN
        figures.scores += float(last.won) if last.score is None else last.score


def benchmark(
    world: World,
    root: str,
    split: str,
    *,
    episodes: int,
    slots: int,
    max_steps: int,
    seed: int,
    per_type: int = 0,
    task_types: Sequence[str] = (),
) -> Figures:
    """Measure one world, and print the figures, with those of its own.

    Args:
      root: folder of its games; "" for its own default, or, of a world that makes games, for new
        ones.
      split: of its games; "" for the one that is played by default.
      per_type: games of each task type; 0: all there are, or `_MADE` new ones.
      task_types: of the games; (): all.

    Raises UsageError as `run` does, and for a task type that the world does not have.
    """
    for task_type in task_types:
        if task_type not in world.task_types:
            raise UsageError(
                f"world {world.name!r} has no task type {task_type!r}; there are "
                f"{', '.join(world.task_types)}"
            )
    types = tuple(task_types) or world.task_types
    reporter, split = Reporter(), split or world.eval_split
    with ExitStack() as stack:
        if not root and world.makes_games:
            made = Path(stack.enter_context(TemporaryDirectory(prefix="cotjax-worlds-")))
            world.make_games(made, {split: dict.fromkeys(types, per_type or _MADE)}, seed)
            root = str(made)
        games = _of_types(world.games(root, split), types, per_type, seed)
        title = (
            f"{world.title or world.name}: {len(games)} games of {split}, {slots} environments in "
            f"{world.processes_for(slots)} processes"
        )
        stage = stack.enter_context(reporter.stage("worlds", title))
        figures = run(
            world,
            games,
            episodes=episodes,
            slots=slots,
            max_steps=max_steps,
            seed=seed,
            progress=lambda done, total: stage.update(done, total, "episodes"),
        )
        lines = [*_lines(figures, max_steps), *world.figure_lines(games)]
    for line in lines:
        reporter.say(line)
    return figures


def _of_types(games: Sequence[Game], types: Sequence[str], most: int, seed: int) -> list[Game]:
    """Return the games of task types, `most` of each (0: all), drawn by the seed."""
    taken, chosen = Counter[str](), list[Game]()
    for game in random.Random(seed).sample(games, len(games)):
        if game.task_type in types and (not most or taken[game.task_type] < most):
            taken[game.task_type] += 1
            chosen.append(game)
    return sorted(chosen, key=lambda game: game.id)


def _cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of these processes, in user and kernel, since each began."""
    ticks = 0
    for pid in {*pids}:
        with suppress(OSError, IndexError):
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _lines(figures: Figures, max_steps: int) -> Iterator[str]:
    played = figures.episodes - len(figures.faults)
    share = partial(_percent, of=max(1, played))
    yield (
        f"the expert won {figures.won} of {played} episodes ({share(figures.won)}) within "
        f"{max_steps} steps, {share(figures.won_within)} within {WITHIN}; mean score "
        f"{figures.scores / max(1, played):.3f}"
    )
    for unit, (early, late) in (
        ("steps/s", figures.speeds),
        ("steps/s of CPU time", figures.cpu_speeds),
    ):
        if early and late:
            ratio = f"{late / early:.2f} of it"
            yield f"{unit}: {early:,.0f} near the start, {late:,.0f} after it ({ratio})"
    before, after = figures.memory
    yield (
        f"memory: {before:,.0f} MB after {EARLY:.0%} of the episodes, {after:,.0f} MB at the end "
        f"({after / before:.3f} of it)"
    )
    yield f"processes left behind: {figures.left}; environments that failed: {len(figures.faults)}"
    yield from (f"  {fault}" for fault in figures.faults[:5])


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %"
