"""Sample one household: a room, its furniture, the objects in it, and a goal that is not met yet.

A household is data; `pddl` writes its text. The tables below were set so that made rooms resemble
ALFWorld's released ones (things of each class, copies of each object, objects per receptacle).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from cotjax.envs.alfworld.catalog import STEP_METRES, Catalog, FloorPlan, Receptacle
from cotjax.envs.alfworld.tasks import OOD_OBJECTS, OOD_ROOMS, UNSEEN_FLOOR_PLANS, is_held_out


@dataclass(frozen=True)
class Treatment:
    """A treatment of the object: its verb, the affordance it needs, and its receptacle class."""

    verb: str
    affordance: str
    station: str


TREATMENTS = {
    "pick_clean_then_place_in_recep": Treatment("clean", "Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": Treatment("heat", "Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": Treatment("cool", "Coolable", "Fridge"),
}

# Weights of the kinds of room that ALFWorld sets a task in.
_ROOM_WEIGHTS = {
    "pick_and_place_simple": {"Kitchen": 10, "LivingRoom": 27, "Bedroom": 30, "Bathroom": 33},
    "look_at_obj_in_light": {"LivingRoom": 17, "Bedroom": 83},
    "pick_clean_then_place_in_recep": {"Kitchen": 77, "Bathroom": 23},
    "pick_heat_then_place_in_recep": {"Kitchen": 1},
    "pick_cool_then_place_in_recep": {"Kitchen": 1},
    "pick_two_obj_and_place": {"Kitchen": 15, "LivingRoom": 27, "Bedroom": 30, "Bathroom": 28},
}
_NEVER_A_GOAL = frozenset(
    {"SinkBasin", "TowelHolder", "HandTowelHolder", "Toaster", "LaundryHamper"}
)
_HOLDS_ONE = frozenset({"ToiletPaperHanger", "CoffeeMachine", "StoveBurner"})
_LAMP = "DeskLamp"
_LAMP_STANDS = ("Desk", "Dresser", "SideTable")

# Least and most pieces of furniture that a floor plan names without a position (else one).
_UNPLACED_COUNTS = {"StoveBurner": (4, 4), "HandTowelHolder": (1, 2), "TowelHolder": (1, 2)}
# Every other class of furniture may lose a piece or gain one or two, so that the layouts of two
# games in a floor plan differ too.
_FIXED = frozenset(
    (
        *("Bed", "CoffeeMachine", "Fridge", "GarbageCan", "HandTowelHolder", "Microwave"),
        *("SinkBasin", "Sofa", "StoveBurner", "Toaster", "Toilet", "ToiletPaperHanger"),
        "TowelHolder",
    )
)
_LOSES, _GAINS, _FEWEST_RECEPTACLES = 0.12, 0.25, 8
_MOST_RECEPTACLES = {
    "Kitchen": (19, 34),
    "LivingRoom": (12, 26),
    "Bedroom": (12, 26),
    "Bathroom": (11, 19),
}
# Receptacles of a longer room: more than any other room has. They are added one by one, of the
# room's classes and of these, at most so many of a class as other rooms have.
_LONG_ROOMS = {
    "Kitchen": (40, 46),
    "LivingRoom": (32, 38),
    "Bedroom": (32, 38),
    "Bathroom": (25, 31),
}
_ANYWHERE = frozenset({"Cabinet", "Drawer", "Shelf", "SideTable"})
_MOST_OF_CLASS = {"Cabinet": 16, "Drawer": 14, "Shelf": 14}
_MOST_OF_ANY = 6

# The weight of a receptacle of each class when an object is put into one that it fits. Fitted to
# the mean number of objects in each class in ALFWorld's games; classes for few kinds weigh more.
_WEIGHTS = {
    **{"ArmChair": 1.1, "BathtubBasin": 5.0, "Bed": 14.0, "Cabinet": 0.5, "Cart": 3.2},
    **{"CoffeeMachine": 6.7, "CoffeeTable": 4.5, "CounterTop": 3.3, "Desk": 4.8},
    **{"DiningTable": 7.4, "Drawer": 0.55, "Dresser": 4.0, "Fridge": 4.3, "GarbageCan": 1.2},
    **{"HandTowelHolder": 14.0, "LaundryHamper": 0.5, "Microwave": 1.3, "Ottoman": 2.0},
    **{"Safe": 1.5, "Shelf": 0.9, "SideTable": 1.9, "SinkBasin": 1.2, "Sofa": 3.2},
    **{"StoveBurner": 9.7, "Toaster": 0.1, "Toilet": 1.8, "ToiletPaperHanger": 1.5},
    **{"TowelHolder": 2.0, "TVStand": 14.0},
}
# Weights of 1, 2, 3 copies of an object in a room; classes with few copies are listed.
_COPIES = (36, 34, 30)
_COPIES_OF = {
    "AlarmClock": (48, 34, 18),
    "Book": (44, 33, 23),
    "Box": (66, 28, 6),
    "Bread": (54, 33, 13),
    "HandTowel": (80, 20, 0),
    "Kettle": (43, 37, 20),
    "Laptop": (58, 32, 10),
    "Pan": (67, 28, 5),
    "Pillow": (60, 33, 7),
    "Pot": (51, 39, 10),
    "TeddyBear": (1, 0, 0),
    "Towel": (86, 14, 0),
}
_TARGET_COPIES = (38, 28, 21, 13)  # 1 to 4 copies of the object that the task is about
_LAMP_COPIES = (55, 45)
# Portable by the tables, but always on the floor in released games.
_ON_THE_FLOOR = frozenset({"BaseballBat", "BasketBall", "Plunger", "TennisRacket"})
_DECOR_STANDS = {
    "HousePlant": (
        "CoffeeTable",
        "CounterTop",
        "Desk",
        "DiningTable",
        "Dresser",
        "Shelf",
        "SideTable",
    ),
    "Television": ("CoffeeTable", "Dresser", "TVStand"),
}


@dataclass(frozen=True)
class Item:
    """A thing that is no fixed receptacle: in the one of id `inside`, or on the floor (None)."""

    kind: str
    id: str
    inside: str | None
    spot: str


@dataclass(frozen=True)
class Household:
    """One household and its goal.

    `target` is the class of the task's object, and `goal` the class of the receptacle it must end
    in. In a task about light `goal` is "", and `toggle` is the lamp's class.
    """

    floor_plan: int
    task_type: str
    target: str
    goal: str
    toggle: str
    start: str
    receptacles: tuple[Receptacle, ...]
    objects: tuple[Item, ...]
    lamps: tuple[Item, ...]
    decor: tuple[Item, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return self.objects + self.lamps + self.decor


def floor_plans_of(catalog: Catalog, split: str) -> list[FloorPlan]:
    """Return a split's floor plans: train and valid_seen share, the others have four unseen."""
    unseen = split not in ("train", "valid_seen")
    return [
        plan
        for number, plan in catalog.floor_plans.items()
        if (number in UNSEEN_FLOOR_PLANS) == unseen
    ]


