"""The door to the worlds: what a world is, and how it is loaded by name.

A world is a set of text games with the code that plays them. Everything outside `cotjax.envs` asks
a `World` and imports no world by name, so a new world is a file or a folder under `cotjax/envs`, or
a module of your own. docs/worlds.md has an example.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cotjax import envs
from cotjax.envs.base import Agent, Game, SearchCounts, TextEnv
from cotjax.envs.lessons import Lessons
from cotjax.errors import UsageError
from cotjax.formats import ADMISSIBLE, INSTRUCTION, TASK, normalize_action
from cotjax.formats.search import Growing, piece_text

IN_DOMAIN, OOD = "in_domain", "ood"
NAMED, UNNAMED = "named", "unnamed"  # kinds of scripted thoughts: with the action, or without
# Modules of cotjax.envs that are no world.
_NO_WORLDS = {"base", "lessons", "making", "pool", "replay", "worlds"}


@dataclass(frozen=True)
class AgentSettings:
    """How a scripted agent plays. A world's agent may ignore a setting that it has no use for.

    Attributes:
      skill: probability that a step is the expert's, of an agent that also acts at random.
      news: share of the random steps whose thought also says what was just seen.
      mistakes: share of steps that go wrong and are not trained on; the next ones show how to
        recover.
      thoughts: kind of the thoughts, one of the world's `thought_kinds`. It changes no action.
      game: the game that it is going to play, for agents that give a known solution.
    """

    skill: float = 1.0
    news: float = 0.4
    mistakes: float = 0.0
    thoughts: str = NAMED
    game: Game | None = None


class World(ABC):
    """One world: games, environments, and optionally a maker of games and scripted agents.

    A subclass gives `name` and `domains`, and implements `games` and `make_env`. All else has a
    default; an optional part that a world lacks raises UsageError where it is needed. Instances are
    pickled for worker processes.

    Attributes:
      name: in records, trajectories and messages.
      title: what the report calls it; "" for its name.
      domains: task type -> IN_DOMAIN or the name of an OOD domain (OOD, if there is one), in the
        order in which task types are listed. OOD types are trained on by arms that name them alone.
      axes: name of a further OOD domain, which has the in-domain task types -> what is held out
        there, in words. Its made games are a split of this name.
      splits: the splits of its games, the one that is played by default last; `games make` makes
        all of them by default.
      agents: names for `agent`. "expert" plays to win: a study trains on its won episodes, and
        compares models with it.
      thought_kinds: kinds of thoughts that they can write.
      sources: where its facts can come from, for `of_source`.
      makes_games, fetches_games: whether `make_games` and `fetch_games` are there.
      envs_per_process: environments that may share a process where there are more of them than
        cores: over 1 where a process takes much memory, whatever it plays.
      lists_commands: whether its environments list the admissible actions.
      task_text: the line of the first user turn that names the task, with `{task}` for it.
      instruction: what prompt.instruction="world" puts before the task: what the agent can do, and
        the response format. The response's tags in it are tags.
      admissible_text: the line that lists admissible actions, with `{actions}` for them.
      growing: how its actions are written in one growing text (data.layout="growing"); None where
        they cannot be.
    """

    name: str
    title: str = ""
    domains: Mapping[str, str]
    axes: Mapping[str, str] = MappingProxyType({})
    splits: tuple[str, ...] = ("train",)
    agents: tuple[str, ...] = ()
    thought_kinds: tuple[str, ...] = (NAMED,)
    sources: tuple[str, ...] = ()
    makes_games: bool = False
    fetches_games: bool = False
    envs_per_process: int = 1
    lists_commands: bool = True
    task_text: str = TASK
    instruction: str = INSTRUCTION
    admissible_text: str = ADMISSIBLE
    growing: Growing | None = None

    @property
    def task_types(self) -> tuple[str, ...]:
        return tuple(self.domains)

    def task_types_of(self, domain: str) -> tuple[str, ...]:
        """Return the task types that make up a domain; of an axis, none."""
        return tuple(task for task, its_domain in self.domains.items() if its_domain == domain)

    @property
    def ood_domains(self) -> tuple[str, ...]:
        """Return the names of the OOD domains: those that task types make up, then the axes."""
        named = dict.fromkeys((*self.domains.values(), *self.axes))
        return tuple(domain for domain in named if domain != IN_DOMAIN)

    @property
    def eval_split(self) -> str:
        """Return the split that is played by default."""
        return self.splits[-1]

    def axes_of(self, game: Game) -> frozenset[str]:
        """Return the axes on which a game is out of domain, whatever its task type."""
        return frozenset()

    @abstractmethod
    def games(
        self, root: str | os.PathLike[str], split: str, left_out: Counter[str] | None = None
    ) -> list[Game]:
        """Return the playable games of a split, sorted by id.

        Args:
          root: the folder of the games; "" for the world's own default.
          left_out: gets the number of games that are not playable, by reason.

        Raises:
          UsageError: there is no such folder.
          DataError: it is broken or empty.
        """

    @abstractmethod
    def make_env(self, max_steps: int, games_kept: int | None = None) -> Callable[[], TextEnv]:
        """Return a picklable function that makes one environment.

        Args:
          max_steps: an episode is done after this many steps.
          games_kept: loaded games that a process should cache, in a world where loading is slow;
            None for the world's default.
        """

    def processes_for(self, slots: int) -> int:
        """Return how many processes should play so many environments at once."""
        needed = -(-slots // self.envs_per_process)
        return min(slots, max(needed, os.cpu_count() or 1))

    def game_at(self, path: Path) -> Game:
        """Return the game of one file or folder. Raises UsageError if there is none."""
        raise UsageError(
            f"world {self.name!r} has no games that are files: give --games and --index"
        )

    def recognize(self, path: str) -> tuple[str, str] | None:
        """Return (task type, game id) of a game file's path; None if it is not of this world."""
        return None

    def as_played(self, text: str, commands: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """Return a recorded observation and its commands as this world's environment gives them.

        For imported episodes: what is trained on must be what is shown in play.
        """
        return text, commands

    def meaning(self, action: str) -> Hashable:
        """Return what an environment makes of an action: two of one meaning do the same.

        The default is its text, but for spaces. A world that parses actions returns what it reads.
        """
        return normalize_action(action)

    def judge_searches(
        self, game: Game, task: str, seen: Sequence[str], actions: Sequence[str]
    ) -> SearchCounts | None:
        """Return what the searches of an episode were worth; None in a world without searches.

        Args:
          task: as the environment gave it.
          seen: what was seen before each action.
          actions: what the environment received.
        """
        return None

    def published_reward(self, game: Game, action: str) -> float:
        """Return AutoCoA's reward, 0 to 1, of the last action of an episode (`rl.reward`).

        Raises UsageError in a world without answers.
        """
        raise UsageError(f"rl.reward is 'autocoa', and world {self.name!r} has no answers")

    def words(self) -> Iterator[str]:
        """Yield texts with the world's vocabulary, for a word-level tokenizer."""
        yield from ()

    def make_games(
        self,
        out: Path,
        counts: Mapping[str, Mapping[str, int]],
        seed: int,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Game]:
        """Make `counts[split][task_type]` games under `out`. `progress` gets (done, total).

        An axis is a split, too. Where its games are asked for, those of the other splits are made
        without what it holds out.
        """
        raise UsageError(
            f"world {self.name!r} makes no games: set games.source={self.name} and games.root, "
            "or give a folder of games"
        )

    def fetch_games(self, out: Path, say: Callable[[str], None]) -> dict[str, int]:
        """Download the world's published games to `out`; return the number of each split.

        What is there already is not downloaded again. `say` gets a line about what is going on.

        Raises:
          UsageError: the world has none to download, or they cannot be reached.
          DataError: the download is incomplete.
        """
        raise UsageError(f"world {self.name!r} has no games to download")

    def of_source(self, source: str) -> World:
        """Return this world with facts of another of its `sources`."""
        self.check_source(source)
        return self

    def check_source(self, source: str) -> None:
        """Raise UsageError unless the world has this source of facts."""
        if source not in self.sources:
            there = f"there are {' and '.join(self.sources)}" if self.sources else "leave it out"
            raise UsageError(f"world {self.name!r} has no source of facts {source!r}: {there}")

    def agent(self, name: str, seed: int, settings: AgentSettings) -> Agent:
        """Return a scripted agent, one of `agents`."""
        raise UsageError(f"world {self.name!r} has no {name}: give data.trajectories")

    def lessons(self, root: str | os.PathLike[str], seed: int) -> Lessons:
        """Return what the stages of AutoCoA are taught, from a folder of games.

        Raises UsageError where the world has none: where nothing says which facts are known.
        """
        raise UsageError(
            f"world {self.name!r} does not say which facts are known, so it has no lessons"
        )

    def piece_text(self, thought: str | None, action: str) -> str:
        """Return a step as a piece of a growing text (`cotjax.formats.search`).

        Raises UsageError where the world has no such text, EnvError for an action without a piece.
        """
        if self.growing is None:
            raise UsageError(
                f"the episodes of world {self.name!r} are not written as a growing text"
            )
        return piece_text(self.growing.piece_of(thought, action))

    def close(self) -> None:
        """End what this process's agents have started: by default, nothing."""
        return

    def figure_lines(self, games: Sequence[Game]) -> Iterator[str]:
        """Yield lines of figures of its own for `cotjax bench worlds`, about these games."""
        yield from ()

    def check_agent(self, name: str) -> None:
        """Raise UsageError unless the world has this scripted agent."""
        if not self.agents:
            raise UsageError(f"world {self.name!r} has no {name}: give data.trajectories")
        if name not in self.agents:
            raise UsageError(
                f"no scripted agent of world {self.name!r} is called {name!r}; "
                f"there are {' and '.join(self.agents)}"
            )


def world_names() -> list[str]:
    """Return the names of the worlds under cotjax/envs."""
    return sorted({module.name for module in pkgutil.iter_modules(envs.__path__)} - _NO_WORLDS)


def load_world(name: str) -> World:
    """Return the world of this name.

    `name`: a file or folder under cotjax/envs ("alfworld"), whose WORLD is taken, or
    "package.module:ATTRIBUTE" for a world of your own. Raises UsageError if there is no such world.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in world_names():
            raise UsageError(
                f"unknown world {name!r}; there are {', '.join(world_names())}; "
                "name a world of your own as package.module:ATTRIBUTE"
            )
        module, attribute = f"cotjax.envs.{name}", "WORLD"
    try:
        world = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"world {name!r} cannot be loaded ({error}); its module must be importable, "
            "for example through PYTHONPATH"
        ) from None
    if not isinstance(world, World):
        raise UsageError(f"world {name!r}: {attribute} is no cotjax.envs.worlds.World")
    return world
