"""The games that a study trains on and plays: made by the world's maker, or read from its data."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.data.trajectories import Trajectory
from cotjax.envs.base import Game, games_hash
from cotjax.envs.worlds import IN_DOMAIN, World, load_world
from cotjax.errors import DataError, UsageError
from cotjax.study.arms import given_files, plays_to_train


@dataclass(frozen=True)
class GameSets:
    """The games of one study.

    Attributes:
      train: none of them is on an axis that is played.
      domains: domain -> the games that are played of it. A game on an axis is out of domain on this
        axis alone.
      hash: of the contents of the games that are played for the report.
      left_out: split -> number of games that are not playable, by reason.
    """

    train: tuple[Game, ...] = ()
    domains: Mapping[str, tuple[Game, ...]] = field(default_factory=dict)
    hash: str = ""
    left_out: dict[str, Counter[str]] = field(default_factory=dict)

    def domain_of(self, game: Game) -> str:
        """Return the domain of a game that is played."""
        return next(domain for domain, games in self.domains.items() if game in games)

    def by_domain(self, episodes: Mapping[str, Trajectory]) -> dict[str, list[Trajectory]]:
        """Return domain -> the episodes of its games; `episodes` has them by game."""
        return {
            domain: [episodes[game.id] for game in games if game.id in episodes]
            for domain, games in self.domains.items()
        }

    @property
    def played(self) -> tuple[Game, ...]:
        """Return the games of all domains."""
        return tuple(game for games in self.domains.values() for game in games)


# The fields of a config that say how many games are played.
NUMBERS = "games.in_domain, games.ood"


def wanted_games(config: ConfigDict) -> dict[str, int]:
    """Return domain -> number of games to play, without domains of which none are asked for."""
    numbers = dict.fromkeys(config.games.ood_domains, config.games.ood)
    numbers = {IN_DOMAIN: config.games.in_domain} | numbers
    return {domain: number for domain, number in numbers.items() if number}


def task_types_of(config: ConfigDict, domain: str) -> tuple[str, ...]:
    """Return the task types of a domain's games; an axis has those of in_domain."""
    return config.task_types.get(domain, config.task_types.in_domain)


def held_out_types(config: ConfigDict) -> tuple[str, ...]:
    """Return the task types of all OOD domains, played or not.

    Nothing is trained on them but an arm that names them.
    """
    ood = (types for name, types in config.task_types.items() if name not in (IN_DOMAIN, "collect"))
    return tuple(chain.from_iterable(ood))


def prepare_games(
    config: ConfigDict, progress: Callable[[int, int], None] | None = None, trains: bool = True
) -> GameSets:
    """Make or read the games, and choose the ones that the config asks for.

    `trains`: whether there must be games to train on.

    Raises:
      UsageError: an unknown source, no root for games that are read, or no games asked for.
      DataError: a game folder is missing, empty or broken, or holds too few games.
    """
    if not plays_to_train(config) and not wanted_games(config):
        return GameSets()  # training on the user's data, and nothing to play
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
    return GameSets(train, played, games_hash(every) if every else "", reasons)


def check_world(config: ConfigDict) -> None:
    """Raise UsageError for a world, source of games, task type or domain that does not exist.

    Also for one that cannot be played, or twice.
    """
    world = load_world(config.world)
    sources = ("made", world.name) if world.makes_games else (world.name,)
    if config.games.source not in sources:
        raise UsageError(
            f"unknown games.source {config.games.source!r}; there are {', '.join(sources)}"
        )
    _check_domains(config, world)
    for name, types in config.task_types.items():
        for task_type in types:
            if task_type not in world.task_types and plays_to_train(config):
                raise UsageError(
                    f"task_types.{name}: world {world.name!r} has no task type {task_type!r}; "
                    f"there are {', '.join(world.task_types)}; "
                    f"a config file takes them from default_config({config.world!r})"
                )


