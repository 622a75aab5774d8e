"""Judges of two actions in one state (D4): the environment, a local model, an endpoint's model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cotjax.data.codec import Codec
from cotjax.diagnostics.preference import Choice, Opinion
from cotjax.diagnostics.revisions import Ending, verdict
from cotjax.endpoint.client import Client
from cotjax.errors import UsageError
from cotjax.probes.probe import Checkpoint, State
from cotjax.probes.revisions import fork_of, workers_for
from cotjax.rollout.contracts import Policy
from cotjax.rollout.finish import finished

LETTERS = ("A", "B", "C")  # the first action, the second one, neither
_QUESTION = """\
An agent solves a task step by step. Two actions are proposed for its next step. Which one is \
better: which one brings the goal closer in fewer steps?

Task: {task}

{history}
Now the agent sees: {seen}

Action A: {first}
Action B: {second}

Answer with one letter and nothing else: A if action A is better, B if action B is better, C if \
they are equally good."""
_LEFT_OUT = "(earlier steps are left out)"
# What a chat model may put around the letter.
_ANSWER = re.compile(r"\W*(?:(?:the )?answer(?: is)?|action)?\W*([ABC])\W*", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Pair:
    """A state and its two actions, which differ."""

    state: State
    cot: str
    prompt: str

    def question(self, swapped: bool, turns: int | None = None) -> str:
        """Return what a judge is asked.

        Every text of the world and of the model stands in one line of its own, so that none can
        look like another part of the question.

        Args:
          swapped: the prompt action is A.
          turns: the latest turns that are shown, beside the first observation; None: all.
        """
        record, number = self.state.record, self.state.number
        past = [
            f"The agent sees: {_line(turn.observation)}\nThe agent does: {_line(turn.executed)}"
            for turn in record.steps[:number]
        ]
        if turns is not None and len(past) > turns:
            first = f"The agent sees: {_line(record.steps[0].observation)}"
            past = [first, _LEFT_OUT, *past[len(past) - turns :]]
        first, second = (self.prompt, self.cot) if swapped else (self.cot, self.prompt)
        return _QUESTION.format(
            task=_line(record.task),
            history="\n".join(past) + "\n" if past else "",
            seen=_line(self.state.turn.observation),
            first=_line(first),
            second=_line(second),
        )


def _line(text: str) -> str:
    return " ".join(text.split())


class Judge(Protocol):
    """Says which of two actions is better."""

    def judge(self, pairs: Sequence[Pair]) -> Iterator[Opinion]:
        """Yield the opinion on each pair, in their order."""


class EnvironmentJudge:
    """Prefers the action after which the world's expert needs fewer steps to the goal.

    The order of the actions does not matter to it.
    """

    def __init__(self, at: Checkpoint):
        self._at, self._limit = at, at.config.probes.revisions.limit

    def judge(self, pairs: Sequence[Pair]) -> Iterator[Opinion]:
        """Replay each state and take both actions."""
        at = self._at
        forks = [fork_of(pair.state, at, (pair.cot, pair.prompt)) for pair in pairs]
        with finished(at.world, forks, self._limit, workers_for(len(forks), at)) as outcomes:
            for pair, forked in zip(pairs, outcomes, strict=True):
                choice: Choice | None = None
                if forked.differs is None:
                    cot, prompt = (
                        Ending(steps=each.steps, unknown=each.unknown)
                        for each in (forked.endings[pair.cot], forked.endings[pair.prompt])
                    )
                    choice = _CHOICES.get(verdict(cot, prompt))
                yield Opinion.of(choice, choice)


_CHOICES: Mapping[str, Choice] = {"helpful": "cot", "harmful": "prompt", "neutral": "tie"}


class ModelJudge:
    """A local model: the most likely of the three letters after the question.

    Args:
      policy: a sampler with the judge's weights. Its slots are emptied.
      codec: of the judge's tokenizer.
      turns: the latest turns that are shown; 0: all. Where a question does not fit, fewer are.

    Raises:
      UsageError: as `ids_of_letters`.
    """

    def __init__(self, policy: Policy, codec: Codec, turns: int = 0):
        self._policy, self._codec, self._turns = policy, codec, turns or None
        self._branches = ids_of_letters(codec, "the judge")

    def judge(self, pairs: Sequence[Pair]) -> Iterator[Opinion]:
        """Ask in both orders, as many questions at a time as there are slots."""
        slots = self._policy.slots
        for start in range(0, len(pairs), slots):
            asked = [
                self._prompt(pair, swapped)
                for pair in pairs[start : start + slots]
                for swapped in (False, True)
            ]
            halves = (asked[at : at + slots] for at in range(0, len(asked), slots))
            yield from _opinions([answer for half in halves for answer in self._answers(half)])

    def _answers(self, prompts: Sequence[list[int] | None]) -> list[str | None]:
        """Return the letter after each prompt; None for a prompt that does not fit."""
        self._policy.reset(range(self._policy.slots))
        fitting = {slot: ids for slot, ids in enumerate(prompts) if ids is not None}
        if not fitting:
            return [None] * len(prompts)
        self._policy.extend(fitting)
        scored = self._policy.score_branches(
            dict.fromkeys(fitting, ()), dict.fromkeys(fitting, self._branches)
        )
        letters: list[str | None] = [None] * len(prompts)
        for slot, logprobs in scored.items():
            totals = [round(float(sum(each)), 6) for each in logprobs]
            letters[slot] = LETTERS[totals.index(max(totals))]
        return letters

    def _prompt(self, pair: Pair, swapped: bool) -> list[int] | None:
        """Return the ids of a question with as many turns as fit; None where none does."""
        most = pair.state.number if self._turns is None else self._turns
        room = self._policy.max_length - max(map(len, self._branches))
        for turns in range(min(most, pair.state.number), -1, -1):
            ids = self._encoded(pair.question(swapped, turns))
            if len(ids) <= room:
                return ids
        return None

    def _encoded(self, question: str) -> list[int]:
        codec = self._codec
        opened = codec.template.direct_open
        return [
            *codec.begin_ids,
            *codec.encode(codec.template.turn_open),
            *codec.encode_plain(question, "the question", lenient=True),
            *codec.response_open,
            *(codec.encode(opened) if opened else ()),
        ]


def ids_of_letters(codec: Codec, judge: str) -> list[list[int]]:
    """Return the ids of each answer. `judge`: what the codec is of, for the message.

    Raises UsageError where the tokenizer cannot tell the letters apart.
    """
    ids = [codec.encode_plain(each, "a letter", lenient=True) for each in LETTERS]
    if not all(map(codec.encodable, LETTERS)) or len({*map(tuple, ids)}) < len(LETTERS):
        raise UsageError(
            f"probes.preference.judges: the tokenizer of {judge} has no letters A, B and C, with "
            "which the judge 'model' answers; name another model in probes.preference.model, or "
            "leave 'model' out of probes.preference.judges"
        )
    return ids


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, which answers with a letter.

    Args:
      tokens: the most that it may write.
      turns: the latest turns that are shown; 0: all.
    """

    def __init__(self, client: Client, tokens: int, turns: int = 0):
        self._client, self._tokens, self._turns = client, tokens, turns or None

    def judge(self, pairs: Sequence[Pair]) -> Iterator[Opinion]:
        """Ask in both orders. Answers are kept on disk, so nothing is asked twice."""
        requests = [
            {
                "messages": [{"role": "user", "content": pair.question(swapped, self._turns)}],
                "max_tokens": self._tokens,
                "temperature": 0.0,
            }
            for pair in pairs
            for swapped in (False, True)
        ]
        answers = self._client.ask(requests)
        yield from _opinions([None if each.too_long else letter_in(each.text) for each in answers])


def letter_in(text: str) -> str | None:
    """Return the letter that an answer consists of, behind any reasoning; None without one."""
    last = text.rpartition("</think>")[2].strip().rpartition("\n")[2]
    match = _ANSWER.fullmatch(last)
    return match[1].upper() if match else None


def _opinions(letters: Sequence[str | None]) -> Iterator[Opinion]:
    """Yield the opinion of each two answers: in order, and swapped."""
    for in_order, swapped in zip(letters[::2], letters[1::2], strict=True):
        yield Opinion.of(
            None if in_order is None else _IN_ORDER[in_order],
            None if swapped is None else _SWAPPED[swapped],
        )


_IN_ORDER: Mapping[str, Choice] = {"A": "cot", "B": "prompt", "C": "tie"}
_SWAPPED: Mapping[str, Choice] = {"A": "prompt", "B": "cot", "C": "tie"}