def sample_household(
    catalog: Catalog, split: str, task_type: str, rng: random.Random
) -> Household | None:
    """Draw a household; None if the drawn room cannot host the task.

    Only split OOD_ROOMS has longer rooms. In OOD_OBJECTS every goal is held out; in the other
    splits it may be.
    """
    plan = _sample_floor_plan(catalog, split, task_type, rng)
    space = _Space(plan, rng)
    receptacles = _furnish(catalog, plan, task_type, space, rng)
    if split == OOD_ROOMS:
        _lengthen(receptacles, plan, space, rng)
    kinds = [kind for kind in plan.kinds if kind in catalog.portable - _ON_THE_FLOOR]
    fits = is_held_out if split == OOD_OBJECTS else _any_goal
    chosen = _sample_goal(catalog, task_type, kinds, {r.kind for r in receptacles}, rng, fits)
    if chosen is None:
        return None
    target, goal = chosen
    shelves = _Shelves(catalog, receptacles, space, rng)
    fewest = 2 if task_type == "pick_two_obj_and_place" else 1
    objects = shelves.put(target, _draw_count(_TARGET_COPIES, rng, fewest), banned={goal})
    for kind in kinds:
        if kind != target:
            objects += shelves.put(kind, _draw_count(_COPIES_OF.get(kind, _COPIES), rng))
    lamps: list[Item] = []
    if task_type == "look_at_obj_in_light" or _LAMP in plan.kinds:
        lamps = shelves.stand(_LAMP, _LAMP_STANDS, _draw_count(_LAMP_COPIES, rng))
    if sum(item.kind == target for item in objects) < fewest or (not goal and not lamps):
        return None
    return Household(
        floor_plan=plan.number,
        task_type=task_type,
        target=target,
        goal=goal,
        toggle="" if goal else _LAMP,
        start=space.new_spot(tilt=30),
        receptacles=tuple(receptacles),
        objects=tuple(objects),
        lamps=tuple(lamps),
        decor=tuple(_decorate(catalog, plan, shelves, space)),
    )


