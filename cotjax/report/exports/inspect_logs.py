"""A run's episodes as logs of the package inspect_ai, which `inspect view` opens.

One log holds the episodes of an arm, a checkpoint, a driver and a domain. Each episode is a
sample: its observations are messages of the user, the model's thoughts and actions messages of the
assistant. What was decoded beside the executed action is metadata of its message. An expert's
episode is scored by the agreement with the expert (D1); what was sent there is the expert's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from cotjax.diagnostics.episodes import action_of
from cotjax.errors import UsageError
from cotjax.formats import normalize_action
from cotjax.rollout.record import KINDS, Record, Response, Turn, read_record, record_files
from cotjax.runtime.files import atomic_folder, read_json

_FREE = ("cot", "prompt", "instructed")


def export_inspect(run_folder: str | Path, out: str | Path) -> list[Path]:
    """Write the logs of a run's episodes to `out`, a new or an empty folder; return their paths.

    Raises:
      DataError: records are missing or malformed; the message names the file.
      UsageError: `out` is not empty, or inspect_ai is not installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ModuleNotFoundError:
        raise UsageError(
            'this needs the package inspect_ai: pip install "cotjax[inspect]"'
        ) from None
    run = Path(run_folder)
    paths = record_files(run / "records")
    about = read_json(run / "run.json", "cotjax") if (run / "run.json").is_file() else {}
    names = []
    with atomic_folder(out) as folder:
        # Paths end with <checkpoint>/<driver>/<file>, so a folder's records are read together.
        for _, of_folder in groupby(paths, key=lambda path: path.parent):
            by_domain: dict[str, list[Record]] = {}
            for path in of_folder:
                record = read_record(path)
                by_domain.setdefault(record.domain, []).append(record)
            for records in by_domain.values():
                name = f"{_name(records[0])}.eval"
                write_eval_log(_log(run, about, records), folder / name)
                names.append(name)
    return [Path(out) / name for name in names]


def _name(record: Record) -> str:
    parts = record.member, str(record.checkpoint), record.driver, record.domain
    readable = "_".join(re.sub(r"[^\w-]", "-", part) for part in parts)
    return f"{readable}_{_digest(*parts)[:8]}"


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:22]


def _log(run: Path, about: Mapping[str, Any], records: Sequence[Record]) -> Any:
    from inspect_ai.log import EvalLog, EvalResults, EvalStats

    created = _when(run)
    samples = [_sample(record) for record in records]
    return EvalLog(
        status="success",
        eval=_spec(run, about, records, created),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=sum(record.ended != "env_error" for record in records),
            scores=_means(samples),
        ),
        stats=EvalStats(started_at=created, completed_at=created),
        samples=samples,
    )


