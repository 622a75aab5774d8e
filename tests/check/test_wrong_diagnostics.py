"""Wrong versions of each diagnostic do not pass the check: sign, pairing, clusters, floors.

A study is planted in which everything was measured. Each test puts one wrong version into
`cotjax.diagnostics`, makes the summary with it, and compares that with what the check recomputes.
"""

import itertools
import json
import shutil

import numpy as np
import pytest
from helpers.measured import PRIMARY, write_measured, write_rows
from helpers.planted import PLANTED, write_planted

from cotjax.check.compare import compare
from cotjax.check.metrics import DIFFERENCES, METRICS, family
from cotjax.check.study import read_study
from cotjax.check.summary import expected
from cotjax.diagnostics import (
    attention,
    episodes,
    faithfulness,
    floor,
    gradient,
    likelihood,
    metrics,
    preference,
    progress,
    revisions,
    share,
    statistics,
)
from cotjax.diagnostics.crossed import Spread, crossed_spread
from cotjax.diagnostics.statistics import Ratios
from cotjax.report import compare as comparisons
from cotjax.report.summarize import summarize

# What the summary's warnings and lists read, whatever is compared.
ALWAYS = ("reasoned_cot", *(name for name in METRICS if name.startswith("valid_")))
D1, D2, D3, D4, D5, D6, D7 = "D1, D1'", "D2", "D3 and its gap", "D4", "D5", "D6", "D7"
REVISIONS, LIKELIHOOD, FLOOR = "revisions", "likelihood (D1, D2)", "floor of D2"
FAITHFULNESS, SHARE, FORM = "faithfulness", "share of the gain, verdicts", "validity, admissibility"
TRENDS, SPLITS, PROGRESS = "trends", "splits of the gap", "steps, tokens, scores"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run, and what the check says that its summary should hold."""
    run = write_measured(tmp_path_factory.mktemp("measured"))
    return run, expected(read_study(run))


def reported(run, monkeypatch, only):
    """Return the summary of a run, of these metrics alone."""
    kept = {name: metrics.METRICS[name] for name in metrics.METRICS if name in {*only, *ALWAYS}}
    monkeypatch.setattr("cotjax.report.summarize.METRICS", kept)
    monkeypatch.setattr(comparisons, "COMPARED", [n for n in comparisons.COMPARED if n in kept])
    return json.loads(summarize(run).to_json()), kept


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """Expert states alone of two cells, enough of them for bounded shares and clear verdicts."""
    run = tmp_path_factory.mktemp("placed")
    cells = {name: PLANTED[name] for name in ("named", "hybrid")}
    write_planted(run, cells, games=24, states=2, played=False)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"config": {"primary": PRIMARY}}))
    return run, expected(read_study(run))


def cut(recomputed, kept):
    """Return a recomputed summary of these metrics alone."""
    cut = dict(recomputed)
    for name in ("points", "seed_points"):
        cut[name] = [
            row | {"metrics": {each: row["metrics"][each] for each in kept}} for row in cut[name]
        ]
    for name in ("changes", "arm_differences"):
        cut[name] = [row for row in cut[name] if row["metric"] in kept]
    return cut


def of_family(*names):
    """Return the metrics of families."""
    return [metric for metric in METRICS if family(metric) in names]


def test_the_right_diagnostics_pass(measured, monkeypatch):
    run, recomputed = measured
    summary, kept = reported(run, monkeypatch, METRICS)
    compared = compare(summary, cut(recomputed, kept))
    assert not compared.differences and compared.numbers > 10_000
    # Each measure has numbers, and each but the validity of single fields an interval.
    measures = (D1, D2, D3, D4, D5, D6, D7, REVISIONS, LIKELIHOOD, FLOOR, FAITHFULNESS, FORM,
                PROGRESS)  # fmt: skip
    for name in measures:
        assert compared.families[name, "intervals"].numbers > 50
    for name in (D3, SHARE, TRENDS):
        assert compared.families[name, "p-values"].numbers > 5


# ---- wrong versions


def changing(module, name, change):
    """Wrong version: what a function returns is changed. `change`: (result, arguments) -> result"""
    right = getattr(module, name)
    return module, name, lambda *arguments: change(right(*arguments), arguments)


def turned(name):
    """Wrong version: the second ratio minus the first."""
    return metrics.DIFFERENCES, name, DIFFERENCES[name][::-1]


def first_alone(name):
    """Wrong version: nothing is subtracted."""
    return metrics.DIFFERENCES, name, DIFFERENCES[name][:1]


def negated(row, *names):
    """Wrong version: these numbers of a probe's row have the other sign."""

    def change(counts, _):
        return {name: -value if name in names else value for name, value in counts.items()}

    return changing(row, "counts", change)


