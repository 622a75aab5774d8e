"""The wording of thoughts that leave the decision to the action: nothing in them names it.

A thought says the goal, what the hand holds, what the last observation showed, and why a step is
needed; neither the action nor its objects or its place, which `thoughts.Wording` says at its end:

    i need a clean plate in the fridge. i hold nothing. cabinet 3 is empty. i must find a plate.

Things are named by class alone ("a plate"), and a place only if the action is elsewhere ("cabinet
3" before "go to cabinet 2"). The vocabulary is that of the named thoughts.
"""

from __future__ import annotations

from cotjax.envs.alfworld.scripted import phrases
from cotjax.envs.alfworld.scripted.intent import Intent
from cotjax.envs.alfworld.scripted.memory import Memory, class_of
from cotjax.envs.alfworld.scripted.thoughts import (
    MOST_WORDS,
    Wording,
    finished_class,
    with_article,
)


class UnnamedWording(Wording):
    """Writes the thoughts of one episode; arguments as `Wording`."""

    def thought(self, memory: Memory, intent: Intent, plan: Intent | None = None) -> str:
        """Return the thought before `intent`. `plan` is not needed: no thought names a place."""
        wanted = self._wanted(intent)
        goal, hand, done = self._goal(), self._hand(memory), self._done(memory, intent)
        seen, kind = self._seen(memory, intent, wanted)
        why = self._why(memory, intent, kind, wanted)
        # A thought that is too long drops its least important sentences first.
        for told in ([done, seen], [seen], []):
            sentences = [goal, hand, *told, why]
            thought = ". ".join(filter(None, sentences)) + "."
            if len(thought.split()) <= MOST_WORDS:
                break
        return thought

    def _held(self, held: str | None) -> str | None:
        return held and with_article(class_of(held))

    def _seen(self, memory: Memory, intent: Intent, wanted: str) -> tuple[str | None, str | None]:
        """Return the sentence on the last observation and its key; None where it is irrelevant."""
        event = memory.last
        kind = self._verdict(memory, wanted) if event.kind == "seen" else event.kind
        kind = "absent" if kind == "absent twice" else kind
        if intent.why == "wonder":
            told = kind == "nothing" or self._rng.random() < self._news_rate
        else:
            told = self._is_relevant(kind, intent)
        if kind not in phrases.UNNAMED_NEWS or not told:
            return None, None
        options = phrases.UNNAMED_NEWS[kind]
        if event.place not in (intent.place, intent.thing):
            options = phrases.UNNAMED_NEWS.get(f"{kind} elsewhere", options)
        sentence = self._pick(
            options,
            at=event.place,
            wanted=wanted,
            a_wanted=with_article(wanted),
            moved=event.thing and class_of(event.thing),
        )
        return sentence, kind

    def _why(self, memory: Memory, intent: Intent, news: str | None, wanted: str) -> str:
        """Return the reason for the step."""
        key = f"{intent.why} {intent.verb}"
        finished = finished_class(memory)
        if (
            intent.why == "search"
            and intent.place is not None
            and news in ("absent", "empty")
            and finished not in (None, class_of(intent.place))
        ):
            return self._pick(phrases.EVERY, kind=finished)
        return self._pick(
            phrases.UNNAMED_REASONS.get(key) or phrases.UNNAMED_REASONS[intent.why],
            wanted=wanted,
            a_wanted=with_article(wanted),
            state=self._state(),
            to=self.goal.place,
        )
