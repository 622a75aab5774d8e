"""Rates of AutoCoA's report (searches.json), recomputed from the records by other code.

Recomputed are the values of what a record says by itself: right answers, F1, searches, answers,
malformed and cut responses; their groups, differences between arms, and the gap to a real search.
Intervals, and what needs the world's facts, are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cotjax.check.fields import Fields, read
from cotjax.errors import DataError

_FILE, _ABOUT = "searches.json", "stages.json"
_REAL, _SIMULATED = "records", "simulated"
_ROUNDING = 2e-6
# Figure -> what is added up of an episode, and what that is divided by.
_FIGURES = {
    "exact": ("won", "episodes"),
    "f1": ("score", "episodes"),
    "searches": ("searches", "episodes"),
    "answered": ("answered", "episodes"),
    "invalid": ("invalid", "responses"),
    "cut": ("cut", "responses"),
}
_MOVED = ("exact", "f1", "searches")


@dataclass(frozen=True)
class _Played:
    """What one record says. `counts`: what is added up."""

    game: str
    domain: str
    task_type: str
    counts: dict[str, float]


def is_stages(folder: Path) -> bool:
    """Return whether a folder holds a run of AutoCoA's stages."""
    return (folder / _FILE).exists() and (folder / _ABOUT).exists()


def check_searches(folder: Path, say: Callable[[str], None]) -> bool:
    """Recompute a run's rates, say what was found, and return whether all agrees.

    Raises DataError for a file that is missing or malformed.
    """
    about = read(folder / _ABOUT, "`cotjax autocoa` writes it")
    content = read(folder / _FILE, "`cotjax autocoa` writes it")
    seeds = about.get("seeds", list) if "seeds" in about.content else []
    folders = [folder / "seeds" / str(seed) for seed in seeds] or [folder]
    played = {
        source: _played([each / source for each in folders])
        for source in about.get("sources", list)
    }
    places = {
        arm.get("name", str): (arm.get("stage", str), arm.get("step", int))
        for arm in about.objects("arms")
    }
    compared = differ = 0
    for where, reported, ours in _pairs(content, played, places):
        compared += 1
        same = (reported is None) == (ours is None) and (
            reported is None or ours is None or abs(reported - ours) <= _ROUNDING
        )
        if not same:
            differ += 1
            say(f"DIFFERS {where}: reported {reported}, recomputed {ours}")
    files = sum(len(own) for by_place in played.values() for own in by_place.values())
    say(f"{compared} rates recomputed from {files} episode records; {differ or 'none'} differ.")
    return not differ


def _pairs(
    content: Fields,
    played: dict[str, dict[tuple[str, int], list[_Played]]],
    places: dict[str, tuple[str, int]],
) -> Iterator[tuple[str, float | None, float | None]]:
    """Yield (where, reported value, recomputed value)."""

    def of(arm: str, source: str) -> list[_Played]:
        if arm not in places:
            raise DataError(f"{content.place}: there is no arm {arm!r} in {_ABOUT}")
        return played.get(source, {}).get(places[arm], [])

    for row in content.objects("figures"):
        arm, source, by, group = (row.get(n, str) for n in ("arm", "source", "by", "group"))
        if by == "hops":
            continue  # the number of facts behind a question is not in its record
        own = [each for each in of(arm, source) if by == "all" or getattr(each, by) == group]
        for name in _FIGURES:
            yield f"{arm}, {source}, {group}, {name}", _value(row, name), _ratio(own, name)
    for row in content.objects("changes"):
        arm, minus = row.get("arm", str), row.get("minus", str)
        for name in _MOVED:
            ours = _difference(of(arm, _REAL), of(minus, _REAL), name)
            yield f"{arm} minus {minus}, {name}", _value(row, name), ours
    for arm in content.get("sim_to_real", dict):
        gap = _difference(of(arm, _SIMULATED), of(arm, _REAL), "exact")
        reported = content.object("sim_to_real")
        assert reported is not None
        each = reported.object(arm)
        assert each is not None
        yield f"{arm}, gap to a real search", each.get("value", float, null=True), gap


def _value(row: Fields, name: str) -> float | None:
    figures = row.object("figures")
    assert figures is not None
    estimate = figures.object(name)
    assert estimate is not None
    return estimate.get("value", float, null=True)


def _ratio(episodes: Iterable[_Played], name: str) -> float | None:
    above, below = _FIGURES[name]
    own = list(episodes)
    total = sum(each.counts[below] for each in own)
    return sum(each.counts[above] for each in own) / total if total else None


def _difference(ours: list[_Played], theirs: list[_Played], name: str) -> float | None:
    """Return a rate of some episodes minus that of others, on the questions of both."""
    both = {each.game for each in ours} & {each.game for each in theirs}
    sides = [_ratio((x for x in side if x.game in both), name) for side in (ours, theirs)]
    return None if sides[0] is None or sides[1] is None else sides[0] - sides[1]


def _played(folders: Iterable[Path]) -> dict[tuple[str, int], list[_Played]]:
    """Return what the CoT-driven records of these folders say, by arm and checkpoint."""
    found: dict[tuple[str, int], list[_Played]] = defaultdict(list)
    for path in (path for folder in folders for path in sorted(folder.rglob("*.json"))):
        record = read(path, "restore the record")
        if record.get("driver", str) != "cot" or record.get("ended", str) == "env_error":
            continue
        place = record.get("arm", str), record.get("checkpoint", int)
        found[place].append(_counted(record))
    return found


def _counted(record: Fields) -> _Played:
    game, steps = record.object("game"), record.objects("steps")
    assert game is not None
    answers = [each.object("cot", null=True) for each in steps]
    responses = [each for each in answers if each is not None]
    executed = [each.get("executed", str) for each in steps]
    score = record.get("score", float, null=True)
    counts = {
        "episodes": 1.0,
        "won": float(record.get("success", bool)),
        "score": score or 0.0,
        "searches": float(sum(action.startswith("search:") for action in executed)),
        "answered": float(any(action.startswith("answer:") for action in executed)),
        "responses": float(len(responses)),
        "invalid": float(sum(not each.get("valid", bool) for each in responses)),
        "cut": float(sum(each.get("reason", str, null=True) == "cut" for each in responses)),
    }
    return _Played(
        game.get("id", str), record.get("domain", str), game.get("task_type", str), counts
    )
