"""Real facts in the shape of the invented world's, for models that were trained on much text.

Real facts are not balanced: a third of all cities lie in five countries, and long chains end in few
places. So a country has only its largest cities, and an object is that of at most `MOST` facts of a
functional relation. Nothing says that there are no more: a list is whole or left out.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

from cotjax.envs.search_qa.agreement import CLOSE, Agreement, Triple
from cotjax.envs.search_qa.schema import NUMBER, ONE, Fact, Knowledge, load_schema

MOST = 5
HELD_OUT = 0.35  # largest share of the countries that is held out
KNOWN_SHARE = 0.5
_TENS, _TENS_HELD_OUT = 12, 4  # ten elements each


def real_facts(seed: int) -> Knowledge:
    """Return the facts. The seed draws which are held out, known, and left out for balance.

    Raises:
      UsageError: a package is not installed.
      DataError: its files cannot be read.
    """
    source, schema = _agreement(), load_schema("real")
    rng = random.Random(f"search_qa real facts {seed}")
    by_relation: dict[str, list[Triple]] = defaultdict(list)
    for triple in source.triples:
        by_relation[triple[1]].append(triple)
    sides = _sides(source, rng)
    facts: list[Fact] = []
    kinds: dict[str, str] = {}
    for held_out in (False, True):
        for relation in schema.relations.values():
            named = relation.form != NUMBER
            rows = [
                (subject, objects)
                for subject, _, objects in by_relation[relation.name]
                if {sides[name] for name in (subject, *(objects if named else ()))} == {held_out}
            ]
            rng.shuffle(rows)
            rows = _capped(rows) if relation.form == ONE else rows
            for index, (subject, objects) in enumerate(rows):
                known = index < round(KNOWN_SHARE * len(rows))
                facts.append(Fact(subject, relation.name, objects, known))
                kinds[subject] = relation.subject
                kinds.update(dict.fromkeys(objects, relation.object) if named else {})
    held = frozenset(name for name in kinds if sides[name])
    return Knowledge(schema, kinds, tuple(facts), held, source.aliases(kinds), CLOSE)


def real_words() -> Iterator[str]:
    """Yield all names and numbers that facts of any seed have. Raises as `real_facts`."""
    for subject, _, objects in _agreement().triples:
        yield from (subject, *objects)


@lru_cache(maxsize=1)
def _agreement() -> Agreement:
    return Agreement()


def _capped(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    given: Counter[tuple[str, ...]] = Counter()
    kept = []
    for subject, objects in rows:
        given[objects] += 1
        if given[objects] <= MOST:
            kept.append((subject, objects))
    return kept


def _sides(source: Agreement, rng: random.Random) -> dict[str, bool]:
    """Return entity -> whether it is held out.

    These are whole regions and stretches of the periodic table, since a fact with entities of both
    sides is left out.
    """
    regions: dict[str, list[str]] = defaultdict(list)
    for country in source.countries:
        regions[country.region].append(source.names[country.code])
    sides = dict.fromkeys(source.names.values(), False)
    left = int(HELD_OUT * len(sides))
    for region in rng.sample(sorted(regions), len(regions)):
        if len(regions[region]) <= left:
            left -= len(regions[region])
            sides.update(dict.fromkeys(regions[region], True))
    tens = rng.sample(range(_TENS), _TENS_HELD_OUT)
    sides.update((each.name, (each.number - 1) // 10 in tens) for each in source.elements)
    for subject, _, objects in source.triples:
        side = next(sides[name] for name in (subject, *objects) if name in sides)
        for name in (subject, *objects):
            sides.setdefault(name, side)
    return sides
