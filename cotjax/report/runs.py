"""Several runs on one page: their primary estimands side by side, and the answer of each.

The runs are made by one protocol or they are not; what differs is said first, for a difference
between two runs is one of training only where all else is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic_core import from_json
from rich.console import Console

from cotjax.diagnostics.metrics import METRICS
from cotjax.errors import DataError
from cotjax.report.elicitations import DRIVERS, FIELDS
from cotjax.report.front import Front, front_of
from cotjax.report.labels import capitalize, domain_label
from cotjax.report.page import make_report, title_of
from cotjax.report.panels import COLOURS
from cotjax.report.section import SectionRow, SectionTable
from cotjax.report.summary import Summary
from cotjax.report.verdicts import VERDICT_COLUMNS, primary_row
from cotjax.report.viewer.make import run_names
from cotjax.rollout.record import READABLE_SCHEMAS, record_files
from cotjax.runtime.files import write_atomic
from cotjax.runtime.pages import load_template

PAGE = "runs.html"
ONE_PROTOCOL = "All runs were made by one protocol."


@dataclass(frozen=True)
class RunPart:
    """One run on the page.

    Attributes:
      name: of its folder, with a number where another run has the same.
      report: address of its own report.
      schema: of its records.
      unfinished: what is missing, and what to do; "" where nothing is.
    """

    name: str
    report: str
    schema: str
    front: Front
    unfinished: str


def report_runs(
    run_folders: Sequence[str | Path],
    out: str | Path | None = None,
    console: Console | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the report of each run, and of several the page of all; return the last path.

    Args:
      out: folder of the page of all; None: the first run's.
      console: prints each run's table.
      warn: gets a line for each run that is unfinished.

    Raises:
      DataError: a run is missing, was not played, or has records of another schema; the message
        names the folder and says what to do.
    """
    folders = [Path(folder) for folder in run_folders]
    for folder in folders:
        check_run(folder)
    summaries = [make_report(folder, console) for folder in folders]
    for folder, summary in zip(folders, summaries, strict=True):
        if line := unfinished(folder, summary):
            warn(line)
    if len(folders) == 1:
        return folders[0] / "report.html"
    return write_runs(folders, summaries, folders[0] if out is None else Path(out))


