"""Collect trajectories: scripted agents play household games, and every kept episode becomes one line of a JSONL file.

The file depends on the games, their order, the agent and the seed, never on the number of workers.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cotjax.data.trajectories import SCRIPTED_BEFORE, Step, Trajectory, write_trajectories
from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.alfworld.scripted.expert import Expert
from cotjax.envs.alfworld.scripted.explorer import Explorer
from cotjax.envs.base import Game, TextEnv
from cotjax.errors import CotjaxError, EnvError, UsageError

AGENTS = ("expert", "explorer")
_FAULTS_NAMED = 10
_FAULTS_TOLD = 3


@dataclass(frozen=True)
class CollectSummary:
    """What a collection came to, in episodes.

    played: all that were tried
    won: ended in the goal
    kept: written to the file
    steps: in the kept episodes, all together
    failed: broke off because the environment or the game file failed; none is kept
    inadmissible: broke off because the agent chose an action that the game does not take: a bug of the agent; none is kept
    faults: the messages of the first few that broke off, each naming the game and the step
    """

    played: int
    won: int
    kept: int
    steps: int
    failed: int = 0
    inadmissible: int = 0
    faults: tuple[str, ...] = ()

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> episodes that are not in the file for it."""
        broken = self.failed + self.inadmissible
        reasons = {
            "not won": self.played - self.kept - broken,
            "the environment or the game file failed": self.failed,
            "the agent chose an action that the game does not take": self.inadmissible,
        }
        return {reason: count for reason, count in reasons.items() if count}

    def lines(self) -> list[str]:
        """What to tell: what was kept, what was left out and why, and the first few that broke off."""
        lines = [
            f"won {self.won} of {self.played}; kept {self.kept} trajectories, {self.steps} steps"
        ]
        if self.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            lines[0] += f"; left out {self.played - self.kept}: {reasons}"
        lines += [f"  broke off: {fault}" for fault in self.faults[:_FAULTS_TOLD]]
        if (more := self.failed + self.inadmissible - len(self.faults[:_FAULTS_TOLD])) > 0:
            lines.append(f"  and {more} more")
        return lines


@dataclass(frozen=True)
class _Job:
    game: Game
    episode: int
    agent: str
    seed: int
    skill: float
    news: float
    slips: float
    max_steps: int


@dataclass(frozen=True)
class _Outcome:
    trajectory: Trajectory | None = None
    fault: str | None = None
    inadmissible: bool = False


@dataclass
class _Tally:
    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class _InadmissibleAction(EnvError):
    """The agent's action is not among the admissible ones."""


