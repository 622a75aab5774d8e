"""Rows of probes come back from their file as they were, whatever text they hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.diagnostics.probe_rows import ProbeHeading, read_probe
from cotjax.diagnostics.progress import ProgressRow
from cotjax.errors import DataError

HEADING = ProbeHeading(
    probe="progress",
    arm="sft",
    checkpoint=10,
    checkpoint_hash="c",
    games_hash="g",
    settings={},
    states=1,
)
# JSON keeps these characters, at which str.splitlines divides a text, as they are.
SEPARATORS = "\u2028\u2029\x85"


def _row(text):
    return ProgressRow(
        **{"driver": "cot", "game": "g", "domain": "in_domain", "sample": 0, "turn": 0},
        **{"start": 5, "ending": None, "differs": text},
    )


@settings(max_examples=50)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from(SEPARATORS)))
def test_a_row_comes_back_whatever_text_it_holds(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("probe") / "10.jsonl"
    lines = (HEADING.model_dump_json(), _row(text).model_dump_json())
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    assert read_probe(path, ProgressRow) == (HEADING, [_row(text)])


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "10.jsonl"
    path.touch()
    with pytest.raises(DataError, match=r"10\.jsonl: is empty; delete the file"):
        read_probe(path, ProgressRow)