def _sample_floor_plan(
    catalog: Catalog, split: str, task_type: str, rng: random.Random
) -> FloorPlan:
    weights = _ROOM_WEIGHTS[task_type]
    room = rng.choices(list(weights), list(weights.values()))[0]
    return rng.choice([plan for plan in floor_plans_of(catalog, split) if plan.room == room])


class _Space:
    """Draws unused ids (with coordinates) and spots (where an agent can be) in one room."""

    def __init__(self, plan: FloorPlan, rng: random.Random):
        self._rng = rng
        self._taken = {r.id for r in plan.receptacles} | {r.spot for r in plan.receptacles}
        centres = [_coordinates(r.id) for r in plan.receptacles]
        self._low = [min(axis) for axis in zip(*centres, strict=True)]
        self._high = [max(axis) for axis in zip(*centres, strict=True)]

    def new_id(self, kind: str, near: str | None = None) -> str:
        """Return an id for a thing of this kind, on the receptacle `near` or anywhere."""
        while True:
            if near is None:
                x, y, z = map(self._rng.uniform, self._low, self._high)
            else:
                offsets = (
                    self._rng.uniform(-0.3, 0.3),
                    self._rng.uniform(0.02, 0.2),
                    self._rng.uniform(-0.3, 0.3),
                )
                x, y, z = map(sum, zip(_coordinates(near), offsets, strict=True))
            name = f"{kind}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"
            if kind in ("SinkBasin", "BathtubBasin"):
                name = f"{name.replace('Basin', '', 1)}|{kind}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def new_spot(self, tilt: int | None = None) -> str:
        while True:
            x, z = (
                round(self._rng.uniform(self._low[axis], self._high[axis]) / STEP_METRES)
                for axis in (0, 2)
            )
            drawn = self._rng.choice((0, 15, 30, 45, 60)) if tilt is None else tilt
            spot = f"loc|{x}|{z}|{self._rng.randrange(4)}|{drawn}"
            if spot not in self._taken:
                self._taken.add(spot)
                return spot


def _coordinates(name: str) -> tuple[float, float, float]:
    x, y, z = (float(part) for part in name.split("|")[1:4])
    return x, y, z


def _furnish(
    catalog: Catalog, plan: FloorPlan, task_type: str, space: _Space, rng: random.Random
) -> list[Receptacle]:
    """Return the floor plan's receptacles, with or without a position, with random changes."""
    receptacles = list(plan.receptacles)

    def add(kind: str) -> None:
        receptacles.append(Receptacle(kind, space.new_id(kind), space.new_spot()))

    placed = {r.kind for r in receptacles}
    for kind in plan.kinds:
        if kind in catalog.fits and kind not in placed:
            for _ in range(rng.randint(*_UNPLACED_COUNTS.get(kind, (1, 1)))):
                add(kind)
    for kind in sorted({r.kind for r in receptacles} - _FIXED):
        drawn = rng.random()
        if drawn < _LOSES and len(receptacles) > _FEWEST_RECEPTACLES:
            receptacles.remove(rng.choice([r for r in receptacles if r.kind == kind]))
        elif drawn > 1 - _GAINS:
            for _ in range(rng.randint(1, 2)):
                add(kind)
    if task_type == "look_at_obj_in_light" and not any(r.kind in _LAMP_STANDS for r in receptacles):
        add("SideTable")
    most = rng.randint(*_MOST_RECEPTACLES[plan.room])
    while len(receptacles) > most:
        counts = Counter(r.kind for r in receptacles)
        commonest = max(sorted(counts), key=counts.__getitem__)
        receptacles.remove(rng.choice([r for r in receptacles if r.kind == commonest]))
    return receptacles


