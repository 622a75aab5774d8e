"""What an action names, where a text mentions that, and one name swapped for another.

No world is known here. The things of an action are what follows its verb, divided at prepositions
("take mug 1 from shelf 2": "mug 1" and "shelf 2"), or the literals of its calls
("[cat(file_name='plan.txt')]": "plan.txt").

A thing with a number at its end is one of its kind, and a text mentions it by its whole name: "a
mug" is no mention of "mug 1". Any other thing is named where all of its words are, in any order
("the birthplace of Bel Tor" names "Bel Tor birthplace"), and first mentioned at the first of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

_WORD = re.compile(r"\w(?:[\w.'’-]*\w)?")
_CALL = re.compile(r"\w\(")
# A quoted literal, or a number as the value of an argument.
_LITERAL = re.compile(r"'(?P<one>[^'\\]+)'|\"(?P<two>[^\"\\]+)\"|=\s*(?P<number>-?\d[\d.]*)\b")
_BETWEEN = frozenset(
    {"a", "an", "and", "around", "at", "by", "down", "for", "from", "in", "into", "of", "off"}
    | {"on", "onto", "out", "the", "to", "under", "up", "with"}
)
# Where a clause ends; a full stop within a name ("plan.txt") is none.
_CLAUSE_END = re.compile(r"[.;:!?](?=\s|$)|,(?=\s)|\n")
_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?!\s|$)[^.!?\n]*)*(?:[.!?](?=\s|$)|\n|$)")


@dataclass(frozen=True)
class Thing:
    """Something that an action names; `start`, `end`: its characters in the action."""

    text: str
    start: int
    end: int

    @cached_property
    def words(self) -> list[str]:
        """Its words in lower case."""
        return [word.lower() for word in _WORD.findall(self.text)]

    @cached_property
    def numbered(self) -> bool:
        """Whether it is one of its kind: "mug 1"."""
        return len(self.words) > 1 and self.words[-1].isdigit()


@dataclass(frozen=True)
class Swap:
    """An action that differs from another in one name: `new` in the place of `old`."""

    action: str
    old: str
    new: str


@lru_cache(maxsize=1 << 14)
def things(action: str) -> tuple[Thing, ...]:
    """Return what an action names, in its order; () for one like "look"."""
    if _CALL.search(action):
        return tuple(
            Thing(match[match.lastgroup], *match.span(match.lastgroup))
            for match in _LITERAL.finditer(action)
            if match.lastgroup
        )
    found: list[Thing] = []
    open_ = False  # whether the last thing may go on
    for match in list(_WORD.finditer(action))[1:]:
        if match[0].lower() in _BETWEEN:
            open_ = False
        elif open_:
            found[-1] = Thing(action[found[-1].start : match.end()], found[-1].start, match.end())
        else:
            found.append(Thing(match[0], *match.span()))
            open_ = True
    return tuple(found)


def names(text: str, action: str) -> bool:
    """Whether a text names all things of an action; False where the action has none."""
    named = things(action)
    return bool(named) and all(_named(text, thing) for thing in named)


def mentions(text: str, action: str) -> bool:
    """Whether a text mentions any thing of an action."""
    return first_mention(text, action) is not None


def first_mention(text: str, action: str) -> int | None:
    """Return where a text first mentions a thing of an action; None where it never does."""
    starts = [
        match.start()
        for thing in things(action)
        for phrase in ([thing.text] if thing.numbered else thing.words)
        if (match := _phrase(phrase).search(text))
    ]
    return min(starts, default=None)


def before_things(text: str, action: str) -> str:
    """Return what a text says before it first mentions a thing of an action; else all of it."""
    at = first_mention(text, action)
    return text if at is None else text[:at].rstrip()


def before_action(text: str, action: str) -> str:
    """Return a text up to the clause that says the action; all of it where none mentions it.

    That is the last clause with all of the action's things, or else the last with any.
    """
    ends = [match.end() for match in _CLAUSE_END.finditer(text)]
    starts = [0, *ends]
    clauses = [(at, text[at:end]) for at, end in zip(starts, [*ends, len(text)], strict=True)]
    whole = [at for at, clause in clauses if names(clause, action)]
    part = [at for at, clause in clauses if mentions(clause, action)]
    return text[: (whole or part or [len(text)])[-1]].rstrip()


def swaps(action: str, others: Iterable[str]) -> list[Swap]:
    """Return those of other actions that differ from `action` in one thing alone.

    Of a name without a number, the words that both share are left out: of "Bel Tor birthplace" and
    "Kel birthplace", "Bel Tor" is swapped for "Kel".
    """
    mine = things(action)
    found = []
    for other in others:
        its = things(other)
        if len(its) != len(mine) or _shape(action, mine) != _shape(other, its):
            continue
        pairs = [(a, b) for a, b in zip(mine, its, strict=True) if a.words != b.words]
        if len(pairs) == 1:
            found.append(Swap(other, *_differing(*pairs[0])))
    return found


def swapped(text: str, swap: Swap) -> str | None:
    """Return a text with every mention of the old name swapped; None where it has none."""
    edited, count = _phrase(swap.old).subn(lambda _: swap.new, text)
    return edited if count and edited != text else None


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; joined, they are the text."""
    return [match[0] for match in _SENTENCE.finditer(text) if match[0]]


