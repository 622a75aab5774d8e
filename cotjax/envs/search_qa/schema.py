"""The schema of a knowledge base: kinds, relations and their wording, and facts in these."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from typing import Any

ONE, LIST, NUMBER = "one", "list", "number"  # forms of relations


@dataclass(frozen=True)
class Relation:
    """One relation. `invented.toml` explains the fields."""

    name: str
    subject: str
    object: str
    form: str
    asks: tuple[str, ...]
    states: tuple[str, ...]
    inverse: tuple[str, ...]
    queries: tuple[str, str]
    common: str = ""
    more: str = ""


@dataclass(frozen=True)
class Schema:
    """The kinds and relations of one source of facts.

    Attributes:
      people: kinds that a question asks for by "who".
      new_chains: pairs of relations, first and second hop, that no training question composes.
    """

    kinds: tuple[str, ...]
    people: tuple[str, ...]
    new_chains: frozenset[tuple[str, str]]
    relations: Mapping[str, Relation]

    def of(self, kind: str, form: str) -> list[Relation]:
        """Return the relations of a form whose subjects are of a kind."""
        every = self.relations.values()
        return [relation for relation in every if (relation.subject, relation.form) == (kind, form)]


@cache
def load_schema(source: str) -> Schema:
    """Return the schema of `<source>.toml`."""
    table = tomllib.loads(
        resources.files(__package__).joinpath(f"{source}.toml").read_text(encoding="utf-8")
    )
    relations = {
        name: Relation(name, **{key: _frozen(value) for key, value in fields.items()})
        for name, fields in table["relations"].items()
    }
    pairs = frozenset((first, second) for first, second in table["new_chains"])
    return Schema(tuple(table["kinds"]), tuple(table["people"]), pairs, relations)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Fact:
    """A subject's objects in a relation: one, or all of a list.

    `known`: a base model may be trained on it; other facts stand in passages alone.
    """

    subject: str
    relation: str
    objects: tuple[str, ...]
    known: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.subject, self.relation


@dataclass(frozen=True)
class Knowledge:
    """All that is true in a world.

    Attributes:
      kinds: entity -> its kind.
      held_out: entities of the axis of objects: no question of another split needs them.
      aliases: entity -> its other names, which are right answers too.
      closest: numbers that differ by at most this share are too close to be compared.
    """

    schema: Schema
    kinds: Mapping[str, str]
    facts: tuple[Fact, ...]
    held_out: frozenset[str]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    closest: float = 0.0

    @cached_property
    def objects(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Return (subject, relation) -> objects."""
        return {fact.key: fact.objects for fact in self.facts}

    @cached_property
    def by_key(self) -> dict[tuple[str, str], Fact]:
        return {fact.key: fact for fact in self.facts}
