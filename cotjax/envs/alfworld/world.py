"""ALFWorld behind the door of `cotjax.envs.worlds`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from cotjax.envs.alfworld.env import AlfworldEnv, as_played, find_games, game_at
from cotjax.envs.alfworld.fetch import fetch
from cotjax.envs.alfworld.maker.make import SPLITS, make_games
from cotjax.envs.alfworld.scripted.expert import Expert
from cotjax.envs.alfworld.scripted.explorer import Explorer
from cotjax.envs.alfworld.tasks import (
    GAME_NAME,
    HELD_OUT_OBJECTS,
    OOD_GRAMMAR,
    OOD_OBJECTS,
    OOD_ROOMS,
    OOD_TASKS,
    TASK_TYPES,
    axes_of,
)
from cotjax.envs.alfworld.wording import INSTRUCTION
from cotjax.envs.alfworld.words import alfworld_words
from cotjax.envs.base import Agent, Game, TextEnv
from cotjax.envs.worlds import IN_DOMAIN, NAMED, OOD, UNNAMED, AgentSettings, World
from cotjax.errors import UsageError
from cotjax.runtime.files import local_path


class Alfworld(World):
    """The text household, with a maker of games in its format and two scripted agents."""

    name, title = "alfworld", "ALFWorld"
    domains = MappingProxyType(
        {task: OOD if task in OOD_TASKS else IN_DOMAIN for task in TASK_TYPES}
    )
    axes = MappingProxyType(
        {
            OOD_OBJECTS: f"goals with {', '.join(sorted(HELD_OUT_OBJECTS))}, or with one in eight "
            "pairs of another object and a receptacle",
            OOD_ROOMS: "longer rooms in made games, other floor plans in ALFWorld's own",
            OOD_GRAMMAR: "the older text grammar, which says put X in/on Y for move X to Y",
        }
    )
    splits = SPLITS
    agents = ("expert", "explorer")
    thought_kinds = (NAMED, UNNAMED)
    makes_games = fetches_games = True
    instruction = INSTRUCTION

    def axes_of(self, game: Game) -> frozenset[str]:
        return axes_of(game)

    def games(
        self, root: str | os.PathLike[str], split: str, left_out: Counter[str] | None = None
    ) -> list[Game]:
        """`find_games`; an empty `root` is $ALFWORLD_DATA."""
        named = root or os.environ.get("ALFWORLD_DATA", "")
        if not named:
            raise UsageError(
                "no folder with ALFWorld's games is given: set ALFWORLD_DATA, or give --games or "
                "--config.games.root, whichever the command has"
            )
        return find_games(local_path(os.fspath(named)), split, left_out)

    def make_env(self, max_steps: int, games_kept: int | None = None) -> Callable[[], TextEnv]:
        if games_kept is None:
            return partial(AlfworldEnv, max_steps)
        return partial(AlfworldEnv, max_steps, games_kept=games_kept)

    def game_at(self, path: Path) -> Game:
        return game_at(path)

    def recognize(self, path: str) -> tuple[str, str] | None:
        """Find "<task type>-…/<trial>" in a path with either kind of slash."""
        name = GAME_NAME.search(path.replace("\\", "/"))
        return (name["task_type"], name["game"]) if name else None

    def as_played(self, text: str, commands: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        return as_played(text, commands)

    def words(self) -> Iterator[str]:
        return alfworld_words()

    def make_games(
        self,
        out: Path,
        counts: Mapping[str, Mapping[str, int]],
        seed: int,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Game]:
        return make_games(out, counts, seed, workers, progress)

    def fetch_games(self, out: Path, say: Callable[[str], None]) -> dict[str, int]:
        return fetch(out, say)

    def agent(self, name: str, seed: int, settings: AgentSettings) -> Agent:
        self.check_agent(name)
        if name == "expert":
            return Expert(seed, mistakes=settings.mistakes, thoughts=settings.thoughts)
        return Explorer(seed, settings.skill, settings.news, settings.thoughts)


WORLD = Alfworld()
