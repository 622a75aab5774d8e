"""Settings as flat names and values, and where two of them differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], joint: str = ".", prefix: str = "") -> dict[str, Any]:
    """A dict of dicts as one, whose names are joined."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, joint, name + joint) if isinstance(value, Mapping) else {name: value}
    return flat


def first_difference(
    theirs: Mapping[str, Any], mine: Mapping[str, Any], free: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """(name, their value, mine) of the first setting by name that differs, None where none does. Those of `free` may; one that is
    missing counts as None."""
    before, now = flatten(theirs), flatten(mine)
    for name in sorted({*before, *now} - {*free}):
        if before.get(name) != now.get(name):
            return name, before.get(name), now.get(name)
    return None
