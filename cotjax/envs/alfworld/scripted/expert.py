"""An expert for household (ALFWorld) games that knows only the task and the observations so far.

It searches the receptacles that can hold the target, class by class in one fixed order
(SEARCH_ORDER), and within a class from the highest number down, as the first observation lists
them. It remembers what it sees, treats the target if the task says so, and takes it to the goal.
The order is the same for every task and room, so that a very small decoder can learn it: after
"shelf 3" comes "shelf 2", and after "shelf 1" the next class. Every decision is an `Intent`, which
gives the action and, through `thoughts.Wording`, the thought before it.
"""

from __future__ import annotations

import random
from functools import cache

from cotjax.envs.alfworld.catalog import load_catalog
from cotjax.envs.alfworld.scripted.intent import Intent
from cotjax.envs.alfworld.scripted.memory import (
    TREATMENTS,
    Goal,
    Memory,
    class_of,
    number_of,
    parse_task,
)
from cotjax.envs.alfworld.scripted.thoughts import Wording
from cotjax.envs.alfworld.scripted.unnamed import UnnamedWording
from cotjax.envs.base import Decision, Observation
from cotjax.envs.worlds import NAMED

# Small specific holders and open surfaces come first, closed storage (two steps a look) last. Over
# the 3,694 real games this costs 0.1 steps a game more than the best order for each target.
SEARCH_ORDER = (
    *("handtowelholder", "towelholder", "toiletpaperhanger", "bed", "desk", "dresser"),
    *("coffeetable", "toilet", "bathtubbasin", "sofa", "diningtable", "cart", "coffeemachine"),
    *("countertop", "sidetable", "stoveburner", "tvstand", "armchair", "garbagecan", "ottoman"),
    *("shelf", "laundryhamper", "sinkbasin", "fridge", "microwave", "safe", "cabinet", "drawer"),
)
# Receptacles that lamps are on in ALFWorld's rooms; its table of what fits where has no lamps.
LAMP_PLACES = ("desk", "dresser", "coffeetable", "sidetable", "shelf")
# Weights of the kinds of action that a random step is drawn from.
RANDOM_KINDS = {
    "go": 8.0,
    "open": 4.0,
    "take": 3.0,
    "move": 3.0,
    "heat": 1.0,
    "cool": 1.0,
    "clean": 1.0,
    "use": 1.0,
    "examine": 1.0,
    "close": 0.5,
    "look": 0.3,
    "inventory": 0.3,
}
# The same for random steps that the game refuses.
NO_OP_KINDS = {"go": 6.0, "take": 2.0, "open": 1.0, "use": 1.0}
_ACCEPTED_MISTAKES = 0.3  # share of mistakes that the game accepts


class Expert:
    """Plays one game at a time: `start`, then `act` on the first and on every later observation.

    Args:
      seed: of the wording and the noise; the same seed and game give the same episode.
      noise: probability that a step is a random admissible one; its thought says so.
      news: share of random steps whose thought also says what was just seen.
      no_op: share of random steps that the game refuses (going to the current place, taking a
        thing that is elsewhere), so that a model learns to go on after "Nothing happens".
      mistakes: share of steps that are replaced by another one, mostly one that the game refuses.
        The next steps show how to recover (noise injection; Laskey et al., 2017, DART).
      thoughts: "named" (`thoughts.Wording`) or "unnamed" (`unnamed.UnnamedWording`). Decisions do
        not depend on it: the wording has a generator of its own.
    """

    def __init__(
        self,
        seed: int,
        noise: float = 0.0,
        news: float = 0.4,
        no_op: float = 0.0,
        mistakes: float = 0.0,
        thoughts: str = NAMED,
    ):
        self.thoughts = thoughts
        self.seed, self.noise, self.news = seed, noise, news
        self.no_op, self.mistakes = no_op, mistakes

    def start(self, task: str, observation: Observation) -> None:
        """Begin a game. `act` gets the first observation too.

        Raises EnvError if no household task has this wording, or alfworld is not installed.
        """
        self.goal: Goal = parse_task(task)
        self.memory = Memory()
        self.memory.observe(observation.text)
        self._rng = random.Random(f"{self.seed}")
        wording: type[Wording] = Wording if self.thoughts == NAMED else UnnamedWording
        self._wording = wording(self.goal, random.Random(f"{self.seed}/wording"), self.news)

    def follow(self, action: str, observation: Observation) -> None:
        """Remember what another agent saw. (`cotjax.envs.base.Successor`)"""
        self.memory.observe(observation.text)

    def act(self, observation: Observation) -> Decision:
        """Return the next action and its thought."""
        self.memory.observe(observation.text)
        admissible, intent, no_op = observation.admissible_commands or (), None, False
        if self.mistakes and self._rng.random() < self.mistakes:
            mistake = mistaken_intent(self.memory, admissible, self._rng)
            if mistake is not None:
                command = mistake.command(admissible)
                return Decision(None, command, no_op=command not in admissible, mistake=True)
        if self._rng.random() < self.noise:
            if self._rng.random() < self.no_op:
                intent = no_op_intent(self.memory, admissible, self._rng)
            no_op = intent is not None
            intent = intent or random_intent(self.memory, admissible, self._rng)
        plan = next_intent(self.goal, self.memory, admissible)
        intent = intent or plan
        return Decision(
            self._wording.thought(self.memory, intent, plan), intent.command(admissible), no_op
        )


