"""The wording of the scripted agents' thoughts: from what is known and what is intended to a few short sentences.

A thought says, before the action: the goal, what the hand holds, what the last observation showed, and what to do next and
why; in lower-case words, digits, commas and full stops only:

    i need a clean plate in the fridge. i hold nothing. cabinet 3 is empty. then comes cabinet 2, so next i go to cabinet 2.

It states only what the observations so far have shown. Each sentence has several paraphrases, drawn from the generator that
the caller hands in; the vocabulary is closed (VOCABULARY and the game's own names). The last clause names the action's own
things and places.
"""

from __future__ import annotations

import random
import re

from cotjax.envs.alfworld.scripted.intent import Intent
from cotjax.envs.alfworld.scripted.memory import (
    TREATMENTS,
    Event,
    Goal,
    Memory,
    class_of,
    number_of,
)

_GOALS = {
    "place": (
        "i need {a} in the {to}",
        "i must put {a} in the {to}",
        "the goal is {a} in the {to}",
        "i want {a} in the {to}",
    ),
    "two": (
        "i need two {target} in the {to}",
        "i must put two {target} in the {to}",
        "the goal is two {target} in the {to}",
    ),
    "lamp": (
        "i need {a} under the {to}",
        "i must hold {a} by the {to}",
        "the goal is {a} under the {to}",
    ),
}
_HANDS = {
    "empty": ("i hold nothing", "my hand is empty", "i have nothing"),
    "full": ("i hold {held}", "{held} is in my hand", "i have {held} in my hand"),
    "treated": (
        "i hold {held}, it is {state}",
        "i hold {held} and it is {state}",
        "{held} is in my hand, {state} now",
    ),
    "untreated": (
        "i hold {held}, it is not {state}",
        "i hold {held}, not {state} yet",
        "{held} is in my hand, not {state} yet",
    ),
}
_ONE_DONE = ("one {target} is there now", "the first {target} is there", "i need one more {target}")
_EVERY = ("that was the last {kind}", "every {kind} is done", "i have seen every {kind}")

