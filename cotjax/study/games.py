"""Which games a study trains on and plays: made ones, or real ALFWorld data."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.envs.alfworld.env import find_games, games_hash
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.base import Game
from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import local_path


@dataclass(frozen=True)
class GameSets:
    """The games of one study. `hash` is over the contents of those that are played for the report; `left_out`: split -> what its
    folder holds besides, by reason."""

    root: str
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
    """Make the games, or find the real ones, and choose those that the config asks for.

    Raises:
      UsageError: an unknown source, no root for real data, or counts that ask for nothing.
      DataError: a game folder is missing, empty or broken, or holds too few games.
    """
    if config.data.trajectories and not (config.games.in_domain or config.games.ood):
        return GameSets("", (), (), (), "")  # the user's own data, and nothing to play
    if config.games.source == "made":
        root = Path(config.games.root or Path(config.out) / "games")
        make_games(root, made_counts(config), config.games.seed, max(1, config.workers), progress)
    elif config.games.source == "alfworld":
        named = config.games.root or os.environ.get("ALFWORLD_DATA", "")
        if not named:
            raise UsageError(
                "games.source is 'alfworld', but there is no folder: set ALFWORLD_DATA or --config.games.root=FOLDER"
            )
        root = local_path(named)
    else:
        raise UsageError(f"unknown games.source {config.games.source!r}; there are made, alfworld")
    left_out: dict[str, Counter[str]] = defaultdict(Counter)
    in_domain, ood = _played(config, root, left_out)
    train = _train(config, root, left_out)
    played = in_domain + ood
    told = {split: reasons for split, reasons in left_out.items() if reasons}
    return GameSets(str(root), train, in_domain, ood, games_hash(played) if played else "", told)


def made_counts(config: ConfigDict) -> dict[str, dict[str, int]]:
    """split -> task type -> games to make; played games are shared out evenly over the task types of their domain."""
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


def _train(config: ConfigDict, root: Path, left_out: dict[str, Counter[str]]) -> tuple[Game, ...]:
    if config.data.trajectories:
        return ()  # the user's own; no game needs to be played for training
    games = [
        game
        for game in find_games(root, "train", left_out["train"])
        if game.task_type in config.task_types.collect
    ]
    if not games:
        raise DataError(
            f"{root}: no training games of the task types {', '.join(config.task_types.collect)}"
        )
    if config.games.source == "alfworld" and config.games.train:
        games = _choose(games, config.games.train, config.seed)
    return tuple(games)


def _played(
    config: ConfigDict, root: Path, left_out: dict[str, Counter[str]]
) -> tuple[tuple[Game, ...], tuple[Game, ...]]:
    wanted = (config.games.in_domain, config.games.ood)
    if not any(wanted):
        return (), ()
    games = find_games(root, config.games.eval_split, left_out[config.games.eval_split])
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
                f"{root}: split {config.games.eval_split!r} has {len(fitting)} games for games.{name}={count}; ask for fewer or make more"
            )
        chosen.append(tuple(_choose(fitting, count, config.seed)))
    return chosen[0], chosen[1]


def _choose(games: Sequence[Game], count: int, seed: int) -> list[Game]:
    """A seeded sample without replacement, in the order of ids."""
    if count >= len(games):
        return list(games)
    picked = random.Random(f"choose/{seed}").sample(sorted(games, key=lambda game: game.id), count)
    return sorted(picked, key=lambda game: game.id)
