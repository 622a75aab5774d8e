"""Config files, and changes to their fields on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.config.autocoa import AUTOCOA_ARM_FIELDS, STAGE_FIELDS
from cotjax.config.fields import ARM_FIELDS, PATHS, games_of, own_files, task_types_of
from cotjax.envs.worlds import World, load_world
from cotjax.errors import UsageError
from cotjax.runtime.config_files import parse_value, run_config_file
from cotjax.runtime.files import local_path

# Sections of what a config names itself -> the fields that each of these has.
_NAMED = {
    "arms": ARM_FIELDS,
    "autocoa.stages": STAGE_FIELDS,
    "autocoa.arms": AUTOCOA_ARM_FIELDS,
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Run a config file and apply overrides such as "train.steps=200".

    Raises:
      UsageError: there is no such file, its code fails (the message names the line), or an override
        names an unknown field or a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such config file; configs/demo.py is one")
    config = run_config_file(path)
    set_fields(config, overrides)
    of_arms = ("trajectories", "rejected")
    files = (f"arms.{arm}.{field}" for field in of_arms for arm in own_files(config, field))
    stages = _section(config, ("autocoa", "stages"))
    # A stage may be given by a few of its fields.
    choices = (
        f"autocoa.stages.{stage}.choices"
        for stage, own in stages.items()
        if isinstance(own, ConfigDict) and "choices" in own
    )
    for name in (*PATHS, *files, *choices):
        # URLs are refused here, before anything is read or written.
        config.update_from_flattened_dict({name: _expanded(_fields(config)[name])})
    return config


def _expanded(path: str) -> str:
    return str(local_path(path)) if path else path


def set_fields(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Apply overrides. With another world, its defaults take the place of the first one's.

    Raises UsageError as `set_field` does, and for a world that does not exist.
    """
    # The world comes first: the other overrides may change what it sets.
    for override in sorted(overrides, key=lambda override: not override.startswith("world=")):
        before = load_world(config.world) if override.startswith("world=") else None
        set_field(config, override)
        if before is not None:
            _follow_world(config, before, load_world(config.world))


def _follow_world(config: ConfigDict, before: World, world: World) -> None:
    """Give the fields whose default depends on the world the default of another world.

    What the config file has set stays, where the other world has it too.
    """
    theirs, own = games_of(before), games_of(world)
    there = {
        "source": {own.source, world.name},
        "eval_split": set(world.splits),
        "ood_domains": set(world.ood_domains),
    }
    for name, names in there.items():
        value = config.games[name]
        values = {value} if isinstance(value, str) else set(value)
        if value == theirs[name] or not values <= names:
            config.games[name] = own[name]
    # The lists of task types are of one piece: none stays unless all can.
    lists, usual = config.task_types.to_dict(), task_types_of(world)
    types = {task_type for listed in lists.values() for task_type in listed}
    possible = lists.keys() == set(usual) and types <= set(world.task_types)
    if lists == task_types_of(before).to_dict() or not possible:
        config.task_types = usual


def set_field(config: ConfigDict, override: str) -> None:
    """Apply an override such as "train.steps=200". Text needs no quotes. Raises UsageError."""
    name, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--config.{name}: give a value, as in --config.{name}=…")
    fields = _fields(config)
    if name not in fields:
        raise UsageError(_unknown(config, name, list(fields)))
    value = parse_value(name, text, fields[name])
    *sections, field = name.split(".")
    section = _section(config, sections)
    if field not in section:
        with config.unlocked():
            section[field] = fields[name]
    config.update_from_flattened_dict({name: value})


def _fields(config: ConfigDict) -> dict[str, Any]:
    """Return the value of every field by its dotted name; arms and stages have all of theirs."""
    fields = _inner(config)
    for section, usual in _NAMED.items():
        for name, own in _section(config, section.split(".")).items():
            if isinstance(own, ConfigDict):
                more = {f"{section}.{name}.{field}": value for field, value in usual.items()}
                fields = more | fields
    return fields


def _section(config: ConfigDict, names: Sequence[str]) -> Any:
    """Return the section of these names; {} where a config has none."""
    for name in names:
        config = config.get(name, {})
    return config


def _inner(section: ConfigDict) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            inner = _inner(value).items()
            fields |= {f"{name}.{field}": content for field, content in inner}
        else:
            fields[name] = value
    return fields


def _unknown(config: ConfigDict, name: str, fields: list[str]) -> str:
    """Return the message for a name that is no field."""
    inside = [field for field in fields if field.startswith(f"{name}.")]
    if inside:
        return f"--config.{name}: this is a section; name one of its fields: {', '.join(inside)}"
    for field in fields:
        if name.startswith(f"{field}."):
            return f"--config.{name}: {field} is a value, not a section"
    close = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(config)}"
    return f"unknown config field {name!r}; {hint}"
