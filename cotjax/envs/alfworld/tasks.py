"""ALFWorld's task types, and what is out of domain: task types, objects, rooms, grammar."""

from __future__ import annotations

import hashlib
import re

from cotjax.envs.alfworld.older import is_older
from cotjax.envs.base import Game, content_of

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# The out-of-domain split of arXiv 2606.26935: two task types that CoT training never shows.
OOD_TASKS = ("pick_cool_then_place_in_recep", "pick_two_obj_and_place")
# Further OOD domains, of the in-domain task types: goals with held-out objects, rooms of which
# training shows none, and the older text grammar.
OOD_OBJECTS, OOD_ROOMS, OOD_GRAMMAR = "ood_objects", "ood_rooms", "ood_grammar"
AXES = (OOD_OBJECTS, OOD_ROOMS, OOD_GRAMMAR)
# Classes of objects that the axis of objects holds out of goals: some of every in-domain task type
# and kind of room, about 15 % of the goals. They may lie around in any room.
HELD_OUT_OBJECTS = frozenset({"CD", "Egg", "KeyChain", "Potato", "SoapBar", "Watch"})
_PAIRS = 8  # one in so many pairs of object and receptacle is held out, too
# Of ALFWorld's own rooms the axis of rooms holds these out: those of valid_unseen, and one in ten
# of the others.
UNSEEN_FLOOR_PLANS = (10, 219, 308, 424)
_HELD_OUT_DIGIT = 7
MADE_TRIAL = "trial_G"  # begins the trial folder of a made game
# A game's name: task type-object-movable receptacle-receptacle-floor plan/trial.
GAME_NAME = re.compile(
    r"(?:^|/)(?P<game>(?P<task_type>[a-z]+(?:_[a-z]+)*)"
    r"-(?P<object>[^-/]+)-[^-/]+-(?P<receptacle>[^-/]+)-(?P<floor_plan>\d+)"
    r"(?:/(?P<trial>[^/]+))?)(?:/|$)"
)
_LAMPS = ("DeskLamp", "FloorLamp")  # in the place of the receptacle, in tasks about light


def is_held_out(target: str, goal: str) -> bool:
    """Return whether the axis of objects holds a goal out: its object, or the pair.

    `target`, `goal`: classes of the object and of the receptacle; a lamp or "" is no receptacle. A
    pair is chosen by a hash of the two names, so its halves occur in other goals.
    """
    if target in HELD_OUT_OBJECTS:
        return True
    if not goal or goal in _LAMPS:
        return False
    return int(hashlib.sha256(f"{target} {goal}".encode()).hexdigest(), 16) % _PAIRS == 0


def axes_of(game: Game) -> frozenset[str]:
    """Return the axes on which a game is out of domain.

    Its objects are read from its name. A made game is in a longer room, or in the older grammar,
    where its split says so; of any other, the room is read from the name and the grammar from the
    file. Raises DataError for a file that cannot be read.
    """
    name = GAME_NAME.search(game.id)
    axes = set[str]()
    if name is not None and is_held_out(name["object"], name["receptacle"]):
        axes.add(OOD_OBJECTS)
    if name is not None and (name["trial"] or "").startswith(MADE_TRIAL):
        return frozenset(axes | ({OOD_ROOMS, OOD_GRAMMAR} & {game.split}))
    if name is not None and _is_held_out_room(int(name["floor_plan"])):
        axes.add(OOD_ROOMS)
    if is_older(content_of(game)):
        axes.add(OOD_GRAMMAR)
    return frozenset(axes)


def _is_held_out_room(floor_plan: int) -> bool:
    return floor_plan in UNSEEN_FLOOR_PLANS or floor_plan % 10 == _HELD_OUT_DIGIT
