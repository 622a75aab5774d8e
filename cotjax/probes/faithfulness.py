"""Changes own thoughts, and looks whether the action changes: `diagnostics.faithfulness`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ml_collections import ConfigDict

from cotjax.diagnostics.faithfulness import (
    EARLY,
    PROBE,
    TESTS,
    Changed,
    FaithfulnessRow,
    Mistake,
)
from cotjax.errors import UsageError
from cotjax.probes.conflict import check_thoughts_decoded, drawing
from cotjax.probes.forcing import (
    Answer,
    Asked,
    Forcing,
    first_tokens,
    forceable,
    own_trace,
    tokens,
)
from cotjax.probes.naming import names, noun_swaps, nouns, sentences, swapped
from cotjax.probes.probe import Checkpoint, State
from cotjax.probes.writing import (
    MISTAKE,
    PARAPHRASE,
    EndpointWriter,
    SelfWriter,
    Writer,
    rewritten,
)

WRITERS = ("", "self", "endpoint")
_DOTS = "..."


@dataclass
class Plan:
    """What is forced at one state.

    Attributes:
      early: the beginnings of the own thought.
      mistakes: number of a sentence -> the thought up to it, where it is wrong.
      filler, paraphrase: None where there is none.
      missing: test -> why it is not made.
    """

    state: State
    thought: str = ""
    own: str | None = None
    early: list[str] = field(default_factory=list)
    mistakes: dict[int, str] = field(default_factory=dict)
    filler: str | None = None
    paraphrase: str | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> list[Asked]:
        """All that is forced."""
        closed = [*self.early, self.filler, self.paraphrase]
        return [
            *(Asked(thought) for thought in closed if thought is not None),
            *(Asked(thought, closed=False) for thought in self.mistakes.values()),
        ]


class FaithfulnessProbe:
    """The probe; it changes the checkpoint's own thoughts on expert states."""

    name: ClassVar[str] = PROBE
    title: ClassVar[str] = "changed thoughts"

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError for a setting out of range, or where no CoT response is decoded."""
        settings = config.probes.faithfulness
        where = f"probes.{self.name}"
        if unknown := set(settings.tests) - set(TESTS):
            raise UsageError(
                f"{where}.tests: unknown test {min(unknown)!r}; there are {', '.join(TESTS)}"
            )
        if not settings.tests:
            raise UsageError(f"{where}.tests is empty; name at least one test")
        if settings.mistakes < 1:
            raise UsageError(f"{where}.mistakes is {settings.mistakes}; it must be at least 1")
        if settings.writer not in WRITERS:
            raise UsageError(
                f"{where}.writer is {settings.writer!r}; it must be "
                f"{' or '.join(map(repr, WRITERS))}"
            )
        for name, wanted in (
            ("tests has 'paraphrase'", "paraphrase" in settings.tests),
            ("written_mistakes is on", settings.written_mistakes),
        ):
            if wanted and not settings.writer:
                raise UsageError(f"{where}.{name}: set {where}.writer to 'self' or 'endpoint'")
        if settings.writer == "endpoint" and not (settings.endpoint and settings.endpoint_model):
            raise UsageError(
                f"{where}.writer is 'endpoint': set {where}.endpoint to its address and "
                f"{where}.endpoint_model to the model's name there"
            )
        check_thoughts_decoded(config, self.name)

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return the probe's own settings, and how responses are drawn."""
        return {**config.probes.faithfulness.to_dict(), **drawing(config)}

    def states(self, at: Checkpoint) -> list[State]:
        """Return the drawn expert states."""
        return at.expert_states

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[FaithfulnessRow]:
        """Force the changed thoughts of every state. Raises as `cotjax.endpoint.client.Client`."""
        plans = {state.key: _plan(state, at) for state in states}
        settings = at.config.probes.faithfulness
        if settings.writer:
            writer = _writer(at)
            if "paraphrase" in settings.tests:
                _paraphrase(list(plans.values()), writer, at)
            if "mistake" in settings.tests and settings.written_mistakes:
                _write_mistakes(list(plans.values()), writer, at)
        for plan in plans.values():
            if plan.own is not None and "mistake" in settings.tests and not plan.mistakes:
                plan.missing["mistake"] = "not_written" if settings.written_mistakes else "no_noun"
        wanted = [(plan.state, plan.asked) for plan in plans.values()]
        for state, answers in Forcing(at, self.name).decode(wanted):
            yield _row(plans[state.key], answers, at)


def _plan(state: State, at: Checkpoint) -> Plan:
    """Return what is forced at a state, without what a writer writes."""
    settings, plan = at.config.probes.faithfulness, Plan(state)
    own = own_trace(at.codec, state)
    if isinstance(own, str):
        plan.missing = dict.fromkeys(settings.tests, own)
        return plan
    plan.thought, plan.own = own
    length = tokens(at.codec, plan.thought)
    if "early" in settings.tests:
        plan.early = [
            first_tokens(at.codec, plan.thought, round(length * percent / 100)) for percent in EARLY
        ]
    if "filler" in settings.tests:
        plan.filler = _filler(at, length)
        if plan.filler is None:
            plan.missing["filler"] = "no_filler"
    if "mistake" in settings.tests and not settings.written_mistakes:
        rng = random.Random(f"{PROBE}/{at.config.seed}/{state.key}")
        for number, wrong in _wrong_nouns(plan, rng).items():
            plan.mistakes[number] = _up_to(plan.thought, number, wrong)
        plan.mistakes = _spread(plan.mistakes, settings.mistakes)
    return plan


