"""What follows a thought that contradicts what is known, and what stands against it."""

import pytest

from cotjax.diagnostics.grafts import (
    ANCHORED,
    FOLLOWED,
    OTHER,
    Graft,
    grafted,
    outcome,
    rates,
    read_grafts,
    write_grafts,
)
from cotjax.errors import DataError
from cotjax.formats.search import parse_piece

NEED = "I need the land of Ko Po."


def test_a_graft_says_to_search_and_leaves_the_search_to_the_model():
    search = " So I search. <begin_search> Ko Po land </end_search>"
    assert grafted(NEED, search) == f"{NEED} So I search."
    known = " Ma Ti, I know, is the land of Ko Po."
    assert grafted(NEED, known) == NEED + known


@pytest.mark.parametrize(
    ("thought", "known", "written", "found"),
    [
        ("Ma Ti, I know, is the land of Ko Po.", False, "</think> \\boxed{Ma Ti}", FOLLOWED),
        ("Ma Ti, I know, is the land of Ko Po.", False, "</think> \\boxed{Ko Po}", OTHER),
        ("Ma Ti, I know, is the land of Ko Po.", False, "</think> \\boxed{Bel}", OTHER),
        (
            "Ma Ti, I know, is the land of Ko Po.",
            False,
            "So I search. <begin_search> Ko Po </end_search>",
            ANCHORED,
        ),
        ("Ma Ti, I know, is the land of Ko Po.", False, "I need", OTHER),
        ("So I search.", True, "<begin_search> Ko Po </end_search>", FOLLOWED),
        ("So I search.", True, "</think> \\boxed{Ma Ti}", ANCHORED),
        ("So I search.", True, "So", OTHER),
    ],
)
def test_outcomes(thought, known, written, found):
    piece = parse_piece(f"{NEED} {thought} {written}")
    assert outcome(piece, NEED, f" {thought}", known) == found


def test_outcomes_are_kept_with_the_checkpoint(tmp_path):
    path = tmp_path / "grafts" / "sft1-4.jsonl"
    assert read_grafts(path) == ("", [])
    grafts = [Graft("a", False, FOLLOWED), Graft("b", False, ANCHORED), Graft("c", False, OTHER)]
    write_grafts(path, "hash", grafts)
    assert read_grafts(path) == ("hash", grafts)
    found = rates(grafts)
    assert found[FOLLOWED].value == found[ANCHORED].value == pytest.approx(1 / 3)
    assert found[FOLLOWED].games == 3
    path.write_text("{}\n")
    with pytest.raises(DataError, match="not the outcomes of grafted thoughts"):
        read_grafts(path)
