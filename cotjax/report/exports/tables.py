"""A run as tidy tables: one CSV file each, and one Parquet file where pyarrow is installed.

The same records give the same CSV bytes. A missing value is empty, a truth value `true` or
`false`. `docs/viewer.md` lists the tables and their columns.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from cotjax.diagnostics.episodes import action_of
from cotjax.diagnostics.metric import at_layer
from cotjax.diagnostics.probe_rows import ProbeRow, probe_files, read_probe
from cotjax.diagnostics.probes import PROBE_ROWS
from cotjax.formats import normalize_action
from cotjax.report.summarize import summarize
from cotjax.report.summary import Summary
from cotjax.rollout.record import KINDS, Record, Response, Turn, read_records
from cotjax.runtime.files import atomic_folder

Row = Mapping[str, Any]
_PLACE = {
    "arm": "whose weights; the base model is `base`",
    "training_seed": "seed that they were trained from, where the study names several",
    "checkpoint": "step of the checkpoint; the base is 0",
    "driver": "whose action the environment received; `reference`: expert states",
    "domain": "as in records",
    "game": "id of the game",
    "sample": "number of the episode among those of game and driver",
}
_ESTIMATE = {
    "value": "the estimate",
    "low": "lower end of its 95 % interval",
    "high": "upper end",
    "n": "states or episodes",
    "games": "games that they come from",
}
# Table -> column -> what it holds.
TABLES: Mapping[str, Mapping[str, str]] = {
    "episodes": {
        **_PLACE,
        "seed": "the study's seed",
        "task_type": "kind of task",
        "split": "split of the world's games",
        "task": "the instruction",
        "success": "the game was won",
        "score": "share of the goal reached",
        "ended": "how it ended",
        "steps": "number of turns",
        "env_error": "the fault that ended it",
        "env_faults": "number of the environment's faults",
        "environment_s": "seconds of the environment",
        "sampler_s": "seconds of decoding",
        "checkpoint_hash": "of the checkpoint",
        "games_hash": "of the study's games",
    },
    "turns": {
        **_PLACE,
        "turn": "number of the turn, from 0",
        "kind": "kind of action, or `reference`",
        "action": "the action; empty where the response is invalid",
        "valid": "the response is well-formed; empty for a choice or the expert's action",
        "reason": "why it is invalid",
        "admissible": "the action is among the admissible ones",
        "is_reference": "it is the expert's action; empty without one",
        "is_executed": "the environment received this kind's action",
        "thought": "the reasoning before it",
        "tokens": "that the model wrote; of a choice, that it was scored by",
        "logprob": "natural logarithm of their probability",
        "observation": "what the environment said before",
        "accepted": "the environment carried out what it received",
        "turn_score": "share of the goal reached after the turn",
    },
    "metrics": {
        "level": "`arm`: all seeds of an arm; `seed`: one of several",
        "arm": "the arm; at level `seed` the member, such as `named/seed-0`",
        "checkpoint": _PLACE["checkpoint"],
        "domain": _PLACE["domain"],
        "metric": "name of the metric; `attention_prompt@3` is that of layer 3, from 0",
        **_ESTIMATE,
    },
    "changes": {
        "arm": "the arm",
        "domain": _PLACE["domain"],
        "metric": "name of the metric",
        "minus": "empty: from the base; else the arm that is subtracted, at the same checkpoint",
        "from": "first checkpoint of a change",
        "to": "last checkpoint",
        **_ESTIMATE,
        "p": "exact p-value over games; empty for metrics over states",
    },
    "placements": {
        "arm": "the arm",
        "domain": _PLACE["domain"],
        "measure": "`d3` (whole episodes) or `d1` (expert states)",
        "constrained": "both actions are chosen among the admissible ones",
        "primary": "the page's verdict on this arm and domain",
        "verdict": "where the gain landed",
        **{
            f"{part}_{end}": f"{words}: {_ESTIMATE[end]}"
            for part, words in (
                ("share", "share of the gain in the prompt action"),
                ("total", "gain of the CoT action"),
                ("prompt", "gain of the prompt action"),
                ("gap", "change of the gap"),
            )
            for end in ("value", "low", "high")
        },
    },
    "probe_metrics": {
        "probe": "name of the probe",
        **_PLACE,
        "turn": "number of the turn",
        "metric": "name of the metric",
        "value": "what the state adds to it: 0 or 1 of a rate, the value of a mean",
    },
    "probe_rows": {
        "probe": "name of the probe",
        **_PLACE,
        "turn": "number of the turn",
        "field": "dotted name of a field of the row",
        "value": "its value, as JSON",
    },
}
_INTEGERS = {
    "checkpoint", "training_seed", "sample", "seed", "steps", "env_faults", "turn", "tokens", "n",
    "games", "from", "to",
}  # fmt: skip
_TRUTHS = {
    "success", "valid", "admissible", "is_reference", "is_executed", "accepted", "constrained",
    "primary",
}  # fmt: skip
_NUMBERS = {
    "score", "environment_s", "sampler_s", "logprob", "turn_score", "value", "low", "high", "p",
}  # fmt: skip
_BATCH = 20_000  # rows of a Parquet row group


@dataclass(frozen=True)
class Written:
    """What `export_tables` wrote. `rows`: table -> its number of rows."""

    rows: Mapping[str, int]
    parquet: bool


def export_tables(run_folder: str | Path, out: str | Path) -> Written:
    """Write the tables of a run to `out`, a new or an empty folder.

    Raises:
      DataError: records are missing or malformed; the message names the file.
      UsageError: `out` is not empty.
    """
    run_folder, parquet = Path(run_folder), find_spec("pyarrow") is not None
    with atomic_folder(out) as folder:
        summary = summarize(run_folder)
        rows = {
            "episodes": _episodes(run_folder),
            "turns": _turns(run_folder),
            "metrics": _metrics(summary),
            "changes": _changes(summary),
            "placements": _placements(summary),
            "probe_metrics": _probe_metrics(run_folder),
            "probe_rows": _probe_rows(run_folder),
        }
        counts = {name: _write(folder, name, of_table, parquet) for name, of_table in rows.items()}
    return Written(counts, parquet)


def _write(folder: Path, name: str, rows: Iterable[Row], parquet: bool) -> int:
    """Write a table in both forms; return its number of rows."""
    columns, count, remaining = TABLES[name], 0, iter(rows)
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="", errors="replace") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        writer = _parquet_writer(folder / f"{name}.parquet", name) if parquet else None
        try:
            while batch := list(islice(remaining, _BATCH)):
                table.writerows([_plain(row.get(column)) for column in columns] for row in batch)
                if writer is not None:
                    writer.write_table(_arrow(batch, writer.schema))
                count += len(batch)
        finally:
            if writer is not None:
                writer.close()
    return count


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value


def _parquet_writer(path: Path, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def kind(column: str) -> Any:
        if column in _INTEGERS:
            return pa.int64()
        if column in _TRUTHS:
            return pa.bool_()
        of_number = column in _NUMBERS or (name == "placements" and column.partition("_")[2])
        # Rows of probes have values of all kinds, as text.
        return pa.float64() if of_number and name != "probe_rows" else pa.string()

    fields = [
        pa.field(column, kind(column), metadata={"description": text})
        for column, text in TABLES[name].items()
    ]
    return pq.ParquetWriter(path, pa.schema(fields))


def _arrow(batch: Sequence[Row], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(
        [{column: row.get(column) for column in schema.names} for row in batch], schema=schema
    )


def _place(record: Record) -> dict[str, Any]:
    return {
        "arm": record.arm,
        "training_seed": record.training_seed,
        "checkpoint": record.checkpoint,
        "driver": record.driver,
        "domain": record.domain,
        "game": record.game.id,
        "sample": record.sample,
    }


def _episodes(run: Path) -> Iterator[Row]:
    for record in read_records(run / "records"):
        fields = record.model_dump(include=set(TABLES["episodes"]))
        yield (
            fields
            | _place(record)
            | {
                "task_type": record.game.task_type,
                "split": record.game.split,
                "steps": len(record.steps),
                "env_faults": len(record.env_faults),
                "environment_s": record.timing.environment_s,
                "sampler_s": record.timing.sampler_s,
            }
        )


def _turns(run: Path) -> Iterator[Row]:
    for record in read_records(run / "records"):
        for number, turn in enumerate(record.steps):
            common = _place(record) | {
                "turn": number,
                "observation": turn.observation,
                "accepted": turn.accepted,
                "turn_score": turn.score,
            }
            for kind in (*KINDS, "reference"):
                if getattr(turn, kind) is not None:
                    action = _action(turn, kind)
                    said = action.get("action")
                    expert = turn.reference
                    same = said is not None and expert is not None
                    yield (
                        common
                        | action
                        | {
                            "kind": kind,
                            "is_executed": kind == record.driver,
                            "is_reference": None
                            if expert is None
                            else same and normalize_action(str(said)) == normalize_action(expert),
                        }
                    )


def _action(turn: Turn, kind: str) -> dict[str, Any]:
    """Return the columns of one kind of action of a turn."""
    given = getattr(turn, kind)
    if isinstance(given, str):
        return {"action": given}
    if isinstance(given, Response):
        return {
            "action": action_of(given),
            "valid": given.valid,
            "reason": given.reason,
            "admissible": given.admissible,
            "thought": given.thought,
            "tokens": given.new_tokens,
            "logprob": given.logprob,
        }
    listed = list(turn.admissible_commands or ())
    place = listed.index(given.action) if given.action in listed else None
    return {
        "action": given.action,
        "admissible": given.action is not None,
        "tokens": None if place is None else given.tokens[place],
        "logprob": None if place is None else given.logprobs[place],
    }


def _metrics(summary: Summary) -> Iterator[Row]:
    for level, points in (("arm", summary.points), ("seed", summary.seed_points)):
        for point in points:
            by_layer = {
                at_layer(metric, layer): each
                for metric, estimates in point.layers.items()
                for layer, each in enumerate(estimates)
            }
            for metric, estimate in (point.metrics | by_layer).items():
                if estimate.measured:
                    yield {
                        "level": level,
                        "arm": point.arm,
                        "checkpoint": point.checkpoint,
                        "domain": point.domain,
                        "metric": metric,
                        **vars(estimate),
                    }


def _changes(summary: Summary) -> Iterator[Row]:
    for change in summary.changes:
        yield {
            "arm": change.arm,
            "domain": change.domain,
            "metric": change.metric,
            "from": change.first,
            "to": change.last,
            "p": change.p,
            **vars(change.estimate),
        }
    for difference in summary.arm_differences:
        yield {
            "arm": difference.arm,
            "domain": difference.domain,
            "metric": difference.metric,
            "minus": difference.minus,
            "to": difference.checkpoint,
            "p": difference.p,
            **vars(difference.estimate),
        }


def _placements(summary: Summary) -> Iterator[Row]:
    for placed in summary.placements:
        row: dict[str, Any] = {
            name: getattr(placed, name)
            for name in ("arm", "domain", "measure", "constrained", "primary")
        }
        row["verdict"] = str(placed.placement.verdict)
        for part in ("share", "total", "prompt", "gap"):
            estimate = getattr(placed.placement, part)
            for end in ("value", "low", "high"):
                row[f"{part}_{end}"] = getattr(estimate, end)
        yield row


def _probed(run: Path) -> Iterator[tuple[dict[str, Any], ProbeRow]]:
    """Yield (the columns of its place, the row) of every row of every probe."""
    for probe, model in PROBE_ROWS.items():
        for path in probe_files(run, probe):
            heading, rows = read_probe(path, model)
            for row in rows:
                place = row.model_dump(include={"driver", "domain", "game", "sample", "turn"})
                names = ("arm", "training_seed", "checkpoint")
                where = {name: getattr(heading, name) for name in names}
                yield {"probe": probe} | where | place, row


def _probe_metrics(run: Path) -> Iterator[Row]:
    for place, row in _probed(run):
        for metric, value in row.counts().items():
            yield place | {"metric": metric, "value": float(value)}


def _probe_rows(run: Path) -> Iterator[Row]:
    for place, row in _probed(run):
        fields = row.model_dump(mode="json", exclude=set(ProbeRow.model_fields))
        for name, value in _flat(fields):
            yield place | {"field": name, "value": json.dumps(value, ensure_ascii=False)}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of nested objects; lists stay whole."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
