"""What the page says about a run: its settings, and how actions were drawn out of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotjax.report.elicitations import DRIVERS, in_words
from cotjax.report.summary import SCHEMA_VERSION, Summary
from cotjax.runtime.claim import protocol_hash
from cotjax.runtime.settings import flatten

_FOLDED = 12  # rows; a section with more is shown on demand


@dataclass(frozen=True)
class Facts:
    """A section of settings: (name, value) rows. `folded`: shown on demand."""

    title: str
    rows: tuple[tuple[str, str], ...]
    folded: bool = False


def elicitation_facts(summary: Summary) -> list[Facts]:
    """Return one table for each different elicitation, titled by the records made with it."""
    merged: list[tuple[dict[str, Any], list[str]]] = []
    for use in summary.elicitation:
        records = f"{use.records} {DRIVERS.get(use.driver, use.driver)}"
        for elicitation, titles in merged:
            if elicitation == use.elicitation:
                titles.append(records)
                break
        else:
            merged.append((use.elicitation, [records]))
    return [
        Facts(", ".join(titles), _rows(in_words(elicitation))) for elicitation, titles in merged
    ]


def prompt_facts(run: Mapping[str, Any]) -> tuple[Facts | None, str]:
    """Return the prompt's settings and an example prompt; None and "" where run.json has none."""
    prompt = run.get("prompt")
    if not isinstance(prompt, dict):
        return None, ""
    settings = prompt.get("settings")
    facts = Facts("Prompt", _rows(settings)) if isinstance(settings, dict) else None
    return facts, str(prompt.get("text") or "")


def protocol_facts(summary: Summary) -> Facts:
    """Return what the verdicts were fixed to, the seeds, and the hashes of what was played."""
    primary = summary.primary
    fixed = "the config, beforehand" if primary.fixed else "nobody: see the warnings"
    rows = [
        ("schema of summary.json", str(SCHEMA_VERSION)),
        ("the verdicts' measure was fixed by", fixed),
        ("margin of the gap, points", f"{100 * primary.margin:g}"),
        ("tests in the family", str(primary.tests)),
    ]
    for arm in summary.arms.values():
        seeds = ", ".join("not known" if seed is None else str(seed) for seed in arm.seeds.values())
        rows.append((f"seeds of {arm.label}", seeds))
    if config := summary.run.get("config"):
        rows.append(("hash of the config", protocol_hash(config)))
    rows.append(("hash of the games", ", ".join(summary.games_hashes)))
    rows += [
        (f"hash of checkpoint {place}", ", ".join(hashes))
        for place, hashes in summary.checkpoint_hashes.items()
    ]
    return Facts("Seeds and hashes", tuple(rows), folded=True)


def run_facts(summary: Summary) -> list[Facts]:
    """Return run.json in sections, the config last, with the records' seconds."""
    titles = {"data": "Training data", "train": "Training", "seconds": "Seconds per stage"}
    shown_above = ("title", "checkpoints", "prompt")
    rest = {
        key: value
        for key, value in summary.run.items()
        if key not in shown_above and value not in (None, {}, [])
    }
    single = [(key, _plain(value)) for key, value in rest.items() if not isinstance(value, dict)]
    if summary.run.get("world") != summary.world:
        single.append(("world of the records", summary.world))
    single += [
        (f"seconds in records, {kind}", f"{seconds:.1f}")
        for kind, seconds in summary.seconds.items()
    ]
    sections = [
        Facts(titles.get(key, key.replace("_", " ").capitalize()), rows, folded=len(rows) > _FOLDED)
        for key, value in sorted(rest.items(), key=lambda item: item[0] == "config")
        if isinstance(value, dict) and (rows := _rows(value))
    ]
    return [Facts("Run", tuple(single)), *sections]


def _rows(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return nested settings as (dotted name, text) rows."""
    return tuple((name, _plain(value)) for name, value in flatten(settings).items())


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value) if value not in ("", {}) else "(empty)"
