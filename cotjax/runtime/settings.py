"""Settings by flat names, and where two trees of them differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flax.traverse_util import flatten_dict


def flatten(tree: Mapping[str, Any], sep: str = ".") -> dict[str, Any]:
    """Return the leaves of nested dicts by their joined names, such as "train.steps"."""
    return flatten_dict(dict(tree), sep=sep)


def first_difference(
    theirs: Mapping[str, Any], mine: Mapping[str, Any], free: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return (dotted name, their value, my value) of the first setting that differs, by name.

    None when none does. Settings named in `free` may differ. A missing setting counts as None.
    """
    before, now = flatten(theirs), flatten(mine)
    for name in sorted({*before, *now} - {*free}):
        if before.get(name) != now.get(name):
            return name, before.get(name), now.get(name)
    return None
