"""Studies whose gains were put where they are: the page must say where, and what cannot differ."""

import io
import json
import re

import numpy as np
import pytest
from helpers.planted import PLANTED, Cell, write_planted
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from cotjax.diagnostics.share import Verdict
from cotjax.report.answer import answer
from cotjax.report.answers import answers
from cotjax.report.elicitations import side_by_side
from cotjax.report.figures import overview_figure
from cotjax.report.learned import information_table, split_table
from cotjax.report.page import write_report
from cotjax.report.panels import COLOURS
from cotjax.report.summarize import summarize
from cotjax.report.terminal import terminal_table
from cotjax.report.verdicts import verdicts


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The four cells, the ceiling and an arm that drops action losses, on expert states alone."""
    return write_planted(tmp_path_factory.mktemp("planted"), games=40, played=False)


@pytest.fixture(scope="module")
def summary(planted):
    return summarize(planted)


def write_information(run, arm, removed, steps=(0, 60)):
    folder = run / "arms" / arm
    folder.mkdir(parents=True, exist_ok=True)
    shares = {"REASONING": 0.99, "ACTION": 0.01}
    rows = [
        {
            "arm": arm,
            "checkpoint": step,
            "action_given_thought": {"token": 0.0009, "action": 0.005},
            "action_given_prompt": {"token": 0.55, "action": 3.1},
            "loss_share": shares,
            "gradient_share": shares,
            "gradient_norm": shares,
            "removed_share": removed,
            "examples": 64,
            "tokens": 9000,
        }
        for step in steps
    ]
    (folder / "information.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_verdict_flips_with_the_planted_truth(summary):
    placed = {arm: summary.placed(arm, "in_domain") for arm in summary.arms}
    assert {row.measure for row in placed.values()} == {"d1"}
    said = {arm: row.placement.verdict for arm, row in placed.items()}
    assert (said["named"], said["hybrid"], said["direct"]) == (
        Verdict.ADVANTAGE,
        Verdict.PROMPT,
        Verdict.PROMPT,
    )
    share = placed["named"].placement.share
    assert share.low < 0.05 / 0.51 < share.high
    _, found, _ = answer(summary)
    assert "the verdict is “in the CoT advantage” (in-domain); of the 5 other arms, it is" in found
    rows = {row.label: row.cells[0].text for row in verdicts(summary).tables[0].rows}
    assert rows == {arm: str(verdict) for arm, verdict in said.items()}


def test_the_baseline_comes_first_and_the_ceiling_last(summary):
    arms = summary.arms
    assert list(arms) == ["named", "reduced", "hybrid", "unnamed", "unnamed_hybrid", "direct"]
    # An arm that drops losses is compared with its own twin, the others with the baseline.
    assert arms["reduced"].minus == arms["unnamed"].minus == "named"
    assert arms["direct"].direct_share == 1.0


def test_the_split_adds_up_to_the_gap(summary):
    assert {split.twin for split in summary.splits} == {"direct"}
    for split in summary.splits:
        point = summary.last(split.arm, "in_domain")
        assert split.gap.value == point.metrics["d1_gap"].value
        assert split.reasoning.value + split.hidden.value == pytest.approx(
            split.gap.value, abs=1e-12
        )
    named = next(split for split in summary.splits if split.arm == "named")
    # Of the named arm's gap, most is that its prompt form was not trained.
    assert named.hidden.low > 0.4 and named.reasoning.high < 0.1
    for row in split_table(summary).rows:
        gap, reasoning, hidden = (
            float(text.split(" ")[0].replace("−", "-")) for text in row.cells[2:5]
        )
        assert reasoning + hidden == pytest.approx(gap)


def test_an_arm_that_cannot_differ_is_said_to_be_one(tmp_path):
    cells = {
        "named": PLANTED["named"],
        "reduced": PLANTED["reduced"],
        "other": Cell(0.6, 0.4, "unnamed"),
        "other_reduced": Cell(0.5, 0.3, "unnamed", fraction=0.3),
    }
    run = write_planted(tmp_path, cells, games=20, played=False)
    for arm, removed in (("named", 0.0), ("reduced", 0.0002), ("other_reduced", 0.08)):
        write_information(run, arm, removed)
    summary = summarize(run)
    assert [arm for arm, about in summary.arms.items() if about.cannot_differ] == ["reduced"]
    said = "this arm cannot differ from named: what it drops is 0.02 % of its loss."
    assert any(said in warning for warning in summary.warnings)
    masking = next(each for each in answers(summary) if each.id == "masking")
    alike, differing = masking.tables[0].rows
    assert alike.label == "reduced − named" and {*alike.cells} == {"–"}
    assert alike.note == said.capitalize()
    assert differing.label == "other_reduced − other"
    assert {cell.note for cell in differing.cells} & {"higher", "lower"}
    rows = [
        (row.label, row.cells[0], row.cells[-1].note) for row in information_table(summary).rows
    ]
    little = "⚠ under 1 %"
    assert [row for row in rows if row[0] == "reduced"] == [
        ("reduced", "0", little),
        ("reduced", "60", little),
    ]
    assert [row[2] for row in rows].count(little) == 2
    page = write_report(run, summary).read_text(encoding="utf-8")
    assert page.count("⚠ under 1 %") == 2 and 'id="information"' in page


def test_an_arm_of_other_data_can_differ_whatever_it_drops(tmp_path):
    """Its own counterpart is not in the study, so it is compared with another arm's data."""
    cells = {"named": PLANTED["named"], "other": Cell(0.5, 0.3, "unnamed", fraction=0.3)}
    run = write_planted(tmp_path, cells, games=12, states=2, played=False)
    write_information(run, "other", 0.0002)
    summary = summarize(run)
    assert summary.arms["other"].minus == "named" and not summary.arms["other"].cannot_differ
    questions = [section.title for section in answers(summary)]
    assert "What do other training data change?" in questions
    assert "What does masking change?" not in questions