def next_intent(goal: Goal, memory: Memory, admissible: tuple[str, ...]) -> Intent:
    """Return what the expert does in this state.

    `admissible` only tells whether "go to" a place is possible, which it is not for a place within
    reach. (`Intent.command` also uses it to choose the form of a command.)
    """
    held = memory.holding
    if held is None:
        return _get_target(goal, memory, admissible)
    if class_of(held) != goal.target:
        return _free_hand(held, memory, admissible)
    if goal.treatment is not None and not memory.is_treated(held, goal.treatment):
        return _treat(goal.treatment, memory, admissible)
    if goal.lamp is not None:
        return _use_lamp(goal.lamp, memory, admissible)
    return _deliver(goal, memory, admissible)


def random_intent(memory: Memory, admissible: tuple[str, ...], rng: random.Random) -> Intent | None:
    """Return an admissible action, drawn by kind, that names only known things; None if none."""
    by_kind: dict[str, list[Intent]] = {}
    for command in admissible:
        intent = Intent.parse(command)
        if intent and {intent.thing, intent.place} <= memory.known | {None}:
            by_kind.setdefault(intent.verb, []).append(intent)
    kinds = [kind for kind in RANDOM_KINDS if kind in by_kind]
    if not kinds:
        return None
    return rng.choice(by_kind[rng.choices(kinds, [RANDOM_KINDS[kind] for kind in kinds])[0]])


def no_op_intent(memory: Memory, admissible: tuple[str, ...], rng: random.Random) -> Intent | None:
    """Return a random action that the game refuses now, of those a poor player repeats.

    It goes to the current place, opens what is open or has no door, or uses a lamp or takes a thing
    that is elsewhere. None if there is no such action.
    """
    seen = [(thing, place) for place, things in memory.contents.items() for thing in things]
    known = {
        "go": [Intent("go", None, place) for place in sorted(memory.spot)],
        "open": [Intent("open", None, place) for place in sorted(memory.spot)],
        "use": [Intent("use", thing, place) for thing, place in seen if "lamp" in thing],
        "take": [Intent("take", thing, place) for thing, place in seen],
    }
    refused = {
        verb: [intent for intent in intents if intent.command(()) not in admissible]
        for verb, intents in known.items()
    }
    verbs = [verb for verb in refused if refused[verb]]
    return (
        rng.choice(refused[rng.choices(verbs, [NO_OP_KINDS[verb] for verb in verbs])[0]])
        if verbs
        else None
    )


def mistaken_intent(
    memory: Memory, admissible: tuple[str, ...], rng: random.Random
) -> Intent | None:
    """Return a mistake: mostly a refused step, else going somewhere else. None if none exists."""
    if rng.random() >= _ACCEPTED_MISTAKES:
        return no_op_intent(memory, admissible, rng)
    astray = [
        Intent("go", None, place) for place in memory.places if f"go to {place}" in admissible
    ]
    return rng.choice(astray) if astray else None


def search_places(goal: Goal, memory: Memory) -> list[str]:
    """Return the places in the order of search: those that can hold the target, then the others."""
    fits = {place for place in memory.places if _holds(place, goal.target)}
    # An untreated target is hardly in its goal already, or the game would be won.
    last = {goal.place} if goal.treatment is None else set()
    return sorted(
        memory.places, key=lambda place: (place not in fits, class_of(place) in last, _rank(place))
    )


@cache
def _fits() -> dict[str, frozenset[str]]:
    """Return receptacle class -> classes it may hold, both spelled as in observations."""
    return {
        place.lower(): frozenset(kind.lower() for kind in kinds)
        for place, kinds in load_catalog().fits.items()
    }


