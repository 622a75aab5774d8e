"""`cotjax bench env`: the cached ALFWorld engine's speed compared with the stock one's."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

from cotjax.envs.alfworld.env import AlfworldEnv, find_games
from cotjax.errors import EnvError

_COLUMNS = ("load", "reset", "step")


def benchmark(
    root: str | os.PathLike, split: str, games: int = 5, steps: int = 50
) -> dict[str, dict[str, float]]:
    """Play `steps` random steps of `games` games in both engines; print and return the figures.

    By engine ("stock", "cached, new game", "cached, known game"): "load", "reset" and "step" in
    milliseconds, and "steps/s", which includes load and reset. A new game is translated and stored;
    a known one is on disk but not in memory.

    Raises:
      EnvError: the engines differ in feedback, admissible commands or wins.
    """
    # The constructor imports alfworld without leaving a cache folder behind.
    AlfworldEnv().close()
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.core import EnvInfos
    from textworld.envs.pddl.pddl import PddlEnv

    from cotjax.envs.alfworld.engine import CachedPddlEnv

    split_games = find_games(root, split)
    chosen = split_games[:: max(1, len(split_games) // games)][:games]
    with tempfile.TemporaryDirectory() as cache_dir:
        infos = EnvInfos(won=True, admissible_commands=True)
        engines = {
            "stock": AlfredDemangler()(PddlEnv(infos)),
            "cached, new game": CachedPddlEnv(infos, cache_dir),
            "cached, known game": CachedPddlEnv(infos, cache_dir),
        }
        seconds = {name: dict.fromkeys(_COLUMNS, 0.0) for name in engines}
        for game in chosen:
            walks = {}
            for name, engine in engines.items():
                CachedPddlEnv.forget()
                walks[name] = _walk(engine, game.path, steps, seconds[name])
            if any(walk != walks["stock"] for walk in walks.values()):
                raise EnvError(
                    f"{game.id}: the cached engine differs from the installed one; please report it"
                )
    return _table(seconds, len(chosen), steps)


def _walk(engine: Any, path: str, steps: int, seconds: dict[str, float]) -> list[Any]:
    """Return the states of a random walk, which are the same for engines that agree.

    Adds its times to `seconds`.
    """
    rng = random.Random(path)
    with contextlib.redirect_stdout(None):
        _timed(seconds, "load", engine.load, path)
        state = _timed(seconds, "reset", engine.reset)
        states = [_seen(state)]
        for _ in range(steps):
            command = rng.choice(state["admissible_commands"])
            state, _, _ = _timed(seconds, "step", engine.step, command)
            states.append(_seen(state))
    return states


def _seen(state: Any) -> tuple[Any, ...]:
    return state.feedback, state["admissible_commands"], state["won"]


def _timed(
    seconds: dict[str, float], column: str, function: Callable[..., Any], *arguments: Any
) -> Any:
    start = time.perf_counter()
    result = function(*arguments)
    seconds[column] += time.perf_counter() - start
    return result


def _table(
    seconds: dict[str, dict[str, float]], games: int, steps: int
) -> dict[str, dict[str, float]]:
    figures = {}
    print(f"{games} games of {steps} random steps; milliseconds, with admissible commands\n")
    print(f"{'':20}{'load':>9}{'reset':>9}{'step':>9}{'steps/s':>9}{'ratio':>8}")
    for name, total in seconds.items():
        row = {
            "load": total["load"] / games,
            "reset": total["reset"] / games,
            "step": total["step"] / (games * steps),
        }
        figures[name] = {column: 1000 * value for column, value in row.items()}
        figures[name]["steps/s"] = games * steps / sum(total.values())
        ratio = figures[name]["steps/s"] / figures["stock"]["steps/s"]
        cells = "".join(f"{figures[name][column]:>9.2f}" for column in _COLUMNS)
        print(f"{name:20}{cells}{figures[name]['steps/s']:>9.0f}{ratio:>8.1f}")
    return figures