def test_seeds_of_a_cell_are_one_arm(tmp_path):
    cells = {"named": PLANTED["named"], "hybrid": PLANTED["hybrid"]}
    run = write_planted(tmp_path, cells, seeds=3, games=12, played=False)
    summary = summarize(run)
    assert list(summary.arms) == ["named", "hybrid"] and summary.label("named") == "named"
    assert summary.arms["hybrid"].seeds == {f"hybrid/seed-{n}": n for n in range(3)}
    values = summary.seed_values("named", 60, "in_domain", "d1_cot")
    together = summary.last("named", "in_domain").metrics["d1_cot"]
    assert len(values) == 3 and together.value == pytest.approx(sum(values) / 3, abs=1e-6)
    assert together.games == 12
    change = summary.change("named", "in_domain", "d1_cot")
    assert set(change.seeds.values) == {f"named/seed-{n}" for n in range(3)}
    assert set(summary.placed("named", "in_domain").seed_shares) == set(change.seeds.values)
    assert change.estimate.seeds == 3 and change.estimate.low < change.estimate.value
    difference = summary.arm_difference("hybrid", "in_domain", "d1_prompt")
    assert len(difference.seeds.values) == 3 and difference.estimate.low > 0
    saved = json.loads((run / "summary.json").read_text())
    assert saved["schema_version"] == 4 and len(saved["seed_points"]) == 2 * 3 * 2
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(summary))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("named (3 seeds)" in line and "in the CoT advantage" in line for line in lines)
    page = write_report(run, summary).read_text(encoding="utf-8")
    assert "3 seeds: " in page and "values are means over seeds" in page


def test_seeds_that_were_written_as_arms_give_the_same_numbers(tmp_path):
    """A run of the older layout, whose records name no seed."""
    cells = {"named": PLANTED["named"], "hybrid": PLANTED["hybrid"]}
    saved = {}
    for older in (False, True):
        run = write_planted(tmp_path / str(older), cells, seeds=3, games=12, older=older)
        text = summarize(run) and (run / "summary.json").read_text()
        for cell in cells:
            text = re.sub(rf'"{cell}(?:_|/seed-)(\d)"', rf'"{cell} \1"', text)
        saved[older] = json.loads(text)
        # These name the folders of members.
        for section in ("run", "shown_episode", "checkpoint_hashes"):
            assert saved[older].pop(section)
    assert saved[True]["arms"]["named"]["seeds"] == {"named 0": 0, "named 1": 1, "named 2": 2}
    assert saved[True] == saved[False]


