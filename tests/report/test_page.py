"""summary.json, the answers, the figures and report.html of a small study."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.errors import DataError
from cotjax.report.answer import answer
from cotjax.report.answers import EXTREME, answers
from cotjax.report.figures import alt_text, panel_svg, write_figures
from cotjax.report.labels import percent
from cotjax.report.page import make_report, write_report
from cotjax.report.panels import CHARTS, apart, ticks
from cotjax.report.summarize import summarize
from cotjax.report.summary import Played
from cotjax.report.terminal import terminal_table

# The study has 12 games of the OOD domain.
FEW = "Fewer than 60 games, so with wide intervals: 12 out-of-domain."
_VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags close in order; collects text, ids and attributes that could load things."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.loads, self.tags, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self._attributes(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text += data

    def _attributes(self, attrs):
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            self.loads += (
                [value]
                if name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster")
                else []
            )
            self.loads += (
                re.findall(r"url\(([^)]*)\)", value or "")
                if name in ("style", "clip-path", "fill")
                else []
            )


def metrics(summary, arm, checkpoint, domain="in_domain"):
    return summary.point(arm, checkpoint, domain).metrics


def test_summary_of_the_study(study):
    summary = summarize(study)
    assert (study / "summary.json").read_text() == summary.to_json()
    assert json.loads(summary.to_json())["world"] == summary.world == "alfworld"
    assert (
        list(summary.arms),
        summary.baseline,
        summary.checkpoints,
        summary.last_checkpoint,
    ) == (
        ["sft", "reduced"],
        "sft",
        (0, 10),
        10,
    )
    last = metrics(summary, "sft", 10)
    values = [last[name].value for name in ("d3_cot", "d3_prompt", "d1_cot", "d1_prompt", "d2")]
    assert values == pytest.approx([10 / 12, 9 / 12, 2 / 3, 2 / 3, 2 / 3], abs=1e-6)
    assert last["gap"].value == pytest.approx(1 / 12, abs=1e-6)
    assert summary.seconds == {"environment": 0.5 * 216, "sampler": 1.5 * 216}
    # One seed, and no config that fixed what the verdicts are about.
    assert [each.split(":")[0] for each in summary.warnings[:-1]] == [
        "Training seeds are not covered",
        "The measure of the verdicts was not fixed beforehand",
    ]
    assert summary.warnings[-1] == FEW
    assert summary.elicitation[0].elicitation["prompt_prefix"] == "<action>"
    assert summary.point("sft", 10, "in_domain").episodes["cot"] == Played(
        played=12, won=10, env_error=0, ended={"step_limit": 2, "won": 10}
    )


def test_both_arms_begin_at_the_base(study):
    summary = summarize(study)
    assert metrics(summary, "sft", 0) == metrics(summary, "reduced", 0)
    assert metrics(summary, "sft", 0)["d3_cot"].value == pytest.approx(2 / 12, abs=1e-6)
    assert "base" not in summary.arms


def test_changes_and_arm_differences(study):
    summary = summarize(study)
    change = summary.change("sft", "in_domain", "d3_cot").estimate
    assert change.value == pytest.approx(8 / 12, abs=1e-6) and change.low > 0
    for metric, value in (("gap", 0), ("d1_prompt", 1 / 3)):
        change = summary.change("sft", "in_domain", metric).estimate
        assert change.value == pytest.approx(value, abs=1e-6)
    assert {row.minus for row in summary.arm_differences} == {"sft"}
    difference = summary.arm_difference("reduced", "ood", "d3_cot").estimate
    assert difference.value == pytest.approx(2 / 12, abs=1e-6)
    difference = summary.arm_difference("reduced", "in_domain", "d3_cot").estimate
    assert difference.value == 0 and difference.low < 0 < difference.high
    assert summary.arm_difference("sft", "ood", "d3_cot") is None
    assert summary.arms["reduced"].minus == "sft" and summary.arms["sft"].minus is None
    rows = json.loads(summary.to_json())
    assert list(rows["changes"][0])[:5] == ["arm", "domain", "metric", "from", "to"]
    assert {"value", "low", "high", "n", "games", "p"} < rows["arm_differences"][0].keys()


def test_the_answer_has_three_sentences(study):
    """12 games: the same gain by both kinds of action, but too few games to say so."""
    summary = summarize(study)
    asked, found, unsure = answer(summary)
    assert "2 arms trained for 10 updates" in asked and "success of whole episodes (D3)" in asked
    assert "12 in-domain and 12 out-of-domain ALFWorld games" in asked
    assert found == (
        "Of the gain of “standard SFT”, 100 % [56, 179] is in the prompt action: the verdict is "
        "“not placed”, for the interval is too wide (in-domain); on the other arm it is "
        "“not placed”."
    )
    assert "over games, all 8 tests" in unsure and "other training seeds" in unsure
    page = Page(write_report(study, summary).read_text(encoding="utf-8"))
    places = [page.text.index(each) for each in (asked, found, unsure, "Training seeds are not")]
    assert places == sorted(places), "before the warnings"


def cells_of(section, domain, arm):
    """Return the cells of a row, by the table's title and the beginning of the row's label."""
    table = next(table for table in section.tables if table.title == domain)
    row = next(row for row in table.rows if row.label.startswith(arm))
    return dict(zip(table.columns, row.cells, strict=True))


def test_answers_follow_the_intervals(study):
    said = {section.id: section for section in answers(summarize(study))}
    assert list(said) == ["revisions", "masking"]
    revised = cells_of(said["revisions"], "In-domain", "standard SFT")
    assert revised["revised, expert states"].text.startswith("33.3 [")
    assert revised["revised, expert states"].behind.startswith("Δ ")
    assert revised["gap of D1"].text.startswith("+0.0 [") and revised["gap of D1"].note == ""
    assert revised["gap of D3"].behind.startswith("exact p = ")
    # Success by CoT actions is 100 % in one arm alone, so it is compared.
    for domain, difference in (("In-domain", "+0.0 ["), ("Out-of-domain", "+16.7 [")):
        cells = cells_of(said["masking"], domain, "reduced action supervision, k = 0.3 − standard")
        assert cells["success by CoT actions"].text.startswith(difference)
        assert cells["success by CoT actions"].note == ""


def test_a_difference_on_the_ceiling_gets_no_words(study):
    """Both arms are right in more than 95 % of the states."""
    summary = summarize(study)
    high = Estimate(0.97, 0.9, 1.0, 36, 12)
    points = tuple(
        replace(point, metrics=point.metrics | {"d1_cot": high}) for point in summary.points
    )
    _, masking = answers(replace(summary, points=points))
    assert cells_of(masking, "In-domain", "reduced")["D1 of CoT actions"].note == EXTREME


def test_the_same_records_give_the_same_bytes(study, tmp_path):
    files = ("summary.json", "report.html", "figures/answer.svg", "figures/d1.png")
    make_report(study)
    first = [(study / name).read_bytes() for name in files]
    make_report(study)
    assert [(study / name).read_bytes() for name in files] == first


def test_report_is_one_page_that_loads_nothing(study):
    text = write_report(study).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    # Nothing outside the file, but links to the viewer beside it.
    inside = {load for load in page.loads if not load.startswith("viewer/index.html")}
    assert inside < {*page.loads} and all(load.startswith("#") for load in inside)
    assert {load[1:] for load in inside} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert (
        "@import" not in text and "http" not in text and "url(" not in re.sub(r"url\(#", "", text)
    )
    # A panel for each arm and domain, those beside the verdicts not repeated; and the answer's.
    assert page.tags.count("svg") == 2 * 2 * len(CHARTS) + 2
    for needed in (
        "A tiny study",
        "0.3",
        "prefilled before a prompt response",
        "scripted, before the action",
        "1,000,000",
        "8 emulated CPUs",
        "redraw",
        "revised",
        "put a plate in fridge",
    ):
        assert needed in page.text


def test_report_escapes_what_it_shows(study, episode):
    nasty = "</li><script>alert(1)</script><img src=http://x.y/z onerror=alert(2)> & {{ 7*7 }}"
    for path in (study / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        for step in record["steps"]:
            step["observation"] = nasty
            if step["cot"]:
                step["cot"]["thought"] = step["cot"]["action"] = nasty
        path.write_text(json.dumps(record | {"task": nasty, "elicitation": {"history": nasty}}))
    meta = json.loads((study / "run.json").read_text())
    meta["title"] = meta["config"]["note"] = nasty
    # U+202E would turn the rest of a sentence around, with its interval.
    meta["arms"]["sft"]["label"] = f"\u202e{nasty}"
    (study / "run.json").write_text(json.dumps(meta))
    page = Page(write_report(study).read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags
    assert page.text.count(nasty) >= 5
    assert "\u202e" not in page.text[: page.text.rindex("The run")]
    assert all(load.startswith(("#", "viewer/index.html")) for load in page.loads)


def test_the_three_shares_stand_by_checkpoint_and_mode(tmp_path, episode):
    steps = [("look", "look"), (None, "look"), ("fly", "look"), ("nothing", "look")]
    episode(tmp_path, "g", steps, arm="base", checkpoint=0)
    episode(
        tmp_path, "g", [("look", None), ("look", "look")], driver="prompt", arm="base", checkpoint=0
    )
    episode(
        tmp_path,
        "broken",
        [(None, "look")],
        arm="base",
        checkpoint=0,
        success=False,
        ended="env_error",
    )
    summary = summarize(tmp_path)
    point = summary.point("base", 0, "in_domain")
    values = [
        point.metrics[name].value
        for name in ("valid_cot", "admissible_cot", "valid_prompt", "admissible_prompt")
    ]
    assert values == [0.75, 0.5, 0.5, 0.5]
    assert point.metrics["not_accepted_cot"].value == pytest.approx(1 / 3, abs=1e-6), (
        "of the three that were sent"
    )
    assert point.invalid == {"cot": {"unclosed_action": 1}, "prompt": {"unclosed_action": 1}}
    assert point.env_faults == {"cot": 1, "prompt": 0}
    assert point.episodes["cot"].env_error == 1 and point.metrics["d3_cot"].value == 1, (
        "broken is not lost"
    )
    text = Page(write_report(tmp_path, summary).read_text(encoding="utf-8")).text
    table = text[
        text.index("Responses behind each point") : text.index("Every point of the curves")
    ]
    assert "75.0" in table and "no </action>: 1" in table and table.count("base") == 2


def test_episodes_of_other_kinds_of_action_are_counted(tmp_path, episode):
    where = {"arm": "base", "checkpoint": 0}
    episode(tmp_path, "g", **where)
    episode(tmp_path, "g", driver="prompt_constrained", chosen=["look"], **where)
    summary = summarize(tmp_path)
    assert summary.point("base", 0, "in_domain").metrics["d3_prompt_constrained"].value == 1
    text = write_report(tmp_path, summary).read_text(encoding="utf-8")
    Page(text)
    assert "other episodes (won)" in text and "prompt constrained: 1 (1)" in text
    assert "episodes driven by constrained prompt actions" in text


def test_records_of_different_games_or_checkpoints_are_named(study):
    paths = sorted((study / "records" / "sft" / "10" / "cot").glob("*.json"))
    paths[0].write_text(json.dumps(json.loads(paths[0].read_text()) | {"games_hash": "other"}))
    paths[1].write_text(json.dumps(json.loads(paths[1].read_text()) | {"checkpoint_hash": "other"}))
    *_, games, checkpoints = summarize(study).warnings
    assert "not all played on the same games" in games
    assert "sft at checkpoint 10 are of 2 different checkpoints" in checkpoints


def test_records_of_different_worlds_are_named(study, episode):
    episode(study, "elsewhere", world="cabinets")
    summary = summarize(study)
    assert summary.world == "alfworld, cabinets"
    assert any("more than one world" in warning for warning in summary.warnings)


def test_held_out_losses_are_shown_where_a_run_has_them(study):
    """At 12 checkpoints at most; the lowest of each arm is bold."""
    assert "held-out training examples" not in write_report(study).read_text(encoding="utf-8")
    folder = study / "arms" / "sft"
    folder.mkdir(parents=True)
    rows = [{"step": 1, "loss": 9.0}] + [
        {"step": step, "held_out": {"loss": abs(step - 30) / 100, "loss_by_role": {"ACTION": 0.5}}}
        for step in range(31)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summarize(study)
    assert list(summary.held_out) == ["sft"] and len(summary.held_out["sft"]) == 31
    assert json.loads(summary.to_json())["held_out"]["sft"][30]["loss"] == 0.0
    text = write_report(study, summary).read_text(encoding="utf-8")
    Page(text)
    table = text[text.index('id="losses"') : text.index('id="episode"')]
    assert table.count('<th scope="row">') == 12 and table.count('class="clear"') == 1
    assert "0.3000<small>action 0.500</small>" in table and "standard SFT" in table


def test_shown_episode_is_won_and_revised(study, episode):
    summary = summarize(study)
    shown = json.loads((study / summary.shown_episode).read_text())
    # Won by CoT actions, lost by prompt actions (game 9 of sft), revised in its second step.
    assert (shown["arm"], shown["game"]["id"], shown["success"], shown["driver"]) == (
        "sft",
        "in_domain-9",
        True,
        "cot",
    )
    page = Page(write_report(study, summary).read_text(encoding="utf-8"))
    steps = page.text[
        page.text.rindex("One episode, step by step") : page.text.rindex("How it was measured")
    ]
    assert steps.index("same") < steps.index("Step 2") < steps.rindex("revised")


def test_only_the_base_was_played(tmp_path, episode):
    episode(tmp_path, "g", arm="base", checkpoint=0)
    summary = make_report(tmp_path)
    assert (
        list(summary.arms),
        summary.last_checkpoint,
        summary.changes,
        summary.arm_differences,
    ) == (["base"], 0, (), ())
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (tmp_path / "viewer" / "index.html").exists()
    assert "Nothing has been trained" in page.text and "There is no run.json" in page.text


def test_warnings(study, episode):
    episode(study, "broken", success=False, ended="env_error")
    episode(study, "other", elicitation={"temperature": 1.0})
    meta = json.loads((study / "run.json").read_text())
    (study / "run.json").write_text(json.dumps(meta | {"checkpoints": [0, 10, 20]}))
    for i in range(12):
        episode(study, f"ood-{i}", domain="ood", thought=None)
    warnings = " ".join(summarize(study).warnings)
    for said in (
        "1 episode ended by an environment error",
        "not all made with the same elicitation",
        "without records: 20",
        "Only 0 % of the CoT responses",
    ):
        assert said in warnings


def test_checkpoints_that_one_arm_lacks(study, episode):
    episode(study, "in_domain-0", checkpoint=20)
    summary = summarize(study)
    assert (summary.checkpoints, summary.last_checkpoint) == ((0, 10, 20), 10)
    assert any("no records at checkpoint 20" in warning for warning in summary.warnings)
    make_report(study)


def test_bad_input(study, tmp_path):
    (study / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json: not complete JSON"):
        summarize(study)
    with pytest.raises(DataError, match="nowhere"):
        make_report(tmp_path / "nowhere")


def test_arms_without_a_common_checkpoint(tmp_path, episode):
    episode(tmp_path, "g", arm="sft", checkpoint=10)
    episode(tmp_path, "g", arm="reduced", checkpoint=20)
    with pytest.raises(DataError, match="no checkpoint in common"):
        summarize(tmp_path)


def test_figures(study):
    before = dict(matplotlib.rcParams)
    summary = summarize(study)
    paths = write_figures(summary, study / "figures")
    assert {path.name for path in paths} == {
        f"{name}.{kind}" for name in (*CHARTS, "answer", "overview") for kind in ("png", "svg")
    }
    assert all(path.read_bytes().count(b"<text") > 10 for path in paths if path.suffix == ".svg")
    with Image.open(study / "figures" / "overview.png") as overview:
        assert overview.size == (1600, 900)
        assert len(overview.convert("RGB").getcolors(1 << 20)) > 50
    assert dict(matplotlib.rcParams) == before
    svg = panel_svg(summary, CHARTS["d3"], "sft", "ood", "p")
    for needed in ("var(--cot)", "var(--prompt)", "currentColor", ">prompt<"):
        assert needed in svg
    assert "xmlns" not in svg
    alt = alt_text(summary, CHARTS["d3"], "reduced", "ood")
    assert "reduced action supervision, k = 0.3, out-of-domain" in alt
    assert "CoT: 17 (5 to 45), then 100 (76 to 100); prompt: 8 (1 to 35), then 75 (47 to 91)" in alt


@pytest.mark.parametrize(
    ("values", "heights"),
    [
        ([], []),
        ([0.2, 0.5, 0.8], [0.2, 0.5, 0.8]),  # far apart: where they are
        ([0.3, 0.49, 0.51, 0.9], [0.3, 0.45, 0.55, 0.9]),  # two give way, the others do not move
        ([0.0, 0.0, 0.0, 0.0], [0.05, 0.15, 0.25, 0.35]),  # all on the axis: above it
        ([0.97, 0.98], [0.85, 0.95]),
    ],
)
def test_names_at_the_ends_of_lines_keep_apart(values, heights):
    np.testing.assert_allclose(apart(values, 0.1, 0.05, 0.95), heights)


@pytest.mark.parametrize(
    ("checkpoints", "named"),
    [
        ((0,), [0]),
        ((0, 20, 40, 60), [0, 20, 40, 60]),
        ((0, 10, 100, 1000), [0, 1000]),  # 10 and 100 would lie on the base
        (tuple(range(0, 601, 10)), [0, 200, 400, 600]),
        ((0, 500, 20_000), [0, 20_000]),
    ],
)
def test_steps_under_an_axis_keep_apart(checkpoints, named):
    assert ticks(checkpoints, 1.3) == named


def test_terminal_table_fits_80_columns(study):
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(summarize(study)))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "sft " in text and "reduced " in text and "step 10 " in text and "…" not in text
    assert "83" in text and "[55, 95]" in text  # 10 of 12, Wilson


def test_percent():
    assert percent(Estimate(0.5, 0.25, 0.75, 4, 4)) == "50 [25, 75]"
    assert percent(Estimate(-0.004, -0.01, 0.02, 4, 4), signed=True) == "+0 [−1, +2]"
    assert percent(NOTHING) == "–"
