"""The study's verdicts and trends, and known answers: what was planted is in the intervals."""

import json

import numpy as np
import pytest
from helpers.planted import BASE, PLANTED, Cell, write_planted
from helpers.studies import write_episode
from scipy import stats

from cotjax.diagnostics.probe_rows import ProbeHeading
from cotjax.diagnostics.progress import ProgressRow
from cotjax.diagnostics.revisions import Ending
from cotjax.diagnostics.share import Verdict
from cotjax.report.answers import answers
from cotjax.report.family import primary_of
from cotjax.report.judged import judged
from cotjax.report.page import write_report
from cotjax.report.summarize import summarize
from cotjax.report.verdicts import verdicts

PRIMARY = {"measure": "d1", "kinds": ["cot", "prompt"], "margin": 0.25}


def fix_primary(run, primary=PRIMARY):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"config": {"primary": primary}}))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two cells from three seeds each, at three checkpoints, on expert states alone."""
    cells = {name: PLANTED[name] for name in ("named", "hybrid")}
    run = tmp_path_factory.mktemp("family")
    write_planted(run, cells, seeds=3, games=40, checkpoints=(0, 30, 60), played=False)
    fix_primary(run)
    return run, summarize(run)


def test_a_config_fixes_what_the_verdicts_are_about():
    assert not primary_of({}).fixed and not primary_of({"config": {"primary": {}}}).fixed
    constrained = PRIMARY | {"kinds": ["cot_constrained", "prompt_constrained"]}
    fixed = primary_of({"config": {"primary": constrained}})
    assert (fixed.measure, fixed.constrained, fixed.margin, fixed.fixed) == ("d1", True, 0.25, True)


def test_verdicts_are_one_family_and_nothing_else_is_a_verdict(seeds):
    _, summary = seeds
    assert (summary.primary.measure, summary.primary.tests) == ("d1", 4)
    named, hybrid = (summary.placed(arm, "in_domain").placement for arm in ("named", "hybrid"))
    assert (named.verdict, hybrid.verdict) == (Verdict.ADVANTAGE, Verdict.PROMPT)
    tests = sorted([named.p, hybrid.p, named.steady_p, hybrid.steady_p])
    # Holm's: the smallest of four times four.
    smallest = min(named, hybrid, key=lambda each: each.p)
    assert smallest.p == tests[0] and smallest.adjusted_p == pytest.approx(4 * tests[0], rel=1e-3)
    # The gap of "hybrid" moved by 3 points, within the margin; that of "named" by 46.
    assert hybrid.steady and not named.steady
    first, other = verdicts(summary).tables[0].rows
    assert (first.cells[-1], other.cells[-1]) == ("not shown", "yes")
    assert first.cells[1].note.startswith("by seed: ") and first.cells[0].sure
    by_seed = {arm: summary.placed(arm, "in_domain").seed_shares for arm in ("named", "hybrid")}
    assert all(len(shares) == 3 for shares in by_seed.values())
    # Each seed's own share of the gain: next to none of "named", most of "hybrid".
    assert max(by_seed["named"].values()) < 0.5 < min(by_seed["hybrid"].values())
    others = [row for row in summary.placements if not row.primary]
    assert {row.placement.verdict for row in others} <= {Verdict.DESCRIBED, Verdict.FLOOR}
    assert not any("not fixed beforehand" in text for text in summary.warnings)
    assert not any("seeds are not covered" in text for text in summary.warnings)


def test_a_domain_outside_the_family_takes_no_level_and_gets_no_verdict(tmp_path):
    cells = {name: PLANTED[name] for name in ("named", "hybrid")}
    run = write_planted(tmp_path, cells, games=40, domains=("in_domain", "ood_rooms"), played=False)
    fix_primary(run)
    assert summarize(run).primary.tests == 8
    fix_primary(run, PRIMARY | {"domains": ["in_domain"]})
    summary = summarize(run)
    assert summary.primary.tests == 4
    inside, outside = (summary.placed("named", each) for each in ("in_domain", "ood_rooms"))
    assert inside.placement.verdict is Verdict.ADVANTAGE
    assert outside.placement.verdict is Verdict.DESCRIBED and outside.placement.share.measured


def test_what_was_not_measured_takes_no_level(tmp_path):
    """The config chose success of episodes, and none was played."""
    run = write_planted(tmp_path, {"named": PLANTED["named"]}, games=4, states=1, played=False)
    fix_primary(run, PRIMARY | {"measure": "d3"})
    summary = summarize(run)
    assert summary.primary.tests == 0
    assert summary.placed("named", "in_domain").placement.verdict is Verdict.MISSING


def test_an_arm_outside_the_family_takes_no_level_and_gets_no_verdict(tmp_path):
    cells = {name: PLANTED[name] for name in ("named", "hybrid")}
    run = write_planted(tmp_path, cells, games=40, played=False)
    fix_primary(run, PRIMARY | {"arms": ["named"]})
    summary = summarize(run)
    assert summary.primary.tests == 2
    named, hybrid = (summary.placed(each, "in_domain").placement for each in cells)
    assert named.verdict is Verdict.ADVANTAGE and named.adjusted_p == pytest.approx(2 * named.p)
    assert hybrid.verdict is Verdict.DESCRIBED and hybrid.share.measured
    page = write_report(run, summary).read_text()
    assert "for “named”, in each domain" in page
    fix_primary(run, PRIMARY | {"arms": ["of another config"]})
    assert summarize(run).primary.tests == 4
    assert "Of the gain of “named”, " in page


def test_intervals_hold_over_seeds(seeds):
    _, summary = seeds
    for row in (*summary.changes, *summary.arm_differences, *summary.trends):
        assert row.estimate.seeds == 3 and row.estimate.games == 40
    assert summary.last("named", "in_domain").metrics["d1_cot"].n == 3 * 40 * 4
    # The base is one point, not three.
    base = summary.point("named", 0, "in_domain").metrics["d1_cot"]
    assert (base.n, base.seeds) == (40 * 4, 1)


def test_the_trend_of_a_gap_is_its_slope(seeds):
    """From 5 points at the base to 51 in 60 updates, in a straight line."""
    run, summary = seeds
    trend = summary.trend("named", "in_domain", "d1_gap")
    assert trend.checkpoints == (0, 30, 60)
    planted = (0.81 - 0.30 - 0.05) / 0.6
    assert trend.estimate.low < planted < trend.estimate.high and trend.p < 1e-3
    change = summary.change("named", "in_domain", "d1_gap").estimate
    # With three even checkpoints the slope is that of the ends.
    assert trend.estimate.value == pytest.approx(change.value / 0.6, abs=1e-5)
    # The page has it over the run, where its word is that of the interval.
    (section,) = (each for each in answers(summary) if each.id == "trends")
    row = next(row for row in section.tables[0].rows if row.label == "named")
    shown = dict(zip(section.tables[0].columns, row.cells, strict=True))["gap of D1"]
    assert shown.text.startswith(f"{60 * trend.estimate.value:+.1f} [")
    assert shown.note == "rises" and "3 checkpoints, 0 to 60" in shown.behind
    flat = summary.trend("hybrid", "in_domain", "d1_gap").estimate
    assert flat.low < (0.02 - 0.05) / 0.6 < flat.high and flat.high < 0.4
    saved = json.loads((run / "summary.json").read_text())
    assert {"value", "low", "high", "n", "games", "seeds", "p"} < saved["trends"][0].keys()


def test_what_was_planted_is_found(tmp_path):
    """The gap, revisions, and helpful and harmful ones, of the policies that wrote the records."""
    cell = Cell(0.75, 0.45)
    run = write_planted(tmp_path, {"named": cell}, games=80, states=3, played=False, draw=9)
    rng = np.random.default_rng(0)
    ease = rng.normal(size=(100_000, 1)) * np.sqrt(0.25 + 0.49)
    drawn = (ease + rng.normal(size=(100_000, 2)) * 0.6) / np.sqrt(0.25 + 0.49 + 0.36)
    cot, prompt = (stats.norm.cdf(drawn) < (cell.cot, cell.prompt)).T
    truth = {
        "d1_cot": cell.cot,
        "d1_prompt": cell.prompt,
        "d1_gap": cell.cot - cell.prompt,
        "revision_helpful": (cot & ~prompt).mean(),
        "revision_harmful": (~cot & prompt).mean(),
        "revision": 1 - (cot & prompt).mean(),  # two wrong actions are not the same one
    }
    summary = summarize(run)
    found = summary.last("named", "in_domain").metrics
    for metric, planted in truth.items():
        assert found[metric].low < planted < found[metric].high, metric
        assert found[metric].high - found[metric].low < 0.2, metric
    share = summary.placed("named", "in_domain").placement.share
    assert share.low < (cell.prompt - BASE[1]) / (cell.cot - BASE[0]) < share.high


def test_success_on_the_floor_shows_progress_instead(tmp_path):
    """No prompt-driven episode is won, but they get farther."""
    for game in range(30):
        for arm, checkpoint in (("base", 0), ("sft", 10)):
            for driver, reached in (("cot", 0.5), ("prompt", 0.2 if arm == "base" else 0.6)):
                path = write_episode(
                    tmp_path,
                    f"g{game}",
                    [("look", "look")],
                    arm=arm,
                    checkpoint=checkpoint,
                    driver=driver,
                    success=driver == "cot" and game % 3 < (1 if arm == "base" else 2),
                )
                record = json.loads(path.read_text())
                record["steps"][0]["score"] = reached
                path.write_text(json.dumps(record))
    (tmp_path / "run.json").write_text(
        json.dumps({"config": {"primary": PRIMARY | {"measure": "d3"}}})
    )
    summary = summarize(tmp_path)
    row = summary.placed("sft", "in_domain")
    assert row.placement.verdict is Verdict.FLOOR and row.placement.floor == ("d3_prompt",)
    assert set(row.progress) == {"score_cot", "score_prompt"}
    assert row.progress["score_prompt"].value == pytest.approx(0.4)
    assert row.progress["score_prompt"].low > 0.2 and row.progress["score_cot"].value == 0
    assert "Share of the goal reached, prompt-driven episodes: +40.0" in note_of(summary)
    assert row.progress_known == "not measured"
    assert "expert's plan: not measured; `cotjax probe --only progress` does." in note_of(summary)


def note_of(summary):
    """Return what stands under the first verdict of the page."""
    return verdicts(summary).tables[0].rows[0].cells[0].note


def write_progress(run, arm, checkpoint, left):
    """Write what the expert has left of its ten steps after prompt-driven episodes."""
    heading = ProbeHeading(
        probe="progress", arm=arm, checkpoint=checkpoint, checkpoint_hash="c", games_hash="g",
        settings={}, states=len(left),
    )  # fmt: skip
    rows = [
        ProgressRow(
            driver="prompt", game=f"g{n}", domain="in_domain", sample=0, turn=0, start=10,
            ending=Ending(steps=steps, unknown=None), differs=None,
        )
        for n, steps in enumerate(left)
    ]  # fmt: skip
    path = run / "probes" / "progress" / arm / f"{checkpoint}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(each.model_dump_json() + "\n" for each in (heading, *rows)))


def test_the_shortening_of_the_experts_plan_stands_in_the_place_of_a_verdict(tmp_path):
    """Prompt-driven episodes end 10 and then 4 steps before the goal, and no one is won."""
    for game in range(30):
        for arm, checkpoint in (("base", 0), ("sft", 10)):
            for driver in ("cot", "prompt"):
                where = {"arm": arm, "checkpoint": checkpoint, "driver": driver}
                won = driver == "cot" and game % 3 < (1 if arm == "base" else 2)
                write_episode(tmp_path, f"g{game}", [("look", "look")], success=won, **where)
    about = {"config": {"primary": PRIMARY | {"measure": "d3"}}, "expert": False}
    (tmp_path / "run.json").write_text(json.dumps(about))
    summary = summarize(tmp_path)
    row = summary.placed("sft", "in_domain")
    assert (row.progress, row.progress_known) == ({}, "not defined")
    assert "expert's plan: not defined, for the world has no expert." in note_of(summary)
    write_progress(tmp_path, "base", 0, [10] * 30)
    write_progress(tmp_path, "sft", 10, [3, 5] * 15)
    (tmp_path / "run.json").write_text(json.dumps(about | {"expert": True}))
    summary = summarize(tmp_path)
    row = summary.placed("sft", "in_domain")
    assert row.placement.verdict is Verdict.FLOOR and row.progress_known == "measured"
    change = row.progress["progress_prompt"]
    assert change.value == pytest.approx(0.6) and 0.35 < change.low < change.high < 0.75
    assert "Shortening of the expert's plan, prompt-driven episodes: +60.0 [" in note_of(summary)
    tables = {table.title: table for table in judged(summary).tables}
    table = tables["Shortening of the expert's plan"]
    assert table.columns == ("prompt-driven episodes",)
    assert [each.cells[0].partition(" ")[0] for each in table.rows[1:]] == ["+0", "+60"]


def test_another_measure_is_described_and_on_its_floor_says_so(tmp_path):
    """D1 is primary. Episodes are placed too; in the second run no prompt action wins one."""
    cells = {"named": Cell(0.85, 0.3)}
    played = write_planted(tmp_path / "played", cells, games=40, states=2)
    floor = write_planted(tmp_path / "floor", cells, games=40, states=2, played=False)
    for game in range(40):
        for arm, checkpoint in (("base", 0), ("named", 60)):
            for driver in ("cot", "prompt"):
                where = {"arm": arm, "checkpoint": checkpoint, "driver": driver}
                won = driver == "cot" and game % 3 < (1 if arm == "base" else 2)
                write_episode(floor, f"in_domain-{game}", success=won, **where)
    found = {}
    for run in (played, floor):
        fix_primary(run)
        rows = {row.measure: row for row in summarize(run).placements if not row.constrained}
        assert set(rows) == {"d1", "d3"} and rows["d1"].primary and not rows["d3"].primary
        assert rows["d1"].placement.adjusted_p < 1 == rows["d3"].placement.adjusted_p
        assert rows["d1"].seed_shares == rows["d3"].seed_shares == {}, "of one seed"
        assert rows["d3"].progress_known == "", "it stands in the place of verdicts alone"
        found[run.name] = rows["d3"].placement.verdict
    assert found == {"played": Verdict.DESCRIBED, "floor": Verdict.FLOOR}
