"""Plays every checkpoint: episodes by CoT actions, episodes by prompt actions, and both actions on held-out expert states."""

from __future__ import annotations

import hashlib
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
from cotjax.envs.pool import EnvPool, Limits
from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh, whole_slots
from cotjax.rollout.loop import Elicitation, play
from cotjax.rollout.record import record_path, set_aside, write_record
from cotjax.rollout.replay import ReplayEnvironments
from cotjax.sample.sampler import Sampler
from cotjax.study.diagnostics import read_episode
from cotjax.study.games import GameSets
from cotjax.train.checkpoint import Checkpoints

BASE_ARM = "base"
_GAMES_KEPT = 4  # that each environment's process remembers, some 1.5 MB each; loading another one takes 50 ms


def elicitation_of(config: ConfigDict) -> Elicitation:
    """How actions are elicited under this config: the same for every checkpoint."""
    settings = config.evaluate
    for name in ("slots", "max_length", "max_steps", "max_new_tokens", "max_action_tokens"):
        if settings[name] < 1:
            raise UsageError(f"evaluate.{name} is {settings[name]}; it must be at least 1")
    return Elicitation(
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        max_action_tokens=settings.max_action_tokens,
        max_steps=settings.max_steps,
        cot_prefix=settings.cot_prefix,
    )


def limits_of(config: ConfigDict) -> Limits:
    """Seconds that an environment may take under this config."""
    settings = config.evaluate
    for name in ("start_timeout", "reset_timeout", "step_timeout"):
        if settings[name] <= 0:
            raise UsageError(f"evaluate.{name} is {settings[name]:g}; it must be more than 0 seconds")
    if settings.env_retries < 0:
        raise UsageError(f"evaluate.env_retries is {settings.env_retries}; it must be at least 0")
    return Limits(start=settings.start_timeout, reset=settings.reset_timeout, step=settings.step_timeout)


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
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Play what has no record yet; run again, it goes on.

    Args:
      expert: game id -> the expert's trajectory on a played game; its states are those of the offline diagnostics.
      arms: arm -> its folder of checkpoints. Checkpoint 0, the base, is the same in every arm and is played once.
      records: folder for the records.
      report: called with (episodes done, episodes in all, what is being played) after each episode.
      warn: called with each sentence that the user should read.
    """
    jobs = _jobs(arms, games, expert)
    total = sum(len(job.games) for job in jobs)
    missing = {job: [game for game in job.games if not job.is_done(records, game, warn)] for job in jobs}
    done = total - sum(map(len, missing.values()))
    if done == total:
        return
    sampler = _sampler(config, model, codec, len(games.played))
    references = {game_id: [step.action for step in trajectory.steps] for game_id, trajectory in expert.items()}
    loaded, facts = None, {}

    def keep(job: _Job, game: Game, record: dict) -> None:
        nonlocal done
        if record["env_error"]:
            warn(f"environment error, counted for nobody: {record['env_error']}")
        write_record(job.path(records, game), facts | {"domain": games.domain_of(game)} | record)
        done += 1
        report(done, total, f"episodes, {job.arm} at step {job.step}, {job.driver}")

    with _environments(config, sampler.slots) as pool:
        try:
            for job, todo in missing.items():
                if todo and loaded != (job.arm, job.step):
                    sampler.load(job.checkpoints.restore_params(job.step, model, sampler.mesh))
                    loaded = job.arm, job.step
                    facts = job.facts() | {"games_hash": games.hash}
                play(
                    todo,
                    policy=sampler,
                    codec=codec,
                    environments=ReplayEnvironments(expert) if job.driver == "reference" else pool,
                    driver=job.driver,
                    elicitation=elicitation_of(config),
                    seed=config.seed,
                    on_record=partial(keep, job),
                    references=references,
                )
        except KeyboardInterrupt:
            kept = f"interrupted; {done} of {total} episodes are finished and kept, the same command goes on from them"
            raise KeyboardInterrupt(kept) from None


def _sampler(config: ConfigDict, model: ModelConfig, codec: Codec, games: int) -> Sampler:
    mesh, settings = make_mesh(**sampler_mesh(config)), config.evaluate
    slots = whole_slots(min(settings.slots, games), mesh)
    return Sampler(model, mesh, slots=slots, max_length=settings.max_length, stop=codec.stop, pad_id=codec.pad_id)


def _environments(config: ConfigDict, slots: int) -> EnvPool:
    """One process a game: what one game breaks, no other game feels."""
    factory = partial(AlfworldEnv, max_steps=config.evaluate.max_steps, games_kept=_GAMES_KEPT)
    return EnvPool(factory, slots, slots if config.workers else 0, limits_of(config), config.evaluate.env_retries)


def files_hash(folder: Path) -> str:
    """Hash of a folder: the names and the contents of its files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Job:
    """One checkpoint played by one driver."""

    arm: str
    step: int
    checkpoints: Checkpoints
    driver: str
    games: tuple[Game, ...]

    def facts(self) -> dict:
        """What every record of the job says of its checkpoint."""
        parameters = self.checkpoints.folder / str(self.step) / "params"
        return {"arm": self.arm, "checkpoint": self.step, "checkpoint_hash": files_hash(parameters)}

    def path(self, records: Path, game: Game) -> Path:
        return record_path(records, arm=self.arm, checkpoint=self.step, driver=self.driver, game_id=game.id)

    def is_done(self, records: Path, game: Game, warn: Callable[[str], None]) -> bool:
        """Whether the game's record is there and whole; one that is damaged is set aside."""
        path = self.path(records, game)
        if not path.exists():
            return False
        try:
            episode = read_episode(path)
            wanted = (self.arm, self.step, self.driver, game.id)
            if (episode.arm, episode.checkpoint, episode.driver, episode.game) != wanted:
                raise DataError(f"{path}: the record of another episode")
            return True
        except DataError as error:
            warn(f"{str(error).partition(';')[0]}; set aside as {set_aside(path).name}, and played again")
            return False


def _jobs(arms: Mapping[str, Path], games: GameSets, expert: Mapping[str, Trajectory]) -> list[_Job]:
    """Every checkpoint by every driver, in the order of play."""
    expert_states = tuple(game for game in games.played if game.id in expert)
    by_driver = (("cot", games.played), ("prompt", games.played), ("reference", expert_states))
    return [_Job(arm, step, checkpoints, driver, played) for arm, step, checkpoints in _plan(arms) for driver, played in by_driver]


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