# What the last observation showed, as far as it matters for the wanted class. The class comes first and the verdict right after
# it, so that a small model that looks up what followed the name in the list ("mug 3") has its answer there.
_NEWS = {
    "start": ("i have checked nothing yet", "i start here", "i know nothing yet"),
    "absent": ("{wanted} is not at {at}", "{wanted} not seen at {at}", "{wanted} none at {at}"),
    "absent twice": (
        "{wanted} is not at {at}, not at {before}",
        "{wanted} none at {at} and {before}",
    ),
    "empty": ("{at} is empty", "there is nothing at {at}", "i see nothing at {at}"),
    "present": ("{found} is at {at}", "{found} seen at {at}", "{found} here at {at}"),
    "closed": ("{at} is closed", "i see that {at} is closed"),
    "shut": ("i closed {at}",),
    "move": ("i have put {moved} at {at}", "{moved} is at {at} now"),
    "use": ("i used {moved}",),
    "examine": ("i looked at {moved}",),
    "nothing": ("that did nothing", "nothing came of that"),
}
_HERE = ("i am at {at}", "i stand at {at}")
# The next place of a class that is being searched, and of a new one. The first has words of its own: a small model that copies a
# place it has just named ("mug 3 is at shelf 2, so next i go to shelf 2") must not do so here.
_AFTER = ("then comes {place}", "after that comes {place}")
_MAY_BE = ("{a_wanted} may be at {place}", "{place} may have {a_wanted}")
_REASONS = {
    "fetch": ("i saw {thing} at {place}", "{thing} is at {place}", "i know {thing} is at {place}"),
    "treat": ("it must be {state} first", "{place} can make it {state}", "i need it {state} first"),
    "lamp": ("i saw {thing} at {place}", "{thing} is at {place}", "i know {thing} is at {place}"),
    "lamp here": ("{thing} is here", "here is {thing}"),
    "deliver": ("it must be in {place}", "it belongs in {place}", "i want it in {place}"),
    "free hand": ("i do not need {thing}", "{thing} is not what i need", "i want an empty hand"),
    "lost": ("i do not know what to do",),
    "wonder": (
        "i am not sure what helps",
        "i just try something",
        "i have no good plan",
        "i want to see what happens",
    ),
    "wonder go": ("i wonder what is at {place}", "i want to see {place}"),
    "wonder open": ("i wonder what is in {place}", "i want to see what is in {place}"),
    "wonder examine": ("i wonder about {thing}", "i want to see {thing}"),
}
_NEXT = {
    "go": (
        "next i go to {place}",
        "i go to {place}",
        "now i go to {place}",
        "next i walk to {place}",
    ),
    "open": (
        "next i open {place}",
        "i open {place}",
        "now i open {place}",
        "i open {place} and look",
    ),
    "close": ("next i close {place}", "i close {place}", "now i close {place}"),
    "take": (
        "next i take {thing} from {place}",
        "i take {thing} from {place}",
        "now i pick up {thing} from {place}",
    ),
    "move": (
        "next i move {thing} to {place}",
        "i move {thing} to {place}",
        "now i put {thing} in {place}",
    ),
    "heat": (
        "next i heat {thing} with {place}",
        "i heat {thing} with {place}",
        "now i warm {thing} with {place}",
    ),
    "cool": (
        "next i cool {thing} with {place}",
        "i cool {thing} with {place}",
        "now i chill {thing} with {place}",
    ),
    "clean": (
        "next i clean {thing} with {place}",
        "i clean {thing} with {place}",
        "now i wash {thing} with {place}",
    ),
    "use": ("next i use {thing}", "i use {thing}", "now i turn on {thing}"),
    "examine": ("next i examine {thing}", "i examine {thing}", "now i look closely at {thing}"),
    "look": ("next i look around", "i look around", "now i look around"),
    "inventory": ("next i check what i hold", "i check what i hold", "now i look at my hand"),
}
MOST_WORDS = 32
_LINKS = (", so ", ", so ", ". ")
_ABSENT_TWICE_RATE = 0.2
_REASON_RATE = 0.4  # where the sentences before are reason enough
_REMEMBER_RATE, _PLAN_RATE = 0.4, 0.4  # of the steps at random that tell something

VOCABULARY = frozenset(
    word
    for table in (_GOALS, _HANDS, _NEWS, _REASONS, _NEXT, {"": _ONE_DONE + _EVERY + _HERE + _AFTER + _MAY_BE})
    for options in table.values()
    for option in options
    for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", option))
) | {"a", "an", "so", *(state for state, _ in TREATMENTS.values())}  # fmt: skip


