"""The next action of a household agent and its reason, from which command and thought are made."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_NAME = r"[a-z]+ \d+"
_COMMANDS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<verb>go) to (?P<place>{_NAME})",
        rf"(?P<verb>open|close) (?P<place>{_NAME})",
        rf"(?P<verb>take) (?P<thing>{_NAME}) from (?P<place>{_NAME})",
        rf"(?P<verb>move) (?P<thing>{_NAME}) to (?P<place>{_NAME})",
        rf"(?P<verb>put) (?P<thing>{_NAME}) (?:in/on|in|on) (?P<place>{_NAME})",
        rf"(?P<verb>heat|cool|clean) (?P<thing>{_NAME}) with (?P<place>{_NAME})",
        rf"(?P<verb>use|examine) (?P<thing>{_NAME})",
        r"(?P<verb>look|inventory)",
    )
)
_ACTIONS = {
    "go": "go to {place}",
    "open": "open {place}",
    "close": "close {place}",
    "take": "take {thing} from {place}",
    "move": "move {thing} to {place}",
    "heat": "heat {thing} with {place}",
    "cool": "cool {thing} with {place}",
    "clean": "clean {thing} with {place}",
    "use": "use {thing}",
    "examine": "examine {thing}",
    "look": "look",
    "inventory": "inventory",
}
# The forms of ALFWorld's older grammars.
_OLDER = {"move": ("put {thing} in/on {place}", "put {thing} in {place}", "put {thing} on {place}")}
_VERBS = {"put": "move"}


@dataclass(frozen=True)
class Intent:
    """One intended action.

    Attributes:
      verb: the first word of the command in the present grammar.
      thing, place: its objects. For "go" and "open", `thing` (or None) is what the agent wants
        there; for "use", `place` is the lamp's; for "examine", `thing` may be a place.
      why: "search", "fetch", "treat", "lamp", "lamp search", "deliver", "free hand", "lost"
        (nothing left to try) or "wonder" (a random step).
    """

    verb: str
    thing: str | None = None
    place: str | None = None
    why: str = "wonder"

    def command(self, admissible: Collection[str]) -> str:
        """Return the command in an admissible form, else in the form of the present grammar."""
        forms = [
            form.format(thing=self.thing, place=self.place)
            for form in (_ACTIONS[self.verb], *_OLDER.get(self.verb, ()))
        ]
        return next((form for form in forms if form in admissible), forms[0])

    @staticmethod
    def parse(command: str) -> Intent | None:
        """Return the intent of an admissible command, without a reason; None for unused kinds."""
        for pattern in _COMMANDS:
            match = pattern.fullmatch(command)
            if match:
                parts = match.groupdict()
                return Intent(
                    _VERBS.get(parts["verb"], parts["verb"]), parts.get("thing"), parts.get("place")
                )
        return None
