"""summary.json: every number of a study's report, with its interval.

Schema, version 1 (an estimate is {"value", "low", "high", "n", "games"}: 95 % interval, n states or episodes over that many games; value,
low and high are null where nothing was measured; values and ends are rounded to 6 decimals):

    schema_version   1
    run              run.json as it stands ({} when there is none)
    arms             {arm: {"label", "fraction"}} in the order of run.json; "base" is an arm here only when no other arm has records
    baseline         the arm that the others are compared with: the one with the smallest fraction of dropped action losses
    checkpoints      [0, 50, …] every checkpoint with records; 0 is the base model, the first point of every arm
    last_checkpoint  the last checkpoint that every arm has
    domains          ["in_domain", "ood"], those with records
    metrics          {metric: {"label", "source": driver of its records (a difference: "both"), "kind": "rate" | "mean" | "difference"}}
    elicitation      [{"driver", "elicitation": {…}, "records": n}] as found in the records; more than one a driver is also a warning
    intervals        {"level", "resamples", "seed"}
    points           [{"arm", "checkpoint", "domain", "episodes": {driver: {"played", "won", "env_error", "ended": {how: n}}},
                       "metrics": {metric: estimate}, "gap_p": p-value | null,
                       "invalid": {driver: {reason: responses}}: why responses had no valid action (cotjax.formats.PROBLEMS),
                       "env_faults": {driver: n}: times that an environment failed, replaced or not}]
    changes          [{"arm", "domain", "metric", "from", "to", estimate…, "p"}]: last_checkpoint minus base, on the same games
    arm_differences  [{"domain", "metric", "arm", "minus": baseline, "checkpoint", estimate…, "p"}]: arms at last_checkpoint, same games
    shown_episode    path below the run folder of the episode that the report shows, or null
    seconds          {"environment", "sampler"}: summed over the records
    warnings         [sentence, …]: what makes the study weaker than it looks

"p" is two-sided and exact (a sign test over games; McNemar's where each game was played once), null for metrics over states. "played"
leaves out "env_error". A metric's "env_error" episodes are in no estimate.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from cotjax.diagnostics import statistics
from cotjax.diagnostics.episodes import EpisodeCounts as Episode
from cotjax.diagnostics.episodes import count_records
from cotjax.diagnostics.metrics import (
    METRICS,
    Point,
    contrast,
    contrast_p,
    points,
)
from cotjax.diagnostics.statistics import Estimate
from cotjax.errors import DataError
from cotjax.runtime.files import write_whole

SCHEMA_VERSION = 1
BASE = "base"
# What is compared across checkpoints and arms: success and its gap (with a test), and the qualities of the actions on expert states.
COMPARED = (
    "d3_cot",
    "d3_prompt",
    "gap",
    "d1_cot",
    "d1_prompt",
    "d1_gap",
    "revision",
    "revision_helpful",
    "revision_harmful",
)
_TESTED = ("d3_cot", "d3_prompt", "gap")
_REASONED_ENOUGH = 0.9
_DOMAINS = ("in_domain", "ood")


def summarize(run_folder: str | Path) -> dict:
    """Read `run_folder`/records and run.json, write `run_folder`/summary.json, and return it.

    Raises DataError, naming the file, when the records are missing, empty or broken. The same records give the same bytes.
    """
    run_folder = Path(run_folder)
    run = _read_run(run_folder / "run.json")
    episodes = count_records(run_folder / "records")
    found = points(episodes)
    arms = _arms(run, {episode.arm for episode in episodes})
    domains = sorted(
        {domain for _, _, domain in found},
        key=lambda d: (_DOMAINS.index(d) if d in _DOMAINS else len(_DOMAINS), d),
    )
    curves = {arm: _curve(found, arm, domains) for arm in arms}
    checkpoints = sorted({checkpoint for curve in curves.values() for checkpoint, _ in curve})
    shared = set.intersection(
        *({checkpoint for checkpoint, _ in curve} for curve in curves.values())
    )
    if not shared:
        raise DataError(
            f"{run_folder / 'records'}: the arms {', '.join(arms)} have no checkpoint in common; run `cotjax evaluate` for all of them"
        )
    last, baseline = max(shared), min(arms, key=lambda arm: arms[arm]["fraction"] or 0.0)
    shown = _shown_episode(episodes, baseline, last)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "arms": arms,
        "baseline": baseline,
        "checkpoints": checkpoints,
        "last_checkpoint": last,
        "domains": domains,
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "elicitation": _elicitation(episodes),
        "intervals": {
            "level": statistics.LEVEL,
            "resamples": statistics.RESAMPLES,
            "seed": statistics.SEED,
        },
        "points": [
            _point(arm, checkpoint, domain, point)
            for arm in arms
            for (checkpoint, domain), point in curves[arm].items()
        ],
        "changes": _changes(curves, domains, last),
        "arm_differences": _arm_differences(curves, domains, baseline, last),
        "shown_episode": str(shown.path.relative_to(run_folder)) if shown else None,
        "seconds": {
            kind: round(sum(getattr(e, f"{kind}_s") for e in episodes), 3)
            for kind in ("environment", "sampler")
        },
    }
    summary["warnings"] = _warnings(summary, run, found) + _mixed(episodes)
    write_whole(
        run_folder / "summary.json",
        json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    return summary


def find_point(summary: dict, arm: str, checkpoint: int, domain: str) -> dict | None:
    """The summary's point at (arm, checkpoint, domain), or None where there are no records."""
    wanted = {"arm": arm, "checkpoint": checkpoint, "domain": domain}
    return next((point for point in summary["points"] if wanted.items() <= point.items()), None)


