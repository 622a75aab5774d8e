"""Records on disk: schemas 2 and 3 are read as schema 4; the page that explains them is current."""

import json
from pathlib import Path

import pytest

from cotjax.errors import DataError, UsageError
from cotjax.rollout.record import KINDS, Record, read_record, write_record
from cotjax.rollout.record_page import MODELS, fill_in

# As a study wrote it before there was schema 3.
SCHEMA_2 = Path(__file__).with_name("schema2.json")
PAGE = Path(__file__).parents[2] / "docs" / "records.md"


def old():
    return json.loads(SCHEMA_2.read_text(encoding="utf-8"))


def test_a_record_of_schema_2_is_read_as_one_of_schema_4(tmp_path):
    record = read_record(SCHEMA_2)
    before = old()
    assert (record.schema_version, record.world, record.score) == (4, "alfworld", None)
    after = json.loads(record.model_dump_json())
    for step, turn in zip(before["steps"], after["steps"], strict=True):
        assert turn.pop("accepted") is (not step.pop("nothing_happens"))
        assert turn.pop("score") is None
        assert {turn.pop(kind) for kind in KINDS[2:]} == {None}
    added = {"world": "alfworld", "score": None, "training_seed": None}
    assert after == before | {"schema_version": 4, **added}
    write_record(tmp_path / "new.json", record)
    assert read_record(tmp_path / "new.json") == record


def test_a_record_of_schema_3_had_fewer_kinds(tmp_path):
    record = read_record(SCHEMA_2)
    content = record.model_dump(mode="json") | {"schema_version": 3}
    for turn in content["steps"]:
        for kind in KINDS[2:]:
            del turn[kind]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_record(tmp_path / "old.json") == record


def test_what_the_first_records_of_schema_2_lacked_is_filled_in(tmp_path):
    record = old()
    del record["sample"], record["timing"]["waited_s"]
    path = tmp_path / "first.json"
    path.write_text(json.dumps(record))
    assert (read_record(path).sample, read_record(path).timing.waited_s) == (0, 0.0)


def test_a_step_of_schema_2_that_the_environment_failed_to_answer_was_neither_accepted_nor_refused(
    tmp_path,
):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(old() | {"ended": "env_error", "success": False}))
    turns = read_record(path).steps
    assert [turn.accepted for turn in turns] == [True] * (len(turns) - 1) + [None]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(steps=7), "steps is 7"),
        (lambda r: r.update(steps=[7]), "steps[0] is 7"),
        (lambda r: r["steps"][0].pop("nothing_happens"), "lacks the field steps[0].accepted"),
        (lambda r: r["steps"][0].update(nothing_happens=1), "lacks the field steps[0].accepted"),
        (lambda r: r.update(timing=None), "timing is None"),
        (lambda r: r.update(ended="env_error", steps=[7]), "steps[0] is 7"),
    ],
)
def test_a_malformed_record_of_schema_2_says_where(tmp_path, change, said):
    record = old()
    change(record)
    path = tmp_path / "malformed.json"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError) as caught:
        read_record(path)
    assert said in str(caught.value) and "malformed.json" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "7", '{"schema_version": 1}', "\ud800", "{}"])
def test_what_is_no_record_is_named(tmp_path, content):
    path = tmp_path / "none.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(DataError, match=r"none\.json: not a .*record.*evaluate again"):
        read_record(path)


def test_the_page_of_records_is_current():
    page = PAGE.read_text(encoding="utf-8")
    assert fill_in(page) == page, "run `python -m cotjax.rollout.record_page docs/records.md`"
    for name, model in MODELS.items():
        assert f"<!-- fields of {name} -->" in page
        assert all(field.description for field in model.model_fields.values())
    shown = {name for model in MODELS.values() for name in model.model_fields}
    assert set(Record.model_fields) <= shown
    with pytest.raises(UsageError, match="Nobody"):
        fill_in("<!-- fields of Nobody -->\n<!-- end -->")
