"""The facts that a row states about its episode: id, environment, task type, outcome."""

from __future__ import annotations

import re
from typing import Any

from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.json_text import decode
from cotjax.data.trajectories import UNKNOWN
from cotjax.envs.worlds import World, load_world, world_names

FACT_FIELDS = frozenset(
    (
        *("id", "item_id", "game_file", "gamefile", "game", "game_id", "task_type"),
        *("environment", "split", "success", "reward", "score"),
    )
)
# AgentInstruct numbers its rows by environment: os_0, os_1, …
_INSTRUCT = ("alfworld", "db", "kg", "mind2web", "os", "webshop")


def facts_of(
    row: dict[str, Any], environment: str | None, defaults: dict[str, str]
) -> dict[str, Any]:
    """Return the fields of a trajectory other than its id, task and steps.

    Args:
      environment: the environment that the layout implies, if any.
      defaults: environment and split of rows that name none.

    Raises:
      Unmapped: a field of the row has an invalid value.
    """
    task_type, game = _task_type_and_game(row)
    success, reward = _outcome(row)
    named = _string(row, "environment") or environment or _environment_of_id(row)
    return {
        "environment": named or defaults["environment"],
        "split": _string(row, "split") or defaults["split"],
        "task_type": task_type,
        "game": game,
        "success": success,
        "reward": reward,
    }


def world_of(row: dict[str, Any], environment: str) -> World | None:
    """Return the world whose game the row is of; None where neither game nor name says one.

    `environment`: the name of the row's environment. Raises Unmapped.
    """
    game = _game(row)
    for name in world_names():
        world = load_world(name)
        if name == environment or (game and world.recognize(game)):
            return world
    return None


def id_of(row: dict[str, Any], number: int) -> str:
    """Return the row's own id, or its number. Raises Unmapped."""
    for name in ("id", "item_id"):
        id = row.get(name)
        if id is not None and (isinstance(id, bool) or not isinstance(id, str | int)):
            raise Unmapped(f"its {name!r} is neither a string nor a number")
        if id is not None and str(id).strip():
            return str(id)
    return str(number)


def _string(row: dict[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise Unmapped(f"its {field!r} is not a string")
    return value if value and value.strip() else None


def _task_type_and_game(row: dict[str, Any]) -> tuple[str, str]:
    """Return (task type, game) as the row or the path of a world's game names them."""
    game = _game(row)
    for name in world_names():
        if game and (known := load_world(name).recognize(game)):
            return known
    return _string(row, "task_type") or UNKNOWN, game or UNKNOWN


def _game(row: dict[str, Any]) -> str | None:
    names = ("game_file", "gamefile", "game", "game_id")
    return next(filter(None, (_string(row, name) for name in names)), None)


def _environment_of_id(row: dict[str, Any]) -> str | None:
    """Return the environment in an id of AgentGym (`alfworld_12`) or AgentInstruct (`os_3`)."""
    if name := re.fullmatch(r"([a-z_]+)_\d+", str(row.get("item_id"))):
        return name[1]
    name = re.fullmatch(r"([a-z0-9]+)_\d+", str(row.get("id")))
    return name[1] if name and name[1] in _INSTRUCT else None


def _outcome(row: dict[str, Any]) -> tuple[bool | None, float | None]:
    """Return (success, reward); None where the row does not say."""
    success = row.get("success")
    if success is not None and not isinstance(success, bool):
        raise Unmapped("its 'success' must be true or false")
    rewards = {_number(row, name) for name in ("reward", "score") if row.get(name) is not None}
    if len(rewards) > 1:
        raise Unmapped("its reward and its score differ")
    return success, next(iter(rewards), None)


def _number(row: dict[str, Any], name: str) -> float:
    value = row[name]
    if isinstance(value, str):
        try:
            value = decode(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unmapped(f"its {name!r} is not a number")
    return value
