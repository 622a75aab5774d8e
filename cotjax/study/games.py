"""The games that a study trains on and plays: made by the world's maker, or read from its data."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.envs.base import Game, games_hash
from cotjax.envs.worlds import AXES, IN_DOMAIN, OOD, World, load_world
from cotjax.errors import DataError, UsageError
from cotjax.study.arms import collects, given_files


@dataclass(frozen=True)
class GameSets:
    """The games of one study.

    Attributes:
      train: none of them is on an axis that is played.
      axes: axis (`cotjax.envs.worlds.AXES`) -> games of the in-domain types that are out of domain
        on this axis alone. Axes of which no games are asked for are not in it.
      hash: of the contents of the games that are played for the report.
      left_out: split -> number of games that are not playable, by reason.
    """

    train: tuple[Game, ...]
    in_domain: tuple[Game, ...]
    ood: tuple[Game, ...]
    hash: str
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    axes: Mapping[str, tuple[Game, ...]] = field(default_factory=dict)

    @cached_property
    def domains(self) -> dict[str, tuple[Game, ...]]:
        """Return domain -> the games played of it. The first two are always in it."""
        return {IN_DOMAIN: self.in_domain, OOD: self.ood, **self.axes}

    def domain_of(self, game: Game) -> str:
        """Return the domain of a game that is played."""
        return next(domain for domain, games in self.domains.items() if game in games)

    @property
    def played(self) -> tuple[Game, ...]:
        """Return the games of all domains."""
        return tuple(game for games in self.domains.values() for game in games)


# The fields of a config that say how many games are played.
NUMBERS = ", ".join(f"games.{domain}" for domain in (IN_DOMAIN, OOD, *AXES))


def wanted_games(config: ConfigDict) -> dict[str, int]:
    """Return domain -> number of games to play, without domains of which none are asked for."""
    numbers = {domain: config.games[domain] for domain in (IN_DOMAIN, OOD, *AXES)}
    return {domain: number for domain, number in numbers.items() if number}


def task_types_of(config: ConfigDict, domain: str) -> tuple[str, ...]:
    """Return the task types of a domain's games."""
    return config.task_types.ood if domain == OOD else config.task_types.in_domain


def prepare_games(
    config: ConfigDict, progress: Callable[[int, int], None] | None = None, trains: bool = True
) -> GameSets:
    """Make or read the games, and choose the ones that the config asks for.

    `trains`: whether there must be games to train on.

    Raises:
      UsageError: an unknown source, no root for games that are read, or no games asked for.
      DataError: a game folder is missing, empty or broken, or holds too few games.
    """
    if not collects(config) and not wanted_games(config):
        return GameSets((), (), (), "")  # training on the user's data, and nothing to play
    world, root = load_world(config.world), config.games.root
    if config.games.source == "made":
        root = root or str(Path(config.out) / "games")
        counts, workers = made_counts(config), max(1, config.workers)
        world.make_games(Path(root), counts, config.games.seed, workers, progress)
    left_out: dict[str, Counter[str]] = defaultdict(Counter)

    @cache
    def games_of(split: str) -> list[Game]:
        return world.games(root, split, left_out[split])

    played = _played(config, world, games_of)
    train = _train(config, world, games_of) if trains else ()
    reasons = {split: counts for split, counts in left_out.items() if counts}
    every = [game for games in played.values() for game in games]
    hash_ = games_hash(every) if every else ""
    in_domain, ood = played.pop(IN_DOMAIN, ()), played.pop(OOD, ())
    return GameSets(train, in_domain, ood, hash_, reasons, played)


def check_world(config: ConfigDict) -> None:
    """Raise UsageError for a world, source of games, task type or axis that does not exist."""
    world = load_world(config.world)
    sources = ("made", world.name) if world.makes_games else (world.name,)
    if config.games.source not in sources:
        raise UsageError(
            f"unknown games.source {config.games.source!r}; there are {', '.join(sources)}"
        )
    for axis in _axes_on(config):
        if axis not in world.axes:
            raise UsageError(
                f"games.{axis} is {config.games[axis]}: world {world.name!r} has no such games; "
                "set it to 0"
            )
        if files := given_files(config):
            raise UsageError(
                f"games.{axis} is {config.games[axis]}, which holds games out of training, but "
                f"{', '.join(files)} (data.trajectories, or an arm's) is trained on as it is: set "
                "one of the two to its default"
            )
    for name, types in config.task_types.items():
        for task_type in types:
            if task_type not in world.task_types and collects(config):
                raise UsageError(
                    f"task_types.{name}: world {world.name!r} has no task type {task_type!r}; "
                    f"there are {', '.join(world.task_types)}; "
                    f"a config file takes them from default_config({config.world!r})"
                )


