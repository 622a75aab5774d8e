"""The sections on the floor of D2 and on the likelihood of actions."""

import pytest
from helpers.planted import write_planted
from markupsafe import escape

from cotjax.diagnostics.floor import FloorRow
from cotjax.diagnostics.likelihood import LikelihoodRow
from cotjax.diagnostics.probe_rows import ProbeHeading
from cotjax.report.agreement import floor, likelihood
from cotjax.report.page import write_report
from cotjax.report.summarize import summarize

ARMS = (("base", 0), ("named", 60))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("run"), games=12, states=2, played=False)


def write_rows(run, probe, row, fields):
    """Write a row for each state of two points. `fields`: (arm, number of the game) -> fields."""
    for arm, step in ARMS:
        heading = ProbeHeading(
            probe=probe,
            arm=arm,
            checkpoint=step,
            checkpoint_hash="hash",
            games_hash="g",
            settings={},
            states=24,
        )
        lines = [heading.model_dump_json()]
        for game in range(12):
            place = {"driver": "reference", "game": f"in_domain-{game}", "domain": "in_domain"}
            lines += [
                row(**place, sample=0, turn=turn, **fields(arm, game)).model_dump_json()
                for turn in range(2)
            ]
        path = run / "probes" / probe / arm / f"{step}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def test_a_revision_rate_stands_beside_its_floor(run):
    """At the base both modes draw alike; the arm's prompt actions are others."""

    def fields(arm, game):
        ends = ("a", "b") if game % 2 else ("a", "a")
        return {"cot": ends, "prompt": ends if arm == "base" else ("c", "c")}

    write_rows(run, "floor", FloorRow, fields)
    section = floor(summarize(run))
    (table,) = section.tables
    heading, base, named = table.rows
    assert heading.label == "In-domain" and base.label == "base"
    assert named.label.startswith("named, step 60")
    values = [[cell.split(" ")[0] for cell in row.cells[:-1]] for row in (base, named)]
    # Of the base's games, half agree always (excess 0), half never in a kind and half the time
    # across (excess -1/2).
    assert values == [["50", "50", "75", "−25", "0"], ["50", "100", "0", "+75", "0"]]
    assert len(table.columns) == len(base.cells)
    # Words where the interval of the difference excludes 0 alone.
    assert (base.cells[-1], named.cells[-1]) == ("–", "the modes differ beyond the floor")


def test_the_page_has_a_section_for_what_was_measured_and_none_for_the_rest(run):
    def fields(arm, game):
        return {"cot": ("a", "a"), "prompt": ("a", "a") if arm == "base" else ("c", "c")}

    write_rows(run, "floor", FloorRow, fields)
    page = write_report(run).read_text()
    shown = page[page.index('<section aria-labelledby="floor">') :].partition("</section>")[0]
    section = floor(summarize(run))
    (table,) = section.tables
    for text in (section.title, *section.sentences, *table.columns, *table.rows[2].cells):
        assert escape(text) in shown
    assert '<a href="#floor">' in page
    assert 'id="roles"' not in page


def test_likelihoods_stand_side_by_side(run):
    def fields(arm, game):
        saved = 0.0 if arm == "base" else 1.5 + 0.1 * game
        return {
            "tokens": 4,
            "reference": -4.0,
            "reference_after_cot": -4.0 + saved,
            "cot": -3.0,
            "prompt": -1.0,
            "posterior": 0.25,
            "posterior_after_cot": None,
            "divergence": None,
        }

    write_rows(run, "likelihood", LikelihoodRow, fields)
    tables = likelihood(summarize(run)).tables
    assert [len(table.columns) for table in tables] == [8, 2], "no table is wider than the page"
    base, named = (
        {
            head: cell
            for table in tables
            for head, cell in zip(table.columns, table.rows[place].cells, strict=True)
        }
        for place in (1, 2)
    )
    assert base["after the prompt"].startswith("4.00 [")
    assert named["saved by reasoning"].startswith("+2.05 [+")
    assert named["per token after the prompt"].startswith("1.00 [")
    assert named["posterior after the prompt, %"].startswith("25 [")
    assert named["posterior after the CoT, %"] == "–"
    assert named["nats of the CoT action minus prompt action, after the prompt"].startswith(
        "−2.00 ["
    )
    assert (base["says"], named["says"]) == (
        "–",
        "reasoning makes the reference action more likely",
    )


def test_without_the_probes_there_is_nothing_to_show(tmp_path):
    summary = summarize(write_planted(tmp_path / "run", games=2, states=1, played=False))
    for section in (floor(summary), likelihood(summary)):
        assert section.tables == section.sentences == ()
