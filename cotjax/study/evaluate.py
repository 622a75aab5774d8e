"""Plays every checkpoint: episodes by CoT actions, episodes by prompt actions, and both actions on held-out expert states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.config import sampler_mesh
from cotjax.data.codec import Codec
from cotjax.data.tokens import Layout
from cotjax.data.trajectories import Trajectory
from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.base import Game
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh, whole_slots
from cotjax.rollout.elicitation import DRAWN, Elicitation
from cotjax.rollout.loop import play
from cotjax.rollout.record import (
    Driver,
    Episode,
    Heading,
    Record,
    read_record,
    record_path,
    set_aside,
    write_record,
)
from cotjax.rollout.replay import ReplayEnvironments
from cotjax.runtime import distributed
from cotjax.runtime.claim import planned_steps
from cotjax.sample.sampler import Sampler
from cotjax.sample.sampling import Sampling
from cotjax.study.games import GameSets
from cotjax.train.checkpoint import Checkpoints

BASE_ARM = "base"
WORLD = "alfworld"
_GAMES_KEPT = 4  # that each environment's process remembers, some 1.5 MB each; loading another one takes 50 ms


def elicitation_of(config: ConfigDict) -> Elicitation:
    """How actions are elicited under this config: the same for every checkpoint."""
    settings = config.evaluate
    for name in ("slots", "max_length", "max_steps", "max_new_tokens", "max_action_tokens"):
        if settings[name] < 1:
            raise UsageError(f"evaluate.{name} is {settings[name]}; it must be at least 1")
    drawn = {name: settings[name] for name in DRAWN}
    Sampling(**drawn).check("evaluate.")
    return Elicitation(
        **drawn,
        max_new_tokens=settings.max_new_tokens,
        max_action_tokens=settings.max_action_tokens,
        max_steps=settings.max_steps,
        cot_prefix=settings.cot_prefix,
    )


def check_layout(config: ConfigDict) -> None:
    """Raise UsageError for a layout that cannot be, or whose prompts no rollout builds though there are games to play."""
    settings = config.data
    try:
        layout = Layout(settings.layout, settings.history, settings.past_thoughts)
    except UsageError as error:
        raise UsageError(f"data.layout, data.history: {error}") from None
    if not layout.playable and (config.games.in_domain or config.games.ood):
        raise UsageError(
            f"data.history={settings.history} with data.past_thoughts={settings.past_thoughts} trains on other prompts than a rollout's, "
            "which show all turns, without past thoughts: set 0 and False, or games.in_domain=0 and games.ood=0 to train alone"
        )


def playing_mesh(config: ConfigDict) -> Mesh:
    """The mesh that this process plays on: its own devices. Raises UsageError when a copy of the weights is to lie on more."""
    try:
        return make_mesh(**sampler_mesh(config), devices=jax.local_devices())
    except UsageError as error:
        if not distributed.several():
            raise
        here = f"each of {distributed.count()} processes plays with a copy of the weights on its own {jax.local_device_count()} devices"
        raise UsageError(f"{error}: {here}; set evaluate.tensor to a divisor of that") from None


def limits_of(config: ConfigDict) -> Limits:
    """Seconds that an environment may take under this config."""
    settings = config.evaluate
    for name in ("start_timeout", "reset_timeout", "step_timeout"):
        if settings[name] <= 0:
            raise UsageError(
                f"evaluate.{name} is {settings[name]:g}; it must be more than 0 seconds"
            )
    if settings.env_retries < 0:
        raise UsageError(f"evaluate.env_retries is {settings.env_retries}; it must be at least 0")
    return Limits(
        start=settings.start_timeout, reset=settings.reset_timeout, step=settings.step_timeout
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
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Play what has no record yet; run again, it goes on. Of several processes each plays its share of the games on its own devices.

    Args:
      expert: game id -> the expert's trajectory on a played game; its states are those of the offline diagnostics.
      arms: arm -> its folder of checkpoints. Checkpoint 0, the base, is the same in every arm and is played once.
      records: folder for the records.
      report: called with (episodes done, episodes in all, what is being played) after each episode; of this process's share.
      warn: called with each sentence that the user should read.
    """
    planned = distributed.from_first(
        "planned", lambda: {arm: planned_steps(folder.parent) for arm, folder in arms.items()}
    )
    if distributed.first():
        _say_what_is_left_out(arms, planned, games, expert, warn)
    jobs = _jobs(arms, planned, games, expert)
    total = sum(len(job.games) for job in jobs)
    missing = {
        job: [game for game in job.games if not job.is_done(records, game, warn)] for job in jobs
    }
    done = total - sum(map(len, missing.values()))
    if done == total:
        return
    sampler = sampler_of(
        config.evaluate,
        model,
        codec,
        playing_mesh(config),
        -(-min(config.evaluate.slots, len(games.played)) // distributed.count()),
    )
    references = {
        game_id: [step.action for step in trajectory.steps]
        for game_id, trajectory in expert.items()
    }
    loaded: tuple[str, int] | None = None
    ended: Counter[str] = Counter()

    def keep(job: _Job, game: Game, episode: Episode) -> None:
        nonlocal done
        ended[episode.ended] += 1
        if episode.env_error:
            warn(f"environment error, counted for nobody: {episode.env_error}")
        heading = job.heading(games.hash, games.domain_of(game))
        write_record(job.path(records, game), Record.of(heading, episode))
        done += 1
        report(done, total, f"episodes, {job.arm} at step {job.step}, {job.driver}")

    with _environments(config, sampler.slots) as pool:
        try:
            for job, todo in missing.items():
                if todo and loaded != (job.arm, job.step):
                    sampler.load(job.checkpoints.restore_params(job.step, model, sampler.mesh))
                    loaded = job.arm, job.step
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
    if ended["env_error"]:
        warn(
            f"{ended['env_error']} episodes broke in their environment: they are left out of every rate, and counted in the report"
        )
    if ended["length"]:
        warn(
            f"{ended['length']} episodes ended, not won, because their prompt outgrew evaluate.max_length={config.evaluate.max_length}"
        )


def _say_what_is_left_out(
    arms: Mapping[str, Path],
    planned: Mapping[str, Sequence[int]],
    games: GameSets,
    expert: Mapping[str, Trajectory],
    warn: Callable[[str], None],
) -> None:
    lacking = [game.id for game in games.played if game.id not in expert]
    if lacking:
        warn(
            f"{len(lacking)} of {len(games.played)} games have no trajectory of an expert that won them, so their states are left out of "
            f"the offline diagnostics (D1, D2): {', '.join(lacking[:3])}{', …' * (len(lacking) > 3)}"
        )
    for arm, folder in arms.items():
        steps = Checkpoints(folder, alone=distributed.several()).steps() if folder.is_dir() else []
        others = [str(step) for step in steps if step not in planned[arm]]
        if others:
            warn(
                f"{arm}: the checkpoint of step {', '.join(others)} is not played: it was saved to go on from, not by train.save_every"
            )


def sampler_of(
    settings: ConfigDict, model: ModelConfig, codec: Codec, mesh: Mesh, slots: int
) -> Sampler:
    """A sampler of these `evaluate` settings, which draws the codec's tokens and stops at its texts. The weights are yet to load."""
    return Sampler(
        model,
        mesh,
        slots=whole_slots(slots, mesh),
        max_length=settings.max_length,
        stop=codec.stop_texts,
        pad_id=codec.pad_id,
        max_new=max(settings.max_new_tokens, settings.max_action_tokens),
        pieces=codec.pieces,
    )


def check_playable(config: ConfigDict, model: ModelConfig, codec: Codec) -> None:
    """Raise UsageError (DataError: the tokenizer cannot encode a prefix) where this model could be trained but not be played as
    `config.evaluate` says. Called before anything is trained."""
    settings, elicitation = config.evaluate, elicitation_of(config)
    playing_mesh(config)
    model.check_length(settings.max_length, "evaluate.max_length")
    model.check_ids(codec.vocab_size)
    for name in ("max_new_tokens", "max_action_tokens"):
        if settings[name] >= settings.max_length:
            raise UsageError(
                f"evaluate.{name} is {settings[name]}; it must be less than evaluate.max_length, {settings.max_length}"
            )
    for prefix in (elicitation.cot_prefix, elicitation.prompt_prefix):
        codec.encode(prefix)


def _environments(config: ConfigDict, slots: int) -> EnvPool:
    """One process a game: what one game breaks, no other game feels."""
    factory = partial(AlfworldEnv, max_steps=config.evaluate.max_steps, games_kept=_GAMES_KEPT)
    return EnvPool(
        factory,
        slots,
        slots if config.workers else 0,
        limits_of(config),
        config.evaluate.env_retries,
    )


@dataclass(frozen=True, eq=False)
class _Job:
    """One checkpoint played by one driver."""

    arm: str
    step: int
    checkpoints: Checkpoints
    driver: Driver
    games: tuple[Game, ...]

    @cached_property
    def checkpoint_hash(self) -> str:
        """Hash of the checkpoint's files."""
        return self.checkpoints.digest(self.step)

    def heading(self, games_hash: str, domain: str) -> Heading:
        """Return the heading of one of the job's records."""
        return Heading(
            world=WORLD,
            arm=self.arm,
            checkpoint=self.step,
            checkpoint_hash=self.checkpoint_hash,
            games_hash=games_hash,
            domain=domain,
        )

    def path(self, records: Path, game: Game) -> Path:
        return record_path(
            records, arm=self.arm, checkpoint=self.step, driver=self.driver, game_id=game.id
        )

    def is_done(self, records: Path, game: Game, warn: Callable[[str], None]) -> bool:
        """Whether the game's record is there and whole; one that is damaged is set aside."""
        path = self.path(records, game)
        if not path.exists():
            return False
        try:
            record = read_record(path)
            wanted = (self.arm, self.step, self.driver, game.id)
            if (record.arm, record.checkpoint, record.driver, record.game.id) != wanted:
                raise DataError(f"{path}: the record of another episode")
            return True
        except DataError as error:
            warn(
                f"{str(error).partition(';')[0]}; set aside as {set_aside(path).name}, and played again"
            )
            return False


def _jobs(
    arms: Mapping[str, Path],
    planned: Mapping[str, Sequence[int]],
    games: GameSets,
    expert: Mapping[str, Trajectory],
) -> list[_Job]:
    """Every checkpoint by every driver, in the order of play, with this process's share of the games."""
    expert_states = tuple(game for game in games.played if game.id in expert)
    by_driver: tuple[tuple[Driver, tuple[Game, ...]], ...] = (
        ("cot", games.played),
        ("prompt", games.played),
        ("reference", expert_states),
    )
    return [
        _Job(
            arm,
            step,
            checkpoints,
            driver,
            tuple(game for at, game in enumerate(played) if distributed.share(at)),
        )
        for arm, step, checkpoints in _plan(arms, planned)
        for driver, played in by_driver
    ]


def _plan(
    arms: Mapping[str, Path], planned: Mapping[str, Sequence[int]]
) -> list[tuple[str, int, Checkpoints]]:
    """(arm, step, checkpoints) in the order of play: the base once, then each arm's own.

    Only the steps at which training was to save: one that was saved because the run was asked to stop is there for its sake alone.
    """
    plan: list[tuple[str, int, Checkpoints]] = []
    for arm, folder in arms.items():
        if not folder.is_dir():
            raise UsageError(f"{folder}: no checkpoint to evaluate; run `cotjax train` first")
        checkpoints = Checkpoints(folder, alone=distributed.several())
        steps = [step for step in checkpoints.steps() if step in planned[arm]]
        if not steps:
            raise UsageError(f"{folder}: no checkpoint to evaluate; run `cotjax train` first")
        if not plan:
            plan.append((BASE_ARM, 0, checkpoints))
        plan.extend((arm, step, checkpoints) for step in steps if step > 0)
    return plan