def terminal_table(summary: dict) -> Table:
    """Base and last checkpoint of every arm, in percent: success by both kinds of action, the gap, D1 and the revision rate. 80 columns."""
    run = summary["run"]
    table = Table(
        title=f"{run.get('title') or run.get('name') or 'study'}\nin percent, with 95 % intervals",
        box=SIMPLE,
        padding=(0, 0, 0, 1),
    )
    table.add_column("arm, step", overflow="fold")
    for title in ("CoT\nsuccess", "prompt\nsuccess", "gap", "D1\nCoT", "D1\nprompt", "revised"):
        table.add_column(title, justify="right", no_wrap=True)
    names = ("d3_cot", "d3_prompt", "gap", "d1_cot", "d1_prompt", "revision")
    for domain in summary["domains"]:
        table.add_section()
        wanted = [
            (arm, checkpoint)
            for checkpoint in dict.fromkeys((0, summary["last_checkpoint"]))
            for arm in summary["arms"]
        ]
        rows, seen_base = [], False
        for arm, checkpoint in wanted:
            point = find_point(summary, arm, checkpoint, domain)
            if point is None or (checkpoint == 0 and seen_base):
                continue
            seen_base |= checkpoint == 0
            rows.append(
                (Text("base" if checkpoint == 0 else f"{arm}, {checkpoint}"), point["metrics"])
            )
        games = max((metrics[name]["games"] for _, metrics in rows for name in names), default=0)
        table.add_row(f"[bold]{domain_label(domain)}[/bold]\n{games} games")
        for label, metrics in rows:
            table.add_row(
                label,
                *(
                    percent(metrics[name], signed=name == "gap").replace(" [", "\n[")
                    for name in names
                ),
            )
    return table


def domain_label(domain: str) -> str:
    return {"in_domain": "in-domain", "ood": "out-of-domain"}.get(domain, domain)


def percent(estimate: dict, signed: bool = False, digits: int = 0) -> str:
    """ "83 [71, 91]", in percent (or percentage points); a dash where nothing was measured."""
    if estimate["value"] is None:
        return "–"
    plus = "+" if signed else ""
    value, low, high = (
        f"{round(100 * estimate[key], digits) + 0.0:{plus}.{digits}f}"
        for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]".replace("-", "−")