def _check_domains(config: ConfigDict, world: World) -> None:
    domains = config.games.ood_domains
    for domain in domains:
        if domain not in world.ood_domains or domains.count(domain) > 1:
            raise UsageError(
                f"games.ood_domains is {', '.join(domains)}; name each once, of those of world "
                f"{world.name!r}: {', '.join(world.ood_domains) or 'it has none'}"
            )
    axes, files = _axes_on(config, world), given_files(config)
    if axes and files:
        raise UsageError(
            f"games.ood_domains has {', '.join(sorted(axes))}, which holds games out of training, "
            f"but {', '.join(files)} (data.trajectories, or an arm's) is trained on as it is: "
            "leave one of the two out"
        )
    of_domain: dict[str, str] = {}
    for domain in wanted_games(config):
        for task_type in () if domain in world.axes else task_types_of(config, domain):
            if (first := of_domain.setdefault(task_type, domain)) != domain:
                raise UsageError(
                    f"task_types.{first} and task_types.{domain} both have {task_type!r}; a game "
                    "is played in one domain"
                )


def whole_split(config: ConfigDict, domains: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of config.games with which all games of the split are played.

    Of several OOD domains, as many games of each as the smallest has. `domains`: their names; ():
    all that task types make up and that have games.
    """
    world = load_world(config.world)
    games = world.games(config.games.root, config.games.eval_split)
    named = domains or (domain for domain in world.ood_domains if domain not in world.axes)
    numbers = {domain: len(_of_domain(config, domain, games)) for domain in named}
    ood = {domain: number for domain, number in numbers.items() if number or domains}
    return {
        IN_DOMAIN: len(_of_domain(config, IN_DOMAIN, games)),
        "ood": min(ood.values(), default=0),
        "ood_domains": tuple(ood),
    }


def left_out_text(left_out: Counter[str]) -> str:
    """Return the counts in words: "3 not marked solvable, 1 without traj_data.json"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())


def made_counts(config: ConfigDict) -> dict[str, dict[str, int]]:
    """Return split -> task type -> games to make.

    The played games are spread evenly over the task types of their domain. An axis is a split of
    its own.
    """
    world, counts = load_world(config.world), dict[str, dict[str, int]]()
    if config.games.train:
        counts["train"] = dict.fromkeys(config.task_types.collect, config.games.train)
    for domain, wanted in wanted_games(config).items():
        types = task_types_of(config, domain)
        split = counts.setdefault(domain if domain in world.axes else config.games.eval_split, {})
        for index, task_type in enumerate(types):
            share = wanted // len(types) + (index < wanted % len(types))
            if share:
                split[task_type] = split.get(task_type, 0) + share
    return {split: types for split, types in counts.items() if types}


def _axes_on(config: ConfigDict, world: World) -> frozenset[str]:
    """Return the axes of which games are played, and which are held out of training."""
    return frozenset(wanted_games(config)).intersection(world.axes)


def _train(
    config: ConfigDict, world: World, games_of: Callable[[str], list[Game]]
) -> tuple[Game, ...]:
    if not plays_to_train(config):
        return ()  # the user's data; no game is played for training
    axes = _axes_on(config, world)
    games = [
        game
        for game in games_of("train")
        if game.task_type in config.task_types.collect
        # An axis that is read from the file of every game takes time.
        and not (axes and world.axes_of(game) & axes)
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
        if domain in world.axes:
            # Where games are read, training leaves those of an axis out, so they can be played.
            splits = [domain] if made else list(dict.fromkeys((*splits, "train")))
        fitting = [game for split in splits for game in _of_domain(config, domain, games_of(split))]
        if len(fitting) < count:
            raise DataError(
                f"{config.games.root or world.name}: split {' and '.join(map(repr, splits))} has "
                f"{len(fitting)} games of domain {domain!r}, and {count} are asked for "
                f"(games.{'in_domain' if domain == IN_DOMAIN else 'ood'}); ask for fewer or make "
                "more"
            )
        chosen[domain] = tuple(_choose(fitting, count, config.seed))
    return chosen


def _of_domain(config: ConfigDict, domain: str, games: Sequence[Game]) -> list[Game]:
    """Return the games of a domain: of its task types, and held out on its axis alone."""
    world, types = load_world(config.world), task_types_of(config, domain)
    axes, out_on = _axes_on(config, world), {domain} & world.axes.keys()
    return [
        game
        for game in games
        if game.task_type in types and (not axes or world.axes_of(game) & axes == out_on)
    ]


def _choose(games: Sequence[Game], count: int, seed: int) -> list[Game]:
    """Return a seeded sample without replacement, in the order of ids."""
    if count >= len(games):
        return list(games)
    picked = random.Random(f"choose/{seed}").sample(sorted(games, key=lambda game: game.id), count)
    return sorted(picked, key=lambda game: game.id)
