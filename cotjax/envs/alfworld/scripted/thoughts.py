"""The wording of the scripted agents' thoughts: a few short sentences from memory and intent.

A thought says, before the action, the goal, what the hand holds, what the last observation showed,
and what to do next and why; in lower-case words, digits, commas and full stops only:

    i need a clean plate in the fridge. i hold nothing. cabinet 3 is empty. then comes cabinet 2,
    so next i go to cabinet 2.

It states only what the observations so far have shown. Each sentence has several wordings
(`phrases`), drawn from the caller's generator; the vocabulary is closed (`phrases.VOCABULARY` and
the game's own names). The last clause names the action's own things and places.
"""

from __future__ import annotations

import random

from cotjax.envs.alfworld.scripted import phrases
from cotjax.envs.alfworld.scripted.intent import Intent
from cotjax.envs.alfworld.scripted.memory import (
    TREATMENTS,
    Event,
    Goal,
    Memory,
    class_of,
    number_of,
)

MOST_WORDS = 32
_ABSENT_TWICE_RATE = 0.2
# Share of deliveries with a reason, though the sentences before are reason enough.
_REASON_RATE = 0.4
# Shares of the random steps with news that mention a thing seen before, and where to search.
_REMEMBER_RATE, _PLAN_RATE = 0.4, 0.4


