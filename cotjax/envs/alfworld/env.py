"""ALFWorld, the text household (github.com/alfworld/alfworld): its games and their environment."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from cotjax.envs.alfworld.tasks import TASK_TYPES
from cotjax.envs.base import Game, Observation, in_play
from cotjax.errors import DataError, EnvError, UsageError

_BANNER = r"-= Welcome to TextWorld, ALFRED! =-\s*"
_INTRO = re.compile(
    rf"{_BANNER}(?P<room>.*?)\s*Your task is to: (?P<task>.*?)\.?\s*",
    re.DOTALL,
)
_FILES = {"game.tw-pddl", "traj_data.json"}
_REFUSED = "Nothing happens"  # the engine's answer to a refused action
_MOST_SPLITS = 20  # folders that are looked into for a message
_NOT_OFFERED = "help"  # admissible in every state, and useless


def find_games(
    root: str | os.PathLike, split: str, left_out: Counter[str] | None = None
) -> list[Game]:
    """Return the playable games of `<root>/json_2.1.1/<split>/` (or `<root>/<split>/`) by id.

    Playable means the same as in ALFWorld's own `AlfredTWEnv.collect_game_files`: a folder with
    `traj_data.json` of a known task type and a `game.tw-pddl` marked solvable, with neither
    "movable" nor "Sliced" in the folder's name. `left_out` gets the number of others, by reason.

    Raises:
      UsageError: there is no such folder.
      DataError: it holds no playable game, or a broken file.
    """
    root = Path(root)
    folders = [folder for folder in (root / "json_2.1.1" / split, root / split) if folder.is_dir()]
    if not folders:
        raise UsageError(
            f"{root}: no ALFWorld games of split {split!r} in it, neither in json_2.1.1/{split} "
            f"nor in {split}{_splits_in(root)}; download ALFWorld's with `cotjax games fetch "
            "alfworld`, or make games with `cotjax games make`"
        )
    games: list[Game] = []
    others: Counter[str] = Counter()
    for folder, _, files in os.walk(folders[0]):
        if _FILES & set(files):
            id_ = Path(folder).relative_to(folders[0]).as_posix()
            game = _game_in(Path(folder), id_, split, set(files))
            if isinstance(game, Game):
                games.append(game)
            else:
                others[game] += 1
    if left_out is not None:
        left_out.update(others)
    if others and not games:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in others.most_common())
        raise DataError(
            f"{folders[0]}: none of its {others.total():,} games is played: {reasons}; "
            "name another split or folder, or play a single one with `cotjax play --game PATH`"
        )
    if not games:
        raise DataError(
            f"{folders[0]}: no ALFWorld game in it; unpack ALFWorld's data there, or make games "
            "with `cotjax games make`"
        )
    return sorted(games, key=lambda game: game.id)


def _splits_in(root: Path) -> str:
    """Return the splits that a folder has, in words; "" for none."""
    found = sorted(
        folder.name
        for pattern in ("json_2.1.1/*", "*")
        for folder in islice(root.glob(pattern), _MOST_SPLITS)
        if next(folder.glob("*/*/game.tw-pddl"), None) is not None
    )
    return f" (there are {', '.join(found)})" if found else ""


def _game_in(folder: Path, id_: str, split: str, files: set[str]) -> Game | str:
    """Return the game of a folder, or the reason why it is left out."""
    for name in sorted(_FILES - files):
        return f"without {name}"
    for name in ("movable", "Sliced"):
        if name in id_:
            return f"with {name!r} in the name"
    task_type = _read_json(folder / "traj_data.json").get("task_type")
    if task_type not in TASK_TYPES:
        return "of no known task type"
    if not _read_json(folder / "game.tw-pddl").get("solvable"):
        return "not marked solvable"
    return Game(id_, str(folder / "game.tw-pddl"), split, task_type)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); make or unpack the game again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); make or unpack the game again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; make or unpack the game again")
    return content


def game_at(path: str | os.PathLike) -> Game:
    """Return the game of a game file, or of its folder. Raises UsageError if there is none."""
    path = Path(path)
    file = path / "game.tw-pddl" if path.is_dir() else path
    if not file.is_file() or not (file.parent / "traj_data.json").is_file():
        raise UsageError(
            f"{path}: no ALFWorld game; give a folder with game.tw-pddl and traj_data.json in it, "
            "or that game.tw-pddl"
        )
    folder = file.resolve().parent
    task_type = _read_json(folder / "traj_data.json").get("task_type")
    return Game(
        f"{folder.parent.name}/{folder.name}", str(file), folder.parent.parent.name, str(task_type)
    )


class AlfworldEnv:
    """Plays ALFWorld games with the texts of ALFWorld's `AlfredTWEnv` (object names unshuffled).

    An object costs 3.3 MB of memory that is never freed: reset it to another game rather than
    making a new one. A process may have any number of objects, in one thread only.

    Args:
      max_steps: the episode is done after this many steps, won or not.
      cache_dir: folder for translated games; by default `cotjax/pddl` in the user's cache folder
        (`$XDG_CACHE_HOME`, else `~/.cache`).
      games_kept: games that this process caches, about 1.5 MB each. A reset to one of them takes
        5 ms instead of 50.
    """

    def __init__(self, max_steps: int = 30, cache_dir: str | None = None, games_kept: int = 32):
        if max_steps < 1:
            raise UsageError(f"max_steps must be at least 1: got {max_steps}")
        try:
            from textworld.core import EnvInfos

            from cotjax.envs.alfworld.engine import CachedPddlEnv
        except ImportError as error:
            raise UsageError(
                f"ALFWorld is not installed ({error}): pip install alfworld"
            ) from error
        self._max_steps = max_steps
        self._engine = CachedPddlEnv(
            EnvInfos(won=True, admissible_commands=True),
            cache_dir or default_cache_dir(),
            games_kept,
        )
        self._game: Game | None = None
        self._steps = 0
        self._done = False

    def reset(self, game: Game) -> tuple[str, Observation]:
        """Load `game` and return its task ("put a plate in fridge") and the first observation.

        Raises DataError for a broken game file.
        """
        self._game = None
        try:
            self._engine.load(game.path)
        except Exception as error:
            raise DataError(
                f"{game.path}: not a playable ALFWorld game ({_one_line(error)}); "
                "make or unpack it again"
            ) from error
        try:
            state = self._engine.reset()
        except Exception as error:
            raise EnvError(
                f"{game.id}, reset: the ALFWorld engine failed ({_one_line(error)})"
            ) from error
        intro = _INTRO.fullmatch(state.feedback)
        if intro is None:
            raise DataError(
                f"{game.path}: its first text has no 'Your task is to:' line; "
                "make or unpack the game again"
            )
        self._game, self._steps = game, 0
        return intro["task"], self._observation(intro["room"], state)

    def step(self, action: str) -> Observation:
        """Send `action`. An unknown one is a step too, answered by "Nothing happens."."""
        game = in_play(self._game, self._steps, self._done)
        self._steps += 1
        try:
            state, _, _ = self._engine.step(action)
        except Exception as error:
            raise EnvError(
                f"{game.id}, step {self._steps}: the ALFWorld engine failed on {action!r} "
                f"({_one_line(error)})"
            ) from error
        return self._observation(state.feedback.strip(), state)

    def close(self) -> None:
        """Leave the game. No memory can be freed (see the class); `reset` starts another game."""
        self._game = None

    def _observation(self, text: str, state) -> Observation:
        commands = _offered(state["admissible_commands"])
        self._done = state["won"] or self._steps >= self._max_steps
        accepted = not text.startswith(_REFUSED)
        return Observation(text, commands, state["won"], self._done, accepted)


def as_played(text: str, commands: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the engine's text without its banner, and its commands without `help`."""
    return re.sub(rf"\A\s*{_BANNER}", "", text), _offered(commands)


def _offered(commands: Iterable[str]) -> tuple[str, ...]:
    return tuple(command for command in commands if command != _NOT_OFFERED)


def default_cache_dir() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(root) / "cotjax" / "pddl")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
