"""The games that a study trains on and plays: made by the world's maker, or read from its data."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.envs.base import Game, games_hash
from cotjax.envs.worlds import World, load_world
from cotjax.errors import DataError, UsageError


@dataclass(frozen=True)
class GameSets:
    """The games of one study.

    Attributes:
      hash: of the contents of the games that are played for the report.
      left_out: split -> number of games that are not playable, by reason.
    """

    train: tuple[Game, ...]
    in_domain: tuple[Game, ...]
    ood: tuple[Game, ...]
    hash: str
    left_out: dict[str, Counter[str]] = field(default_factory=dict)

    def domain_of(self, game: Game) -> str:
        return "ood" if game in self.ood else "in_domain"

    @property
    def played(self) -> tuple[Game, ...]:
        return self.in_domain + self.ood


def prepare_games(
    config: ConfigDict, progress: Callable[[int, int], None] | None = None
) -> GameSets:
    """Make or read the games, and choose the ones that the config asks for.

    Raises:
      UsageError: an unknown source, no root for games that are read, or no games asked for.
      DataError: a game folder is missing, empty or broken, or holds too few games.
    """
    if config.data.trajectories and not (config.games.in_domain or config.games.ood):
        return GameSets((), (), (), "")  # training on the user's data, and nothing to play
    world, root = load_world(config.world), config.games.root
    if config.games.source == "made":
        root = root or str(Path(config.out) / "games")
        counts, workers = made_counts(config), max(1, config.workers)
        world.make_games(Path(root), counts, config.games.seed, workers, progress)
    left_out: dict[str, Counter[str]] = defaultdict(Counter)
    in_domain, ood = _played(config, world, root, left_out)
    train = _train(config, world, root, left_out)
    played = in_domain + ood
    reasons = {split: counts for split, counts in left_out.items() if counts}
    return GameSets(train, in_domain, ood, games_hash(played) if played else "", reasons)


def check_world(config: ConfigDict) -> None:
    """Raise UsageError for a world, a source of games or a task type that does not exist."""
    world = load_world(config.world)
    sources = ("made", world.name) if world.makes_games else (world.name,)
    if config.games.source not in sources:
        raise UsageError(
            f"unknown games.source {config.games.source!r}; there are {', '.join(sources)}"
        )
    for name, types in config.task_types.items():
        for task_type in types:
            if task_type not in world.task_types and not config.data.trajectories:
                raise UsageError(
                    f"task_types.{name}: world {world.name!r} has no task type {task_type!r}; "
                    f"there are {', '.join(world.task_types)}; "
                    f"a config file takes them from default_config({config.world!r})"
                )


def left_out_text(left_out: Counter[str]) -> str:
    """Return the counts in words: "3 not marked solvable, 1 without traj_data.json"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())


def made_counts(config: ConfigDict) -> dict[str, dict[str, int]]:
    """Return split -> task type -> games to make.

    The played games are spread evenly over the task types of their domain.
    """
    counts: dict[str, dict[str, int]] = {}
    if config.games.train:
        counts["train"] = dict.fromkeys(config.task_types.collect, config.games.train)
    split = counts.setdefault(config.games.eval_split, {})
    for types, wanted in (
        (config.task_types.in_domain, config.games.in_domain),
        (config.task_types.ood, config.games.ood),
    ):
        for index, task_type in enumerate(types):
            share = wanted // len(types) + (index < wanted % len(types))
            if share:
                split[task_type] = split.get(task_type, 0) + share
    return {split: types for split, types in counts.items() if types}


def _train(
    config: ConfigDict, world: World, root: str, left_out: dict[str, Counter[str]]
) -> tuple[Game, ...]:
    if config.data.trajectories:
        return ()  # the user's data; no game is played for training
    games = [
        game
        for game in world.games(root, "train", left_out["train"])
        if game.task_type in config.task_types.collect
    ]
    if not games:
        raise DataError(
            f"{root or world.name}: no training games of the task types "
            f"{', '.join(config.task_types.collect)}"
        )
    if config.games.source != "made" and config.games.train:
        games = _choose(games, config.games.train, config.seed)
    return tuple(games)


def _played(
    config: ConfigDict, world: World, root: str, left_out: dict[str, Counter[str]]
) -> tuple[tuple[Game, ...], tuple[Game, ...]]:
    wanted = (config.games.in_domain, config.games.ood)
    if not any(wanted):
        return (), ()
    games = world.games(root, config.games.eval_split, left_out[config.games.eval_split])
    chosen = []
    for name, types, count in zip(
        ("in_domain", "ood"),
        (config.task_types.in_domain, config.task_types.ood),
        wanted,
        strict=True,
    ):
        fitting = [game for game in games if game.task_type in types]
        if len(fitting) < count:
            raise DataError(
                f"{root or world.name}: split {config.games.eval_split!r} has {len(fitting)} games "
                f"for games.{name}={count}; ask for fewer or make more"
            )
        chosen.append(tuple(_choose(fitting, count, config.seed)))
    return chosen[0], chosen[1]


def _choose(games: Sequence[Game], count: int, seed: int) -> list[Game]:
    """Return a seeded sample without replacement, in the order of ids."""
    if count >= len(games):
        return list(games)
    picked = random.Random(f"choose/{seed}").sample(sorted(games, key=lambda game: game.id), count)
    return sorted(picked, key=lambda game: game.id)
