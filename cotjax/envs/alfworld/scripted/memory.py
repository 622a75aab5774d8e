"""An agent's knowledge in a household (ALFWorld) game: the goal, and the observations so far.

Everything here is read from the task text and from observation texts. An instance has a full name
("plate 2"), a class a bare one ("plate"). A place is a receptacle of the room ("cabinet 4"); a
thing is any other object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cotjax.errors import EnvError

_NAME = r"[a-z]+ \d+"
_LEAD = rf"You (?:arrive at|open the) {_NAME}\. "
_LISTED = re.compile(rf"\ban? ({_NAME})")

# Events, and the texts of alfworld 0.4's grammar that report them. The first match decides.
_TEXTS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("start", r"^You are in the middle of a room\."),
        ("facing", r"^You are facing the (?P<spot>.*)\. Next to it"),
        ("closed", rf"^(?:You arrive at {_NAME}\. )?The (?P<place>{_NAME}) is closed\.$"),
        (
            "seen",
            rf"^(?:{_LEAD})?(?:On the|The) (?P<place>{_NAME})(?: is open\. In it)?, "
            r"you see (?P<list>.*)\.$",
        ),
        ("shut", rf"^You close the (?P<place>{_NAME})\.$"),
        ("take", rf"^You pick up the (?P<thing>{_NAME}) from the (?P<place>{_NAME})\.$"),
        (
            "move",
            rf"^You (?:move|put) the (?P<thing>{_NAME}) (?:to|in/on|in|on) "
            rf"the (?P<place>{_NAME})\.$",
        ),
        ("clean", rf"^You clean the (?P<thing>{_NAME}) using the (?P<place>{_NAME})\.$"),
        ("heat", rf"^You heat the (?P<thing>{_NAME}) using the (?P<place>{_NAME})\.$"),
        ("cool", rf"^You cool the (?P<thing>{_NAME}) using the (?P<place>{_NAME})\.$"),
        ("use", rf"^You turn (?:on|off) the (?P<thing>{_NAME})\.$"),
        ("inventory", r"^You are (?:carrying: (?P<list>.*)|not carrying anything)\.$"),
        (
            "examine",
            r"^(?:This is an? .*?|This |There's nothing special about )"
            rf"(?P<thing>{_NAME})\b.*\.$",
        ),
        ("nothing", r"^Nothing happens\.$"),
    )
)

TREATMENTS = {
    "clean": ("clean", "sinkbasin"),
    "heat": ("hot", "microwave"),
    "cool": ("cool", "fridge"),
}
_TREATMENT_WORDS = {
    "clean": "clean",
    "hot": "heat",
    "heated": "heat",
    "cool": "cool",
    "cold": "cool",
    "cooled": "cool",
}
_IN = r"(?:in/on|in|on|into) (?:an? |the )?(?P<place>[a-z]+)"
_TREATED = "|".join(_TREATMENT_WORDS)
_TASKS = (
    re.compile(rf"(?:put|place) (?:an?|some|the) (?P<state>{_TREATED}) (?P<target>[a-z]+) {_IN}"),
    re.compile(
        rf"(?P<verb>clean|heat|cool) (?:an?|some|the) (?P<target>[a-z]+) and (?:put|place) it {_IN}"
    ),
    re.compile(rf"(?:put|place|find) (?P<count>two) (?P<target>[a-z]+) (?:and put them )?{_IN}"),
    re.compile(rf"(?:put|place) (?:an?|some|the) (?P<target>[a-z]+) {_IN}"),
    re.compile(
        r"(?:look at|examine) (?:(?:an?|some|the) )?(?P<target>[a-z]+) "
        r"(?:under|with|by) (?:an? |the )?(?P<lamp>[a-z]+)"
    ),
)


@dataclass(frozen=True)
class Goal:
    """A task.

    `count` things of class `target`, with `treatment` ("clean", "heat", "cool" or None), must be in
    one place of class `place`. With `lamp`, one of them must instead be held near a lamp of that
    class that is turned on.
    """

    target: str
    place: str | None = None
    lamp: str | None = None
    treatment: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Event:
    """What one observation reports.

    `kind` is an event of the table above, or "other"; `contents` lists the things seen.
    """

    kind: str
    place: str | None = None
    thing: str | None = None
    contents: tuple[str, ...] = ()


def parse_task(task: str) -> Goal:
    """Return the goal of an instruction ("put a clean plate in fridge").

    Raises EnvError if no household task has this wording.
    """
    for pattern in _TASKS:
        match = pattern.fullmatch(task.strip().lower().removesuffix("."))
        if match:
            parts = match.groupdict()
            treatment = parts.get("verb") or _TREATMENT_WORDS.get(parts.get("state", ""))
            return Goal(
                parts["target"],
                parts.get("place"),
                parts.get("lamp"),
                treatment,
                2 if parts.get("count") else 1,
            )
    raise EnvError(
        f"no household task has the wording {task!r}; "
        "see parse_task in cotjax/envs/alfworld/scripted/memory.py"
    )


def parse_observation(text: str) -> Event:
    """Return the event that an observation text reports."""
    text = " ".join(text.split())
    for kind, pattern in _TEXTS:
        match = pattern.search(text)
        if match:
            parts = match.groupdict()
            listed = text if kind == "start" else parts.get("list") or ""
            names = (
                re.findall(_NAME, parts["spot"]) if kind == "facing" else _LISTED.findall(listed)
            )
            if kind == "start" and not names:
                # A "look" from the starting point has the first observation's words, but no list.
                kind = "facing"
            return Event(kind, parts.get("place"), parts.get("thing"), tuple(names))
    return Event("other")


def class_of(name: str) -> str:
    """Return the class of an instance: "plate 2" -> "plate"."""
    return name.partition(" ")[0]


def number_of(name: str) -> int:
    """Return the number of an instance: "plate 2" -> 2."""
    return int(name.partition(" ")[2])


@dataclass
class Memory:
    """The content of one episode's observations, as last seen and corrected by the agent's moves.

    Attributes:
      places: the room's receptacles, in the order of the first observation.
      spot: the places known to be within reach; some share a position.
      contents: place -> the things known to be in it.
      closed: places last seen closed.
      holding: the thing in the agent's hand.
      states: thing -> treatments done ("clean", "heat", "cool").
      known: every instance name in an observation.
      checked: the places whose contents have been seen, in the order of the first look.
      last: the last observation.
    """

    places: tuple[str, ...] = ()
    spot: set[str] = field(default_factory=set)
    contents: dict[str, list[str]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    holding: str | None = None
    states: dict[str, set[str]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    checked: list[str] = field(default_factory=list)
    last: Event = Event("other")

    def observe(self, text: str) -> Event:
        """Update the memory from one observation text and return its event."""
        event = parse_observation(text)
        self.last = event
        self.known.update(re.findall(_NAME, text))
        if event.kind == "start":
            self.places = event.contents
        elif event.kind == "facing":
            self.spot = set(event.contents)
        elif event.kind == "inventory":
            self.holding = event.contents[0] if event.contents else None
        elif event.place is not None:
            arrived = text.lstrip().startswith("You arrive")
            self._observe_place(event, event.place, event.thing or "", arrived)
        return event

    def _observe_place(self, event: Event, place: str, thing: str, arrived: bool) -> None:
        self.spot = {place} if arrived else self.spot | {place}
        if event.kind == "seen":
            self.contents[place] = list(event.contents)
            self.closed.discard(place)
            if place not in self.checked:
                self.checked.append(place)
        elif event.kind in ("closed", "shut"):
            self.closed.add(place)
        elif event.kind == "take":
            self.holding = thing
            self._drop_from_contents(thing)
        elif event.kind == "move":
            self.holding = None
            self._drop_from_contents(thing)
            self.contents.setdefault(place, []).append(thing)
        elif event.kind in TREATMENTS:
            states = self.states.setdefault(thing, set())
            states.add(event.kind)
            # Heating undoes cooling and the other way round; nothing undoes cleaning.
            states.discard({"heat": "cool", "cool": "heat"}.get(event.kind))

    def _drop_from_contents(self, thing: str) -> None:
        for things in self.contents.values():
            if thing in things:
                things.remove(thing)

    def where(self, kind: str) -> list[tuple[str, str]]:
        """Return (thing, place) of every thing of class `kind`, in the order of the first look."""
        ordered = self.checked + [place for place in self.contents if place not in self.checked]
        return [
            (thing, place)
            for place in ordered
            for thing in self.contents.get(place, ())
            if class_of(thing) == kind
        ]

    def is_treated(self, thing: str | None, treatment: str | None) -> bool:
        """Return whether `thing` has had `treatment`; true for no treatment."""
        return treatment is None or (thing is not None and treatment in self.states.get(thing, ()))
