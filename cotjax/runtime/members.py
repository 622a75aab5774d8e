"""Members of an arm: what is trained from each of its seeds.

A study that names seeds (`config.seeds`) trains every arm once from each. A member's name is also
its path below `arms/`, `records/` and `probes/<probe>/`: `named/seed-0`. Where no seeds are named,
an arm has one member, of its own name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_SEED = "/seed-"


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names as readers do: "arm_2" before "arm_10"."""
    parts = re.split(r"([0-9]+)", name)
    # Text and numbers take turns, so that like is compared with like.
    return [
        (int(part), part) if part.isdecimal() and part.isascii() else (-1, part) for part in parts
    ]


def natural_path(path: Path) -> tuple[list[tuple[int, str]], ...]:
    """Return the same for a path, folder by folder."""
    return tuple(map(natural, path.parts))


def member_name(arm: str, seed: int | None) -> str:
    """Return the name of an arm's member. `seed`: None where the study names no seeds."""
    return arm if seed is None else f"{arm}{_SEED}{seed}"


def arm_and_seed(member: str) -> tuple[str, int | None]:
    """Return the arm of a member and its seed; None where its study names no seeds."""
    arm, _, seed = member.rpartition(_SEED)
    return (arm, int(seed)) if arm and seed.isdecimal() else (member, None)


def members_of(arm: str, seeds: Sequence[int]) -> dict[str, int | None]:
    """Return the members of an arm by name, each with its seed. `seeds`: `config.seeds`."""
    return {member_name(arm, seed): seed for seed in seeds or (None,)}


def member_folders(folder: Path) -> dict[str, Path]:
    """Return name -> folder of all members below a run's `arms`, in order of their names."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for arm in folder.iterdir():
        below = {f"{arm.name}/{each.name}": each for each in arm.glob("seed-*")}
        found |= {
            member: each for member, each in below.items() if arm_and_seed(member)[1] is not None
        } or {arm.name: arm}
    return {member: found[member] for member in sorted(found, key=natural)}
