"""BFCL behind the door of `cotjax.envs.worlds`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from cotjax.envs.base import Agent, Game, TextEnv
from cotjax.envs.bfcl.calls import CallError, parse_action
from cotjax.envs.bfcl.entries import (
    SPLITS,
    TASK_TYPES,
    data_folder,
    entries_file,
    read_entries,
    split_of,
)
from cotjax.envs.bfcl.env import BfclEnv
from cotjax.envs.bfcl.expert import Expert
from cotjax.envs.bfcl.figures import figure_lines
from cotjax.envs.worlds import IN_DOMAIN, OOD, AgentSettings, World
from cotjax.errors import UsageError
from cotjax.runtime.files import local_path

_INSTRUCTION = """\
You serve a user by calling functions. You are told which functions there are, and then what the \
user asks. An action is a list of calls in Python's syntax, whose arguments are literals. The \
calls are executed in their order, and you are shown what each of them returned. When you have \
done what the user asks, or cannot do it with these functions or with what the user has said, \
your action is the word done. Then the user speaks again.
In each turn, reason about what to do next between <think> and </think>, then give exactly one \
action between <action> and </action>, and write nothing else, as here:
<think>The file is in the directory notes, so I go there first.</think>\
<action>[cd(folder='notes'), cat(file_name='plan.txt')]</action>"""


class Bfcl(World):
    """BFCL v3 multi-turn. In-domain is base, OOD long_context, as in arXiv 2606.26935.

    miss_func and miss_param are OOD domains of their own.
    """

    name, title = "bfcl", "BFCL v3 multi-turn"
    domains = MappingProxyType(
        {task: {"base": IN_DOMAIN, "long_context": OOD}.get(task, task) for task in TASK_TYPES}
    )
    splits = SPLITS
    agents = ("expert",)
    lists_commands = False
    instruction = _INSTRUCTION

    def games(
        self, root: str | os.PathLike[str], split: str, left_out: Counter[str] | None = None
    ) -> list[Game]:
        """Return the entries of a split. An empty `root` is the data of the installed package."""
        if split not in SPLITS:
            raise UsageError(f"BFCL has no split {split!r}; there are {' and '.join(SPLITS)}")
        folder = local_path(os.fspath(root)) if root else data_folder()
        games = [
            Game(id_, str(file), split, task_type)
            for task_type in TASK_TYPES
            for file in [entries_file(folder, task_type)]
            for id_ in read_entries(file)
            if split_of(id_) == split
        ]
        return sorted(games, key=lambda game: game.id)

    def make_env(self, max_steps: int, games_kept: int | None = None) -> Callable[[], TextEnv]:
        return partial(BfclEnv, max_steps)

    def meaning(self, action: str) -> Hashable:
        try:
            return tuple(map(str, parse_action(action)))
        except CallError:
            return super().meaning(action)

    def agent(self, name: str, seed: int, settings: AgentSettings) -> Agent:
        """Return the expert of `settings.game`."""
        self.check_agent(name)
        if settings.game is None:
            raise UsageError("BFCL's expert needs AgentSettings.game, whose answers it gives")
        entry = read_entries(Path(settings.game.path))[settings.game.id]
        return Expert(entry, seed, settings.mistakes)

    def figure_lines(self, games: Sequence[Game]) -> Iterator[str]:
        """Yield lines on the package's answers to all entries of these games' folder."""
        return figure_lines(Path(games[0].path).parent)


WORLD = Bfcl()
