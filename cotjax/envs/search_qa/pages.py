"""Passages that state each fact once, on the page of its subject or of its object."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cotjax.envs.search_qa.bm25 import words_of
from cotjax.envs.search_qa.schema import NUMBER, ONE, Knowledge

LONGEST = 64  # words of a passage, with its title
# Share of the facts that stand on the object's page, so that a page tells not all about its entity.
_WITHHELD = 0.2


@dataclass(frozen=True)
class Passage:
    """A piece of a page.

    Attributes:
      id: position in the corpus; ties between passages are broken by it.
      title: the entity of the page.
      facts: keys (subject, relation) of the facts that it states.
      entities: all that it names, its title included.
      held_out: it belongs to the page of a held-out entity.
    """

    id: int
    title: str
    text: str
    facts: tuple[tuple[str, str], ...]
    entities: frozenset[str]
    held_out: bool


def write_pages(knowledge: Knowledge, seed: int) -> list[Passage]:
    """Return the passages of all pages, in the order of titles."""
    rng = random.Random(f"search_qa pages {seed}")
    sentences: dict[str, list[tuple[str, tuple[str, str]]]] = defaultdict(list)
    for fact in knowledge.facts:
        relation = knowledge.schema.relations[fact.relation]
        withheld = relation.inverse and relation.form == ONE and rng.random() < _WITHHELD
        template = rng.choice(relation.inverse if withheld else relation.states)
        text = template.format(s=fact.subject, o=", ".join(fact.objects))
        sentences[fact.objects[0] if withheld else fact.subject].append((text, fact.key))
    passages: list[Passage] = []
    for title in sorted(sentences):
        told = rng.sample(sentences[title], len(sentences[title]))
        for piece in _pieces(title, told):
            passages.append(_passage(knowledge, len(passages), title, piece))
    return passages


def _pieces(
    title: str, told: Sequence[tuple[str, tuple[str, str]]]
) -> list[list[tuple[str, tuple[str, str]]]]:
    """Cut a page between sentences, into pieces of at most LONGEST words where these allow it."""
    pieces: list[list[tuple[str, tuple[str, str]]]] = []
    words = LONGEST
    for sentence in told:
        length = len(words_of(sentence[0]))
        if words + length > LONGEST:
            pieces.append([])
            words = len(words_of(title))
        pieces[-1].append(sentence)
        words += length
    return pieces


def _passage(
    knowledge: Knowledge, id_: int, title: str, told: Sequence[tuple[str, tuple[str, str]]]
) -> Passage:
    entities = {title}
    for _, (subject, name) in told:
        entities.add(subject)
        if knowledge.schema.relations[name].form != NUMBER:
            entities.update(knowledge.objects[subject, name])
    return Passage(
        id_,
        title,
        " ".join(text for text, _ in told),
        tuple(key for _, key in told),
        frozenset(entities),
        title in knowledge.held_out,
    )
