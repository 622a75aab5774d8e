"""Rows of information.jsonl: written whole, in order, and read back as they were."""

import pytest

from cotjax.diagnostics.information import (
    FILE,
    Information,
    Nats,
    read_information,
    write_information,
)
from cotjax.errors import DataError


def row(checkpoint, **changes):
    values = {
        "arm": "sft",
        "checkpoint": checkpoint,
        "action_given_thought": Nats(token=0.01, action=0.05),
        "action_given_prompt": Nats(token=0.5, action=2.5),
        "loss_share": {"REASONING": 0.75, "ACTION": 0.25},
        "gradient_share": {"REASONING": 1.1, "ACTION": -0.1},
        "gradient_norm": {"REASONING": 1.1, "ACTION": 0.3},
        "removed_share": 0.075,
        "examples": 8,
        "tokens": 100,
    }
    return Information(**values | changes)


def test_rows_come_back_as_they_were(tmp_path):
    assert read_information(tmp_path) == []
    rows = [row(0), row(5, action_given_thought=None), row(10)]
    for one in rows:
        write_information(tmp_path, one)
    assert read_information(tmp_path) == rows
    assert len((tmp_path / FILE).read_text().splitlines()) == 3


def test_a_run_that_was_killed_leaves_the_same_bytes(tmp_path):
    """It had measured step 10, was killed before that checkpoint was saved, and resumed from 5."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder, steps in ((whole, (0, 5, 10, 15)), (killed, (0, 5, 10, 10, 15))):
        folder.mkdir()
        for step in steps:
            write_information(folder, row(step))
    assert (whole / FILE).read_bytes() == (killed / FILE).read_bytes()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r":2: Invalid JSON"),
        (row(5).model_dump_json().replace("8", '"8"'), r":2: examples: Input should be a valid i"),
        (row(5).model_dump_json().replace("ACTION", "DEED"), r":2: .*unknown role 'DEED'"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line, words):
    write_information(tmp_path, row(0))
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=words):
        read_information(tmp_path)
