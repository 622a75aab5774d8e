"""Make household games in ALFWorld's format; each is played to a win before it is kept.

A seed gives any number of games from the files of the installed ALFWorld package, without a
download or a simulator. The folders have ALFWorld's layout, so its stock `AlfredTWEnv` plays them
too (`data_path` = out/<split>).

    out/manifest.json
    out/<split>/<task>-<Obj>-None-<Recep>-<floor plan>/trial_<id>/
        game.tw-pddl, traj_data.json, initial_state.pddl
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from cotjax.envs.alfworld.catalog import Catalog, load_catalog
from cotjax.envs.alfworld.maker.manifest import MadeGame, Manifest, hash_game
from cotjax.envs.alfworld.maker.pddl import (
    folder_name,
    game_file,
    instruction,
    problem_text,
    trajectory_file,
)
from cotjax.envs.alfworld.maker.sample import Household, sample_household
from cotjax.envs.alfworld.maker.walkthrough import walkthrough
from cotjax.envs.alfworld.tasks import (
    AXES,
    MADE_TRIAL,
    OOD_GRAMMAR,
    OOD_OBJECTS,
    TASK_TYPES,
    is_held_out,
)
from cotjax.envs.base import Game
from cotjax.envs.making import check_request
from cotjax.errors import EnvError, UsageError

SPLITS = ("train", "valid_seen", "valid_unseen")
_ALL_SPLITS = (*SPLITS, *AXES)
_GENERATOR = "household 1"  # increased whenever the same seed would give other bytes
_MOST_ATTEMPTS = 20
_GAMES_PER_SAVE = 50  # the manifest is saved this often, so that a killed run loses little
_LONGEST_WALKTHROUGH = 50


@dataclass(frozen=True)
class GameKey:
    """Game `index` of a task type in a split. With the seed it determines the game."""

    split: str
    task_type: str
    index: int

    def __str__(self) -> str:
        return f"{self.split}/{self.task_type}/{self.index}"


def make_games(
    out: Path,
    counts: Mapping[str, Mapping[str, int]],
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Game]:
    """Make `counts[split][task_type]` games under `out`; return them by split, type and index.

    A split is one of SPLITS or of AXES. Games of OOD_OBJECTS have a held-out object in the goal;
    where such are asked for, those of the other splits have none (`is_held_out`). Games of
    OOD_ROOMS are in longer rooms than all others, and those of OOD_GRAMMAR in the older grammar.
    All of them are in valid_unseen's floor plans.

    The same seed gives the same bytes with any number of workers, and game k of a split and task
    type does not depend on the number of games. Games of an earlier call are kept if their hash is
    right, and made again otherwise. `progress(done, total)` is called once for the kept games, then
    after each new one.

    Raises:
      UsageError: an impossible request, or one that differs from the games in `out`.
      DataError: the manifest cannot be read.
      EnvError: ALFWorld is missing, or no winnable game is found.
    """
    out = Path(out)
    keys = _requested(out, counts, seed, workers)
    asked = dict(Counter(f"{key.split}/{key.task_type}" for key in keys))
    manifest = Manifest.open(out, _generator(), seed, asked, _ALL_SPLITS)
    games = {
        key: game
        for key in keys
        if (game := manifest.games.get(str(key))) and _is_intact(out, key, game)
    }
    missing = [key for key in keys if key not in games]
    holds_out = any(key.split == OOD_OBJECTS for key in keys)
    if games and progress is not None:
        progress(len(games), len(keys))
    try:
        for done, (key, game) in enumerate(
            _make_all(out, seed, holds_out, missing, workers), start=len(games) + 1
        ):
            games[key] = manifest.games[str(key)] = game
            if done % _GAMES_PER_SAVE == 0:
                manifest.save()
            if progress is not None:
                progress(done, len(keys))
    finally:
        if missing:
            manifest.save()
    return [
        Game(
            games[key].id,
            str(_folder(out, key, games[key]) / "game.tw-pddl"),
            key.split,
            key.task_type,
        )
        for key in keys
    ]


def _requested(
    out: Path, counts: Mapping[str, Mapping[str, int]], seed: int, workers: int
) -> list[GameKey]:
    check_request(counts, seed, _ALL_SPLITS, TASK_TYPES)
    if not isinstance(workers, int) or workers < 1:
        raise UsageError(f"household games need at least 1 worker, not {workers!r}")
    for word in ("movable", "Sliced"):
        if word in str(out.absolute()):
            raise UsageError(
                f"ALFWorld skips every game with {word!r} in its path: "
                f"choose another folder than {out}"
            )
    numbers = {
        (split, task): counts.get(split, {}).get(task, 0)
        for split in _ALL_SPLITS
        for task in TASK_TYPES
    }
    return [
        GameKey(split, task, index)
        for (split, task), number in numbers.items()
        for index in range(number)
    ]


def _generator() -> str:
    """Return the versions that determine a game with the seed: of this code and of alfworld."""
    try:
        return f"{_GENERATOR} on alfworld {importlib.metadata.version('alfworld')}"
    except importlib.metadata.PackageNotFoundError as error:
        raise EnvError(
            "making household games needs the alfworld package: pip install alfworld"
        ) from error


def _folder(out: Path, key: GameKey, game: MadeGame) -> Path:
    return out / key.split / game.id


def _is_intact(out: Path, key: GameKey, game: MadeGame) -> bool:
    try:
        return hash_game(_folder(out, key, game)) == game.sha256
    except OSError:
        return False


def _make_all(
    out: Path, seed: int, holds_out: bool, keys: list[GameKey], workers: int
) -> Iterator[tuple[GameKey, MadeGame]]:
    if workers == 1 or len(keys) < 2:
        if keys:
            maker = _Maker(out, seed, holds_out)
            yield from ((key, maker.make(key)) for key in keys)
        return
    # Spawned, so that no process shares the engine's libraries with another.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(keys)), context) as pool:
        try:
            make = functools.partial(_make_one, out, seed, holds_out)
            # Processes inherit what is blocked. `timeout` and a terminal send a signal to all of
            # them; the first one answers it, and stops the others.
            stops = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                games = pool.map(make, keys)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, stops)
            yield from zip(keys, games, strict=True)
        except BrokenProcessPool as error:
            raise EnvError(
                "a process that makes games died: ask for fewer workers; in a script, call "
                "make_games below `if __name__ == '__main__':`"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _make_one(out: Path, seed: int, holds_out: bool, key: GameKey) -> MadeGame:
    return _maker_of_process(out, seed, holds_out).make(key)


@functools.lru_cache(maxsize=1)
def _maker_of_process(out: Path, seed: int, holds_out: bool) -> _Maker:
    return _Maker(out, seed, holds_out)


def draw_household(
    catalog: Catalog, key: GameKey, rng: random.Random, holds_out: bool
) -> Household | None:
    """Draw the household of one attempt at a game; None where another attempt is needed.

    `holds_out`: only games of OOD_OBJECTS may have a held-out object in the goal. A draw with one
    is refused, so all other games are those of a call that holds nothing out.
    """
    household = sample_household(catalog, key.split, key.task_type, rng)
    if household is None or not holds_out or key.split == OOD_OBJECTS:
        return household
    return None if is_held_out(household.target, household.goal) else household


class _Maker:
    """Makes one game after another with one engine, whose memory is never freed.

    `holds_out`: as in `draw_household`.
    """

    def __init__(self, out: Path, seed: int, holds_out: bool):
        from cotjax.envs.alfworld.env import AlfworldEnv

        self._out, self._seed, self._holds_out = out, seed, holds_out
        self._catalog = load_catalog()
        self._engine = AlfworldEnv(max_steps=_LONGEST_WALKTHROUGH)

    def make(self, key: GameKey) -> MadeGame:
        """Sample until a game is won by its walkthrough, then move it into place by one rename."""
        name = hashlib.sha256(f"{_GENERATOR} {self._seed} {key}".encode()).hexdigest()
        trial = f"{MADE_TRIAL}{name[:16]}"
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=self._out))
        try:
            for attempt in range(_MOST_ATTEMPTS):
                # A string seeds Random through SHA-512, the same in every process.
                rng = random.Random(f"{_GENERATOR} {self._seed} {key} {attempt}")
                folder = self._write(key, trial, rng, scratch)
                if folder is not None and self._is_won(key, folder, scratch):
                    game = MadeGame(folder.relative_to(scratch).as_posix(), hash_game(folder))
                    _move(folder, _folder(self._out, key, game))
                    return game
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        raise EnvError(
            f"no winnable game in {_MOST_ATTEMPTS} attempts at {key} with seed {self._seed}: "
            "try another seed"
        )

    def _write(self, key: GameKey, trial: str, rng: random.Random, scratch: Path) -> Path | None:
        household = draw_household(self._catalog, key, rng, self._holds_out)
        if household is None:
            return None
        problem = problem_text(self._catalog, household, trial)
        task = instruction(self._catalog, household, rng)
        folder = scratch / folder_name(household) / trial
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "game.tw-pddl": game_file(
                self._catalog,
                problem,
                task,
                walkthrough(self._catalog, household),
                older=key.split == OOD_GRAMMAR,
            ),
            "initial_state.pddl": problem,
            "traj_data.json": trajectory_file(household, trial, task),
        }
        for name, text in files.items():
            (folder / name).write_bytes(text.encode())
        return folder

    def _is_won(self, key: GameKey, folder: Path, scratch: Path) -> bool:
        """Return whether the file's walkthrough wins.

        Every command must be admissible, and only the last one may win.
        """
        path = folder / "game.tw-pddl"
        commands = json.loads(path.read_bytes())["walkthrough"]
        _, observation = self._engine.reset(
            Game(folder.relative_to(scratch).as_posix(), str(path), key.split, key.task_type)
        )
        for command in commands:
            if observation.won or command not in (observation.admissible_commands or ()):
                return False
            observation = self._engine.step(command)
        return observation.won


def _move(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # a damaged game, made again
        shutil.rmtree(target)
    folder.rename(target)