def check_run(folder: Path) -> None:
    """Raise DataError unless this folder holds a run that was played, of a schema that is read."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; give the folder of a run, the --out of `cotjax study`"
        )
    try:
        first = record_files(folder / "records")[0]
    except DataError:
        stage = "trained but not played" if (folder / "arms").is_dir() else "not a run"
        raise DataError(
            f"{folder}: {stage}, for it has no records/; play it with `cotjax evaluate --config "
            f"FILE --out {folder}`, or give another folder"
        ) from None
    version = _schema(first)
    if version not in (None, *READABLE_SCHEMAS):
        raise DataError(
            f"{folder}: its records are of schema {version!r:.20}, and this version reads "
            f"{', '.join(map(str, READABLE_SCHEMAS))}; report it with the version that played it, "
            "or play it again into a new folder"
        )


def _schema(record: Path) -> object:
    """Return the schema version of a record; None of a broken one, which its reader names."""
    try:
        content = from_json(record.read_bytes())
    except ValueError:
        return None
    return content.get("schema_version") if isinstance(content, Mapping) else None


def unfinished(folder: Path, summary: Summary) -> str:
    """Return what a run lacks and what to do, in a line that names its folder; "" for nothing."""
    run, lacks = summary.run, []
    if not run:
        lacks.append("run.json")
    played = {place.rpartition("/")[0] for place in summary.checkpoint_hashes}
    if unplayed := sorted(set(run.get("arms") or {}) - played):
        lacks.append(f"records of {', '.join(unplayed)}")
    steps = sorted({int(step) for step in run.get("checkpoints") or []} - {*summary.checkpoints})
    if steps:
        lacks.append(f"records at checkpoint {', '.join(map(str, steps))}")
    if not lacks:
        return ""
    return (
        f"{folder}: unfinished, without {' and '.join(lacks)}; run the command that made it again, "
        "which resumes"
    )


def write_runs(folders: Sequence[Path], summaries: Sequence[Summary], out: Path) -> Path:
    """Write the page of runs whose reports are written; return its path."""
    parts = []
    for number, (name, folder, summary) in enumerate(
        zip(run_names(folders), folders, summaries, strict=True)
    ):
        title = title_of(summary, folder)
        report = quote(Path(os.path.relpath(folder / "report.html", out)).as_posix())
        front = front_of(summary, f"{name}: {title}", f"run{number}-")
        schema = str(_schema(record_files(folder / "records")[0]))
        parts.append(RunPart(name, report, schema, front, unfinished(folder, summary)))
    page = load_template(Path(__file__).parent / "runs.html.jinja").render(
        parts=parts,
        protocol=protocol_line(parts),
        differences=differences(parts),
        compared=compared(parts),
        palette=COLOURS,
        labels={name: metric.label for name, metric in METRICS.items()},
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / PAGE, page)
    return out / PAGE


def compared(parts: Sequence[RunPart]) -> list[SectionTable]:
    """Return the primary estimands of all runs and arms, a table a domain."""
    domains = dict.fromkeys(domain for part in parts for domain in part.front.summary.domains)
    tables = []
    for domain in domains:
        rows = []
        for part in parts:
            summary = part.front.summary
            for arm in summary.arms:
                placed = summary.placed(arm, domain)
                if placed is None:
                    continue
                row = primary_row(summary, placed)
                number = len(summary.arms[arm].seeds)
                seeds = f"{number} seed{'' if number == 1 else 's'}"
                by = placed.measure.upper() + ", constrained" * placed.constrained
                behind = f"{by}, {placed.placement.total.games} games, {seeds}"
                rows.append(SectionRow(f"{part.name}: {row.label}", row.cells, note=behind))
        if rows:
            title = capitalize(domain_label(domain))
            tables.append(SectionTable(title, VERDICT_COLUMNS, tuple(rows), rows_are="run: arm"))
    return tables


def protocol_line(parts: Sequence[RunPart]) -> str:
    """Return whether the runs were made by one protocol, in a sentence."""
    table = differences(parts)
    if not table.rows:
        return ONE_PROTOCOL
    return (
        f"The runs differ in {', '.join(row.label for row in table.rows)}: a difference between "
        "them is not one of training alone."
    )


def differences(parts: Sequence[RunPart]) -> SectionTable:
    """Return what differs between the protocols of runs: a row a setting, a column a run."""
    settings = [
        {"schema of the records": part.schema, **dict(_protocol(part.front.summary))}
        for part in parts
    ]
    names = dict.fromkeys(name for each in settings for name in each)
    # That a run has no episodes of a kind is said once, not for each of their settings.
    missing = [f"({each})" for each in DRIVERS.values() if not all(each in of for of in settings)]
    rows = tuple(
        SectionRow(name, tuple(each.get(name, "–") for each in settings))
        for name in names
        if len({each.get(name) for each in settings}) > 1 and not name.endswith(tuple(missing))
    )
    columns = tuple(part.name for part in parts)
    return SectionTable("", columns, rows, rows_are="what differs", words=tuple(range(len(parts))))


def _protocol(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield what must be the same for numbers to be compared, as (name, text)."""
    run, primary = summary.run, summary.primary
    yield "world", summary.world
    yield "games (hash)", ", ".join(each[:12] for each in summary.games_hashes)
    yield "domains", ", ".join(map(domain_label, summary.domains))
    kinds = "constrained actions" if primary.constrained else "freely decoded actions"
    yield "measure of the verdicts", f"{primary.measure.upper() or 'by domain'}, {kinds}"
    yield "margin", f"{100 * primary.margin:g} points"
    yield "verdicts fixed beforehand", "yes" if primary.fixed else "no"
    model = run.get("model")
    if isinstance(model, Mapping):
        yield "parameters", str(model.get("parameters", "–"))
    prompt = run.get("prompt")
    if isinstance(prompt, Mapping) and isinstance(prompt.get("settings"), Mapping):
        yield from ((f"prompt: {name}", str(text)) for name, text in prompt["settings"].items())
    for use in summary.elicitation:
        yield DRIVERS.get(use.driver, use.driver), "played"
        yield from _elicitation(use.driver, use.elicitation)


def _elicitation(driver: str, elicitation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in elicitation.items():
        yield f"{FIELDS.get(name, name)} ({DRIVERS.get(driver, driver)})", str(value)
