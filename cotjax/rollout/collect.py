"""Collect trajectories of scripted agents that play a world's games.

Every kept episode becomes a line of a JSONL file. The file depends on the games, their order and
the settings, never on the number of workers, nor on interruptions: the same call goes on.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from cotjax.data.trajectories import (
    SCRIPTED_BEFORE,
    Step,
    Trajectory,
    read_trajectories,
    refusal,
    write_trajectories,
)
from cotjax.envs.base import Game, TextEnv
from cotjax.envs.worlds import NAMED, AgentSettings, World
from cotjax.errors import CotjaxError, EnvError, UsageError
from cotjax.rollout.collected import Begun, Collected
from cotjax.rollout.workers import outcomes

_FAULTS_KEPT = 10
_FAULTS_SHOWN = 3


@dataclass(frozen=True)
class Collecting:
    """How episodes are collected.

    Attributes:
      agent: one of the world's scripted agents.
      seed: of the agents; with a game's id and an episode's number it decides the episode.
      max_steps: an episode ends after this many steps, won or not.
      only_won: keep won episodes only.
      skill: range that the agent's skill is drawn from for each episode.
      news: share of random steps whose thought also says what was just seen.
      mistakes: share of the agent's steps that go wrong (see `AgentSettings`).
      episodes_per_game: episodes of each game.
      thoughts: kind of the thoughts, one of the world's. It changes neither episodes nor actions.
    """

    agent: str
    seed: int
    max_steps: int = 30
    only_won: bool = True
    skill: tuple[float, float] = (0.1, 0.5)
    news: float = 0.4
    mistakes: float = 0.0
    episodes_per_game: int = 1
    thoughts: str = NAMED

    def check(self) -> None:
        """Raise UsageError for a range or count that is impossible."""
        if not 0.0 <= self.skill[0] <= self.skill[1] <= 1.0:
            raise UsageError(f"skill is a range of probabilities, low to high; {self.skill} is not")
        if not 0.0 <= self.mistakes < 1.0:
            raise UsageError(
                f"slips is a share of steps, at least 0 and below 1; {self.mistakes} is not"
            )
        if self.max_steps < 1 or self.episodes_per_game < 1:
            raise UsageError(
                f"max_steps ({self.max_steps}) and episodes_per_game ({self.episodes_per_game}) "
                "must be at least 1"
            )


@dataclass(frozen=True)
class CollectSummary:
    """The outcome of a collection, in episodes.

    Attributes:
      played: all that were tried.
      won: ended in the goal.
      kept: written to the file.
      steps: steps of the kept episodes.
      failed: broken off because the environment or the game file failed; none is kept.
      inadmissible: broken off because the agent chose an inadmissible action, a bug of the agent;
        none is kept.
      unreadable: dropped because a trajectory file cannot hold what was said in them, such as a
        response tag.
      faults: messages of the first few that were broken off or dropped, each with its game and
        step.
      before: played by a call that was interrupted.
    """

    played: int
    won: int
    kept: int
    steps: int
    failed: int = 0
    inadmissible: int = 0
    unreadable: int = 0
    faults: tuple[str, ...] = ()
    before: int = 0

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of episodes that are not in the file."""
        reasons = {
            "not won": self.played - self.kept - self._told,
            "the environment or the game file failed": self.failed,
            "the agent chose an action that the game does not take": self.inadmissible,
            "text that a trajectory cannot hold": self.unreadable,
        }
        return {reason: count for reason, count in reasons.items() if count}

    @property
    def _told(self) -> int:
        """Episodes that have a message: those that were broken off or dropped."""
        return self.failed + self.inadmissible + self.unreadable

    def lines(self) -> list[str]:
        """Return lines for the user: episodes kept, left out by reason, and the first faults."""
        lines = [
            f"won {self.won} of {self.played}; kept {self.kept} trajectories, {self.steps} steps"
        ]
        if self.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            lines[0] += f"; left out {self.played - self.kept}: {reasons}"
        if self.before:
            lines.append(f"  {self.before} of them were played before an interruption")
        lines += [f"  left out: {fault}" for fault in self.faults[:_FAULTS_SHOWN]]
        more = self._told - len(self.faults[:_FAULTS_SHOWN])
        if more > 0:
            lines.append(f"  and {more} more")
        return lines


