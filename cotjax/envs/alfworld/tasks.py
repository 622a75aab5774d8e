"""ALFWorld's task types, and what is out of domain: task types, objects and rooms."""

from __future__ import annotations

import hashlib
import re

from cotjax.envs.base import Game

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
# Further OOD domains, of the in-domain task types: goals with held-out objects, and rooms of which
# training shows none.
OOD_OBJECTS, OOD_ROOMS = "ood_objects", "ood_rooms"
AXES = (OOD_OBJECTS, OOD_ROOMS)
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
    """Return the axes on which a game is out of domain, by its name, and its split if it is made.

    A made game is in a longer room than those of training where its split says so.
    """
    name = GAME_NAME.search(game.id)
    if name is None:
        return frozenset()
    floor_plan, made = int(name["floor_plan"]), (name["trial"] or "").startswith(MADE_TRIAL)
    held_out_room = floor_plan in UNSEEN_FLOOR_PLANS or floor_plan % 10 == _HELD_OUT_DIGIT
    axes = {
        OOD_OBJECTS: is_held_out(name["object"], name["receptacle"]),
        OOD_ROOMS: game.split == OOD_ROOMS if made else held_out_room,
    }
    return frozenset(axis for axis, out in axes.items() if out)
