"""A scripted agent that gives BFCL's answers, with thoughts from what the prompt shows.

The answers are hidden information for the actions, as they are for every expert. The thoughts use
the user's words, the results so far and the descriptions of functions alone: each says what was
last seen, which function is next, and where its arguments can be read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from cotjax.envs.base import Decision, Observation
from cotjax.envs.bfcl.calls import DONE, Call, CallError, action_of, parse_action
from cotjax.envs.bfcl.entries import Entry
from cotjax.errors import EnvError

_REQUEST, _EARLIER = "the request", "an earlier request"
_LONGEST_REQUEST, _LONGEST_RESULT, _LONGEST_ACTION = 120, 80, 160  # characters in a thought
_MOST_CALLS = 20  # in an action
_REFUSED = Call("that", (), {})  # stands for an action that cannot be read
# What shows the names of files; the parameters that name one, and functions that make it.
_LOOK = Call("ls", (), {"a": True})
_FILES, _MAKERS = {"file_name", "file_name1", "file_name2", "folder", "source"}, {"echo", "touch"}


class Expert:
    """Plays one entry.

    It makes one call an action, or several of the same function whose arguments can all be read.
    Before a call that needs the name of a file that was not seen it lists the directory, once.

    Args:
      mistakes: share of actions that lack an argument. They fail, and change nothing.
    """

    def __init__(self, entry: Entry, seed: int, mistakes: float = 0.0):
        self._entry, self._mistakes = entry, mistakes
        self._random = random.Random(seed)

    def start(self, task: str, observation: Observation) -> None:
        """Begin the entry."""
        if task != self._entry.task or not observation.text.endswith(self._entry.requests[0]):
            raise EnvError(f"this is not the entry {self._entry.id}: {observation.text[-200:]!r}")
        self._turn = -1
        self._left: list[Call] = []  # calls of the turn's answer that are still to be made
        self._results: list[tuple[str, str]] = []  # (functions, what they returned)
        self._called: str | None = None  # the functions of the last action; None after `done`

    def follow(self, action: str, observation: Observation) -> None:
        """Leave out what another agent has called already. (`cotjax.envs.base.Successor`)"""
        if self._called is None:
            self._begin_turn()
        try:
            calls = parse_action(action)
        except CallError:
            calls = [_REFUSED]
        self._called = calls[0].name if calls else None
        if self._called is not None:
            self._results.append((self._called, observation.text))
        if observation.accepted:
            made = [self._named(call) for call in calls]
            for call in list(self._left):
                if self._named(call) in made:
                    made.remove(self._named(call))
                    self._left.remove(call)

    def act(self, observation: Observation) -> Decision:
        """Return the next calls, or `done`."""
        if self._called is None:
            self._begin_turn()
            request = observation.text.rpartition("User: ")[2]
            seen = f'The user says: "{_clipped(request, _LONGEST_REQUEST)}".'
        else:
            self._results.append((self._called, observation.text))
            fine = "gave" if observation.accepted else "failed:"
            result = observation.text.partition(": ")[2]
            seen = f"{self._called} {fine} {_clipped(result, _LONGEST_RESULT)}."
        if not self._left:
            why = "That is all" if self._called else self._why_nothing()
            self._called = None
            return Decision(f"{seen} {why}, so I am done.", DONE)
        calls = [_LOOK] if self._must_look(self._left[0]) else self._next()
        self._called = calls[0].name
        if self._random.random() < self._mistakes and (wrong := self._mistaken(calls[0])):
            return Decision(None, action_of([wrong]), mistake=True)
        if calls != [_LOOK] or calls[0] == self._left[0]:
            self._left = self._left[len(calls) :]
        action = action_of(calls)
        what = action if len(action) <= _LONGEST_ACTION else self._called
        return Decision(f"{seen} {self._why(calls[0])} So I call {what}.", action)

    def _begin_turn(self) -> None:
        self._turn += 1
        answer = self._entry.answers[self._turn]
        self._left = [call for text in answer for call in parse_action(text)]

    def _why_nothing(self) -> str:
        if self._entry.id.startswith("multi_turn_miss_param"):
            return "It does not say all that is needed"
        if self._turn + 1 in self._entry.missing.values():
            return "No function that I know does it"
        return "There is nothing to call for it"

    def _must_look(self, call: Call) -> bool:
        """Whether a call needs the name of a file that was not seen, and looking shows names."""
        if self._called == _LOOK.name or not list(self._description(_LOOK.name)):
            return False
        unseen = {name for name, source in self._sources(call).items() if source is None}
        return bool(unseen & _FILES) and call.name not in _MAKERS

    def _next(self) -> list[Call]:
        """Return the calls of the next action, at least one."""
        first, *others = self._left
        calls = [first]
        for call in others[: _MOST_CALLS - 1]:
            if call.name != first.name or None in self._sources(call).values():
                break
            calls.append(call)
        return calls

    def _why(self, call: Call) -> str:
        """Say what the next function does, and where its arguments are."""
        parts = [f"Next is {call.name}."]
        for _, text in self._description(call.name):
            about = text.partition("): ")[2]
            parts = [f"Next is {call.name}: {about.partition('. ')[0].rstrip('.')}."]
        found: dict[str | None, list[str]] = {}
        for parameter, source in self._sources(call).items():
            found.setdefault(source, []).append(parameter)
        for source, names in found.items():
            verb = "is" if len(names) == 1 else "are"
            where = f"in {source}" if source else "mine to work out"
            parts.append(f"{' and '.join(names)} {verb} {where}.")
        return " ".join(parts)

    def _mistaken(self, call: Call) -> Call | None:
        """Return the call without an argument that it needs; None where it needs none."""
        required = [name for name, optional in self._parameters(call) if not optional]
        given = [name for name in call.keywords if name in required]
        if given:
            rest = {name: value for name, value in call.keywords.items() if name != given[-1]}
            return Call(call.name, call.arguments, rest)
        if 0 < len(call.arguments) <= len(required):
            return Call(call.name, call.arguments[:-1], call.keywords)
        return None

    def _parameters(self, call: Call) -> list[tuple[str, str]]:
        """Return (name, whether it is optional) of a function's parameters."""
        signature = self._entry.functions[call.name].partition("): ")[0].partition("(")[2]
        return re.findall(r"(\w+): [\w\[\]]+( =)?", signature)

    def _named(self, call: Call) -> tuple[str, dict[str, Any]]:
        """Return a function's name and its arguments by parameter; {} for an unknown function."""
        if call.name not in self._entry.functions:
            return call.name, {}
        names = [name for name, _ in self._parameters(call)]
        return call.name, dict(zip(names, call.arguments, strict=False)) | call.keywords

    def _sources(self, call: Call) -> dict[str, str | None]:
        """Return parameter -> where its value can be read; None for nowhere.

        Values that are neither text nor numbers are left out.
        """
        _, named = self._named(call)
        patterns = {name: list(_patterns(value)) for name, value in named.items()}
        texts = [*self._read(), *self._description(call.name)]
        return {name: _source(wanted, texts) for name, wanted in patterns.items() if wanted}

    def _description(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield what was shown of a function; nothing while there is none, or it is missing."""
        if name in self._entry.functions and self._entry.missing.get(name, 0) <= self._turn:
            yield f"the description of {name}", self._entry.functions[name]

    def _read(self) -> Iterator[tuple[str, str]]:
        """Yield (name, text) of what was said and returned, the nearest first."""
        yield _REQUEST, self._entry.requests[self._turn]
        for name, text in reversed(self._results):
            yield f"what {name} gave", text
        for request in reversed(self._entry.requests[: self._turn]):
            yield _EARLIER, request


def _source(patterns: list[str], texts: Sequence[tuple[str, str]]) -> str | None:
    """Return the name of the first text with all patterns."""
    for name, text in texts:
        if all(re.search(pattern, text, re.IGNORECASE) for pattern in patterns):
            return name
    return None


def _patterns(value: Any) -> Iterator[str]:
    """Yield patterns of texts that show the strings and the numbers of a value."""
    match value:
        case str() if re.search(r"\w", value):
            yield rf"(?<!\w){re.escape(value)}(?!\w)"
        case int() | float() if not isinstance(value, bool):
            number = re.escape(f"{value:.15g}")  # 980.0 is found in 980, and the reverse
            yield rf"(?<![\w.]){number}(?:\.0+)?(?!\w|\.\d)"
        case list() | tuple():
            for part in value:
                yield from _patterns(part)
        case dict():
            for part in value.values():
                yield from _patterns(part)


def _clipped(text: str, length: int) -> str:
    """Return the beginning of a text, of whole words where it has some."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    head = text[:length]
    return f"{head.rpartition(' ')[0] or head} [...]"