def _spec(run: Path, about: Mapping[str, Any], records: Sequence[Record], created: str) -> Any:
    """Return what a log says about all of its samples."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalSpec

    first = records[0]
    return EvalSpec(
        eval_id=_digest(run.name, _name(first)),
        run_id=_digest(run.name),
        task_id=_digest(_name(first)),
        created=created,
        task=f"{first.world}, {first.domain}, {first.driver}",
        task_args={"driver": first.driver, "domain": first.domain},
        dataset=EvalDataset(
            name=f"{first.world} {first.domain}",
            samples=len(records),
            sample_ids=sorted({record.game.id for record in records}),
        ),
        model=f"cotjax/{first.member}@{first.checkpoint}",
        config=EvalConfig(epochs=1 + max(record.sample for record in records)),
        metadata={
            "run": run.name,
            "arm": first.arm,
            "training_seed": first.training_seed,
            "checkpoint": first.checkpoint,
            "checkpoint_hash": first.checkpoint_hash,
            "games_hash": first.games_hash,
            "elicitation": first.elicitation,
            "base": str((about.get("model") or {}).get("base", "")),
        },
    )


def _means(samples: Sequence[Any]) -> list[Any]:
    """Return the mean of each score over the samples that have it."""
    from inspect_ai.log import EvalMetric, EvalScore

    scores: dict[str, list[float]] = {}
    for sample in samples:
        for name, score in (sample.scores or {}).items():
            scores.setdefault(name, []).append(float(score.value))
    return [
        EvalScore(
            name=name,
            scorer=name,
            scored_samples=len(values),
            metrics={"mean": EvalMetric(name="mean", value=sum(values) / len(values))},
        )
        for name, values in scores.items()
    ]


def _when(run: Path) -> str:
    """Return when the run's records were described, as ISO 8601; in 1970 where nothing says."""
    file = run / "run.json"
    seconds = int(file.stat().st_mtime) if file.is_file() else 0
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _sample(record: Record) -> Any:
    from inspect_ai._util.error import EvalError
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageUser

    place = record.member, record.checkpoint, record.driver, record.game.id, record.sample
    key = _digest(*place)
    messages: list[Any] = []
    for number, turn in enumerate(record.steps):
        said = f"{record.task}\n\n{turn.observation}" if number == 0 else turn.observation
        messages.append(ChatMessageUser(id=f"{key}-{number}-user", content=said))
        messages.append(_assistant(record, turn, f"{key}-{number}"))
    if record.final_observation is not None:
        messages.append(ChatMessageUser(id=f"{key}-end", content=record.final_observation))
    error = None
    if record.env_error is not None:
        error = EvalError(message=record.env_error, traceback="", traceback_ansi="")
    return EvalSample(
        id=record.game.id,
        epoch=record.sample + 1,
        uuid=key,
        input=record.task,
        target=[turn.reference for turn in record.steps if turn.reference is not None],
        messages=messages,
        scores=_scores(record),
        error=error,
        total_time=record.timing.total_s,
        metadata={
            "driver": record.driver,
            "arm": record.arm,
            "training_seed": record.training_seed,
            "checkpoint": record.checkpoint,
            "game": record.game.id,
            "task_type": record.game.task_type,
            "domain": record.domain,
            "seed": record.seed,
            "sample": record.sample,
            "ended": record.ended,
            "steps": len(record.steps),
            "env_faults": list(record.env_faults),
        },
    )


def _assistant(record: Record, turn: Turn, key: str) -> Any:
    """Return the message of what was executed, with the other actions as its metadata."""
    from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ContentText

    beside: dict[str, Any] = {"accepted": turn.accepted, "score": turn.score}
    for kind in KINDS:
        given = getattr(turn, kind)
        if isinstance(given, Response):
            beside[kind] = {
                "action": action_of(given),
                "thought": given.thought,
                "problem": given.problem,
                "logprob": given.logprob,
            }
        elif given is not None:
            beside[kind] = {"action": given.action}
    if turn.reference is not None:
        beside["reference"] = turn.reference
    own = getattr(turn, record.driver) if record.driver in _FREE else None
    thought = own.thought if own is not None else None
    content: list[Any] = [ContentReasoning(reasoning=thought)] if thought else []
    text = turn.executed or (own.text if own is not None else "")
    return ChatMessageAssistant(
        id=f"{key}-assistant",
        content=[*content, ContentText(text=text)],
        source="generate",
        model=f"cotjax/{record.member}@{record.checkpoint}",
        metadata=beside,
    )


def _scores(record: Record) -> dict[str, Any]:
    """Return the scores of an episode; none where its environment broke it."""
    from inspect_ai.scorer import Score

    if record.ended == "env_error":
        return {}
    if record.driver != "reference":
        scores: dict[str, float] = {"success": float(record.success)}
        if record.score is not None:
            scores["score"] = record.score
        return {name: Score(value=value) for name, value in scores.items()}
    agreements = {}
    for kind in _FREE:
        hits = [
            action_of(getattr(turn, kind)) == normalize_action(turn.reference or "")
            for turn in record.steps
            if getattr(turn, kind) is not None
        ]
        if hits:
            agreements[f"d1_{kind}"] = Score(value=sum(hits) / len(hits))
    return agreements
