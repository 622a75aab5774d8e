"""A finished run's main numbers as tables in Markdown, for a page of results.

They are read from summary.json, as it was published: nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cotjax.diagnostics.statistics import Estimate
from cotjax.envs.worlds import IN_DOMAIN
from cotjax.report.labels import domain_label, p_text, percent
from cotjax.report.matrix import LEAST, MOST
from cotjax.report.summary import BASE, SCHEMA_VERSION
from cotjax.report.warnings import ENOUGH_GAMES

Row = Mapping[str, Any]


def published_tables(summary: Mapping[str, Any]) -> str:
    """Return the tables of a summary.json, in percent and points with 95 % intervals.

    Raises ValueError where it is of another schema.
    """
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {summary.get('schema_version')!r}")
    tables = (_verdicts, _matrix, _levels, _revisions, _differences, _trends, _probes)
    return "\n\n".join(text for table in tables if (text := table(summary)))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    # A label may hold what ends a cell.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = (head, ["---"] * len(head), *cells)
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdicts(summary: Mapping[str, Any]) -> str:
    """Return where the gain of each arm landed, by the primary measure."""
    primary = summary["primary"]
    rows = []
    for row in summary["placements"]:
        same = (row["measure"], row["constrained"]) == (primary["measure"], primary["constrained"])
        if not same or row["domain"] != "in_domain":
            continue
        share, known = _estimate(row["share"]), row["share"]["low"] is not None
        inside = row["arm"] in (primary["arms"] or summary["arms"])
        rows.append(
            (
                summary["arms"][row["arm"]]["label"],
                percent(_estimate(row["total"]), signed=True),
                percent(_estimate(row["prompt"]), signed=True),
                percent(_estimate(row["gap"]), signed=True),
                percent(share) if known else "not bounded",
                f"{row['verdict']}, {p_text(row['adjusted_p'])}" if inside else "–",
                p_text(row["steady_adjusted_p"]) if inside else "–",
            )
        )
    margin = f"{100 * primary['margin']:g}"
    head = (
        *("arm", "gain of CoT actions", "of prompt actions", "change of the gap"),
        *("share in the prompt action", "verdict", f"gap within {margin} points"),
    )
    chosen = ", of actions chosen among the admissible ones" if primary["constrained"] else ""
    title = f"Where the gain landed: {primary['measure'].upper()}{chosen}, in-domain"
    return _table(title, head, rows)


def _matrix(summary: Mapping[str, Any]) -> str:
    """Return what each arm was trained on, by what it was played on, with marks.

    Of studies that played enough games of a domain out of domain.
    """
    names = {f"{measure}_{kind}": f"{measure.upper()}, {what}" for measure in ("d3", "d1")
             for kind, what in (("cot", "CoT action"), ("prompt", "prompt action"))}  # fmt: skip
    rows, enough = [], False
    for domain in summary["domains"]:
        ends = list(_ends(summary, domain))
        pilot = ends[0][1]
        for label, values in ends:
            found = {name: _estimate(values.get(name)) for name in names}
            games = max(each.games for each in found.values())
            enough = enough or (domain != IN_DOMAIN and games >= ENOUGH_GAMES)
            cells = [_marked(each, _estimate(pilot.get(name))) for name, each in found.items()]
            rows.append((domain_label(domain), label, str(games), *cells))
    title = (
        "Trained on, by played on, in %; not interpreted: (b) base outside "
        f"{100 * LEAST:.0f} to {100 * MOST:.0f}, (g) under {ENOUGH_GAMES} games"
    )
    return _table(
        title, ("played on", "trained on", "games", *names.values()), rows if enough else ()
    )


def _marked(estimate: Estimate, pilot: Estimate) -> str:
    """Return a cell of the matrix, with why it is not interpreted."""
    outside = pilot.value is None or not LEAST <= pilot.value <= MOST
    marks = [mark for mark, why in (("b", outside), ("g", estimate.games < ENOUGH_GAMES)) if why]
    text = percent(estimate)
    return f"{text} ({', '.join(marks)})" if marks and estimate.measured else text


def _levels(summary: Mapping[str, Any]) -> str:
    """Return the success of whole episodes at the base and at the end, in every domain."""
    metrics = ("d3_cot", "d3_prompt", "gap")
    rows = []
    for domain in summary["domains"]:
        for label, values in _ends(summary, domain):
            if metrics[0] not in values:
                continue
            found = [_estimate(values.get(name)) for name in metrics]
            pairs = zip(found, metrics, strict=True)
            cells = [percent(each, signed=name == "gap") for each, name in pairs]
            rows.append((domain_label(domain), label, str(found[0].games), *cells))
    head = ("domain", "arm", "games", "CoT actions win", "prompt actions win", "gap")
    return _table("Success of whole episodes (D3)", head, rows)


def _revisions(summary: Mapping[str, Any]) -> str:
    """Return how often reasoning changes the action on expert states, and how it ends."""
    names = {
        "d2": "D2: both actions agree",
        "revision_helpful": "revised, now right",
        "revision_harmful": "revised, now wrong",
        "d2_constrained": "D2 among admissible ones",
    }
    return _at_the_ends(summary, "Revisions, in-domain expert states", names)


def _probes(summary: Mapping[str, Any]) -> str:
    """Return D5 to D7 where they were measured."""
    names = {
        "conflict_keep_swap": "D5: keeps its action, one noun of the thought swapped",
        "conflict_keep_other": "D5: another state's thought",
        "attention_prompt": "D6: attention on the prompt",
        "attention_reasoning": "on the reasoning",
        "gradient_prompt": "D7: gradient at the prompt",
        "gradient_reasoning": "at the reasoning",
    }
    return _at_the_ends(summary, "D5 to D7, in-domain", names)


def _ends(summary: Mapping[str, Any], domain: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield label and metrics of the base and of each arm's last checkpoint; {} where unplayed."""
    for arm in (BASE, *summary["arms"]):
        label = "base" if arm == BASE else summary["arms"][arm]["label"]
        point = _point(summary, arm, 0 if arm == BASE else summary["last_checkpoint"], domain)
        yield label, {} if point is None else point["metrics"]


