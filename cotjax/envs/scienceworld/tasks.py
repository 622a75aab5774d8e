"""ScienceWorld's tasks, their variations and splits, and the ids of games."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from cotjax.envs.base import Game
from cotjax.errors import UsageError

# Topic -> its task types with the number of their variations, in version 1.2.3. The last one of
# each topic is out of domain, as in arXiv 2606.26935.
_TOPICS = {
    "matter": {"boil": 30, "melt": 30, "freeze": 30, "change-the-state-of-matter-of": 30},
    "measurement": {
        "use-thermometer": 540,
        "measure-melting-point-known-substance": 436,
        "measure-melting-point-unknown-substance": 300,
    },
    "electricity": {
        "power-component": 20,
        "power-component-renewable-vs-nonrenewable-energy": 20,
        "test-conductivity": 900,
        "test-conductivity-of-unknown-substances": 600,
    },
    "classification": {
        "find-animal": 300,
        "find-living-thing": 300,
        "find-non-living-thing": 300,
        "find-plant": 300,
    },
    "growing": {"grow-fruit": 126, "grow-plant": 126},
    "chemistry": {
        "chemistry-mix": 32,
        "chemistry-mix-paint-secondary-color": 36,
        "chemistry-mix-paint-tertiary-color": 36,
    },
    "lifespan": {
        "lifespan-longest-lived": 125,
        "lifespan-shortest-lived": 125,
        "lifespan-longest-lived-then-shortest-lived": 125,
    },
    "life stages": {"identify-life-stages-1": 14, "identify-life-stages-2": 10},
    "forces": {
        "inclined-plane-determine-angle": 168,
        "inclined-plane-friction-named-surfaces": 1386,
        "inclined-plane-friction-unnamed-surfaces": 162,
    },
    "genetics": {"mendelian-genetics-known-plant": 120, "mendelian-genetics-unknown-plant": 480},
}
VARIATIONS = MappingProxyType(
    {task: count for tasks in _TOPICS.values() for task, count in tasks.items()}
)
OOD_TASKS = frozenset([*tasks][-1] for tasks in _TOPICS.values())
SPLITS = ("train", "dev", "test")
# Name in a game's id -> what the engine is given. "easy" is the engine's own name for
# teleportAction, openDoors, selfWateringFlowerPots and, in tasks without circuits,
# noElectricalAction.
SIMPLIFICATIONS = MappingProxyType({"easy": "easy", "plain": ""})
_ID = re.compile(r"(?P<simplification>[a-z]+)/(?P<task>[a-z0-9-]+)/(?P<variation>\d{4})")


@dataclass(frozen=True)
class Loaded:
    """What the engine loads: a task, its variation, and a name in SIMPLIFICATIONS."""

    task: str
    variation: int
    simplification: str

    @classmethod
    def of(cls, game: Game) -> Loaded:
        """Return what a game's id names. Raises UsageError where it names no game."""
        found = _ID.fullmatch(game.id)
        if found:
            loaded = cls(found["task"], int(found["variation"]), found["simplification"])
            known = loaded.simplification in SIMPLIFICATIONS
            if known and loaded.variation < VARIATIONS.get(loaded.task, 0):
                return loaded
        raise UsageError(
            f"{game.id!r} names no game of ScienceWorld; ids are like easy/boil/0003: "
            f"{' or '.join(SIMPLIFICATIONS)}, a task and one of its variations"
        )

    @property
    def id(self) -> str:
        return f"{self.simplification}/{self.task}/{self.variation:04d}"


def variations_of(task: str, split: str) -> range:
    """Return the engine's own variations of a task in a split: half, a quarter, the rest."""
    count = VARIATIONS[task]
    quarter = count // 4
    first = {"train": 0, "dev": 2 * quarter, "test": 3 * quarter}[split]
    return range(first, {"train": 2 * quarter, "dev": 3 * quarter, "test": count}[split])