def unpaired(terms, span=1.0):
    """Combine ratios as if each came from games of its own."""
    right = Ratios([(totals, counts) for _, totals, counts in terms], span).combine(
        [weight for weight, _, _ in terms]
    )
    if right is None:
        return None
    parts = []
    for weight, totals, counts in terms:
        alone = Ratios([(totals, counts)], span).combine([weight])
        parts += alone.spread.parts
    return statistics.Combination(
        right.value, right.centre, Spread(tuple(parts)), right.reach, right.n, right.games,
        right.seeds,
    )  # fmt: skip


def by_game_alone(cells):
    """Pair games, whatever their samples: what one mode lacks counts for the other."""
    return sorted(set().union(*cells))


class Lenient(dict):
    """Cells in which what is missing is 0 of 0."""

    def __missing__(self, key):
        return [0.0, 0]


def lenient(terms, right=metrics.paired_seeds):
    """Pair seeds, and let each term have cells for all samples."""
    return [[Lenient(cells) for cells in row] for row in right(terms)]


def swapped_help(judged, _):
    helpful, harmful = judged.get("revision_helpful"), judged.get("revision_harmful")
    turned = {"revision_helpful": harmful, "revision_harmful": helpful}
    return judged | (turned if helpful is not None else {})


def invalid_differs(judged, arguments):
    """Take an invalid response for an action that differs."""
    if None not in arguments[:2]:
        return judged
    return {"revision_not_comparable": False, "revision": True, "d2": False}


def invalid_left_out(judged, arguments):
    turn = arguments[0]
    for kind in episodes.FREE:
        response = getattr(turn, kind)
        if response is not None and not response.valid:
            judged.pop(f"d1_{kind}")
    return judged


def broken_as_lost(path, record, right=episodes.count):
    """Take an episode that its environment broke for one that was lost."""
    if record.ended == "env_error":
        record = record.model_copy(update={"ended": "step_limit", "success": False})
    return right(path, record)


def excess_without_floor(counts, _):
    return counts | (
        {"revision_excess": 1 - counts["d2_sampled"]} if "d2_sampled" in counts else {}
    )


def bonferroni(p_values):
    return [min(1.0, len(p_values) * p) for p in p_values]


def delta_method(gain, value, direction):
    """End of the share's interval by the spread of Δprompt alone."""
    return value + direction * gain.beyond(value).spread.half() / abs(gain.total.value)


def wald(value, n):
    half = 1.96 * np.sqrt(value * (1 - value) / n)
    return value - half, value + half


