"""A reported summary beside the recomputed one, number by number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cotjax.check.intervals import NOTHING
from cotjax.check.metrics import MEASURES, family

Path = tuple[str, ...]
# Beyond the rounding of the file.
TOLERANCE = 1e-9
_DECIMALS, _SECONDS, _DIGITS = 6, 3, 4
# What tells the rows of a list apart.
_KEYS: Mapping[str, Sequence[str]] = {
    "points": ("arm", "checkpoint", "domain"),
    "seed_points": ("arm", "checkpoint", "domain"),
    "changes": ("arm", "domain", "metric"),
    "arm_differences": ("arm", "domain", "metric"),
    "trends": ("arm", "domain", "metric"),
    "placements": ("arm", "domain", "measure", "constrained"),
    "splits": ("arm", "domain", "measure"),
    "information": ("checkpoint",),
    "held_out": ("checkpoint",),
    "rewards": ("step",),
    "invalid": ("metric",),
}
_ENDS = ("low", "high")
# Entries of a point that have numbers by metric.
_OF_METRICS = ("metrics", "layers")
_P = ("p", "gap_p", "steady_p", "adjusted_p", "steady_adjusted_p")
_ABSENT = object()
_EMPTY = "(empty)"
_NOTHING = NOTHING.items()
# Texts for readers, which the check does not write again: (section, end of the path).
_TEXTS = (
    ("metrics", "label"),
    ("metrics", "source"),
    ("arms", "label"),
    ("invalid", "example"),
    ("invalid", "problem"),
    ("shown_episode", ""),
    ("warnings", ""),
)
# Entries that older summaries of this schema do not have.
_LATER = (
    *("games_hashes", "checkpoint_hashes", "progress_known", "rewards"),
    *("objective", "start", "recipe", "layers"),
)
_SECTIONS = {
    "run": "run.json",
    "arms": "arms",
    "elicitation": "elicitation, seconds",
    "seconds": "elicitation, seconds",
    "information": "information, held-out losses",
    "held_out": "information, held-out losses",
    "rewards": "rewards",
    "invalid": "validity, admissibility",
    "splits": "splits of the gap",
    "trends": "trends",
    "metrics": "metrics and their limits",
}


@dataclass(frozen=True)
class Difference:
    """One number, or word, that is not what the records give. None: it is not there at all."""

    path: Path
    family: str
    reported: Any
    recomputed: Any


@dataclass
class Family:
    """What was compared of one family. `largest`: difference beyond the rounding of the file."""

    numbers: int = 0
    largest: float = 0.0
    different: int = 0


@dataclass
class Comparison:
    """All that was compared.

    Attributes:
      families: (family, values | intervals | p-values) -> what was compared.
      empty: numbers that both sides say were not measured.
      words: other entries that were compared, such as verdicts.
      left_out: name of what was not recomputed -> number of entries.
    """

    families: dict[tuple[str, str], Family] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    empty: int = 0
    words: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """Number of numbers that were compared."""
        return sum(each.numbers for each in self.families.values())


def compare(reported: Mapping[str, Any], recomputed: Mapping[str, Any]) -> Comparison:
    """Compare a summary, as it was read, with what `expected` gives."""
    found = Comparison()
    one, other = dict(_leaves(reported)), dict(_leaves(recomputed))
    for path in sorted(one.keys() | other.keys()):
        given, right = one.get(path, _ABSENT), other.get(path, _ABSENT)
        name = _text(path) if right is _ABSENT else _older(path) if given is _ABSENT else ""
        if name:
            found.left_out[name] = found.left_out.get(name, 0) + 1
            continue
        # What was not measured, or is empty, need not be written.
        if {given, right} <= {None, _ABSENT, _EMPTY} and _ABSENT in (given, right):
            found.empty += 1
            continue
        of = found.families.setdefault((family_of(path), _kind(path)), Family())
        numeric = _is_number(given) or _is_number(right)
        beyond = _beyond(path, given, right)
        if numeric:
            of.numbers += 1
            of.largest = max(of.largest, beyond)
        elif given is None and right is None:
            found.empty += 1
        else:
            found.words += 1
        if beyond > TOLERANCE:
            of.different += 1
            found.differences.append(Difference(path, family_of(path), given, right))
    return found


def shown(value: Any) -> str:
    """Return a value of a difference as text."""
    if value is _ABSENT:
        return "(no such entry)"
    return repr(value) if isinstance(value, str) else "null" if value is None else f"{value}"


def family_of(path: Path) -> str:
    """Return the family that a path belongs to."""
    section, *rest = path
    if section in _KEYS and not rest:
        return "the study as a whole"
    if section in ("points", "seed_points"):
        if rest[1] in _OF_METRICS and len(rest) > 2:
            return family(rest[2]) or "unknown metrics"
        return {"gap_p": "D3 and its gap", "invalid": "validity, admissibility"}.get(
            rest[1], "counts of episodes"
        )
    if section in ("changes", "arm_differences"):
        return family(rest[0].split(", ")[2]) or "unknown metrics"
    if section in ("placements", "primary"):
        return "share of the gain, verdicts"
    return _SECTIONS.get(section, "the study as a whole")


def metrics_of(path: Path) -> tuple[str, ...]:
    """Return the metrics that an entry was counted from; () for all of a place."""
    section, *rest = path
    if not rest:
        return ()
    if section in ("points", "seed_points"):
        if rest[1] in _OF_METRICS:
            return (rest[2],)
        return ("gap",) if rest[1] == "gap_p" else ()
    if section in ("changes", "arm_differences", "trends"):
        return (rest[0].split(", ")[2],)
    if section == "placements":
        _, _, measure, constrained = rest[0].split(", ")
        return MEASURES.get((measure, constrained == "True"), ())
    if section == "splits":
        return MEASURES.get((rest[0].split(", ")[2], False), ())
    return ()


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every entry with its path; an empty object or list is an entry of its own.

    A number that was not measured, with its interval and its number of states, is one null.
    """
    if isinstance(tree, Mapping) and tree.items() >= _NOTHING:
        yield path, None
    elif isinstance(tree, Mapping) and tree:
        for name, each in tree.items():
            yield from _leaves(each, (*path, str(name)))
    elif isinstance(tree, list | tuple) and tree:
        seen: dict[str, int] = {}
        for number, each in enumerate(tree):
            name = _row(path, number, each)
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:
                name += f" (row {seen[name]} of the same)"
            yield from _leaves(each, (*path, name))
    else:
        yield path, _EMPTY if isinstance(tree, Mapping | list | tuple) else tree