def _filler(at: Checkpoint, length: int) -> str | None:
    """Return dots of so many tokens; None where the tokenizer has none."""
    if not forceable(at.codec, _DOTS):
        return None
    return first_tokens(at.codec, " ".join([_DOTS] * length), length)


def _wrong_nouns(plan: Plan, rng: random.Random) -> dict[int, str]:
    """Return number of a sentence -> the sentence with a noun swapped for another of the game."""
    turns = plan.state.record.steps
    actions = [plan.own or ""]
    for turn in turns:
        actions += [*(turn.admissible_commands or ()), turn.executed]
    known = nouns(actions)
    wrong = {}
    for number, sentence in enumerate(sentences(plan.thought)):
        found = noun_swaps(sentence, known, plan.thought)
        if found:
            wrong[number] = swapped(sentence, rng.choice(found)) or sentence
    return wrong


def _up_to(thought: str, number: int, wrong: str) -> str:
    """Return a thought up to a sentence, which is replaced."""
    return ("".join(sentences(thought)[:number]) + wrong).rstrip()


def _spread(mistakes: dict[int, str], most: int) -> dict[int, str]:
    """Return at most this many mistakes, evenly spread over the thought."""
    numbers, count = list(mistakes), min(most, len(mistakes))
    if count < 2:
        return {number: mistakes[number] for number in numbers[-1:]}
    chosen = {numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)}
    return {number: mistakes[number] for number in sorted(chosen)}


def _writer(at: Checkpoint) -> Writer:
    settings = at.config.probes.faithfulness
    if settings.writer == "self":
        return SelfWriter(at)
    return EndpointWriter(
        settings.endpoint,
        settings.endpoint_model,
        at.run / "endpoint",
        settings.key_variable,
        at.config.evaluate.max_new_tokens,
    )


def _paraphrase(plans: Sequence[Plan], writer: Writer, at: Checkpoint) -> None:
    """Write other words for the thoughts. Those that lose what the action is about do not count."""
    own = [plan for plan in plans if plan.own is not None]
    answers = writer.write([PARAPHRASE.format(text=plan.thought) for plan in own])
    for plan, answer in zip(own, answers, strict=True):
        text = rewritten(plan.thought, answer)
        said = names(plan.thought, str(plan.own))
        if forceable(at.codec, text) and (not said or names(str(text), str(plan.own))):
            plan.paraphrase = text
        else:
            plan.missing["paraphrase"] = "not_written"


def _write_mistakes(plans: Sequence[Plan], writer: Writer, at: Checkpoint) -> None:
    """Let the writer make sentences wrong, evenly spread over each thought."""
    places = [
        (plan, number, sentence)
        for plan in plans
        if plan.own is not None
        for number, sentence in _spread(
            {n: each for n, each in enumerate(sentences(plan.thought)) if each.strip()},
            at.config.probes.faithfulness.mistakes,
        ).items()
    ]
    answers = writer.write([MISTAKE.format(text=sentence.strip()) for *_, sentence in places])
    for (plan, number, sentence), answer in zip(places, answers, strict=True):
        wrong = rewritten(sentence, answer)
        if wrong is not None and forceable(at.codec, wrong):
            plan.mistakes[number] = _up_to(plan.thought, number, wrong)


def _row(plan: Plan, answers: dict[Asked, Answer], at: Checkpoint) -> FaithfulnessRow:
    """Return the row of a state whose thoughts were forced."""
    missing = dict(plan.missing)

    def changed(test: str, thought: str | None) -> Changed | None:
        if thought is None:
            return None
        if Asked(thought) not in answers:
            missing[test] = "too_long"
            return None
        return Changed(thought=thought, action=answers[Asked(thought)].action)

    early = [answers.get(Asked(thought)) for thought in plan.early]
    if None in early:
        missing["early"] = "too_long"
    mistakes = [
        Mistake(thought=thought, action=answer.action, sentence=number)
        for number, thought in plan.mistakes.items()
        if (answer := answers.get(Asked(thought, closed=False))) is not None
    ]
    if plan.mistakes and not mistakes:
        missing["mistake"] = "too_long"
    return FaithfulnessRow(
        **plan.state.place,
        own=plan.own,
        tokens=tokens(at.codec, plan.thought),
        early=() if None in early else tuple(each.action for each in early if each is not None),
        mistakes=tuple(mistakes),
        filler=changed("filler", plan.filler),
        paraphrase=changed("paraphrase", plan.paraphrase),
        missing=missing,
    )
