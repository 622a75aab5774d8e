"""Objectives by name, with their settings as plain values: for configs and for what runs keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cotjax.errors import UsageError
from cotjax.objectives.frodo import Frodo
from cotjax.objectives.objective import Spec
from cotjax.objectives.policy import Policy
from cotjax.objectives.preference import Preference
from cotjax.objectives.trigger import Trigger

SUPERVISED = "sft"
_SPECS: dict[str, Callable[..., Spec]] = {
    "dpo": Preference,
    "frodo": Frodo,
    "policy": Policy,
    "trigger": Trigger,
}
PREFERENCES = ("dpo", "frodo", "trigger")
REINFORCED = ("grpo", "gigpo")  # arms that play what they learn from


def spec_of(values: Mapping[str, Any]) -> Spec:
    """Return the settings that `Spec.values` gave. Raises UsageError for an unknown name."""
    fields = dict(values)
    name = fields.pop("name", None)
    if name not in _SPECS:
        raise UsageError(f"unknown objective {name!r}; there are {', '.join(_SPECS)}")
    return _SPECS[name](**fields)