def p_text(p: float) -> str:
    """ "p = 0.031", or "p < 0.001"."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def _read_run(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not whole JSON ({error}); start the run again, or delete the file to report without it"
        ) from None
    if not isinstance(run, dict):
        raise DataError(
            f"{path}: not a JSON object; start the run again, or delete the file to report without it"
        )
    return run


def _arms(run: dict, seen: set[str]) -> dict[str, dict]:
    """The arms that have records, in the order of run.json; the base alone where nothing was trained."""
    described = run.get("arms") or {}
    names = [arm for arm in described if arm in seen and arm != BASE] + sorted(
        seen - set(described) - {BASE}
    )
    return {
        arm: {
            "label": str((described.get(arm) or {}).get("label") or arm),
            "fraction": (described.get(arm) or {}).get("fraction"),
        }
        for arm in names or [BASE]
    }


def _curve(found: dict, arm: str, domains: list[str]) -> dict[tuple[int, str], Point]:
    """(checkpoint, domain) -> point, checkpoint 0 taken from the base where the arm has none of its own."""
    base = {
        (checkpoint, domain): point
        for (name, checkpoint, domain), point in found.items()
        if name == BASE and checkpoint == 0
    }
    own = {
        (checkpoint, domain): point
        for (name, checkpoint, domain), point in found.items()
        if name == arm
    }
    both = base | own
    return {key: both[key] for key in sorted(both, key=lambda key: (key[0], domains.index(key[1])))}


def _rounded(estimate: Estimate) -> dict:
    return {
        key: round(value, 6) + 0.0 if isinstance(value, float) else value
        for key, value in asdict(estimate).items()
    }


def _point(arm: str, checkpoint: int, domain: str, point: Point) -> dict:
    episodes = {}
    for driver, ended in sorted(point.ended.items()):
        broken = ended.get("env_error", 0)
        episodes[driver] = {
            "played": ended.total() - broken,
            "won": ended.get("won", 0),
            "env_error": broken,
            "ended": dict(sorted(ended.items())),
        }
    return {
        "arm": arm,
        "checkpoint": checkpoint,
        "domain": domain,
        "episodes": episodes,
        "metrics": {name: _rounded(point.estimate(name)) for name in METRICS},
        "gap_p": _p([(1, point, "gap")], "gap"),
        "invalid": {
            driver: dict(sorted(reasons.items())) for driver, reasons in point.invalid.items()
        },
        "env_faults": {driver: point.env_faults[driver] for driver in sorted(point.ended)},
    }


def _p(signed: list, metric: str) -> float | None:
    p = contrast_p(signed) if metric in _TESTED else None
    return None if p is None else float(f"{p:.4g}")


def _changes(curves: dict, domains: list[str], last: int) -> list[dict]:
    rows = []
    for arm, curve in curves.items():
        for domain in domains:
            if last == 0 or (0, domain) not in curve or (last, domain) not in curve:
                continue
            for metric in COMPARED:
                signed = [(1, curve[last, domain], metric), (-1, curve[0, domain], metric)]
                rows.append(
                    {
                        "arm": arm,
                        "domain": domain,
                        "metric": metric,
                        "from": 0,
                        "to": last,
                        **_rounded(contrast(signed)),
                        "p": _p(signed, metric),
                    }
                )
    return rows


def _arm_differences(curves: dict, domains: list[str], baseline: str, last: int) -> list[dict]:
    rows = []
    for arm in curves:
        for domain in domains:
            if (
                arm == baseline
                or last == 0
                or (last, domain) not in curves[arm]
                or (last, domain) not in curves[baseline]
            ):
                continue
            for metric in COMPARED:
                signed = [
                    (1, curves[arm][last, domain], metric),
                    (-1, curves[baseline][last, domain], metric),
                ]
                row = {
                    "domain": domain,
                    "metric": metric,
                    "arm": arm,
                    "minus": baseline,
                    "checkpoint": last,
                }
                rows.append({**row, **_rounded(contrast(signed)), "p": _p(signed, metric)})
    return rows


def _elicitation(episodes: list[Episode]) -> list[dict]:
    counted: dict[tuple[str, str], int] = {}
    for episode in episodes:
        key = (episode.driver, json.dumps(episode.elicitation, sort_keys=True))
        counted[key] = counted.get(key, 0) + 1
    return [
        {"driver": driver, "elicitation": json.loads(text), "records": n}
        for (driver, text), n in sorted(counted.items())
    ]


def _shown_episode(episodes: list[Episode], arm: str, last: int) -> Episode | None:
    """A CoT-driven episode at the last checkpoint where reasoning is seen at work.

    Preferred in this order: won, with a revision, lost by prompt actions, in-domain, of the baseline arm, short, first by path.
    """
    played = [
        e
        for e in episodes
        if e.checkpoint == last and e.driver == "cot" and e.ended != "env_error" and e.steps
    ]
    lost = {
        (e.arm, e.game, e.sample, e.seed)
        for e in episodes
        if e.checkpoint == last
        and e.driver == "prompt"
        and not e.success
        and e.ended != "env_error"
    }

    def rank(e: Episode):
        return (
            not e.success,
            not e.revisions,
            (e.arm, e.game, e.sample, e.seed) not in lost,
            e.domain != "in_domain",
            e.arm != arm,
            e.steps,
            str(e.path),
        )

    return min(played, key=rank, default=None)


def _warnings(summary: dict, run: dict, found: dict) -> list[str]:
    warnings = []
    if not run:
        warnings.append(
            "There is no run.json: the model, the data and the versions behind these records are not known here."
        )
    drivers = [row["driver"] for row in summary["elicitation"]]
    for driver in sorted({driver for driver in drivers if drivers.count(driver) > 1}):
        warnings.append(
            f"The {driver} records were not all made with the same elicitation: their points cannot be compared."
        )
    for arm, about in summary["arms"].items():
        missing = [
            str(c)
            for c in summary["checkpoints"]
            for d in summary["domains"]
            if find_point(summary, arm, c, d) is None
        ]
        if missing:
            warnings.append(
                f"{about['label']}: no records at checkpoint {', '.join(dict.fromkeys(missing))} in at least one domain."
            )
    wanted = {int(c) for c in run.get("checkpoints") or []}
    if wanted - set(summary["checkpoints"]):
        listed = ", ".join(str(c) for c in sorted(wanted - set(summary["checkpoints"])))
        warnings.append(f"run.json names checkpoints without records: {listed}.")
    for point in summary["points"]:
        reasoned = point["metrics"]["reasoned_cot"]["value"]
        if (
            reasoned is not None
            and reasoned < _REASONED_ENOUGH
            and (point["checkpoint"] or point["arm"] == next(iter(summary["arms"])))
        ):
            label = (
                summary["arms"][point["arm"]]["label"] if point["checkpoint"] else "the base model"
            )
            warnings.append(
                f"Only {100 * reasoned:.0f} % of the CoT responses of {label} at checkpoint {point['checkpoint']}, "
                f"{domain_label(point['domain'])}, held reasoning: the rest of its CoT actions are direct ones."
            )
    broken = sum(
        point.ended[driver]["env_error"] for point in found.values() for driver in point.ended
    )
    if broken:
        warnings.append(
            f"{broken} episode{'s' if broken > 1 else ''} ended by an environment error: left out of every number."
        )
    return warnings


def _mixed(episodes: list[Episode]) -> list[str]:
    """Warnings of records that stand side by side and were not made from the same things."""
    warnings = []
    if len({episode.played_on[0] for episode in episodes}) > 1:
        warnings.append(
            "The records were not all played on the same games (games_hash differs): they cannot be compared."
        )
    checkpoints: dict[tuple[str, int], set[str]] = {}
    for episode in episodes:
        checkpoints.setdefault((episode.arm, episode.checkpoint), set()).add(episode.played_on[1])
    for (arm, checkpoint), hashes in sorted(checkpoints.items()):
        if len(hashes) > 1:
            warnings.append(
                f"The records of {arm} at checkpoint {checkpoint} are of {len(hashes)} different checkpoints (checkpoint_hash)."
            )
    return warnings
