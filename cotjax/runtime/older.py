"""Settings that older versions wrote under other names, or did not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# OOD domains of which an older config has a number of games each.
_DOMAINS = ("ood", "ood_objects", "ood_rooms")
# Fields that came after the hashes of configs were published, with their defaults, which are what
# was done before. A hash leaves them out where they are that, so that it stays what it was.
LATER: Mapping[str, Any] = {
    "rl.off_policy_steps": 0,
    "rl.least_deviation": 0.0,
    "rl.play_devices": 0,
    "rl.resume": "exact",
    "rl.sample_end": False,
    "rl.kl_target": 0.0,
    "rl.kl_rate": 0.1,
    "rl.entropy_target": 0.0,
    "rl.entropy_step": 0.005,
}
# Not a field: those of games.ood_domains that no task types make up (axes).
AXES = "what games.ood_domains holds out of training"


def renamed(filled: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's settings under their present names, with `AXES` as a setting.

    `filled`: the settings of `config` by flat names, with defaults for those that it lacks.
    """
    present = dict(filled)
    if "data.system" in present:
        present["prompt.system"] = present.pop("data.system")
    number, domains = present.get("games.ood", 0), list(present.get("games.ood_domains", ()))
    if "ood_domains" not in config.get("games", {}):
        numbers = {name: present.pop(f"games.{name}", 0) for name in _DOMAINS}
        domains = [name for name, count in numbers.items() if count]
        number = max(numbers.values())
        if any(count not in (0, number) for count in numbers.values()):
            # Now each domain has the same number, so this run cannot go on; the message says so.
            domains = [f"{count} of {name}" for name, count in numbers.items()]
    domains = domains if number else []
    axes = [domain for domain in domains if f"task_types.{domain}" not in present]
    return present | {"games.ood": number, "games.ood_domains": domains, AXES: axes}


def with_later(rl: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `rl` section of an older run with the fields of `LATER` that it lacks."""
    return {name.removeprefix("rl."): value for name, value in LATER.items()} | dict(rl)