class Wording:
    """Writes the thoughts of one episode.

    Args:
      goal: what the episode is about.
      rng: draws the paraphrases.
      news: share of the steps at random whose thought tells what was just seen, where a thing was seen before, or where to
        search, though it has nothing to do with the step. Of a list it tells whether a class is in it, of any seen so far.
    """

    def __init__(self, goal: Goal, rng: random.Random, news: float = 0.4):
        self.goal, self._rng, self._news_rate = goal, rng, news

    def thought(self, memory: Memory, intent: Intent, plan: Intent | None = None) -> str:
        """The thought before `intent`, from what `memory` holds; of a step at random, `plan` is what the expert would do."""
        wanted = self._wanted(intent)
        names = {
            "thing": intent.thing,
            "place": intent.place,
            "wanted": wanted,
            "a_wanted": _with_article(wanted),
            "state": self._state(),
        }
        goal, hand, done = self._goal(), self._hand(memory), None
        if (
            self.goal.count == 2
            and intent.why in ("search", "fetch")
            and self._one_in_place(memory)
        ):
            done = self._pick(_ONE_DONE, target=self.goal.target)
        news, kind = self._news(memory, intent, wanted, plan)
        reason = self._reason(memory, intent, kind, names)
        step = self._rng.choice(_LINKS) + self._pick(_NEXT[intent.verb], **names) + "."
        # Too long a thought gives up first what it can best do without; a step at random always says that it is one.
        shorter = ([goal, hand, done, news], [goal, hand, news], [goal, hand])
        if intent.why == "wonder":
            shorter = ([goal, news, reason], [news, reason], [goal, hand, reason], [hand, reason])
        longest = [news, hand, reason] if kind == "nothing" else [goal, hand, done, news, reason]
        for sentences in (longest, *shorter):
            thought = ". ".join(filter(None, sentences)) + step
            if len(thought.split()) <= MOST_WORDS:
                break
        return thought

    def _pick(self, options: tuple[str, ...], **names: str | None) -> str:
        return self._rng.choice(options).format(**names)

    def _state(self) -> str | None:
        return TREATMENTS[self.goal.treatment][0] if self.goal.treatment else None

    def _goal(self) -> str:
        goal = self.goal
        if goal.lamp:
            return self._pick(_GOALS["lamp"], a=_with_article(goal.target), to=goal.lamp)
        thing = f"{self._state()} {goal.target}" if goal.treatment else goal.target
        return self._pick(
            _GOALS["two" if goal.count == 2 else "place"],
            a=_with_article(thing),
            target=goal.target,
            to=goal.place,
        )

    def _hand(self, memory: Memory) -> str:
        held = memory.holding
        kind = "empty" if held is None else "full"
        if held is not None and self.goal.treatment and class_of(held) == self.goal.target:
            kind = "treated" if memory.is_treated(held, self.goal.treatment) else "untreated"
        return self._pick(_HANDS[kind], held=held, state=self._state())

    def _one_in_place(self, memory: Memory) -> bool:
        return any(
            class_of(place) == self.goal.place for _, place in memory.where(self.goal.target)
        )

    def _wanted(self, intent: Intent) -> str:
        return self.goal.lamp if intent.why in ("lamp", "lamp search") else self.goal.target

    def _news(
        self, memory: Memory, intent: Intent, wanted: str, plan: Intent | None
    ) -> tuple[str | None, str | None]:
        """(the sentence on the last observation, its key in _NEWS); (None, None) where it says nothing to the purpose."""
        kind = memory.last.kind
        if kind == "seen":
            kind = self._verdict(memory, wanted)
        if intent.why == "wonder":
            told = (
                self._facts(memory, kind, wanted, plan)
                if kind == "nothing" or self._rng.random() < self._news_rate
                else []
            )
            return ". ".join(told) or None, kind
        if kind not in _NEWS or not self._bears_on(kind, intent):
            return None, None
        told = [self._tell(memory, kind, wanted)]
        if kind == "nothing":
            told += self._where(
                memory, wanted if intent.why in ("search", "fetch", "lamp search") else None
            )
        return ". ".join(told), kind

    def _where(self, memory: Memory, wanted: str | None) -> list[str]:
        """Where the agent stands, and whether the wanted is there: what it needs to know again after a step that did nothing."""
        if len(memory.spot) != 1:
            return []
        (at,) = memory.spot
        told = [self._pick(_HERE, at=at)]
        if wanted is not None and at in memory.contents and at not in memory.closed:
            found = next(
                (thing for thing in memory.contents[at] if class_of(thing) == wanted), None
            )
            kind = "present" if found else "absent" if memory.contents[at] else "empty"
            told.append(self._pick(_NEWS[kind], wanted=wanted, at=at, found=found))
        return told

    def _facts(self, memory: Memory, kind: str, wanted: str, plan: Intent | None) -> list[str]:
        """What a step at random tells: of the last observation, of a thing seen elsewhere before, or of where to search. Two
        sentences at most."""
        told = []
        if kind in ("present", "absent", "absent twice"):
            told = [
                self._tell(memory, self._verdict(memory, other), other)
                for other in self._any_classes(memory, wanted)
            ]
        elif kind in _NEWS:
            told = [self._tell(memory, kind, wanted)]
        elsewhere = [
            (thing, place)
            for place, things in memory.contents.items()
            if place != memory.last.place
            for thing in things
        ]
        if elsewhere and self._rng.random() < _REMEMBER_RATE:
            thing, place = self._rng.choice(elsewhere)
            told = [*told[:1], self._pick(_REASONS["fetch"], thing=thing, place=place)]
        elif kind == "nothing":
            told += self._where(memory, None)
        if (
            plan is not None
            and plan.why in ("search", "lamp search")
            and self._rng.random() < _PLAN_RATE
        ):
            told = [*told[:1], self._search(memory, plan)]
        return told

    def _search(self, memory: Memory, intent: Intent) -> str:
        """Where a search goes on: the next of a class, from the highest number down, or the first of a new class."""
        kind, number = class_of(intent.place), number_of(intent.place)
        begun = any(
            class_of(place) == kind and number_of(place) > number for place in memory.places
        )
        return self._pick(
            _AFTER if begun else _MAY_BE,
            place=intent.place,
            a_wanted=_with_article(self._wanted(intent)),
        )

    def _verdict(self, memory: Memory, wanted: str) -> str:
        event = memory.last
        if any(class_of(thing) == wanted for thing in event.contents):
            return "present"
        if not event.contents:
            return "empty"
        return (
            "absent twice"
            if _empty_before(memory, event, wanted) and self._rng.random() < _ABSENT_TWICE_RATE
            else "absent"
        )

    def _tell(self, memory: Memory, kind: str, wanted: str) -> str:
        event = memory.last
        found = next((thing for thing in event.contents if class_of(thing) == wanted), None)
        before = _empty_before(memory, event, wanted)
        return self._pick(
            _NEWS[kind],
            wanted=wanted,
            at=event.place,
            before=before,
            found=found,
            moved=event.thing,
        )

    def _any_classes(self, memory: Memory, wanted: str) -> list[str]:
        """Two classes, each as often one that the last observation showed as one that it did not: the wanted, or any seen before."""
        here = {class_of(thing) for thing in memory.last.contents}
        elsewhere = {class_of(thing) for things in memory.contents.values() for thing in things} | {
            wanted
        }
        drawn = [
            self._rng.choice(
                sorted(elsewhere - here if self._rng.random() < 0.5 and elsewhere - here else here)
            )
            for _ in range(2)
        ]
        return list(dict.fromkeys(drawn))

    def _bears_on(self, kind: str, intent: Intent) -> bool:
        """Whether news of this kind is worth a sentence before `intent`."""
        if kind == "nothing":
            return True
        if kind == "closed":
            return intent.verb == "open"
        if kind == "move":
            return intent.why == "search" and self.goal.count == 1
        return intent.why in ("search", "fetch", "lamp search") or (
            intent.why == "lamp" and intent.verb == "use"
        )

    def _reason(
        self, memory: Memory, intent: Intent, news: str | None, names: dict[str, str | None]
    ) -> str | None:
        """Why the step is taken; None where the sentences before are reason enough."""
        if intent.why == "wonder":
            return self._pick(
                _REASONS["wonder"] + _REASONS.get(f"wonder {intent.verb}", ()), **names
            )
        if news in ("closed", "present"):
            return None
        looked = intent.why == "search" and news in ("absent", "absent twice", "empty")
        if (
            looked
            and _was_last_of_its_class(memory)
            and class_of(intent.place) != class_of(memory.last.place)
        ):
            return self._pick(_EVERY, kind=class_of(memory.last.place))
        if intent.why in ("search", "lamp search"):
            return self._search(memory, intent) if intent.verb == "go" else None
        if intent.why != "deliver":
            return self._pick(
                _REASONS[
                    "lamp here" if intent.why == "lamp" and intent.verb == "use" else intent.why
                ],
                **names,
            )
        return (
            self._pick(_REASONS[intent.why], **names) if self._rng.random() < _REASON_RATE else None
        )


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _empty_before(memory: Memory, event: Event, wanted: str) -> str | None:
    """The place looked into just before the last one, where the wanted class is not there either."""
    earlier = [place for place in memory.checked if place != event.place]
    if event.place not in memory.checked[-1:] or not earlier:
        return None
    return (
        None
        if any(class_of(thing) == wanted for thing in memory.contents[earlier[-1]])
        else earlier[-1]
    )


def _was_last_of_its_class(memory: Memory) -> bool:
    """Whether the last observation was the first look into the last unseen place of its class."""
    place = memory.last.place
    return place == memory.checked[-1] and all(
        other in memory.checked for other in memory.places if class_of(other) == class_of(place)
    )