def _at_the_ends(summary: Mapping[str, Any], title: str, names: Mapping[str, str]) -> str:
    """Return metrics of the base and of each arm's last checkpoint, in-domain."""
    rows = []
    for label, found in _ends(summary, "in_domain"):
        if any(name in found and found[name]["value"] is not None for name in names):
            rows.append((label, *(percent(_estimate(found.get(name))) for name in names)))
    return _table(title, ("arm", *names.values()), rows)


def _differences(summary: Mapping[str, Any]) -> str:
    """Return how arms differ that differ by what is dropped alone."""
    names = {
        "d1_cot_constrained": "D1, CoT action",
        "d1_prompt_constrained": "D1, prompt action",
        "d1_gap_constrained": "its gap",
        "d3_cot": "D3, CoT action",
    }
    found = {(row["arm"], row["domain"], row["metric"]): row for row in summary["arm_differences"]}
    rows = []
    for domain in summary["domains"]:
        for arm, about in summary["arms"].items():
            of_arm = [found.get((arm, domain, name)) for name in names]
            if not any(of_arm) or not about["minus"] or not _dropped(summary, arm):
                continue
            removed = about["removed_share"]
            against = summary["arms"][about["minus"]]["label"]
            cells = [percent(_estimate(row), signed=True) for row in of_arm]
            shown = "–" if removed is None else f"{100 * removed:.2g} %"
            rows.append((domain_label(domain), f"{about['label']} − {against}", shown, *cells))
    head = ("domain", "arms", "share of the loss removed", *names.values())
    return _table("What dropping changes, at the last checkpoint", head, rows)


def _trends(summary: Mapping[str, Any]) -> str:
    """Return the slope of the primary measure's gap over checkpoints."""
    primary = summary["primary"]
    measure = "d1_gap" if primary["measure"] == "d1" else "gap"
    name = measure + ("_constrained" if primary["constrained"] else "")
    rows = [
        (
            domain_label(row["domain"]),
            summary["arms"][row["arm"]]["label"],
            ", ".join(map(str, row["checkpoints"])),
            percent(_estimate(row), signed=True, digits=1),
        )
        for row in summary["trends"]
        if row["metric"] == name and row["domain"] == "in_domain"
    ]
    head = ("domain", "arm", "checkpoints", "points in 100 updates")
    return _table("The trend of the gap", head, rows)


def _dropped(summary: Mapping[str, Any], arm: str) -> bool:
    """Whether an arm differs from the one that it is compared with by what is dropped alone."""
    one, other = (summary["arms"][name] for name in (arm, summary["arms"][arm]["minus"]))
    same = ("thoughts", "direct_share", "objective", "start", "recipe")
    return all(one[name] == other[name] for name in same)


def _point(summary: Mapping[str, Any], arm: str, checkpoint: int, domain: str) -> Row | None:
    # Checkpoint 0 of an arm that starts from the base is the base.
    where = (summary["baseline"] if arm == BASE else arm, checkpoint, domain)
    for row in summary["points"]:
        if (row["arm"], row["checkpoint"], row["domain"]) == where:
            return row
    return None


def _estimate(row: Row | None) -> Estimate:
    """Return an estimate of summary.json."""
    row = row or {"value": None, "low": None, "high": None, "n": 0, "games": 0, "seeds": 1}
    return Estimate(**{name: row[name] for name in ("value", "low", "high", "n", "games", "seeds")})
