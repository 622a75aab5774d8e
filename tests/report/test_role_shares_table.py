"""D6 and D7 on the page: what rows hold arrives at its place, beside the published figures."""

import json

import pytest
from helpers.planted import write_planted

from cotjax.diagnostics.attention import Attended, AttentionRow, Hidden
from cotjax.diagnostics.gradient import GradientRow, Reached, Swapped
from cotjax.diagnostics.probe_rows import ProbeHeading
from cotjax.diagnostics.role_shares import BY_LAYER
from cotjax.probes.measuring import probe_path
from cotjax.report.layers import UNIFORM as IF_UNIFORM
from cotjax.report.layers import layers
from cotjax.report.role_shares import COLUMNS, READ, USED, role_shares
from cotjax.report.summarize import summarize

GAMES = 12
LAYERS = 14  # more than a table shows
UNIFORM = {"scaffold": 0.1, "task": 0.1, "observation": 0.6, "reasoning": 0.2}


def response(prompt: float) -> dict:
    """Return the fields of a response whose prompt has this share, and its reasoning the rest."""
    share = {"task": prompt / 4, "observation": 3 * prompt / 4, "reasoning": 1 - prompt}
    return {
        "nats": 1.0,
        "tokens": 2,
        "length": 90,
        "uniform": UNIFORM,
        "share": share,
        "prompt_by_layer": (prompt, *(prompt - 0.2,) * (LAYERS - 1)),
        "reasoning_by_layer": (1 - prompt, *(1 - prompt,) * (LAYERS - 1)),
    }


def write_rows(run, probe, row, make):
    """Write a finished file of the base and of the arm "named" at step 60."""
    for arm, step in (("base", 0), ("named", 60)):
        heading = ProbeHeading(
            probe=probe, arm=arm, checkpoint=step, checkpoint_hash="c", games_hash="g",
            settings={}, states=GAMES,
        )  # fmt: skip
        rows = [
            row(
                driver="reference", game=f"in_domain-{game}", domain="in_domain", sample=0,
                turn=0, skipped=None, **make(arm, game),
            )
            for game in range(GAMES)
        ]  # fmt: skip
        path = probe_path(run, probe, arm, step)
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{each.model_dump_json()}\n" for each in (heading, *rows)))


@pytest.fixture
def summary(tmp_path):
    run = write_planted(tmp_path / "run", games=GAMES, states=1, played=False)

    def attended(arm, game):
        prompt = (0.3 if arm == "base" else 0.6) + 0.02 * (game % 2 - 0.5)
        changed = game % 4 == 0
        return {
            "cot": Attended(**response(prompt)),
            "prompt": None,
            "masked": Hidden(nats=0.5 + game % 3, changed=changed),
            "blocked": Hidden(nats=-0.25, changed=False),
        }

    def reached(arm, game):
        cot = Reached(**response(0.8), input_share={"task": 0.5, "reasoning": 0.5})
        swapped = Swapped(
            game="in_domain-1", turn=0, own_tokens=9, tokens=9, nats=2.0, changed=True
        )
        return {"cot": cot, "prompt": None, "swapped": swapped}

    write_rows(run, "attention", AttentionRow, attended)
    write_rows(run, "gradient", GradientRow, reached)
    return summarize(run)


def test_planted_shares_are_recovered_within_their_intervals(summary):
    for arm, step, planted in (("named", 0, 0.3), ("named", 60, 0.6)):
        found = summary.point(arm, step, "in_domain").metrics
        estimate = found["attention_prompt"]
        assert estimate.low < planted < estimate.high
        assert estimate.value == pytest.approx(planted)
        assert found["attention_task"].value == pytest.approx(planted / 4)
        assert found["attention_reasoning"].value == pytest.approx(1 - planted)
        assert found["attention_history"].value == 0
        assert found["attention_of_two"].value == pytest.approx(planted)
        assert found["attention_masked_changed"].value == pytest.approx(0.25)
        assert found["attention_masked_nats"].value == pytest.approx(1.5)
        assert found["attention_blocked_nats"].value == pytest.approx(-0.25)
        assert found["attention_blocked_nats"].low < -0.25 < found["attention_blocked_nats"].high
        assert found["thought_swapped_nats"].value == 2
        assert found["gradient_input_task"].value == 0.5
    other = summary.point("direct", 60, "in_domain").metrics
    assert "attention_prompt" not in other or not other["attention_prompt"].measured


