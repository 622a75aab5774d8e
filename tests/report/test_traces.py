"""The report's tables and sentences on forced thoughts, from the rows of a study."""

import pytest
from helpers.studies import write_episode

from cotjax.diagnostics.conflict import CONTROLS, VARIANTS, Conflict, ConflictRow, Trial
from cotjax.diagnostics.faithfulness import Changed, FaithfulnessRow
from cotjax.diagnostics.probe_rows import ProbeHeading
from cotjax.probes.measuring import probe_path
from cotjax.report.summarize import summarize
from cotjax.report.traces import EFFECTS, changed_thoughts, conflicts

GAMES = 30


def write_rows(run, probe, arm, step, rows):
    path = probe_path(run, probe, arm, step)
    path.parent.mkdir(parents=True)
    heading = ProbeHeading(
        probe=probe, arm=arm, checkpoint=step, checkpoint_hash="c", games_hash="g",
        settings={}, states=len(rows),
    )  # fmt: skip
    lines = [each.model_dump_json() for each in (heading, *rows)]
    path.write_text("\n".join(lines) + "\n")


def conflict_row(place, follows):
    """A state that has all variants but the swap in every third game; it follows all or none."""
    variants = [name for name in VARIANTS if name != "swap" or place["game"][-1] not in "147"]
    outcome = "follow" if follows else "keep"
    trials = {
        name: Trial(action="a", outcome=outcome if name == variant else "keep", tokens=4)
        for variant in variants
        for name in (variant, *(f"{control}_{variant}" for control in CONTROLS[variant]))
    }
    conflict = Conflict(action="b", thought="<b>so b</b>", game="g", turn=0)
    return ConflictRow(
        **place,
        own="a",
        prompt="look",
        listed=True,
        conflicts=dict.fromkeys(variants, conflict),
        trials=trials,
        missing={name: "not_named" for name in VARIANTS if name not in variants},
    )


def faithfulness_row(place, depends):
    other = "b" if depends else "a"
    return FaithfulnessRow(
        **place,
        own="a",
        tokens=8,
        early=(other, other, other, other, "a"),
        mistakes=(),
        filler=Changed(thought="...", action=other),
        paraphrase=None,
        missing={"mistake": "no_noun"},
    )


@pytest.fixture
def run(tmp_path):
    """The base follows a thought in 3 games of 30, the arm in 27."""
    for arm, step, share in (("base", 0, 3), ("sft", 10, 27)):
        rows, changed = [], []
        for number in range(GAMES):
            name = f"in_domain-{number}"
            write_episode(tmp_path, name, driver="reference", arm=arm, checkpoint=step,
                          steps=[("look", "look", "look")])  # fmt: skip
            place = {
                "driver": "reference", "game": name, "domain": "in_domain", "sample": 0, "turn": 0
            }  # fmt: skip
            rows.append(conflict_row(place, number < share))
            changed.append(faithfulness_row(place, number < share))
        write_rows(tmp_path, "conflict", arm, step, rows)
        write_rows(tmp_path, "faithfulness", arm, step, changed)
    return tmp_path


def test_the_table_has_every_variant_with_its_controls_at_both_ends(run):
    section = conflicts(summarize(run))
    assert [table.title for table in section.tables] == [
        EFFECTS,
        "base · in-domain",
        "sft, step 10 · in-domain",
    ]
    effects, first, last = section.tables
    assert len(effects.columns) == len(VARIANTS)
    assert [row.label for row in effects.rows] == ["In-domain", "base", "sft, step 10"]
    cell = effects.rows[2].cells[1]
    assert cell.text.startswith("+90 [") and cell.note == "followed"
    assert [len(row.cells) for row in first.rows] == [len(first.columns)] * len(first.rows)
    labels = [row.label for row in first.rows]
    assert len(labels) == 16
    # A control has the length of the thought above it, and does not say so again.
    assert labels[:2] == ["Own thought, one noun swapped", "Own thought"]
    for number, row in enumerate(first.rows):
        after = [each.part for each in first.rows[number + 1 :]]
        controls = labels[number + 1 : number + 1 + (*after, False).index(False)]
        assert row.part or 0 < len(controls) == len(set(controls))
    assert [row.part for row in first.rows[:4]] == [False, True, False, True]
    # "keeps", "follows", "third", "invalid", effect, against the base, what it says, states.
    other = next(row for row in last.rows if row.label == "Another state's thought")
    assert other.cells[1].startswith("90 [") and other.cells[4].startswith("+90 [")
    assert other.cells[0].startswith("10 [") and other.cells[7] == "30"
    # The base keeps its action in 90 %, the arm in 10.
    assert other.cells[5].startswith("−80 [")
    assert next(row for row in first.rows if not row.part).cells[7] == "21"


def test_words_follow_from_the_intervals_and_what_is_left_out_is_said(run):
    section = conflicts(summarize(run))
    assert {row.cells[6] for row in section.tables[2].rows if not row.part} == {"followed"}
    assert {row.cells[6] for row in section.tables[2].rows if row.part} == {""}
    assert "“own thought, one noun swapped”" in " ".join(section.notes)
    assert "30 to 30 % have none" in " ".join(section.notes)


def test_a_policy_that_keeps_its_action_is_not_said_to_follow(tmp_path):
    place = {"driver": "reference", "domain": "in_domain", "sample": 0, "turn": 0}
    rows = []
    for number in range(GAMES):
        name = f"in_domain-{number}"
        write_episode(tmp_path, name, driver="reference", arm="base", checkpoint=0,
                      steps=[("look", "look", "look")])  # fmt: skip
        rows.append(conflict_row(place | {"game": name}, False))
    write_rows(tmp_path, "conflict", "base", 0, rows)
    effects, table = conflicts(summarize(tmp_path)).tables
    assert {cell.note for cell in effects.rows[1].cells} == {""}
    assert [row.cells[6] for row in table.rows if not row.part] == ["–"] * len(VARIANTS)


def test_changed_thoughts_have_a_column_a_checkpoint(run):
    (table,) = changed_thoughts(summarize(run)).tables
    assert table.columns == ("base", "sft, step 10")
    cells = {row.label: row.cells for row in table.rows}
    assert cells["0 % of the thought"][1].startswith("10 [")
    assert cells["100 % of the thought"][1].startswith("100 [")
    base, arm = cells["Area over the curve, early answering"]
    assert base.startswith("0.09 [") and arm.startswith("0.79 [")
    assert not any("paraphrase" in label or "mistake" in label for label in cells)


def test_nothing_is_said_of_what_was_not_measured(tmp_path):
    write_episode(tmp_path, "in_domain-0", arm="base", checkpoint=0)
    summary = summarize(tmp_path)
    assert conflicts(summary).tables == changed_thoughts(summary).tables == ()
