"""The household data of the installed ALFWorld package: floor plans, what fits where, goals.

Everything is read from the package's own files, by path: importing `alfworld` would create a cache
folder in the user's home and set `ALFWORLD_DATA`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cotjax.envs.alfworld.tasks import TASK_TYPES
from cotjax.errors import EnvError

# Poses of a floor plan are in metres and degrees; ALFRED's location names count steps and quarter
# turns.
STEP_METRES = 0.25
_QUARTER_DEGREES = 90


@dataclass(frozen=True)
class Receptacle:
    """A fixed receptacle of objects.

    `id` is ALFRED's "Kind|x|y|z" in metres, `spot` the "loc|x|z|turn|tilt" from which an agent
    reaches it; several receptacles may share one spot.
    """

    kind: str
    id: str
    spot: str


@dataclass(frozen=True)
class FloorPlan:
    """One of AI2-THOR's rooms: receptacles of known position, and the classes in it (sorted)."""

    number: int
    room: str
    receptacles: tuple[Receptacle, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Catalog:
    """The package's tables.

    Attributes:
      domain, grammar: the texts of ALFRED's PDDL domain and text grammar.
      fits: receptacle class -> object classes it may hold.
      affords: "Cleanable", "Heatable", "Coolable", "Sliceable" or "Toggleable" -> object classes.
      openable: receptacle classes with a door or lid.
      containers: objects that hold others.
      kinds: all object classes.
      goals: task type -> (PDDL goal, templates of the instruction).
      floor_plans: number -> floor plan.
    """

    domain: str
    grammar: str
    fits: Mapping[str, frozenset[str]]
    affords: Mapping[str, frozenset[str]]
    openable: frozenset[str]
    containers: frozenset[str]
    kinds: frozenset[str]
    goals: Mapping[str, tuple[str, tuple[str, ...]]]
    floor_plans: Mapping[int, FloorPlan]

    @functools.cached_property
    def portable(self) -> frozenset[str]:
        """Object classes that can be picked up: those that some fixed receptacle may hold."""
        return frozenset(kind for kinds in self.fits.values() for kind in kinds)


@functools.cache
def load_catalog() -> Catalog:
    """Read the installed package, once per process. Raises EnvError if it is missing or broken."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise EnvError(
            "making household games needs the alfworld package, which is not installed: "
            "pip install alfworld"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    try:
        return _read_catalog(root)
    except OSError as error:
        raise EnvError(
            f"the alfworld package lacks {error.filename}: install alfworld 0.4.2 again"
        ) from error


def _read_catalog(root: Path) -> Catalog:
    constants = _run_file(root / "gen" / "constants.py")
    library = _run_file(root / "gen" / "goal_library.py").gdict
    containers = frozenset(constants.MOVABLE_RECEPTACLES)
    # Only slicing makes sliced objects, so no game starts with one.
    fits = {
        receptacle: frozenset(kind for kind in kinds if not kind.endswith("Sliced"))
        for receptacle, kinds in constants.VAL_RECEPTACLE_OBJECTS.items()
        if receptacle not in containers
    }
    rooms = {number: room for room, numbers in constants.SCENE_TYPE.items() for number in numbers}
    return Catalog(
        domain=(root / "data" / "alfred.pddl").read_text(encoding="utf-8"),
        grammar=(root / "data" / "alfred.twl2").read_text(encoding="utf-8"),
        fits=fits,
        affords={name: frozenset(kinds) for name, kinds in constants.VAL_ACTION_OBJECTS.items()},
        openable=frozenset(constants.OPENABLE_CLASS_SET) - containers,
        containers=containers,
        kinds=frozenset(constants.OBJECTS_SET),
        goals={
            task: (library[task]["pddl"], tuple(library[task]["templates"])) for task in TASK_TYPES
        },
        floor_plans={
            number: _read_floor_plan(root / "gen" / "layouts", number, room, frozenset(fits))
            for number, room in sorted(rooms.items())
        },
    )


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_alfworld_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read_floor_plan(folder: Path, number: int, room: str, fixed: frozenset[str]) -> FloorPlan:
    poses = json.loads((folder / f"FloorPlan{number}-openable.json").read_text(encoding="utf-8"))
    kinds = json.loads((folder / f"FloorPlan{number}-objects.json").read_text(encoding="utf-8"))
    receptacles = [
        Receptacle(_kind_of(name), name, _spot(*pose)) for name, pose in sorted(poses.items())
    ]
    return FloorPlan(
        number, room, tuple(r for r in receptacles if r.kind in fixed), tuple(sorted(set(kinds)))
    )


def _kind_of(name: str) -> str:
    """Return the class: "Drawer" of "Drawer|x|y|z", "SinkBasin" of "Sink|x|y|z|SinkBasin"."""
    parts = name.split("|")
    return parts[4] if len(parts) > 4 else parts[0]


def _spot(x: float, z: float, turn: float, tilt: float) -> str:
    quarter = round(turn / _QUARTER_DEGREES) % 4
    return f"loc|{round(x / STEP_METRES)}|{round(z / STEP_METRES)}|{quarter}|{round(tilt)}"
