"""ScienceWorld behind the door of `cotjax.envs.worlds`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType

from cotjax.envs.base import Agent, Game, TextEnv
from cotjax.envs.scienceworld.engine import ENVS_A_PROCESS, EngineError, solver
from cotjax.envs.scienceworld.env import ScienceWorldEnv
from cotjax.envs.scienceworld.expert import Expert
from cotjax.envs.scienceworld.tasks import OOD_TASKS, SPLITS, VARIATIONS, Loaded, variations_of
from cotjax.envs.scienceworld.wording import instruction
from cotjax.envs.scienceworld.words import scienceworld_words
from cotjax.envs.worlds import IN_DOMAIN, OOD, AgentSettings, World
from cotjax.errors import EnvError, UsageError


class ScienceWorld(World):
    """All 30 tasks with the engine's own variations and splits.

    Its environments list no admissible actions. A state has some 1,100 of them, in 30 kB: too many
    to record or to choose among, and to build the list takes longer than to play the step. It also
    draws from the random numbers that the game goes on with.

    Args:
      simplification: one of `tasks.SIMPLIFICATIONS`. It begins the id of every game, and so stands
        in every record and trajectory.
    """

    name = "scienceworld"
    domains = MappingProxyType(
        {task: OOD if task in OOD_TASKS else IN_DOMAIN for task in sorted(VARIATIONS)}
    )
    splits = SPLITS
    agents = ("expert",)
    lists_commands = False
    envs_per_process = ENVS_A_PROCESS
    task_text = "{task}"  # a task begins with "Your task is to"

    def __init__(self, simplification: str = "easy"):
        self._simplification = simplification
        self.title = f"ScienceWorld ({simplification})"
        self.instruction = instruction(teleports=simplification == "easy")

    def games(
        self, root: str | os.PathLike[str], split: str, left_out: Counter[str] | None = None
    ) -> list[Game]:
        """Return the games of the engine's split. There are no files, so `root` must be empty."""
        if os.fspath(root):
            raise UsageError(
                f"{os.fspath(root)}: ScienceWorld's games are in its package: leave the folder of "
                "games out"
            )
        if split not in SPLITS:
            raise UsageError(
                f"ScienceWorld has no split {split!r}; there are {', '.join(SPLITS)} "
                "(games.eval_split)"
            )
        games = [
            Game(Loaded(task, variation, self._simplification).id, "", split, task)
            for task in VARIATIONS
            for variation in variations_of(task, split)
        ]
        return sorted(games, key=lambda game: game.id)

    def make_env(self, max_steps: int, games_kept: int | None = None) -> Callable[[], TextEnv]:
        return partial(ScienceWorldEnv, max_steps)

    def words(self) -> Iterator[str]:
        return scienceworld_words()

    def agent(self, name: str, seed: int, settings: AgentSettings) -> Agent:
        """Return the expert with the engine's gold path of `settings.game`, which takes seconds.

        Raises:
          UsageError: there is no such agent, or no game is given.
          EnvError: the engine failed.
        """
        self.check_agent(name)
        if settings.game is None:
            raise UsageError("ScienceWorld's expert plays one known game: give settings.game")
        try:
            path = solver().gold_path(Loaded.of(settings.game))
        except EngineError as error:
            raise EnvError(
                f"{settings.game.id}, gold path: ScienceWorld failed ({error})"
            ) from error
        return Expert(path, seed, settings.mistakes)

    def close(self) -> None:
        """End the Java process for gold paths, if there is one."""
        solver().close()


WORLD = ScienceWorld()
PLAIN = ScienceWorld("plain")
