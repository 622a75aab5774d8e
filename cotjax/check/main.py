"""`cotjax study --check RUN`: every number of a report, recomputed from the records by other code.

This room shares no code with `cotjax.diagnostics` and `cotjax.report`, which made the report: it
reads the files of a run with json alone, judges every state anew, and has intervals, tests and
verdicts of its own. docs/statistics.md says what that proves and what it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from cotjax.check.compare import Comparison, Difference, Family, compare, metrics_of, shown
from cotjax.check.episodes import Tally
from cotjax.check.fields import read
from cotjax.check.metrics import DIFFERENCES
from cotjax.check.searches import check_searches, is_stages
from cotjax.check.study import BASE, Study, read_study
from cotjax.check.summary import SCHEMA, expected
from cotjax.errors import DataError

_KINDS = ("values", "intervals", "p-values")
_REPORT = "write it with `cotjax report`"


def check(folder: Path, say: Callable[[str], None] = print) -> bool:
    """Recompute a finished run's report, say what was found, and return whether all agrees.

    Raises:
      DataError: a file is missing or malformed, or the summary is of another schema.
    """
    if is_stages(folder):
        return check_searches(folder, say)
    path = folder / "summary.json"
    if not path.exists():
        raise DataError(f"{path}: there is none; {_REPORT}, or name the folder of a finished run")
    summary = read(path, _REPORT)
    if summary.content.get("schema_version") != SCHEMA:
        version = summary.content.get("schema_version")
        raise DataError(f"{path}: schema_version is {version!r:.20}, not {SCHEMA}; {_REPORT} again")
    study = read_study(folder)
    compared = compare(summary.content, expected(study))
    for line in lines_of(compared, study):
        say(line)
    return not compared.differences


def lines_of(compared: Comparison, study: Study) -> Iterable[str]:
    """Yield the table, what was not recomputed, and a line for each number that differs."""
    yield (
        f"Recomputed from {study.records.files} episode records and {_files(study.probes)}. Each "
        "cell: how many numbers, and the largest difference beyond the rounding of the file."
    )
    yield ""
    head = ("measure family", *_KINDS, "differ")
    rows: list[tuple[str, ...]] = [head]
    for name in sorted({name for name, _ in compared.families}):
        kinds = [compared.families.get((name, kind), Family()) for kind in _KINDS]
        different = sum(each.different for each in kinds)
        rows.append((name, *map(_cell, kinds), str(different or "–")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = zip(row[1:], widths[1:], strict=True)
        yield "  ".join((row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in cells)))
    yield ""
    yield (
        f"{compared.numbers} numbers and {compared.words} words compared; {compared.empty} "
        "entries are null or empty on both sides, for nothing was measured."
    )
    if compared.left_out:
        names = ", ".join(f"{name} ({number})" for name, number in compared.left_out.items())
        yield f"Not compared, for they are texts or not in this summary: {names}."
    for each in compared.differences:
        yield line_of(each, study)
    number = len(compared.differences)
    yield f"{number} differ." if number else "All agree."


def line_of(difference: Difference, study: Study) -> str:
    """Return a difference in one line: where it stands, both numbers, and the files behind it."""
    where = ".".join(
        f"[{part}]" if ", " in part or part.isdigit() else part for part in difference.path
    ).replace(".[", "[")
    return (
        f"DIFFERS {where}: reported {shown(difference.reported)}, recomputed "
        f"{shown(difference.recomputed)}; from {sources(difference, study)}"
    )


def sources(difference: Difference, study: Study) -> str:
    """Return the folders of the files that a number was counted in, with their number."""
    section, *rest = difference.path
    given = {"run": "run.json", "arms": "run.json", "primary": "run.json and all records"}
    if section in ("information", "held_out"):
        name = "information" if section == "information" else "metrics"
        return f"arms/{rest[0] if rest else '*'}/{name}.jsonl"
    key = rest[0].split(", ") if rest else []
    checkpoints = {0, study.last}
    if section in ("points", "seed_points") and len(key) == 3:
        arms, checkpoints, domain = [key[0]], {int(key[1])}, key[2]
    elif section in ("changes", "arm_differences", "trends", "placements", "splits") and key:
        arms, domain = [key[0]], key[1]
        if section == "arm_differences":
            minus = study.arms[key[0]].minus if key[0] in study.arms else None
            arms, checkpoints = [key[0], *([minus] if minus else [])], {study.last}
        if section == "splits":
            arms, checkpoints = list(study.arms), {study.last}
        if section == "trends":
            checkpoints = {place[1] for place in study.records.tallies}
    else:
        return given.get(section, "all records")
    metrics = metrics_of(difference.path)
    files = set().union(*_counted(study, arms, checkpoints, domain, metrics))
    return _folders(study.folder, files) or "no file: nothing was counted there"


def _counted(
    study: Study,
    arms: Iterable[str],
    checkpoints: Collection[int],
    domain: str,
    metrics: Iterable[str],
) -> Iterable[set[Path]]:
    single = {
        each for metric in metrics for name in DIFFERENCES.get(metric, (metric,))
        for each in DIFFERENCES.get(name, (name,))
    }  # fmt: skip
    places = {(BASE, 0)} if 0 in checkpoints else set()
    for arm in arms:
        names = study.arms[arm].seeds if arm in study.arms else (arm,)
        places |= {(name, checkpoint) for name in names for checkpoint in checkpoints}
        if 0 in checkpoints:
            places |= {study.starts[name] for name in names if name in study.starts}
    for (name, checkpoint, place), tally in study.records.tallies.items():
        if (name, checkpoint) in places and place == domain:
            yield _files_of(tally, single)


def _files_of(tally: Tally, metrics: Collection[str]) -> set[Path]:
    found = [files for name, files in tally.files.items() if not metrics or name in metrics]
    return set().union(*found)


def _folders(folder: Path, files: Collection[Path]) -> str:
    """Return files by their folders: one by name, more by number."""
    by_folder: dict[Path, list[Path]] = {}
    for file in sorted(files):
        by_folder.setdefault(file.parent, []).append(file)
    return ", ".join(
        str(inside[0].relative_to(folder))
        if len(inside) == 1
        else f"{parent.relative_to(folder)}/ ({len(inside)} files)"
        for parent, inside in by_folder.items()
    )


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'} of probes"


def _cell(family: Family) -> str:
    if not family.numbers:
        return "–"
    largest = "absent" if math.isinf(family.largest) else f"{family.largest:.0e}"
    return f"{family.numbers}, {'0' if not family.largest else largest}"