def nouns(actions: Iterable[str]) -> list[str]:
    """Return the names in actions, and the kinds of those with a number: "mug 1" and "mug"."""
    found: dict[str, None] = {}
    for action in actions:
        for thing in things(action):
            found[thing.text.lower()] = None
            if thing.numbered:
                found[" ".join(thing.words[:-1])] = None
    return list(found)


def noun_swaps(sentence: str, known: Sequence[str], text: str) -> list[Swap]:
    """Return the swaps of one known noun of a sentence for another of its form.

    A name with a number is swapped for another such name, a kind for another kind; `text` has the
    sentence in it, and mentions none of the new names.
    """
    absent = [noun for noun in known if not _phrase(noun).search(text)]
    found = []
    for noun in known:
        mention = _phrase(noun).search(sentence)
        # "mug" is not swapped within "mug 1".
        if mention is None or (
            not _is_numbered(noun) and re.match(r"\s+\d", sentence[mention.end() :])
        ):
            continue
        found += [
            Swap(sentence, noun, new) for new in absent if _is_numbered(new) == _is_numbered(noun)
        ]
    return found


def _is_numbered(noun: str) -> bool:
    return noun.split()[-1].isdigit()


def _named(text: str, thing: Thing) -> bool:
    if thing.numbered:
        return _phrase(thing.text).search(text) is not None
    return all(_phrase(word).search(text) for word in thing.words)


@lru_cache(maxsize=1 << 14)
def _phrase(phrase: str) -> re.Pattern[str]:
    """Return the pattern of a phrase as whole words."""
    return re.compile(
        r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.split())) + r"(?!\w)", re.IGNORECASE
    )


def _shape(action: str, named: Sequence[Thing]) -> str:
    """Return an action without its things."""
    shape, at = "", 0
    for thing in named:
        shape += action[at : thing.start] + "\0"
        at = thing.end
    return shape + action[at:]


def _differing(mine: Thing, other: Thing) -> tuple[str, str]:
    """Return the parts of two names that differ; the names themselves if one has a number."""
    old, new = mine.text.split(), other.text.split()
    if mine.numbered or other.numbered:
        return " ".join(old), " ".join(new)
    shortest = min(len(old), len(new)) - 1  # a word of each is left
    head = 0
    while head < shortest and old[head].lower() == new[head].lower():
        head += 1
    tail = 0
    while tail < shortest - head and old[-1 - tail].lower() == new[-1 - tail].lower():
        tail += 1
    return " ".join(old[head : len(old) - tail]), " ".join(new[head : len(new) - tail])
