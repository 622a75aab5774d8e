"""`cotjax bench worlds`: many episodes of a world's scripted expert, in many environments.

Environments live in processes of their own, as in a rollout, and the expert sends them its actions.
Printed: how many episodes it won, within which steps; steps a second and resident memory near the
start and at the end; and whether a process was left behind. A world may add lines of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
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


@dataclass
class Figures:
    """What was measured.

    Attributes:
      episodes, won, won_within, steps: counts; `won_within`: won within `WITHIN` steps.
      scores: sum of the last scores; a won game of a world without scores counts 1.
      faults: messages of environments that failed.
      marks: (seconds, steps, resident MB of this process and of all below it) after the first
        step, after `EARLY` of the episodes and at the end.
      left: processes that still ran after the environments were closed.
    """

    episodes: int = 0
    won: int = 0
    won_within: int = 0
    steps: int = 0
    scores: float = 0.0
    faults: list[str] = field(default_factory=list)
    marks: list[tuple[float, int, float]] = field(default_factory=list)
    left: int = 0

    @property
    def speeds(self) -> tuple[float, float]:
        """Steps a second from the first mark to the second, and from there to the end."""
        spans = zip(self.marks, self.marks[1:], strict=False)
        first, last = ((b[1] - a[1]) / max(b[0] - a[0], 1e-9) for a, b in spans)
        return first, last

    @property
    def memory(self) -> tuple[float, float]:
        """Resident MB after `EARLY` of the episodes, and at the end."""
        return self.marks[1][2], self.marks[-1][2]


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
            "bench worlds: give --episodes of 3 or more, --slots and --steps of 1 or more"
        )
    world.check_agent("expert")
    slots = min(slots, episodes)
    figures, seen, marks = Figures(), set[int](), [0, max(1, int(EARLY * episodes)), episodes]
    waiting = islice(cycle(games), episodes)
    with EnvPool(world.make_env(max_steps), slots, slots, _LIMITS) as pool:
        playing = _Playing(world, pool, seed, figures)
        free: Iterable[int] = range(slots)
        while free or playing.agents:
            playing.begin(dict(zip(free, waiting, strict=False)))
            free = playing.turn()
            while len(figures.marks) < 3 and figures.episodes >= marks[len(figures.marks)]:
                below = descendants()
                seen |= below
                memory = resident_mb([os.getpid(), *below])
                figures.marks.append((time.perf_counter(), figures.steps, memory))
            progress(figures.episodes, episodes)
    figures.left = sum(map(is_running, seen))
    return figures


class _Playing:
    """Experts at their environments. `agents`: slot -> the expert, its game and the last answer."""

    def __init__(self, world: World, pool: EnvPool, seed: int, figures: Figures):
        self._world, self._pool, self._seed, self._figures = world, pool, seed, figures
        self.agents: dict[int, tuple[Agent, Observation, int]] = {}

    def begin(self, games: dict[int, Game]) -> None:
        """Start a game in each of these slots."""
        for slot, begun in (self._pool.reset(games) if games else {}).items():
            if isinstance(begun, EnvError):
                self._end(slot, begun)
                continue
            task, seen = begun
            agent = self._world.agent("expert", self._seed, AgentSettings(game=games[slot]))
            agent.start(task, seen)
            self.agents[slot] = agent, seen, 0

    def turn(self) -> list[int]:
        """Send an action to every environment; return the slots whose episode is over."""
        actions = {slot: agent.act(seen).action for slot, (agent, seen, _) in self.agents.items()}
        over = []
        for slot, answer in self._pool.step(actions).items():
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
        self.agents.pop(slot, None)
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
    per_type: int = 3,
) -> Figures:
    """Measure one world, and print the figures, with those of its own.

    Args:
      root: folder of its games; "" for its own default, or, of a world that makes games, for new
        ones.
      split: of its games; "" for the one that is played by default.
      per_type: new games of each task type.
    """
    reporter, split = Reporter(), split or world.eval_split
    with ExitStack() as stack:
        if not root and world.makes_games:
            made = Path(stack.enter_context(TemporaryDirectory(prefix="cotjax-worlds-")))
            world.make_games(made, {split: dict.fromkeys(world.task_types, per_type)}, seed)
            root = str(made)
        games = world.games(root, split)
        title = f"{world.title or world.name}: {len(games)} games of {split}, {slots} environments"
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


def _lines(figures: Figures, max_steps: int) -> Iterator[str]:
    played = figures.episodes - len(figures.faults)
    share = partial(_percent, of=max(1, played))
    yield (
        f"the expert won {figures.won} of {played} episodes ({share(figures.won)}) within "
        f"{max_steps} steps, {share(figures.won_within)} within {WITHIN}; mean score "
        f"{figures.scores / max(1, played):.3f}"
    )
    early, late = figures.speeds
    ratio = f" ({late / early:.2f} of it)" if early else ""
    yield f"steps/s: {early:,.0f} near the start, {late:,.0f} after it{ratio}"
    before, after = figures.memory
    yield (
        f"memory: {before:,.0f} MB after {EARLY:.0%} of the episodes, {after:,.0f} MB at the end "
        f"({after / before:.3f} of it)"
    )
    yield f"processes left behind: {figures.left}; environments that failed: {len(figures.faults)}"
    yield from (f"  {fault}" for fault in figures.faults[:5])


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %"