def _lengthen(
    receptacles: list[Receptacle], plan: FloorPlan, space: _Space, rng: random.Random
) -> None:
    """Add receptacles until the room is longer than any of the other splits."""
    fewest = rng.randint(*_LONG_ROOMS[plan.room])
    while len(receptacles) < fewest:
        counts = Counter(r.kind for r in receptacles)
        kind = rng.choice(
            [
                kind
                for kind in sorted((counts.keys() - _FIXED) | _ANYWHERE)
                if counts[kind] < _MOST_OF_CLASS.get(kind, _MOST_OF_ANY)
            ]
        )
        receptacles.append(Receptacle(kind, space.new_id(kind), space.new_spot()))


def _any_goal(target: str, goal: str) -> bool:
    return True


def _sample_goal(
    catalog: Catalog,
    task_type: str,
    kinds: Sequence[str],
    present: Collection[str],
    rng: random.Random,
    fits: Callable[[str, str], bool],
) -> tuple[str, str] | None:
    """Return (object class, goal receptacle class) that this room can host; None if it has none.

    `fits(object, receptacle)`: whether a pair may be the goal; the receptacle is "" under a lamp.
    The object must be able to start elsewhere. The receptacle is drawn before the object:
    otherwise a table that holds everything would be every second goal.
    """
    if task_type == "look_at_obj_in_light":
        fitting = [
            kind
            for kind in kinds
            if any(kind in catalog.fits[other] for other in present) and fits(kind, "")
        ]
        return (rng.choice(fitting), "") if fitting else None
    goals = set(present) - _NEVER_A_GOAL
    if task_type == "pick_two_obj_and_place":
        goals -= _HOLDS_ONE
    if treatment := TREATMENTS.get(task_type):
        if treatment.station not in present:
            return None
        goals.discard(treatment.station)
        kinds = [kind for kind in kinds if kind in catalog.affords[treatment.affordance]]
    choices = {}
    for goal in sorted(goals):
        elsewhere = frozenset().union(*(catalog.fits[other] for other in present if other != goal))
        choices[goal] = [
            kind for kind in kinds if kind in catalog.fits[goal] & elsewhere and fits(kind, goal)
        ]
    possible = [goal for goal, objects in choices.items() if objects]
    if not possible:
        return None
    goal = rng.choice(possible)
    return rng.choice(choices[goal]), goal


class _Shelves:
    """Puts things into the room's receptacles, by the weight of each class."""

    def __init__(
        self, catalog: Catalog, receptacles: Sequence[Receptacle], space: _Space, rng: random.Random
    ):
        self._catalog, self._receptacles, self._space, self._rng = catalog, receptacles, space, rng

    def put(self, kind: str, count: int, banned: Collection[str] = ()) -> list[Item]:
        """Put `count` objects into receptacles that fit, none in `banned`; [] if none fits."""
        kinds = {r for r in self._catalog.fits if kind in self._catalog.fits[r] and r not in banned}
        return self.stand(kind, kinds, count)

    def stand(self, kind: str, receptacle_kinds: Collection[str], count: int) -> list[Item]:
        """Put `count` things into receptacles of these classes; [] if the room has none."""
        receptacles = [r for r in self._receptacles if r.kind in receptacle_kinds]
        if not receptacles:
            return []
        drawn = self._rng.choices(receptacles, [_WEIGHTS[r.kind] for r in receptacles], k=count)
        return [Item(kind, self._space.new_id(kind, near=r.id), r.id, r.spot) for r in drawn]


def _draw_count(weights: Sequence[int], rng: random.Random, fewest: int = 1) -> int:
    """Draw a count of at least `fewest`. `weights[i]` is the weight of i + 1 things."""
    counts = range(fewest, len(weights) + 1)
    return rng.choices(counts, weights[fewest - 1 :])[0]


def _decorate(catalog: Catalog, plan: FloorPlan, shelves: _Shelves, space: _Space) -> list[Item]:
    """Return one thing of each other class that the floor plan names; none can be picked up."""
    placed_already = (set(catalog.fits) | catalog.portable | {_LAMP}) - _ON_THE_FLOOR
    decor = []
    for kind in plan.kinds:
        if kind in placed_already or kind not in catalog.kinds:
            continue
        standing = shelves.stand(kind, _DECOR_STANDS.get(kind, ()), 1)
        decor += standing or [Item(kind, space.new_id(kind), None, space.new_spot())]
    return decor
