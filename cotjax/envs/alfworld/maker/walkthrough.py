"""The commands that win a household, from full knowledge of it."""

from __future__ import annotations

from collections.abc import Iterable

from cotjax.envs.alfworld.catalog import Catalog
from cotjax.envs.alfworld.maker.pddl import symbol
from cotjax.envs.alfworld.maker.sample import TREATMENTS, Household, Item


def walkthrough(catalog: Catalog, household: Household) -> list[str]:
    """Return engine commands from the first observation to the goal."""
    walker = _Walker(catalog, household)
    targets = [item for item in household.objects if item.kind == household.target]
    if not household.goal:
        walker.take(targets[0])
        walker.use(household.lamps[0])
        return walker.commands
    for target in targets[: 2 if household.task_type == "pick_two_obj_and_place" else 1]:
        walker.take(target)
        if treatment := TREATMENTS.get(household.task_type):
            walker.treat(target, treatment.verb, treatment.station)
        walker.move(target, household.goal)
    return walker.commands


def engine_names(ids: Iterable[str]) -> dict[str, str]:
    """Return id -> the engine's name of the thing ("plate 2").

    ALFWorld numbers the things of a class when it loads a game: it sorts their lower-case PDDL
    symbols and numbers them from the highest down. Basins are "sinkbasin" or "bathtubbasin".
    """
    by_class: dict[str, list[str]] = {}
    for name in sorted(ids, key=lambda name: symbol(name).lower()):
        parts = name.lower().split("|")
        by_class.setdefault(f"{parts[0]}basin" if len(parts) > 4 else parts[0], []).append(name)
    return {
        name: f"{kind} {len(names) - index}"
        for kind, names in by_class.items()
        for index, name in enumerate(names)
    }


class _Walker:
    """Acts in a household and keeps the commands.

    It never goes to its current spot and opens nothing twice: the engine accepts neither.
    """

    def __init__(self, catalog: Catalog, household: Household):
        self._receptacles = {r.id: r for r in household.receptacles}
        self._names = engine_names([*self._receptacles, *(item.id for item in household.items)])
        self._openable = catalog.openable
        self._opened: set[str] = set()
        self._spot = household.start
        self.commands: list[str] = []

    def take(self, item: Item) -> None:
        receptacle = _receptacle_of(item)
        self._go(receptacle)
        self._open(receptacle)
        self.commands.append(f"take {self._names[item.id]} from {self._names[receptacle]}")

    def use(self, lamp: Item) -> None:
        self._go(_receptacle_of(lamp))
        self.commands.append(f"use {self._names[lamp.id]}")

    def treat(self, item: Item, verb: str, station_kind: str) -> None:
        """Heat, cool or clean the held object. The engine needs no open door for it."""
        station = self._first(station_kind)
        self._go(station)
        self.commands.append(f"{verb} {self._names[item.id]} with {self._names[station]}")

    def move(self, item: Item, goal_kind: str) -> None:
        goal = self._first(goal_kind)
        self._go(goal)
        self._open(goal)
        self.commands.append(f"move {self._names[item.id]} to {self._names[goal]}")

    def _first(self, kind: str) -> str:
        """Return the receptacle of a class with the lowest number."""
        ids = [name for name, receptacle in self._receptacles.items() if receptacle.kind == kind]
        return min(ids, key=lambda name: int(self._names[name].split()[1]))

    def _go(self, receptacle: str) -> None:
        if self._receptacles[receptacle].spot != self._spot:
            self.commands.append(f"go to {self._names[receptacle]}")
            self._spot = self._receptacles[receptacle].spot

    def _open(self, receptacle: str) -> None:
        if self._receptacles[receptacle].kind in self._openable and receptacle not in self._opened:
            self.commands.append(f"open {self._names[receptacle]}")
            self._opened.add(receptacle)


def _receptacle_of(item: Item) -> str:
    assert item.inside is not None, f"{item.id} is on the floor"
    return item.inside