def counts_of(config: ConfigDict) -> dict[str, int]:
    """Return how many games each domain has in the split that is played."""
    games = load_world(config.world).games(config.games.root, config.games.eval_split)
    return {domain: len(_of_domain(config, domain, games)) for domain in (IN_DOMAIN, OOD)}


def left_out_text(left_out: Counter[str]) -> str:
    """Return the counts in words: "3 not marked solvable, 1 without traj_data.json"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())


def made_counts(config: ConfigDict) -> dict[str, dict[str, int]]:
    """Return split -> task type -> games to make.

    The played games are spread evenly over the task types of their domain. An axis is a split of
    its own.
    """
    counts: dict[str, dict[str, int]] = {}
    if config.games.train:
        counts["train"] = dict.fromkeys(config.task_types.collect, config.games.train)
    for domain, wanted in wanted_games(config).items():
        types = task_types_of(config, domain)
        split = counts.setdefault(domain if domain in AXES else config.games.eval_split, {})
        for index, task_type in enumerate(types):
            share = wanted // len(types) + (index < wanted % len(types))
            if share:
                split[task_type] = split.get(task_type, 0) + share
    return {split: types for split, types in counts.items() if types}


def _axes_on(config: ConfigDict) -> frozenset[str]:
    """Return the axes of which games are played, and which are held out of training."""
    return frozenset(wanted_games(config)).intersection(AXES)


def _train(
    config: ConfigDict, world: World, games_of: Callable[[str], list[Game]]
) -> tuple[Game, ...]:
    if not collects(config):
        return ()  # the user's data; no game is played for training
    games = [
        game
        for game in games_of("train")
        if game.task_type in config.task_types.collect
        and not world.axes_of(game) & _axes_on(config)
    ]
    if not games:
        raise DataError(
            f"{config.games.root or world.name}: no training games of the task types "
            f"{', '.join(config.task_types.collect)}"
        )
    if config.games.source != "made" and config.games.train:
        games = _choose(games, config.games.train, config.seed)
    return tuple(games)


def _played(
    config: ConfigDict, world: World, games_of: Callable[[str], list[Game]]
) -> dict[str, tuple[Game, ...]]:
    """Return domain -> the games to play of it."""
    made, chosen = config.games.source == "made", {}
    for domain, count in wanted_games(config).items():
        splits = [config.games.eval_split]
        if domain in AXES:
            # Where games are read, training leaves those of an axis out, so they can be played.
            splits = [domain] if made else list(dict.fromkeys((*splits, "train")))
        fitting = [game for split in splits for game in _of_domain(config, domain, games_of(split))]
        if len(fitting) < count:
            raise DataError(
                f"{config.games.root or world.name}: split {' and '.join(map(repr, splits))} has "
                f"{len(fitting)} games for games.{domain}={count}; ask for fewer or make more"
            )
        chosen[domain] = tuple(_choose(fitting, count, config.seed))
    return chosen


def _of_domain(config: ConfigDict, domain: str, games: Sequence[Game]) -> list[Game]:
    """Return the games of a domain: of its task types, and held out on its axis alone."""
    world, axes, types = load_world(config.world), _axes_on(config), task_types_of(config, domain)
    out_on = {domain} & frozenset(AXES)
    return [
        game for game in games if game.task_type in types and world.axes_of(game) & axes == out_on
    ]


def _choose(games: Sequence[Game], count: int, seed: int) -> list[Game]:
    """Return a seeded sample without replacement, in the order of ids."""
    if count >= len(games):
        return list(games)
    picked = random.Random(f"choose/{seed}").sample(sorted(games, key=lambda game: game.id), count)
    return sorted(picked, key=lambda game: game.id)