def _row(path: Path, number: int, row: Any) -> str:
    keys = _KEYS.get(path[0], ()) if path else ()
    depth = 2 if path and path[0] in ("information", "held_out") else 1
    if keys and len(path) == depth and isinstance(row, Mapping):
        return ", ".join(str(row.get(key)) for key in keys)
    return str(number)


def _text(path: Path) -> str:
    """Return the name of a text that is not written again; "" for all else."""
    for section, end in _TEXTS:
        if path[0] == section and (not end or (len(path) == 3 and path[-1] == end)):
            return f"{section}.{end}" if end else section
    return ""


def _older(path: Path) -> str:
    """Return the name of what older summaries do not have; "" for all else.

    A metric that they do not know is not measured there, or is missed at its points.
    """
    if path[0] == "metrics":
        return "metrics that this summary does not know"
    later = [name for name in _LATER if name in path]
    return f"{later[0]} (not in this summary)" if later else ""


def _kind(path: Path) -> str:
    if path[-1] in _P or (path[0] == "placements" and "levels" in path):
        return "p-values"
    # The limits of a metric have these names too.
    return "intervals" if path[-1] in _ENDS and path[0] not in ("metrics", "run") else "values"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _beyond(path: Path, given: Any, right: Any) -> float:
    """Return how far two entries differ beyond the rounding of the file; of p-values in parts."""
    if not (_is_number(given) and _is_number(right)) or not math.isfinite(given):
        same = type(given) is type(right) and given == right
        return 0.0 if same else math.inf
    if isinstance(right, int) or path[0] in ("run", "information", "held_out", "metrics", "arms"):
        return abs(given - right)
    if _kind(path) == "p-values":
        if right <= 0:
            return abs(given - right)
        half = 0.5 * 10.0 ** (math.floor(math.log10(right)) - _DIGITS + 1)
        return max(0.0, abs(given - right) - half) / right
    decimals = _SECONDS if path[0] == "seconds" else _DECIMALS
    return max(0.0, abs(given - right) - 0.5 * 10.0**-decimals)
