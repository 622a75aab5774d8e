"""Invented facts, balanced so that no answer is commoner than another.

Each functional relation is a permutation, so a chain of any length maps its starting points onto
different answers, and guessing the commonest answer is right once in as many times as a kind has
entities. A model cannot have read these facts elsewhere (as in PhantomWiki, arXiv 2502.20377, and
SynthWorlds, arXiv 2510.24427).
"""

from __future__ import annotations

import random
from itertools import product

from cotjax.envs.search_qa.schema import LIST, NUMBER, Fact, Knowledge, Relation, load_schema
from cotjax.errors import UsageError

# Entities of each kind at scale 1. The two groups share no fact and no page.
SEEN, HELD_OUT = 120, 48
# The fewest of a group: of fewer, each would be too common an answer (`generate.COMMONEST`).
_LEAST = 18
LEAST_NUMBER = 100
LIST_LENGTH = 3
KNOWN_SHARE = 0.5
# Syllables are words of their own, so that a word-level model has trained embeddings for the names
# of held-out entities. None is a word of the templates.
_ONSETS, _RESTS = "bdfghjklmnprstvwyz", ("a", "o", "u", "el", "en", "ir", "or", "un")
_CODAS = ("", "d", "k", "m", "t", "st", "f", "x", "p", "sh", "b")  # one more at each scale
LEAST_SCALE, MOST_SCALE = 0.25, len(_CODAS) - 1
_TEMPLATE_WORDS = {"for", "to", "so", "no"}
_NEAR_SHARE = 0.1  # names that begin with the first two syllables of another


def invent(seed: int, scale: float = 1) -> Knowledge:
    """Return the invented world of a seed. `scale` multiplies the number of entities."""
    schema, rng = load_schema("invented"), random.Random(f"search_qa facts {seed} {scale}")
    sizes = (round(SEEN * scale), max(round(HELD_OUT * scale), _LEAST))
    names = _names(rng, syllables(scale), len(schema.kinds) * sum(sizes))
    kinds: dict[str, str] = {}
    facts: list[Fact] = []
    groups: list[frozenset[str]] = []
    for size in sizes:
        group = {kind: sorted(names.pop() for _ in range(size)) for kind in schema.kinds}
        kinds |= {name: kind for kind, members in group.items() for name in members}
        groups.append(frozenset(name for members in group.values() for name in members))
        for relation in schema.relations.values():
            facts += _draw(rng, relation, group, scale)
    return Knowledge(schema, kinds, tuple(facts), held_out=groups[1])


def syllables(scale: float = 1) -> list[str]:
    """Return the syllables of names, each a word that no template has."""
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise UsageError(
            f"the scale of an invented world is {LEAST_SCALE} to {MOST_SCALE}, not {scale}"
        )
    every = map("".join, product(_ONSETS, _RESTS, _CODAS[: max(int(scale), 1) + 1]))
    return [syllable for syllable in every if syllable not in _TEMPLATE_WORDS]


def numbers(scale: float = 1) -> range:
    """Return the numbers that occur in facts."""
    return range(LEAST_NUMBER, LEAST_NUMBER + round(4 * SEEN * scale))


def _names(rng: random.Random, words: list[str], count: int) -> list[str]:
    """Draw names of three syllables. No two have the same ones, in whatever order."""
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    while len(names) < count:
        name = tuple(rng.sample(words, 3))
        if names and rng.random() < _NEAR_SHARE:
            near = next(reversed(names.values()))[:2]
            name = (*near, rng.choice([each for each in words if each not in near]))
        names.setdefault(tuple(sorted(name)), name)
    return [" ".join(name).title() for name in names.values()]


def _draw(
    rng: random.Random, relation: Relation, group: dict[str, list[str]], scale: float
) -> list[Fact]:
    subjects = rng.sample(group[relation.subject], len(group[relation.subject]))
    objects: list[tuple[str, ...]]
    if relation.form == NUMBER:
        objects = [(str(number),) for number in rng.sample(numbers(scale), len(subjects))]
    else:
        every = rng.sample(group[relation.object], len(subjects))
        # Shifts of one permutation: each object occurs in as many lists as each list has objects.
        length = LIST_LENGTH if relation.form == LIST else 1
        shifts = rng.sample(range(len(every)), length)
        objects = [
            tuple(every[(index + shift) % len(every)] for shift in shifts)
            for index in range(len(every))
        ]
    known = round(KNOWN_SHARE * len(subjects))
    return [
        Fact(subject, relation.name, objects_, index < known)
        for index, (subject, objects_) in enumerate(zip(subjects, objects, strict=True))
    ]