def test_a_metric_that_was_not_measured_is_not_in_the_file(planted, summary):
    saved = json.loads((planted / "summary.json").read_text())
    for point, kept in zip(summary.points, saved["points"], strict=True):
        assert set(kept["metrics"]) == {
            name for name, each in point.metrics.items() if each.measured
        }
    assert "d1_cot" in saved["points"][0]["metrics"] and "score_cot" in saved["metrics"]


def test_one_seed_has_no_interval_over_seeds(summary):
    assert summary.seed_points == ()
    assert all(row.seeds is None for row in (*summary.changes, *summary.arm_differences))


def test_names_stay_within_a_figure_of_eight_arms(tmp_path):
    cells = PLANTED | {
        "named_with_a_long_name_for_its_label": Cell(0.7, 0.3, fraction=0.5),
        "unnamed_with_a_long_name_for_its_label": Cell(0.5, 0.5, "unnamed", fraction=0.5),
    }
    run = write_planted(tmp_path, cells, seeds=2, games=4, states=1, checkpoints=(0, 30, 60))
    figure = overview_figure(summarize(run))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    assert len(figure.axes) == 2 * 8
    for axes in figure.axes:
        inside = axes.get_window_extent(renderer)
        for text in axes.texts:
            name = text.get_window_extent(renderer)
            assert inside.x0 <= name.x0 and name.x1 <= inside.x1 + 1
            assert inside.y0 - 3 <= name.y0 and name.y1 <= inside.y1 + 3
        title = axes._left_title.get_window_extent(renderer)
        assert title.width <= inside.width + 12 and title.y1 <= figure.bbox.y1


def test_prompt_responses_that_are_often_invalid_are_warned_of(tmp_path):
    """With an example, which is quoted, and the shares beside every metric of prompt actions."""
    run = write_planted(tmp_path, {"leaky": Cell(0.8, 0.5, valid=0.6, chosen=0.9)}, games=20)
    about = json.loads((run / "run.json").read_text())
    about["prompt"] = {"settings": {"admissible": "none"}, "text": "<b>You are in a room.</b>"}
    (run / "run.json").write_text(json.dumps(about))
    summary = summarize(run)
    assert [invalid.metric for invalid in summary.invalid] == [
        "valid_prompt",
        "valid_prompt_states",
    ]
    invalid = summary.invalid[1]
    assert invalid.points[0][:3] == ("leaky", 60, "in_domain") and invalid.points[0][3] < 0.75
    assert (invalid.example, invalid.problem) == ("<action> go to", "no </action>")
    assert any("Valid prompt responses" in warning for warning in summary.warnings)
    page = write_report(run, summary).read_text(encoding="utf-8")
    assert page.count("<code>&lt;action&gt; go to</code>") == 2
    assert "⚠ prompt responses:" in page and "⚠ below 95 %" in page
    assert "&lt;b&gt;You are in a room.&lt;/b&gt;" in page
    group = side_by_side(summary, "in_domain").groups[-1]
    free, total, mean, cot = group.rows
    assert free.cells[2].low and not free.cells[3].low and not cot.cells[2].low
    # What it knows, apart from what it can put into form.
    assert float(total.cells[0].text.split()[0]) > 40 + float(free.cells[0].text.split()[0])
    assert total.cells[0] == mean.cells[0] and total.cells[2].text == "always"
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(summary))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "admis-" in text and "revised" not in text


def test_colours_can_be_read_on_their_pages():
    """A contrast of at least 4.5 to 1 (WCAG 2, AA), on the page and on a card."""

    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for light, dark in COLOURS.values():
        for colour, grounds in ((light, ("#ffffff", "#f5f7f9")), (dark, ("#14181c", "#1d2329"))):
            for ground in grounds:
                low, high = sorted((luminance(colour), luminance(ground)))
                assert (high + 0.05) / (low + 0.05) >= 4.5