def _holds(place: str, kind: str) -> bool:
    return kind in _fits().get(class_of(place), ())


def _rank(place: str) -> tuple[int, str, int]:
    kind = class_of(place)
    return (
        (SEARCH_ORDER.index(kind) if kind in SEARCH_ORDER else len(SEARCH_ORDER)),
        kind,
        -number_of(place),
    )


def _get_target(goal: Goal, memory: Memory, admissible: tuple[str, ...]) -> Intent:
    in_place = _delivered(goal, memory)
    treated_first = sorted(
        memory.where(goal.target), key=lambda known: not memory.is_treated(known[0], goal.treatment)
    )
    for thing, place in treated_first:
        if thing not in in_place:
            return _reach(memory, admissible, place, "fetch", thing) or Intent(
                "take", thing, place, "fetch"
            )
    return _search(memory, admissible, search_places(goal, memory), "search")


def _treat(treatment: str, memory: Memory, admissible: tuple[str, ...]) -> Intent:
    device = _first(memory, TREATMENTS[treatment][1])
    if device is None:
        return Intent("look", why="lost")
    if not _is_here(memory, admissible, device):
        return Intent("go", None, device, "treat")
    return Intent(treatment, memory.holding, device, "treat")


def _use_lamp(kind: str, memory: Memory, admissible: tuple[str, ...]) -> Intent:
    for lamp, place in memory.where(kind):
        if not _is_here(memory, admissible, place):
            return Intent("go", lamp, place, "lamp")
        return Intent("use", lamp, place, "lamp")
    order = sorted(
        memory.places, key=lambda place: (class_of(place) not in LAMP_PLACES, _rank(place))
    )
    return _search(memory, admissible, order, "lamp search")


def _deliver(goal: Goal, memory: Memory, admissible: tuple[str, ...]) -> Intent:
    place = _destination(goal, memory)
    if place is None:
        return Intent("look", why="lost")
    return _reach(memory, admissible, place, "deliver", memory.holding) or Intent(
        "move", memory.holding, place, "deliver"
    )


def _free_hand(held: str, memory: Memory, admissible: tuple[str, ...]) -> Intent:
    """Put down a thing that the task does not ask for, here or in the first place that fits."""
    takes = [place for place in sorted(memory.places, key=_rank) if _holds(place, class_of(held))]
    here = [place for place in takes if place in memory.spot and place not in memory.closed]
    for place in here + takes:
        return _reach(memory, admissible, place, "free hand", held) or Intent(
            "move", held, place, "free hand"
        )
    return Intent("look", why="lost")


def _search(memory: Memory, admissible: tuple[str, ...], order: list[str], why: str) -> Intent:
    for place in order:
        step = None if place in memory.checked else _reach(memory, admissible, place, why)
        if step is not None:
            return step
    return Intent("look", why="lost")


def _reach(
    memory: Memory, admissible: tuple[str, ...], place: str, why: str, thing: str | None = None
) -> Intent | None:
    """Return the step that brings `place` within reach; None once it is.

    The step goes there, opens it, or examines a place within reach whose contents are unknown.
    """
    if not _is_here(memory, admissible, place):
        return Intent("go", thing, place, why)
    if place in memory.closed:
        return Intent("open", thing, place, why)
    if place not in memory.checked:
        return Intent("examine", place, place, why)
    return None


def _is_here(memory: Memory, admissible: tuple[str, ...], place: str) -> bool:
    return place in memory.spot or f"go to {place}" not in admissible


def _first(memory: Memory, kind: str) -> str | None:
    """Return the place of a class to go to: one within reach, else the lowest number."""
    places = [place for place in memory.places if class_of(place) == kind]
    return min(places, key=lambda place: (place not in memory.spot, number_of(place)), default=None)


def _destination(goal: Goal, memory: Memory) -> str | None:
    """Return the place of the goal's class with the most targets, then the lowest number."""
    places = [place for place in memory.places if class_of(place) == goal.place]
    return min(
        places, key=lambda place: (-_count(goal, memory, place), number_of(place)), default=None
    )


def _count(goal: Goal, memory: Memory, place: str) -> int:
    return sum(class_of(thing) == goal.target for thing in memory.contents.get(place, ()))


def _delivered(goal: Goal, memory: Memory) -> set[str]:
    """Return the targets in their place already, which the second of two must join."""
    if goal.count == 1:
        return set()
    place = _destination(goal, memory)
    things = memory.contents.get(place, ()) if place is not None else ()
    return {thing for thing in things if class_of(thing) == goal.target}