def collect(
    world: World,
    games: Sequence[Game],
    out: Path,
    settings: Collecting,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CollectSummary:
    """Play `games` and write the episodes to `out`, in the order of the games.

    An episode that `read_trajectories` would refuse is dropped, and counted. After an interruption
    the same call goes on with the episodes that are left.

    Args:
      workers: processes; 0 and 1 play in this one.
      progress: called with (episodes done, episodes in all) after each episode.

    Raises:
      UsageError: an unknown agent, no games, two games with one id, or an impossible setting.
    """
    settings.check()
    world.check_agent(settings.agent)
    if settings.thoughts not in world.thought_kinds:
        raise UsageError(
            f"world {world.name!r} writes no {settings.thoughts!r} thoughts; there are "
            f"{' and '.join(world.thought_kinds)}"
        )
    jobs = _jobs(games, settings)
    begun = Begun(out, _about(world, games, settings))
    tally, left = _Tally(), jobs[begun.done :]
    # Without games left, no process is started.
    made = outcomes(partial(_Player, world, settings), left, workers) if left else nullcontext(())
    with made as played:
        decided = begun.followed_by(_decided(each, settings.only_won) for each in played)
        write_trajectories(out, _kept(decided, len(jobs), tally, progress))
    begun.remove()
    counts = {
        name: tally.counts[name]
        for name in ("played", "won", "kept", "steps", "failed", "inadmissible", "unreadable")
    }
    return CollectSummary(**counts, faults=tuple(tally.faults), before=begun.done)


def expert_episodes(files: Iterable[str | Path], games: Iterable[Game]) -> Iterator[Trajectory]:
    """Yield the first won episode of each game in trajectory files.

    They take the place of a scripted expert's, in a world that has none.
    """
    wanted = {(game.split, game.id) for game in games}
    for trajectory in chain.from_iterable(map(read_trajectories, files)):
        if trajectory.success and (trajectory.split, trajectory.game) in wanted:
            wanted.remove((trajectory.split, trajectory.game))
            yield trajectory


@dataclass(frozen=True)
class _Job:
    game: Game
    episode: int
    seed: int
    skill: float


@dataclass(frozen=True)
class _Outcome:
    trajectory: Trajectory | None = None
    fault: str | None = None
    inadmissible: bool = False


@dataclass
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def leave_out(self, kind: str, fault: str | None) -> None:
        """Count an episode that was broken off or dropped."""
        self.counts[kind] += 1
        if fault is not None and len(self.faults) < _FAULTS_KEPT:
            self.faults.append(fault)


class _InadmissibleAction(EnvError):
    """The agent's action is not among the admissible ones."""


def _jobs(games: Sequence[Game], settings: Collecting) -> list[_Job]:
    if not games:
        raise UsageError("there are no games to play; make or unpack some first")
    ((name, times),) = Counter(f"{game.split}/{game.id}" for game in games).most_common(1)
    if times > 1:
        raise UsageError(
            f"the game {name} is listed {times} times; "
            "use episodes_per_game to play it more than once"
        )
    jobs = []
    for game in games:
        for episode in range(settings.episodes_per_game):
            seed = _stable_seed(settings.seed, game.id, episode)
            jobs.append(_Job(game, episode, seed, random.Random(seed).uniform(*settings.skill)))
    return jobs


def _about(world: World, games: Sequence[Game], settings: Collecting) -> dict[str, Any]:
    """Return what the episodes depend on: settings, and games by size and date of their files.

    A file that is not there is no error: its episode is one of those that fail.
    """
    digest = hashlib.sha256()
    for game in games:
        stat = os.stat(game.path) if game.path and os.path.exists(game.path) else None
        file = (stat.st_size, stat.st_mtime_ns) if stat else None
        digest.update(f"{game.split} {game.id} {file}\n".encode())
    about = {"world": world.name, "games": digest.hexdigest()}
    return about | asdict(settings)


def _stable_seed(seed: int, game_id: str, episode: int) -> int:
    """Return 32 bits of a hash, the same on every machine, of (seed, game, episode)."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{game_id}/{episode}".encode()).digest()[:4], "big"
    )


class _Player:
    """One process's environment, which plays one job after another."""

    def __init__(self, world: World, settings: Collecting):
        self._world, self._settings = world, settings
        self._env: TextEnv = world.make_env(settings.max_steps)()

    def do(self, job: _Job) -> _Outcome:
        try:
            return _Outcome(self._episode(job))
        except _InadmissibleAction as error:
            return _Outcome(fault=str(error), inadmissible=True)
        except CotjaxError as error:
            return _Outcome(fault=str(error))

    def close(self) -> None:
        self._env.close()

    def _episode(self, job: _Job) -> Trajectory:
        game, settings = job.game, self._settings
        wanted = AgentSettings(job.skill, settings.news, settings.mistakes, settings.thoughts, game)
        agent = self._world.agent(settings.agent, job.seed, wanted)
        task, observation = self._env.reset(game)
        try:
            agent.start(task, observation)
        except EnvError as error:
            raise EnvError(f"{game.id}: {error}") from error
        steps: list[Step] = []
        while not observation.done and len(steps) < settings.max_steps:
            decision = agent.act(observation)
            commands = observation.admissible_commands
            if commands is not None and decision.action not in commands and not decision.no_op:
                raise _InadmissibleAction(
                    f"{game.id}, step {len(steps)}: the {settings.agent} chose "
                    f"{decision.action!r}, "
                    "which the game does not take"
                )
            provenance = SCRIPTED_BEFORE if decision.thought is not None else None
            steps.append(
                Step(
                    observation.text,
                    decision.thought,
                    decision.action,
                    provenance,
                    commands or (),
                    trained=not decision.mistake,
                )
            )
            observation = self._env.step(decision.action)
        if not steps:
            raise EnvError(
                f"{game.id}: the episode is over before its first step; leave this game out"
            )
        score = observation.score
        return Trajectory(
            id=f"{settings.agent}/{game.split}/{game.id}/{job.episode}",
            environment=self._world.name,
            split=game.split,
            task=task,
            task_type=game.task_type,
            game=game.id,
            steps=tuple(steps),
            success=observation.won,
            reward=float(observation.won) if score is None else score,
            seed=job.seed,
            agent=settings.agent,
        )


def _decided(outcome: _Outcome, only_won: bool) -> Collected:
    """Return what becomes of an episode: kept, or left out and why."""
    trajectory = outcome.trajectory
    if trajectory is None:
        why = "inadmissible" if outcome.inadmissible else "failed"
        return Collected(left_out=why, fault=outcome.fault)
    won = bool(trajectory.success)
    if only_won and not won:
        return Collected()
    if problem := refusal(trajectory, trajectory.game):
        return Collected(won=won, left_out="unreadable", fault=problem)
    return Collected(trajectory, won)


def _kept(
    decided: Iterator[Collected],
    total: int,
    tally: _Tally,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Trajectory]:
    for done, each in enumerate(decided, start=1):
        tally.counts.update(played=1, won=int(each.won))
        if each.left_out:
            tally.leave_out(each.left_out, each.fault)
        elif each.trajectory is not None:
            tally.counts.update(kept=1, steps=len(each.trajectory.steps))
            yield each.trajectory
        if progress is not None:
            progress(done, total)
