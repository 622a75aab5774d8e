"""ALFWorld behind the door of `cotjax.envs.worlds`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from cotjax.envs.alfworld.env import AlfworldEnv, find_games, game_at
from cotjax.envs.alfworld.maker.make import SPLITS, make_games
from cotjax.envs.alfworld.scripted.expert import Expert
from cotjax.envs.alfworld.scripted.explorer import Explorer
from cotjax.envs.alfworld.tasks import OOD_TASKS, TASK_TYPES
from cotjax.envs.alfworld.wording import INSTRUCTION
from cotjax.envs.alfworld.words import alfworld_words
from cotjax.envs.base import Agent, Game, TextEnv
from cotjax.envs.worlds import IN_DOMAIN, NAMED, OOD, UNNAMED, AgentSettings, World
from cotjax.errors import UsageError
from cotjax.runtime.files import local_path

# A game's name: task type-object-movable receptacle-receptacle-floor plan/trial.
_GAME = re.compile(
    r"(?:^|/)(?P<game>(?P<task_type>[a-z]+(?:_[a-z]+)*)-[^-/]+-[^-/]+-[^-/]+-\d+(?:/[^/]+)?)(?:/|$)"
)


class Alfworld(World):
    """The text household, with a maker of games in its format and two scripted agents."""

    name, title = "alfworld", "ALFWorld"
    domains = MappingProxyType(
        {task: OOD if task in OOD_TASKS else IN_DOMAIN for task in TASK_TYPES}
    )
    splits = SPLITS
    agents = ("expert", "explorer")
    thought_kinds = (NAMED, UNNAMED)
    makes_games = True
    instruction = INSTRUCTION

    def games(
        self, root: str | os.PathLike[str], split: str, left_out: Counter[str] | None = None
    ) -> list[Game]:
        """`find_games`; an empty `root` is $ALFWORLD_DATA."""
        named = root or os.environ.get("ALFWORLD_DATA", "")
        if not named:
            raise UsageError(
                "no folder with ALFWorld's games is given: set ALFWORLD_DATA or "
                "--config.games.root=FOLDER"
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
        name = _GAME.search(path.replace("\\", "/"))
        return (name["task_type"], name["game"]) if name else None

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

    def agent(self, name: str, seed: int, settings: AgentSettings) -> Agent:
        self.check_agent(name)
        if name == "expert":
            return Expert(seed, mistakes=settings.mistakes, thoughts=settings.thoughts)
        return Explorer(seed, settings.skill, settings.news, settings.thoughts)


WORLD = Alfworld()