WRONG = {
    # D1 and its gap
    "D1 sign": (D1, turned("d1_gap")),
    "D1 leaves invalid responses out": (
        D1, changing(episodes, "_judge_reference", lambda j, a: invalid_left_out(j, a))
    ),
    "D1 without normalised whitespace": (D1, (episodes, "normalize_action", str)),
    "D1 by the mean": (D1, changing(episodes, "_judge_choices", lambda judged, _: {
        name: judged.get(f"{name}_mean", value) for name, value in judged.items()
    })),
    "D1' strictly better": (D1, (revisions.RevisionRow, "_as_good", lambda row, action, ending: (
        bool(ending and ending.steps and row.reference_ending and row.reference_ending.steps
             and ending.steps < row.reference_ending.steps)
    ))),
    "D1 unpaired": (D1, (statistics, "combine", unpaired)),
    "D1 clusters ignored": (D1, (statistics, "_most_together", lambda states: 1.0)),
    # D2 and revisions
    "D2 turned": (D2, changing(episodes, "_judge_pair", lambda judged, _: (
        judged | ({"d2": not judged["d2"]} if "d2" in judged else {})
    ))),
    "D2 counts invalid responses": (D2, changing(episodes, "_judge_pair", invalid_differs)),
    "D2 along episodes turned": (D2, changing(
        episodes, "compared", lambda same, _: None if same is None else not same
    )),
    "revisions sign": (REVISIONS, changing(episodes, "_judge_pair", swapped_help)),
    "steps saved sign": (REVISIONS, negated(
        revisions.RevisionRow, "saved_steps", "saved_steps_cot_driven"
    )),
    "steps saved without limit": (REVISIONS, (revisions, "MOST_STEPS", 1000)),
    "revisions count diverged replays": (REVISIONS, changing(
        revisions.RevisionRow, "counts",
        lambda counts, a: counts | ({"judged_neutral": 1} if a[0].verdict == "diverged" else {}),
    )),
    # D3 and its gap
    "D3 sign": (D3, turned("gap")),
    "D3 counts broken episodes": (D3, (episodes, "count", broken_as_lost)),
    "D3 unpaired": (D3, (statistics, "combine", unpaired)),
    "D3 seeds ignored": (D3, (statistics, "crossed_spread", lambda influence: (
        crossed_spread(influence.sum(0, keepdims=True))
    ))),
    "D3 episodes as games": (D3, (statistics, "crossed_spread", lambda influence: (
        crossed_spread(influence.reshape(1, -1))
    ))),
    "D3 clusters ignored": (D3, (statistics, "_effective_size", lambda value, totals, counts: (
        float(counts.sum())
    ))),
    "D3 Wald": (D3, (statistics, "wilson", wald)),
    "D3 one-sided test": (D3, changing(statistics, "sign_test", lambda p, _: p / 2)),
    "progress sign": (PROGRESS, negated(progress.ProgressRow, "progress_cot")),
    "progress without a least value": (PROGRESS, changing(progress.ProgressRow, "counts", (
        lambda counts, a: {name: value if a[0].ending.steps is None else (
            1 - a[0].ending.steps / a[0].start
        ) for name, value in counts.items()}
    ))),
    "progress leaves lost ways out": (PROGRESS, changing(progress.ProgressRow, "counts", (
        lambda counts, a: {} if a[0].ending is None or a[0].ending.steps is None else counts
    ))),
    # D4
    "D4 sign": (D4, turned("d4_gap_model")),
    "D4 bias of position": (D4, (preference.Opinion, "by_position", property(
        lambda opinion: opinion.in_order == opinion.swapped
    ))),
    "D4 nothing subtracted": (D4, first_alone("d4_gap_endpoint")),
    # D5 and faithfulness
    "D5 sign": (D5, turned("conflict_effect_swap")),
    "D5 own thought not subtracted": (D5, first_alone("conflict_effect_cut")),
    "D5 wrong control": (D5, (
        metrics.DIFFERENCES, "conflict_effect_other",
        ("conflict_follow_other", "conflict_follow_shuffled_other"),
    )),
    "area under the curve": (FAITHFULNESS, changing(
        faithfulness, "area_over", lambda area, _: 1 - area
    )),
    "area without trapezoids": (FAITHFULNESS, (
        faithfulness, "area_over", lambda same: 1 - sum(same) / len(same)
    )),
    # D6 and D7
    "D6 reasoning in the prompt": (D6, changing(
        attention, "of_prompt", lambda prompt, a: prompt + a[0].get("reasoning", 0.0)
    )),
    "D6 share of all": (D6, (attention, "of_two", attention.of_prompt)),
    "D6 sign of the causal partner": (D6, negated(attention.AttentionRow, "attention_masked_nats")),
    "D6 without its limits": (D6, (attention, "in_mean", float)),
    "D7 sign of the causal partner": (D7, negated(gradient.GradientRow, "thought_swapped_nats")),
    "D7 by the input": (D7, changing(gradient.GradientRow, "counts", lambda counts, _: (
        counts | {"gradient_prompt": counts["gradient_input_prompt"]}
    ))),
    "D7 share of all": (D7, (gradient, "of_two", gradient.of_prompt)),
    # floor
    "floor with pairs of one response": (FLOOR, (
        floor, "combinations", lambda each, _: itertools.combinations_with_replacement(each, 2)
    )),
    "floor not subtracted": (FLOOR, changing(floor.FloorRow, "counts", excess_without_floor)),
    "floor of one mode": (FLOOR, changing(floor.FloorRow, "counts", lambda counts, _: counts | (
        {"revision_excess": counts["d2_floor_cot"] - counts["d2_sampled"]}
        if "d2_sampled" in counts else {}
    ))),
    # likelihood
    "likelihood sign": (LIKELIHOOD, changing(
        likelihood, "_minus", lambda apart, _: None if apart is None else -apart
    )),
    "likelihood without limit": (LIKELIHOOD, (likelihood, "_NATS", 1000.0)),
    "likelihood without tokens": (LIKELIHOOD, changing(
        likelihood.LikelihoodRow, "counts", lambda counts, _: {
            name: counts.get("d1_nats_cot") if name == "d1_token_nats_cot" else value
            for name, value in counts.items()
        }
    )),
    "mean without its limits": (LIKELIHOOD, (statistics, "_assumed", lambda most: most)),
    # share of a gain
    "share of the other action": (SHARE, (share.Gain, "of", classmethod(
        lambda cls, first, last, total, prompt, right=share.Gain.of: right(
            first, last, prompt, total
        )
    ))),
    "share by the delta method": (SHARE, (share.Gain, "_end", delta_method)),
    "share against another part than a half": (SHARE, (share, "HALF", 0.2)),
    "share on the floor": (SHARE, (share, "on_the_floor", lambda first, last, metric: True)),
    "Bonferroni": (SHARE, (share, "holm", bonferroni)),
    "equivalence on one side": (SHARE, (share, "equivalence_p", lambda change, margin: (
        change.p_above(-margin)
    ))),
    # trends and splits
    "trends sign": (TRENDS, (comparisons, "combine", lambda signed: metrics.combine(
        [(-weight, where, name) for weight, where, name in signed]
    ))),
    "splits by the baseline": (SPLITS, (comparisons, "twin_of", lambda arms: "named")),
}  # fmt: skip
_OF = {TRENDS: [D3, D1], SPLITS: [D3, D1], SHARE: [D3, D1]}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_version_is_caught(measured, placed, monkeypatch, name):
    run, recomputed = placed if WRONG[name][0] == SHARE else measured
    where, (target, attribute, wrong) = WRONG[name]
    if isinstance(target, dict):
        monkeypatch.setitem(target, attribute, wrong)
    else:
        monkeypatch.setattr(target, attribute, wrong)
    summary, kept = reported(run, monkeypatch, of_family(*_OF.get(where, [where])))
    found = compare(summary, cut(recomputed, kept)).differences
    assert where in {each.family for each in found}


