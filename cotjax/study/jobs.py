"""What an evaluation plays: each checkpoint by each driver, and which episodes have records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from jax.sharding import Mesh

from cotjax.data.trajectories import Trajectory
from cotjax.envs.base import Play, plays_of
from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.rollout.record import Driver, Heading, Kind, Record, read_record, record_path
from cotjax.runtime import distributed
from cotjax.runtime.files import put_aside
from cotjax.runtime.members import arm_and_seed
from cotjax.study.games import GameSets
from cotjax.study.starts import Place
from cotjax.train.checkpoint import Checkpoints

BASE_ARM = "base"


def steps_named(names: Sequence[int], saved: Sequence[int], field: str) -> tuple[int, ...]:
    """Return the checkpoints that a config field names, -1 being the last.

    Raises UsageError for one that is never saved.
    """
    steps = tuple(saved[-1] if step == -1 else step for step in names)
    for step in steps:
        if step not in saved:
            raise UsageError(
                f"{field}: no checkpoint is saved at {step!r}; there are "
                f"{', '.join(map(str, saved))}"
            )
    return steps


class Weights(Protocol):
    """Where the weights of checkpoints come from (`cotjax.train.checkpoint.Checkpoints` is one)."""

    def digest(self, step: int) -> str:
        """Return a hash of the checkpoint's files."""

    def restore_params(self, step: int, model: ModelConfig, mesh: Mesh) -> Params:
        """Return the checkpoint's parameters on a mesh."""


@dataclass(frozen=True)
class Playing:
    """Which kinds of action are played and measured, and where.

    Attributes:
      played: kinds that drive episodes.
      measured: kinds that are measured on expert states; those that are played, and others.
      episodes_at: checkpoints at which episodes are played; () for all.
      samples: plays of each game by each driver.
      starts: checkpoints that other arms start from: episodes are played there, too.
    """

    played: tuple[Kind, ...] = ("cot", "prompt")
    measured: tuple[Kind, ...] = ("cot", "prompt")
    episodes_at: tuple[int, ...] = ()
    samples: int = 1
    starts: Collection[Place] = ()

    def drivers(self, checkpoint: int, arm: str = BASE_ARM) -> dict[Driver, tuple[Kind, ...]]:
        """Return the drivers at a checkpoint of an arm, each with the kinds decoded in its states.

        `arm`: or a member of one.
        """
        drivers: dict[Driver, tuple[Kind, ...]] = {}
        start = Place(arm, checkpoint) in self.starts
        if start or not self.episodes_at or checkpoint in self.episodes_at:
            # While the environments answer a CoT action, its prompt action is decoded.
            beside: dict[Kind, Kind] = {"cot": "prompt", "cot_constrained": "prompt_constrained"}
            for kind in self.played:
                other = beside.get(kind)
                drivers[kind] = (kind, other) if other in self.measured else (kind,)
        return drivers | {"reference": self.measured}


@dataclass(frozen=True, eq=False)
class Job:
    """One checkpoint played by one driver.

    Attributes:
      world: name of the world, for the records.
      arm: whose weights play; of an arm with several seeds, the member.
      checkpoint: step of the checkpoint; 0 is the base.
      checkpoints: what it is restored from.
      plays: this process's share of what is played.
      kinds: kinds of action that are decoded in every state.
    """

    world: str
    arm: str
    checkpoint: int
    checkpoints: Weights
    driver: Driver
    plays: tuple[Play, ...]
    kinds: tuple[Kind, ...]

    def __str__(self) -> str:
        return f"{self.arm} at step {self.checkpoint}, {self.driver}"

    @property
    def of_base(self) -> bool:
        """Whether the base plays, which no arm trained."""
        return self.arm == BASE_ARM

    @cached_property
    def checkpoint_hash(self) -> str:
        """Hash of the checkpoint's files."""
        return self.checkpoints.digest(self.checkpoint)

    def heading(self, games_hash: str, domain: str) -> Heading:
        """Return the heading of one of the job's records."""
        arm, seed = arm_and_seed(self.arm)
        return Heading(
            world=self.world,
            arm=arm,
            training_seed=seed,
            checkpoint=self.checkpoint,
            checkpoint_hash=self.checkpoint_hash,
            games_hash=games_hash,
            domain=domain,
        )

    def path(self, records: Path, play: Play) -> Path:
        """Return the path of a play's record."""
        return record_path(
            records,
            arm=self.arm,
            checkpoint=self.checkpoint,
            driver=self.driver,
            game_id=play.game.id,
            sample=play.sample,
        )

    def unplayed(self, records: Path, warn: Callable[[str], None]) -> list[Play]:
        """Return the plays without a record, or whose record lacks some of the kinds.

        A damaged record is set aside, with a warning.
        """
        return [play for play in self.plays if not self._is_played(records, play, warn)]

    def _is_played(self, records: Path, play: Play, warn: Callable[[str], None]) -> bool:
        path = self.path(records, play)
        if not path.exists():
            return False
        try:
            record = read_record(path)
            wanted = (self.arm, self.checkpoint, self.driver, play.game.id, play.sample)
            found = (record.member, record.checkpoint, record.driver, record.game.id, record.sample)
            if found != wanted:
                raise DataError(f"{path}: the record of another episode")
            return self._has_kinds(record)
        except DataError as error:
            fault = str(error).partition(";")[0]
            warn(f"{fault}; set aside as {put_aside(path).name}, and played again")
            return False

    def _has_kinds(self, record: Record) -> bool:
        """Whether the record has all kinds; a kind may have been added since it was written."""
        return all(getattr(turn, kind) for turn in record.steps for kind in self.kinds)