def test_planted_shares_of_each_layer_are_recovered(summary):
    point = summary.point("named", 60, "in_domain")
    assert set(point.layers) == {
        f"{probe}_{part}" for probe in ("attention", "gradient") for part in ("prompt", "reasoning")
    }
    for probe, prompt in (("attention", 0.6), ("gradient", 0.8)):
        of_prompt, of_reasoning = (point.layers[f"{probe}_{part}"] for part in BY_LAYER)
        assert len(of_prompt) == len(of_reasoning) == LAYERS
        first, *others = of_prompt
        assert first.low < prompt < first.high and first.value == pytest.approx(prompt)
        for each in others:
            assert each.low < prompt - 0.2 < each.high
            assert each.value == pytest.approx(prompt - 0.2)
            assert each.games == GAMES
        assert all(each.value == pytest.approx(1 - prompt) for each in of_reasoning)
    # The interval is that of a mean over the same games and states.
    whole = point.metrics["attention_prompt"]
    assert point.layers["attention_prompt"][0] == whole
    assert summary.point("direct", 60, "in_domain").layers == {}
    written = json.loads(summary.to_json())["points"]
    rows = {(row["arm"], row["checkpoint"]): row for row in written}
    assert rows["named", 60]["layers"]["attention_prompt"][1]["value"] == pytest.approx(0.4)
    assert "layers" not in rows["direct", 60]


def test_the_layers_are_a_folded_table_of_each_probe(summary):
    section = layers(summary)
    assert section.folded and section.open == 0
    titles = [table.title for table in section.tables]
    assert titles == ["D6, attention · in-domain", "D7, gradient (value path) · in-domain"]
    for table, prompt, over in zip(
        section.tables, ("60.0 [", "80.0 ["), ("0.75", "1.00"), strict=True
    ):
        heading, *rows = table.rows[len(table.rows) // 2 :]
        assert heading.label == "Named, step 60" and not heading.cells
        # Evenly spread, first and last layer included.
        assert [row.label for row in rows[:3]] == [IF_UNIFORM, "layer 1", "layer 2"]
        assert rows[-1].label == f"layer {LAYERS}" and len(rows) == 13
        assert rows[0].cells[0].startswith("80.0 [") and rows[0].cells[1] == "1"
        assert rows[1].cells[0].startswith(prompt) and rows[1].cells[1] == over
        assert all(len(row.cells) == len(table.columns) for row in rows)
    assert "summary.json has all" in section.notes[-1]


def test_the_table_has_each_group_that_there_is(summary):
    section = role_shares(summary)
    assert [table.title for table in section.tables] == [
        READ,
        USED,
        "base · in-domain",
        "named, step 60 · in-domain",
    ]
    read, used, _, table = section.tables
    rows = {row.label.partition(":")[0]: row for row in table.rows}
    assert list(rows) == ["prompt", "scaffold", "task", "observation", "reasoning"]
    assert {name for name, row in rows.items() if row.part} == {"scaffold", "task", "observation"}
    assert all(len(row.cells) == len(COLUMNS) for row in table.rows)
    uniform, attention, per_token, gradient, _, of_input = rows["prompt"].cells
    assert uniform.startswith("80.0 [") and attention.startswith("60.0 [")
    assert (per_token, rows["reasoning"].cells[2]) == ("0.75", "2.00")
    assert gradient.startswith("80.0 [") and of_input.startswith("50.0 [")
    assert rows["scaffold"].cells[1].startswith("0.0 [")
    starts = {
        READ: ("60 [", "80 [", "–", "–"),
        USED: ("25 [", "+1.50 [", "0 [", "−0.25 [", "100 [", "+2.00 ["),
    }
    for partner in (read, used):
        assert [row.label for row in partner.rows] == ["In-domain", "base", "named, step 60"]
        heading, _, named = partner.rows
        assert not heading.cells and len(named.cells) == len(partner.columns)
        found = zip(named.cells, starts[partner.title], strict=True)
        assert all(cell.startswith(start) for cell, start in found)
    assert "73.2 (Qwen3-4B), 72.7 (Qwen3-8B), 73.5 (Qwen3-14B) %" in " ".join(read.notes)


def test_a_study_without_these_probes_has_no_table(tmp_path):
    run = write_planted(tmp_path / "run", games=GAMES, states=1, played=False)
    summary = summarize(run)
    assert role_shares(summary).tables == () and layers(summary).tables == ()
    json.loads(summary.to_json())