def collect(
    games: list[Game],
    out: Path,
    agent: str,
    seed: int,
    max_steps: int = 30,
    workers: int = 1,
    only_won: bool = True,
    skill: tuple[float, float] = (0.1, 0.5),
    news: float = 0.4,
    slips: float = 0.0,
    episodes_per_game: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CollectSummary:
    """Play `games` and write the episodes to `out`, in the games' order.

    Args:
      agent: "expert" or "explorer".
      max_steps: an episode ends here, won or not.
      workers: processes; 0 and 1 play in this one.
      only_won: keep won episodes only.
      skill: the explorer's skill is drawn from this range, for each episode.
      news: share of the explorer's steps at random whose thought also tells what was just seen.
      slips: share of the expert's steps that go wrong (see `Expert`).
      progress: called with (episodes done, episodes in all) after each.

    Raises:
      UsageError: an unknown agent, no games, two games with one id, or a range or count that makes no sense.
    """
    jobs = _jobs(games, agent, seed, max_steps, skill, news, slips, episodes_per_game)
    tally = _Tally()
    with _outcomes(jobs, workers) as outcomes:
        write_trajectories(out, _kept(outcomes, len(jobs), only_won, tally, progress))
    counts = {
        name: tally.counts[name]
        for name in ("played", "won", "kept", "steps", "failed", "inadmissible")
    }
    return CollectSummary(**counts, faults=tuple(tally.faults))


def _jobs(
    games: list[Game],
    agent: str,
    seed: int,
    max_steps: int,
    skill: tuple[float, float],
    news: float,
    slips: float,
    episodes_per_game: int,
) -> list[_Job]:
    if agent not in AGENTS:
        raise UsageError(f"no scripted agent is called {agent!r}; there are {' and '.join(AGENTS)}")
    if not games:
        raise UsageError("there are no games to play; make or unpack some first")
    if not 0.0 <= skill[0] <= skill[1] <= 1.0:
        raise UsageError(f"skill is a range of probabilities, low to high; {skill} is not")
    if not 0.0 <= slips < 1.0:
        raise UsageError(f"slips is a share of steps, at least 0 and below 1; {slips} is not")
    if max_steps < 1 or episodes_per_game < 1:
        raise UsageError(
            f"max_steps ({max_steps}) and episodes_per_game ({episodes_per_game}) must be at least 1"
        )
    (name, times), = Counter(f"{game.split}/{game.id}" for game in games).most_common(1)  # fmt: skip
    if times > 1:
        raise UsageError(
            f"the game {name} is listed {times} times; use episodes_per_game to play it more than once"
        )
    jobs = []
    for game in games:
        for episode in range(episodes_per_game):
            episode_seed = _stable_seed(seed, game.id, episode)
            jobs.append(
                _Job(
                    game,
                    episode,
                    agent,
                    episode_seed,
                    random.Random(episode_seed).uniform(*skill),
                    news,
                    slips,
                    max_steps,
                )
            )
    return jobs


def _stable_seed(seed: int, game_id: str, episode: int) -> int:
    """The same on every machine, and another for every (seed, game, episode): 32 bits of a hash."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{game_id}/{episode}".encode()).digest()[:4], "big"
    )


@contextmanager
def _outcomes(jobs: list[_Job], workers: int) -> Iterator[Iterator[_Outcome]]:
    """The jobs' outcomes in the jobs' order."""
    max_steps = jobs[0].max_steps
    if workers <= 1:
        env = AlfworldEnv(max_steps)
        try:
            yield (_play(job, env) for job in jobs)
        finally:
            env.close()
        return
    # Spawn, not fork: the parent may hold a jax runtime, whose threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(
        min(workers, len(jobs)), _start_worker, (max_steps,)
    ) as pool:
        yield pool.imap(_play_in_worker, jobs, chunksize=4)


def _start_worker(max_steps: int) -> None:
    global _worker_env
    _worker_env = AlfworldEnv(max_steps)


def _play_in_worker(job: _Job) -> _Outcome:
    return _play(job, _worker_env)


def _play(job: _Job, env: TextEnv) -> _Outcome:
    try:
        return _Outcome(_episode(job, env))
    except _InadmissibleAction as error:
        return _Outcome(fault=str(error), inadmissible=True)
    except CotjaxError as error:
        return _Outcome(fault=str(error))


def _episode(job: _Job, env: TextEnv) -> Trajectory:
    game = job.game
    player = (
        Expert(job.seed, slips=job.slips)
        if job.agent == "expert"
        else Explorer(job.seed, job.skill, job.news)
    )
    task, observation = env.reset(game)
    try:
        player.start(task, observation)
    except EnvError as error:
        raise EnvError(f"{game.id}: {error}") from error
    steps = []
    while not observation.done and len(steps) < job.max_steps:
        decision = player.act(observation)
        if decision.action not in observation.admissible_commands and not decision.vain:
            where = f"{game.id}, step {len(steps)}"
            raise _InadmissibleAction(
                f"{where}: the {job.agent} chose {decision.action!r}, which the game does not take"
            )
        provenance = SCRIPTED_BEFORE if decision.thought is not None else None
        commands, trained = observation.admissible_commands, not decision.slip
        steps.append(
            Step(observation.text, decision.thought, decision.action, provenance, commands, trained)
        )
        observation = env.step(decision.action)
    if not steps:
        raise EnvError(f"{game.id}: the episode is over before its first step; leave this game out")
    return Trajectory(
        id=f"{job.agent}/{game.split}/{game.id}/{job.episode}", environment="alfworld", split=game.split, task=task,
        task_type=game.task_type, game=game.id, steps=tuple(steps), success=observation.won, reward=float(observation.won),
        seed=job.seed, agent=job.agent,
    )  # fmt: skip


def _kept(
    outcomes: Iterator[_Outcome],
    total: int,
    only_won: bool,
    tally: _Tally,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Trajectory]:
    for done, outcome in enumerate(outcomes, start=1):
        trajectory = outcome.trajectory
        tally.counts["played"] += 1
        if trajectory is None:
            tally.counts["inadmissible" if outcome.inadmissible else "failed"] += 1
            if len(tally.faults) < _FAULTS_NAMED:
                tally.faults.append(outcome.fault)
        elif trajectory.success or not only_won:
            tally.counts.update(won=int(trajectory.success), kept=1, steps=len(trajectory.steps))
            yield trajectory
        if progress is not None:
            progress(done, total)