def plan_jobs(
    world: str,
    arms: Mapping[str, Path],
    planned: Mapping[str, Sequence[int]],
    games: GameSets,
    expert: Mapping[str, Trajectory],
    playing: Playing,
    base: Weights | None = None,
) -> list[Job]:
    """Return every checkpoint by every driver, in the order of play.

    Args:
      arms: arm -> its folder of checkpoints.
      planned: arm -> the steps at which training was to save; no other checkpoint is played.
      expert: game id -> the expert's trajectory.
      base: the base's weights; None: checkpoint 0 of the first arm.

    Raises:
      UsageError: an arm has no checkpoint.
    """
    states = [game for game in games.played if game.id in expert]
    return [
        Job(
            world,
            arm,
            checkpoint,
            checkpoints,
            driver,
            tuple(
                play
                for index, play in enumerate(
                    plays_of(states if driver == "reference" else games.played, playing.samples)
                )
                if distributed.share(index)
            ),
            kinds,
        )
        for arm, checkpoint, checkpoints in checkpoints_of(arms, planned, base)
        for driver, kinds in playing.drivers(checkpoint, arm).items()
    ]


def checkpoints_of(
    arms: Mapping[str, Path], planned: Mapping[str, Sequence[int]], base: Weights | None
) -> list[tuple[str, int, Weights]]:
    """Return (arm, step, checkpoints): the base once, then each arm's own, in order.

    A checkpoint that was saved only because the run was asked to stop is not played.
    """
    plan: list[tuple[str, int, Weights]] = [(BASE_ARM, 0, base)] if base else []
    for arm, folder in arms.items():
        checkpoints = Checkpoints(folder, alone=distributed.several()) if folder.is_dir() else None
        saved = checkpoints.steps() if checkpoints else []
        steps = [step for step in saved if step in planned[arm]]
        if not checkpoints or not steps:
            raise UsageError(f"{folder}: no checkpoint to evaluate; run `cotjax train` first")
        if not plan:
            plan.append((BASE_ARM, 0, checkpoints))
        plan.extend((arm, step, checkpoints) for step in steps if step > 0)
    return plan


def warn_of_unplayed(
    arms: Mapping[str, Path],
    planned: Mapping[str, Sequence[int]],
    games: GameSets,
    expert: Mapping[str, Trajectory],
    warn: Callable[[str], None],
) -> None:
    """Warn of games without an expert's trajectory, and of checkpoints that are not played."""
    lacking = [game.id for game in games.played if game.id not in expert]
    if lacking:
        named = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
        warn(
            f"{len(lacking)} of {len(games.played)} games have no trajectory of an expert that won "
            f"them, so their states are left out of the offline diagnostics (D1, D2): {named}"
        )
    for arm, folder in arms.items():
        if not folder.is_dir():
            continue
        saved = Checkpoints(folder, alone=distributed.several()).steps()
        others = [str(step) for step in saved if step not in planned[arm]]
        if others:
            warn(
                f"{arm}: the checkpoint of step {', '.join(others)} is not played: it was saved "
                "to resume from, not by train.save_every"
            )
