"""The engine's gold paths as a scripted expert, with thoughts in plain rules by kind of action.

The actions come from the engine, which knows where everything is and how every experiment ends. The
thoughts do not: they are written before the action, from the task and from what was observed so
far, and claim no more. One says, in lower case, what the last answer showed where that matters, why
an action of this kind comes next, and the action itself:

    it measures 50 degrees. i have to see how the substance in metal pot is now, so next i examine
    substance in metal pot.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from cotjax.envs.base import Decision, Observation
from cotjax.errors import EnvError

_ROOM = re.compile(r"(?:room|location) is called the ([^.\n]+)\.")
_MEASURED = re.compile(r"the thermometer measures a temperature of (-?\d+) degrees", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9]+")
_SMALL = frozenset({"a", "an", "in", "of", "on", "the", "to", "inventory"})


# Things of the simulator that a mistake looks at where they were not seen.
_THINGS = (
    "axe", "ceramic cup", "drawing", "fork", "lighter", "metal pot", "painting", "seed jar",
    "shovel", "sponge", "stopwatch", "thermometer",
)  # fmt: skip


class Expert:
    """Follows a gold path. The same arguments and observations give the same thoughts.

    Args:
      path: the actions.
      seed: of the mistakes.
      mistakes: share of the steps that look at a thing that was not seen, and so may not be there.
    """

    def __init__(self, path: Sequence[str], seed: int = 0, mistakes: float = 0.0):
        self._path, self._seed, self._mistakes = tuple(path), seed, mistakes

    def start(self, task: str, observation: Observation) -> None:
        self._task, self._taken = task.lower(), 0
        self._random = random.Random(f"scienceworld expert {self._seed}")
        self._seen: set[str] = set()  # words
        self._rooms: set[str] = set()

    def follow(self, action: str, observation: Observation) -> None:
        """Note how far another agent has come on the path. (`cotjax.envs.base.Successor`)

        Its other actions are left to the path, which was found without them: what it cannot mend
        ends in an EnvError of `act`, and says nothing about whether the goal can still be reached.
        """
        self._observe(observation)
        if self._taken < len(self._path) and action == self._path[self._taken]:
            self._taken += 1

    def act(self, observation: Observation) -> Decision:
        """Raises EnvError where the path has ended and the game has not."""
        self._observe(observation)
        if self._taken == len(self._path):
            raise EnvError(
                f"the engine's gold path of {self._taken} actions ended without the goal"
            )
        if self._random.random() < self._mistakes and (thing := self._unseen(observation)):
            return Decision(None, f"look at {thing}", mistake=True)
        action = self._path[self._taken]
        thought = f"{self._news(observation)}{self._reason(action)}, so next i {action}."
        self._taken += 1
        return Decision(thought, action)

    def _observe(self, observation: Observation) -> None:
        text = observation.text.lower()
        self._seen.update(_WORD.findall(text))
        if room := _ROOM.search(text):
            self._rooms.add(room[1])

    def _unseen(self, observation: Observation) -> str | None:
        """Return a thing that was not seen; None while the simulator waits for a choice."""
        if observation.text.startswith("Ambiguous request"):
            return None
        things = [thing for thing in _THINGS if not _words(thing) & self._seen]
        return self._random.choice(things) if things else None

    def _news(self, observation: Observation) -> str:
        """Return a sentence about the last answer, or nothing."""
        if not self._taken:
            return ""
        if measured := _MEASURED.search(observation.text):
            return f"it measures {measured[1]} degrees. "
        if observation.text.startswith("Ambiguous request"):
            return "the answer lists choices. "
        if not observation.accepted:
            return "that had no effect. "
        return ""

    def _reason(self, action: str) -> str:
        for pattern, reason in _REASONS:
            if match := pattern.fullmatch(action):
                things = (thing.removesuffix(" in inventory") for thing in match.groups())
                return reason(self, *things)
        return "the task needs a further step"

    def _named(self, thing: str) -> bool:
        """Return whether the task names a thing: all words of it."""
        return _words(thing) <= set(_WORD.findall(self._task))

    def _in_view(self, thing: str) -> bool:
        return _words(thing) <= self._seen

    def _about(self, thing: str) -> str:
        """Return what the expert knows of a thing."""
        if self._named(thing):
            return f"the task names the {thing}"
        if self._in_view(thing):
            return f"i saw the {thing}"
        return f"i may need the {thing}"

    def _look(self) -> str:
        return "i have to see what is here now"

    def _open_door(self, place: str) -> str:
        return f"i make sure that the door to the {place} is open before i go through it"

    def _close(self, thing: str) -> str:
        return f"the {thing} should stay closed from here on"

    def _go(self, place: str) -> str:
        if self._named(place):
            return f"the task is about the {place}"
        if place in self._rooms:
            return f"i know the {place}"
        return f"i have not been in the {place} yet"

    def _open(self, thing: str) -> str:
        return f"what is in the {thing} may be of use"

    def _pick_up(self, thing: str) -> str:
        return f"{self._about(thing)}, and i can only use elsewhere what i carry"

    def _put_down(self, thing: str) -> str:
        return f"i do not have to carry the {thing} any more"

    def _focus(self, thing: str) -> str:
        if self._named(thing):
            return f"the task asks me to focus, and names the {thing}"
        return f"the task asks me to focus on what it is about, and {thing} fits that"

    def _move(self, thing: str, place: str) -> str:
        if self._named(place):
            return f"the task names the {place}"
        return f"the {thing} has to be in the {place} for what comes next"

    def _pour(self, thing: str, place: str) -> str:
        return f"what is in the {thing} is needed in the {place}"

    def _activate(self, device: str) -> str:
        return f"the {device} has to be on for what comes next"

    def _deactivate(self, device: str) -> str:
        return f"the {device} has done its part"

    def _use(self, tool: str, thing: str) -> str:
        if "thermometer" in tool:
            return f"i have to know how hot the {thing} is"
        return f"the {tool} may change the {thing}"

    def _connect(self, one: str, other: str) -> str:
        return f"a current needs a closed circuit, in which the {one} touches the {other}"

    def _disconnect(self, thing: str) -> str:
        return f"the {thing} is in the way of another connection"

    def _mix(self, container: str) -> str:
        return f"the things in the {container} have to react with each other"

    def _read(self, thing: str) -> str:
        return f"the {thing} may say what to do"

    def _examine(self, thing: str) -> str:
        return f"i have to see how the {thing} is now"

    def _wait(self) -> str:
        return "what i set going needs time"

    def _choose(self, number: str) -> str:
        return f"choice {number} is one that i meant"

    def _eat(self, thing: str) -> str:
        return f"{self._about(thing)}, and it can be eaten"

    def _inventory(self) -> str:
        return "i have to know what i carry"


def _words(thing: str) -> set[str]:
    return set(_WORD.findall(thing.lower())) - _SMALL


# Kind of action -> its reason. The first pattern that fits counts.
_REASONS: tuple[tuple[re.Pattern[str], Callable[..., str]], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        ("look around", Expert._look),
        ("inventory", Expert._inventory),
        (r"wait\d*", Expert._wait),
        (r"(\d+)", Expert._choose),
        ("open door to (.+)", Expert._open_door),
        ("close (.+)", Expert._close),
        ("(?:go|teleport) to (.+)", Expert._go),
        ("open (.+)", Expert._open),
        ("pick up (.+)", Expert._pick_up),
        ("(?:drop|put down) (.+)", Expert._put_down),
        ("focus on (.+)", Expert._focus),
        ("move (.+) to (.+)", Expert._move),
        ("(?:pour|dunk) (.+?) (?:in|into) (.+)", Expert._pour),
        ("activate (.+)", Expert._activate),
        ("deactivate (.+)", Expert._deactivate),
        ("use (.+) on (.+)", Expert._use),
        ("connect (.+) to (.+)", Expert._connect),
        ("disconnect (.+)", Expert._disconnect),
        ("mix (.+)", Expert._mix),
        ("read (.+)", Expert._read),
        ("(?:look at|look in|examine) (.+)", Expert._examine),
        ("eat (.+)", Expert._eat),
    )
)