def test_samples_that_are_not_paired_are_caught(measured, monkeypatch):
    """A sample that broke under one mode must not count for the other one."""
    run, recomputed = measured
    monkeypatch.setattr(metrics, "shared_keys", by_game_alone)
    monkeypatch.setattr(metrics, "paired_seeds", lenient)
    summary, kept = reported(run, monkeypatch, ("gap", "d3_cot", "d3_prompt"))
    found = compare(summary, cut(recomputed, kept)).differences
    assert {each.path[-1] for each in found if "gap" in each.path} >= {"value", "n"}


@pytest.mark.parametrize(
    ("where", "module", "name", "wrong"),
    [
        (D4, preference.Opinion, "of", lambda one, two: preference.Opinion(
            in_order=one, swapped=two, winner=None if two is None else one
        )),
        (REVISIONS, revisions, "verdict", lambda cot, prompt: "neutral"),
        (D5, "cotjax.diagnostics.conflict", "outcome_of", lambda action, own, other: (
            "invalid" if action is None else "follow" if action == own else "keep"
        )),
    ],
    ids=["the second order of D4 ignored", "verdicts of revisions", "outcomes of D5 turned"],
)  # fmt: skip
def test_a_row_that_was_judged_wrongly_is_caught(
    measured, monkeypatch, tmp_path, where, module, name, wrong
):
    """A probe wrote the wrong verdict into its rows; what it follows from is there as well."""
    run = tmp_path / "run"
    shutil.copytree(measured[0], run)
    if isinstance(module, str):
        monkeypatch.setattr(f"{module}.{name}", wrong)
    else:
        monkeypatch.setattr(module, name, wrong)
    write_rows(run)
    summary, kept = reported(run, monkeypatch, of_family(where))
    found = compare(summary, cut(expected(read_study(run)), kept)).differences
    assert {each.family for each in found} == {where}
