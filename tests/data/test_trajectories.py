import json
from dataclasses import replace

import pytest
import tiny

from cotjax.data.trajectories import read_trajectories, write_trajectories
from cotjax.errors import DataError


def test_what_is_written_is_read_back(tmp_path):
    written = [tiny.trajectory(name=f"t{i}", steps=i + 1) for i in range(3)]
    assert write_trajectories(tmp_path / "deep" / "t.jsonl", written) == 3
    assert list(read_trajectories(tmp_path / "deep" / "t.jsonl")) == written


def test_a_step_may_say_that_it_is_not_trained_on(tmp_path):
    played = tiny.trajectory(steps=2)
    slip = replace(played.steps[1], thought=None, provenance=None, trained=False)
    write_trajectories(tmp_path / "t.jsonl", [replace(played, steps=(played.steps[0], slip))])
    (back,) = read_trajectories(tmp_path / "t.jsonl")
    assert [step.trained for step in back.steps] == [True, False]
    text = (tmp_path / "t.jsonl").read_text()
    (tmp_path / "t.jsonl").write_text(text.replace(', "trained": true', "").replace('"trained": false', '"trained": 0'))
    with pytest.raises(DataError, match=r"t\.jsonl:1: step 1: the field 'trained' is a int"):
        list(read_trajectories(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text(text.replace(', "trained": true', "").replace(', "trained": false', ""))
    (old,) = read_trajectories(tmp_path / "t.jsonl")
    assert all(step.trained for step in old.steps), "files written before there were slips"


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [tiny.trajectory()])

    def breaks():
        yield tiny.trajectory(name="new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_trajectories(path, breaks())
    assert [trajectory.id for trajectory in read_trajectories(path)] == ["t0"]


def _row(**changes):
    row = json.loads(json.dumps(tiny.trajectory().__dict__, default=lambda step: step.__dict__)) | {"schema_version": 1}
    for dotted, value in changes.items():
        target = row
        *way, last = dotted.split("__")
        for part in way:
            target = target[int(part) if part.isdigit() else part]
        if value is KeyError:
            del target[last]
        else:
            target[last] = value
    return json.dumps(row)


BROKEN = {
    "no JSON": ("{", "no JSON"),
    "an empty line": ("", "no JSON"),
    "a list": ("[1]", "JSON object"),
    "no version": (_row(schema_version=KeyError), "schema_version is None"),
    "a later version": (_row(schema_version=2), "schema_version is 2"),
    "no task": (_row(task=KeyError), "field 'task' is missing"),
    "a number as task": (_row(task=3), "field 'task' is a int, it must be str"),
    "true as seed": (_row(seed=True), "field 'seed' is a bool"),
    "no steps": (_row(steps=[]), "no steps"),
    "a string as step": (_row(steps=["look"]), "step 0 is a str"),
    "no action": (_row(steps__1__action=KeyError), "step 1: the field 'action' is missing"),
    "an empty action": (_row(steps__1__action=" "), "step 1: the action is empty"),
    "an empty thought": (_row(steps__0__thought=""), "step 0: the thought is empty"),
    "the same id again": (_row(), "id 't0' stands at line 1 already"),
}


@pytest.mark.parametrize("line, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    path.write_text(_row() + "\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        list(read_trajectories(path))
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(_row().encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl:2: not UTF-8 at byte 8"):
        list(read_trajectories(path))


def test_a_missing_or_empty_file_says_how_to_make_one(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path / "empty.jsonl"):
        if path.stem == "empty":
            path.touch()
        with pytest.raises(DataError, match="cotjax collect"):
            list(read_trajectories(path))