class Wording:
    """Writes the thoughts of one episode.

    Args:
      goal: the episode's goal.
      rng: draws the wording.
      news: share of random steps whose thought says what was just seen, where a thing was seen
        before, or where to search, though the step does not depend on it. Of a list of things it
        says whether a class, any seen so far, is in it.
    """

    def __init__(self, goal: Goal, rng: random.Random, news: float = 0.4):
        self.goal, self._rng, self._news_rate = goal, rng, news

    def thought(self, memory: Memory, intent: Intent, plan: Intent | None = None) -> str:
        """Return the thought before `intent`. `plan`: what the expert would do at a random step."""
        wanted = self._wanted(intent)
        names = {
            "thing": intent.thing,
            "place": intent.place,
            "wanted": wanted,
            "a_wanted": with_article(wanted),
            "state": self._state(),
        }
        goal, hand, done = self._goal(), self._hand(memory), self._done(memory, intent)
        news, kind = self._news(memory, intent, wanted, plan)
        reason = self._reason(memory, intent, kind, names)
        step = (
            self._rng.choice(phrases.LINKS) + self._pick(phrases.NEXT[intent.verb], **names) + "."
        )
        # A thought that is too long drops its least important sentences first; that of a random
        # step always says that the step is one.
        shorter: list[list[str | None]]
        shorter = [[goal, hand, done, news], [goal, hand, news], [goal, hand]]
        if intent.why == "wonder":
            shorter = [[goal, news, reason], [news, reason], [goal, hand, reason], [hand, reason]]
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
            return self._pick(phrases.GOALS["lamp"], a=with_article(goal.target), to=goal.lamp)
        thing = f"{self._state()} {goal.target}" if goal.treatment else goal.target
        return self._pick(
            phrases.GOALS["two" if goal.count == 2 else "place"],
            a=with_article(thing),
            target=goal.target,
            to=goal.place,
        )

    def _hand(self, memory: Memory) -> str:
        held = memory.holding
        kind = "empty" if held is None else "full"
        if held is not None and self.goal.treatment and class_of(held) == self.goal.target:
            kind = "treated" if memory.is_treated(held, self.goal.treatment) else "untreated"
        return self._pick(phrases.HANDS[kind], held=self._held(held), state=self._state())

    def _held(self, held: str | None) -> str | None:
        """Return what a thought calls the thing in the hand."""
        return held

    def _done(self, memory: Memory, intent: Intent) -> str | None:
        """Return, while the second of two things is sought, that one is in its place."""
        second = self.goal.count == 2 and intent.why in ("search", "fetch")
        if not second or not self._one_in_place(memory):
            return None
        return self._pick(phrases.ONE_DONE, target=self.goal.target)

    def _one_in_place(self, memory: Memory) -> bool:
        return any(
            class_of(place) == self.goal.place for _, place in memory.where(self.goal.target)
        )

    def _wanted(self, intent: Intent) -> str:
        if self.goal.lamp is not None and intent.why in ("lamp", "lamp search"):
            return self.goal.lamp
        return self.goal.target

    def _news(
        self, memory: Memory, intent: Intent, wanted: str, plan: Intent | None
    ) -> tuple[str | None, str | None]:
        """Return the sentence on the last observation and its key; (None, None) if irrelevant."""
        kind = memory.last.kind
        if kind == "seen":
            kind = self._verdict(memory, wanted)
        if intent.why == "wonder":
            sentences = (
                self._facts(memory, kind, wanted, plan)
                if kind == "nothing" or self._rng.random() < self._news_rate
                else []
            )
            return ". ".join(sentences) or None, kind
        if kind not in phrases.NEWS or not self._is_relevant(kind, intent):
            return None, None
        sentences = [self._observed(memory, kind, wanted)]
        if kind == "nothing":
            sentences += self._where(
                memory, wanted if intent.why in ("search", "fetch", "lamp search") else None
            )
        return ". ".join(sentences), kind

    def _where(self, memory: Memory, wanted: str | None) -> list[str]:
        """Return, after a refused step, where the agent is and whether `wanted` is there."""
        if len(memory.spot) != 1:
            return []
        (at,) = memory.spot
        sentences = [self._pick(phrases.HERE, at=at)]
        if wanted is not None and at in memory.contents and at not in memory.closed:
            things = memory.contents[at]
            match = next((thing for thing in things if class_of(thing) == wanted), None)
            kind = "present" if match else "absent" if things else "empty"
            sentences.append(self._pick(phrases.NEWS[kind], wanted=wanted, at=at, found=match))
        return sentences

    def _facts(self, memory: Memory, kind: str, wanted: str, plan: Intent | None) -> list[str]:
        """Return at most two sentences before a random step.

        They say what was just observed, where a thing was seen before, or where to search.
        """
        sentences: list[str] = []
        if kind in ("present", "absent", "absent twice"):
            sentences = [
                self._observed(memory, self._verdict(memory, other), other)
                for other in self._any_classes(memory, wanted)
            ]
        elif kind in phrases.NEWS:
            sentences = [self._observed(memory, kind, wanted)]
        elsewhere = [
            (thing, place)
            for place, things in memory.contents.items()
            if place != memory.last.place
            for thing in things
        ]
        if elsewhere and self._rng.random() < _REMEMBER_RATE:
            thing, place = self._rng.choice(elsewhere)
            remembered = self._pick(phrases.REASONS["fetch"], thing=thing, place=place)
            sentences = [*sentences[:1], remembered]
        elif kind == "nothing":
            sentences += self._where(memory, None)
        if (
            plan is not None
            and plan.why in ("search", "lamp search")
            and self._rng.random() < _PLAN_RATE
        ):
            sentences = [*sentences[:1], self._search(memory, plan)]
        return sentences

    def _search(self, memory: Memory, intent: Intent) -> str:
        """Return where a search goes next: the next lower number, or the first of a new class."""
        assert intent.place is not None, "a search has a place"
        kind, number = class_of(intent.place), number_of(intent.place)
        begun = any(
            class_of(place) == kind and number_of(place) > number for place in memory.places
        )
        return self._pick(
            phrases.AFTER if begun else phrases.MAY_BE,
            place=intent.place,
            a_wanted=with_article(self._wanted(intent)),
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

    def _observed(self, memory: Memory, kind: str, wanted: str) -> str:
        event = memory.last
        match = next((thing for thing in event.contents if class_of(thing) == wanted), None)
        before = _empty_before(memory, event, wanted)
        return self._pick(
            phrases.NEWS[kind],
            wanted=wanted,
            at=event.place,
            before=before,
            found=match,
            moved=event.thing,
        )

    def _any_classes(self, memory: Memory, wanted: str) -> list[str]:
        """Draw two classes. Half of the draws are of a class that the last observation lacks."""
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

    def _is_relevant(self, kind: str, intent: Intent) -> bool:
        """Return whether this kind of news deserves a sentence before `intent`."""
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
        """Return the reason for the step; None if the sentences before are reason enough."""
        if intent.why == "wonder":
            return self._pick(
                phrases.REASONS["wonder"] + phrases.REASONS.get(f"wonder {intent.verb}", ()),
                **names,
            )
        if news in ("closed", "present"):
            return None
        finished = finished_class(memory)
        if (
            intent.why == "search"
            and intent.place is not None
            and news in ("absent", "absent twice", "empty")
            and finished not in (None, class_of(intent.place))
        ):
            return self._pick(phrases.EVERY, kind=finished)
        if intent.why in ("search", "lamp search"):
            return self._search(memory, intent) if intent.verb == "go" else None
        if intent.why != "deliver":
            return self._pick(
                phrases.REASONS[
                    "lamp here" if intent.why == "lamp" and intent.verb == "use" else intent.why
                ],
                **names,
            )
        return (
            self._pick(phrases.REASONS[intent.why], **names)
            if self._rng.random() < _REASON_RATE
            else None
        )


def with_article(noun: str) -> str:
    """Return "a plate" for "plate"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _empty_before(memory: Memory, event: Event, wanted: str) -> str | None:
    """Return the place seen just before the last one, if it lacks the wanted class too."""
    earlier = [place for place in memory.checked if place != event.place]
    if event.place not in memory.checked[-1:] or not earlier:
        return None
    return (
        None
        if any(class_of(thing) == wanted for thing in memory.contents[earlier[-1]])
        else earlier[-1]
    )


def finished_class(memory: Memory) -> str | None:
    """Return the class whose last unseen place the last observation was the first look into."""
    place = memory.last.place
    if place is None or place not in memory.checked[-1:]:
        return None
    kind = class_of(place)
    others = (other for other in memory.places if class_of(other) == kind)
    return kind if all(other in memory.checked for other in others) else None
