"""Plays every checkpoint: episodes by CoT actions, episodes by prompt actions, and both actions on held-out expert states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.config import sampler_mesh
from cotjax.data.tokens import Codec
from cotjax.data.trajectories import Trajectory
from cotjax.envs.alfworld import AlfworldEnv
from cotjax.envs.base import Game
from cotjax.envs.pool import EnvPool
from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh, whole_slots
from cotjax.rollout.loop import Elicitation, play
from cotjax.rollout.record import record_path, write_record
from cotjax.rollout.replay import ReplayEnvironments
from cotjax.sample.sampler import Sampler
from cotjax.sample.sampling import Sampling
from cotjax.study.games import GameSets
from cotjax.train.checkpoint import Checkpoints

BASE_ARM = "base"


def elicitation_of(config: ConfigDict) -> Elicitation:
    """How actions are elicited under this config: the same for every checkpoint."""
    settings = config.evaluate
    for name in ("slots", "max_length", "max_steps", "max_new_tokens", "max_action_tokens"):
        if settings[name] < 1:
            raise UsageError(f"evaluate.{name} is {settings[name]}; it must be at least 1")
    drawn = {name: settings[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    Sampling(**drawn).check("evaluate.")
    return Elicitation(
        **drawn,
        max_new_tokens=settings.max_new_tokens,
        max_action_tokens=settings.max_action_tokens,
        max_steps=settings.max_steps,
        cot_prefix=settings.cot_prefix,
    )


def evaluate(
    config: ConfigDict,
    *,
    model: ModelConfig,
    codec: Codec,
    games: GameSets,
    expert: Mapping[str, Trajectory],
    arms: Mapping[str, Path],
    records: Path,
    report: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> None:
    """Play what has no record yet; run again, it goes on.

    Args:
      expert: game id -> the expert's trajectory on a played game; its states are those of the offline diagnostics.
      arms: arm -> its folder of checkpoints. Checkpoint 0, the base, is the same in every arm and is played once.
      records: folder for the records.
      report: called with (episodes done, episodes in all, what is being played) after each episode.
    """
    elicitation = elicitation_of(config)
    jobs = [
        _Job(arm, step, checkpoints, driver, played)
        for arm, step, checkpoints in _plan(arms)
        for driver, played in (
            ("cot", games.played),
            ("prompt", games.played),
            ("reference", tuple(game for game in games.played if game.id in expert)),
        )
    ]
    total = sum(len(job.games) for job in jobs)
    missing = {job: [game for game in job.games if not job.path(records, game).exists()] for job in jobs}
    done = total - sum(map(len, missing.values()))
    if done == total:
        return
    mesh = make_mesh(**sampler_mesh(config))
    slots = whole_slots(min(config.evaluate.slots, len(games.played)), mesh)
    max_new = max(elicitation.max_new_tokens, elicitation.max_action_tokens)
    sampler = Sampler(
        model, mesh, slots=slots, max_length=config.evaluate.max_length, stop=codec.stop, pad_id=codec.pad_id, max_new=max_new
    )
    references = {game_id: [step.action for step in trajectory.steps] for game_id, trajectory in expert.items()}
    factory = partial(AlfworldEnv, max_steps=elicitation.max_steps)
    loaded = None
    with EnvPool(factory, slots, config.workers, timeout=config.evaluate.step_timeout) as pool:
        for job, todo in missing.items():
            if todo and loaded != (job.arm, job.step):
                sampler.load(job.checkpoints.restore_params(job.step, model, mesh))
                loaded = (job.arm, job.step)

            def keep(game: Game, record: dict, job: _Job = job) -> None:
                nonlocal done
                facts = {"arm": job.arm, "checkpoint": job.step, "domain": games.domain_of(game), "games_hash": games.hash}
                write_record(job.path(records, game), facts | record)
                done += 1
                report(done, total, f"episodes, {job.arm} at step {job.step}, {job.driver}")

            play(
                todo,
                policy=sampler,
                codec=codec,
                environments=ReplayEnvironments(expert) if job.driver == "reference" else pool,
                driver=job.driver,
                elicitation=elicitation,
                seed=config.seed,
                on_record=keep,
                references=references,
            )


@dataclass(frozen=True, eq=False)
class _Job:
    """One checkpoint played by one driver."""

    arm: str
    step: int
    checkpoints: Checkpoints
    driver: str
    games: tuple[Game, ...]

    def path(self, records: Path, game: Game) -> Path:
        return record_path(records, arm=self.arm, checkpoint=self.step, driver=self.driver, game_id=game.id)


def _plan(arms: Mapping[str, Path]) -> list[tuple[str, int, Checkpoints]]:
    """(arm, step, checkpoints) in the order of play: the base once, then each arm's own."""
    plan: list[tuple[str, int, Checkpoints]] = []
    for arm, folder in arms.items():
        checkpoints = Checkpoints(folder)
        steps = checkpoints.steps()
        if not steps:
            raise UsageError(f"{folder}: no checkpoint to evaluate; run `cotjax train` first")
        if not plan:
            plan.append((BASE_ARM, 0, checkpoints))
        plan.extend((arm, step, checkpoints) for step in steps if step > 0)
    return plan
