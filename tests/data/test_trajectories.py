import gzip
import json
import os
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny

from cotjax.data import json_lines
from cotjax.data.oddities import (
    CONTRADICTION,
    NOT_ADMISSIBLE,
    NOTHING_TRAINED,
    OTHER_CASE,
    SEVERAL_LINES,
    oddities,
)
from cotjax.data.tokens import trajectory_examples
from cotjax.data.trajectories import (
    BadLine,
    Line,
    read_lines,
    read_trajectories,
    write_trajectories,
)
from cotjax.errors import CotjaxError, DataError


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
    (tmp_path / "t.jsonl").write_text(
        text.replace(', "trained": true', "").replace('"trained": false', '"trained": 0')
    )
    with pytest.raises(
        DataError,
        match=r"t\.jsonl:1: step 1: the field 'trained' is a number; it must be true or false",
    ):
        list(read_trajectories(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text(
        text.replace(', "trained": true', "").replace(', "trained": false', "")
    )
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
    row = json.loads(json.dumps(tiny.trajectory().__dict__, default=lambda step: step.__dict__)) | {
        "schema_version": 1
    }
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
    "no JSON": ("{", "invalid JSON"),
    "an empty line between": ("\n" + _row(id="t1"), "invalid JSON (the line is blank)"),
    "true as version": (_row(schema_version=True), "schema_version is True"),
    "a version with a point": (_row(schema_version=1.0), "schema_version is 1.0"),
    "a key that comes twice": (
        _row()[:-1] + ', "seed": 7}',
        "invalid JSON (the key 'seed' occurs twice in one object)",
    ),
    "a key that comes twice in a step": (
        _row().replace('"thought"', '"action": "look", "thought"', 1),
        "the key 'action' occurs twice",
    ),
    "a NUL in the task": (_row(task="a\0b"), "the task contains a NUL"),
    "a NUL in an action": (
        _row(steps__1__action="look\0"),
        "step 1: the action contains a NUL",
    ),
    "a NUL in a command": (
        _row(steps__0__admissible_commands=["\0"]),
        "step 0: admissible_commands[0]",
    ),
    "a carriage return in an action": (
        _row(steps__0__action="open\rcabinet 1"),
        "step 0: the action contains a carriage return",
    ),
    "a line end behind an action": (
        _row(steps__0__action="open cabinet 1\n"),
        "step 0: the action begins or ends with an empty line",
    ),
    "a provenance without a thought": (
        _row(steps__1__thought=None),
        "step 1: the provenance is 'scripted, before the action' but",
    ),
    "a list": ("[1]", "JSON object"),
    "no version": (_row(schema_version=KeyError), "schema_version is None"),
    "a later version": (_row(schema_version=2), "schema_version is 2"),
    "no task": (_row(task=KeyError), "field 'task' is missing"),
    "a number as task": (_row(task=3), "field 'task' is a number; it must be a string"),
    "true as seed": (_row(seed=True), "field 'seed' is a boolean; it must be an integer"),
    "no steps": (_row(steps=[]), "no steps"),
    "a string as step": (_row(steps=["look"]), "step 0 is a string; it must be an object"),
    "no commands": (
        _row(steps__1__admissible_commands=KeyError),
        "step 1: the field 'admissible_commands' is missing",
    ),
    "commands that are text": (
        _row(steps__1__admissible_commands="look"),
        "step 1: the field 'admissible_commands' is a string; it must be an array",
    ),
    "a blank of Python's alone as command": (
        _row(steps__0__admissible_commands=["\x1f\u2003"]),
        "step 0: admissible_commands[0]",
    ),
    "a reward that is true": (
        _row(reward=True),
        "the field 'reward' is a boolean; it must be a number or null",
    ),
    "a reward in words": (
        _row(reward="high"),
        "the field 'reward' is a string; it must be a number or null",
    ),
    "a number as thought": (
        _row(steps__0__thought=3),
        "step 0: the field 'thought' is a number; it must be a string or null",
    ),
    "no action": (_row(steps__1__action=KeyError), "step 1: the field 'action' is missing"),
    "an empty action": (_row(steps__1__action=" "), "step 1: the action is empty"),
    "an empty thought": (_row(steps__0__thought=""), "step 0: the thought is empty"),
    "a thought with a tag": (
        _row(steps__0__thought="so </think> now"),
        "step 0: the thought contains '</think>'",
    ),
    "an action with a tag": (
        _row(steps__1__action="<action>look"),
        "step 1: the action contains '<action>'",
    ),
    "an empty id": (_row(id=" "), "the id is empty"),
    "an empty task": (_row(task=""), "the task is empty"),
    "a blank observation": (_row(steps__2__observation="\n"), "step 2: the observation is empty"),
    "an empty observation": (_row(steps__2__observation=""), "step 2: the observation is empty"),
    "a blank first observation": (
        _row(steps__0__observation=" "),
        "step 0: the observation is empty",
    ),
    "a number as command": (
        _row(steps__0__admissible_commands=["look", 3]),
        "step 0: admissible_commands[1] is 3",
    ),
    "an empty command": (
        _row(steps__0__admissible_commands=[""]),
        "step 0: admissible_commands[0] is ''",
    ),
    "a reward that is no number": (
        _row(reward=float("nan")),
        "invalid JSON (NaN is not a JSON number)",
    ),
    "a reward without end": (
        _row(reward=7).replace('"reward": 7', '"reward": 1e999'),
        "the reward is inf",
    ),
    "a reward beyond floats": (_row(reward=10**400), "it must be a finite number"),
    "a yes as success": (
        _row(success="yes"),
        "field 'success' is a string; it must be true or false or null",
    ),
    "half a surrogate pair": (_row(task="\ud800"), "half of a surrogate pair"),
    "brackets without end": ("[" * 100_000, "invalid JSON"),
    "a number of a million digits": ('{"seed": 1' + "0" * 10**6 + "}", "invalid JSON"),
    "the same id again": (_row(), "id 't0' occurs in line 1 already"),
}


@pytest.mark.parametrize("line, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    path.write_text(_row() + "\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        list(read_trajectories(path))
    assert (
        str(caught.value).startswith(f"{path}:2: ")
        and message in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(_row().encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl:2: not UTF-8 at byte 8"):
        list(read_trajectories(path))


def test_a_windows_file_is_read_and_a_mark_elsewhere_is_not(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + _row().encode() + b"\r\n" + _row(id="t1").encode() + b"\r\n")
    assert [trajectory.id for trajectory in read_trajectories(path)] == ["t0", "t1"]
    path.write_bytes(_row().encode() + b"\n\xef\xbb\xbf" + _row(id="t1").encode())
    with pytest.raises(DataError, match=r"t\.jsonl:2: invalid JSON \(Expecting value at column 1"):
        list(read_trajectories(path))


def test_blank_lines_at_the_end_are_no_lines(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(_row() + "\n\n \n" + _row(id="t1") + "\n\n  \n")
    lines = list(read_lines(path))
    bad = [line for line in lines if isinstance(line, BadLine)]
    assert [str(line.error)[len(str(path)) :][:10] for line in bad] == [
        ":2: invali",
        ":3: invali",
    ]
    assert [line.trajectory.id for line in lines if isinstance(line, Line)] == ["t0", "t1"]
    path.write_text("\n\n")
    with pytest.raises(DataError, match="the trajectory file is empty"):
        list(read_lines(path))


def test_the_first_observation_may_be_empty(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(_row(steps__0__observation="") + "\n")
    (read,) = read_trajectories(path)
    assert read.steps[0].observation == ""
    codec = tiny.word_codec(tmp_path / "tokenizer", tiny.TINY_WORDS)
    (example,) = trajectory_examples(codec, read, "cot", 768)
    assert codec.decode(example.ids.tolist()).startswith(
        codec.decode(codec.first_prompt(read.task, ""))
    )


def _loop(path):
    path.symlink_to(path)


FOREIGN = {
    "a folder": (lambda path: path.mkdir(), "a folder, not a file"),
    "links in a circle": (_loop, "cannot be read (Too many levels of symbolic links)"),
    "a link to nothing": (
        lambda path: path.symlink_to("nowhere"),
        "a symbolic link to nowhere, which does not exist",
    ),
    "a pipe": (os.mkfifo, "a device or a pipe"),
    "gzip": (
        lambda path: path.write_bytes(gzip.compress(_row().encode())),
        "compressed with gzip; unpack it",
    ),
    "UTF-16": (
        lambda path: path.write_text(_row(), encoding="utf-16"),
        "in UTF-16; save it as UTF-8",
    ),
    "UTF-16 without a mark": (
        lambda path: path.write_text(_row(), encoding="utf-16-le"),
        "in UTF-16 or UTF-32",
    ),
    "Parquet": (
        lambda path: path.write_bytes(b"PAR1\x15\x04"),
        "a Parquet file; write its rows as JSON Lines",
    ),
    "an array": (
        lambda path: path.write_text(f"[{_row()}]"),
        "1: a trajectory is a JSON object, not an array; write one object a line",
    ),
    "an object over several lines": (
        lambda path: path.write_text(json.dumps(json.loads(_row()), indent=1)),
        "1: invalid JSON: one value over several lines",
    ),
    "a broken first line": (
        lambda path: path.write_text('{"id" 1}\n'),
        "1: invalid JSON (Expecting ':' delimiter at column 7)",
    ),
    "rows inside an object": (
        lambda path: path.write_text('{"data": [' + _row() + "]}"),
        "'data' is an array, so this is not a trajectory",
    ),
}


@pytest.mark.parametrize("make, message", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_json_lines_is_named_for_what_it_is(tmp_path, make, message):
    path = tmp_path / "t.jsonl"
    make(path)
    with pytest.raises(DataError) as caught:
        list(read_trajectories(path))
    assert (
        str(caught.value).startswith(f"{path}:")
        and message in str(caught.value)
        and "\n" not in str(caught.value)
    )


def _unwritable(folder):
    (folder / "file").write_text("")
    return folder / "file" / "t.jsonl"


def _taken(folder):
    (folder / "t.jsonl").write_text("my notes\n")
    return folder / "t.jsonl"


def _link(folder):
    write_trajectories(folder / "target.jsonl", [tiny.trajectory(name="old")])
    (folder / "t.jsonl").symlink_to("target.jsonl")
    return folder / "t.jsonl"


PLACES = {
    "a folder": (lambda folder: folder, "is a folder"),
    "a device": (lambda folder: Path("/dev/null"), "not a regular file"),
    "a symbolic link": (_link, "is a symbolic link"),
    "below a file": (_unwritable, "nothing can be written there"),
    "a file that is not ours": (_taken, "was not written by this command"),
}


@pytest.mark.parametrize("make, message", PLACES.values(), ids=PLACES)
def test_what_is_not_ours_is_not_written_over(tmp_path, make, message):
    place = make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CotjaxError) as caught:
        write_trajectories(place, [tiny.trajectory()])
    assert message in str(caught.value) and str(place) in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}, (
        "nothing changed, nothing left"
    )


def test_what_is_odd_is_counted_not_refused():
    whole = tiny.trajectory(steps=4)
    assert oddities(whole) == []
    first, second, third, last = whole.steps
    steps = (
        replace(first, action="dance"),
        replace(second, action="bash\n\nls", admissible_commands=()),
        replace(third, thought="so <Action> is next"),
        replace(last, admissible_commands=()),
    )
    assert oddities(replace(whole, steps=steps)) == [NOT_ADMISSIBLE, SEVERAL_LINES, OTHER_CASE]
    assert (
        oddities(replace(whole, success=False))
        == oddities(replace(whole, reward=0.0))
        == [CONTRADICTION]
    )
    assert (
        oddities(replace(whole, success=False, reward=0.5))
        == oddities(replace(whole, success=None))
        == []
    )
    assert oddities(replace(whole, steps=(replace(first, trained=False),))) == [NOTHING_TRAINED]


def test_what_nobody_knows_is_null(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(_row(success=None, reward=None, more=1) + "\n")
    (trajectory,) = read_trajectories(path)
    assert trajectory.success is None and trajectory.reward is None


def test_a_line_without_end_is_named_and_never_held(tmp_path):
    path = tmp_path / "t.jsonl"
    with path.open("wb") as out:
        out.write(_row().encode() + b'\n{"id": "')
        for _ in range(50):
            out.write(b"x" * 10**6)
        out.write(b'"}\n' + _row(id="t1").encode() + b"\n")
    tracemalloc.start()
    lines = list(read_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [isinstance(line, Line) for line in lines] == [True, False, True]
    assert f"{path}:2: the line has 50,000,011 bytes, at most 16,777,216" in str(lines[1].error)
    assert peak < 60e6


def test_a_line_may_be_as_long_as_the_limit(tmp_path, monkeypatch):
    whole = _row().encode()
    for limit, good in ((len(whole), True), (len(whole) - 1, False)):
        monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", limit)
        for end in (b"\n", b""):
            (tmp_path / "t.jsonl").write_bytes(whole + end)
            assert [isinstance(line, Line) for line in read_lines(tmp_path / "t.jsonl")] == [good]


def test_an_id_that_comes_again_is_found_among_many(tmp_path):
    lines = [
        _row(id=f"episode {number}", steps=json.loads(_row())["steps"][:1])
        for number in range(3000)
    ]
    again = random.Random(0).sample(range(3000), 20)
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([*lines, *(lines[number] for number in again)]))
    bad = [line for line in read_lines(path) if isinstance(line, BadLine)]
    assert len(bad) == len(again)
    for line, number in zip(bad, again, strict=True):
        assert f"the id 'episode {number}' occurs in line {number + 1} already" in str(line.error)


def test_a_missing_or_empty_file_says_how_to_make_one(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path / "empty.jsonl"):
        if path.stem == "empty":
            path.touch()
        with pytest.raises(DataError, match="cotjax collect"):
            list(read_trajectories(path))
