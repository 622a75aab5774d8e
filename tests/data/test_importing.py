"""Public layouts become trajectories, or are told and kept apart."""

import json
from pathlib import Path

import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.data.check import check
from cotjax.data.importing.importing import import_files
from cotjax.data.importing.rows import read_rows
from cotjax.data.importing.steps import IMPORTED_BEFORE
from cotjax.data.tokens import trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError, UsageError

ROOM = (
    "You are in the middle of a room. "
    "Looking quickly around you, you see a cabinet 1, and a fridge 1."
)
TASK = "Your task is to: put a plate in fridge."
INSTRUCTION = (
    "Interact with a household. Your response should use the format:\n\n"
    "Thought: <your thoughts>\nAction: <your next action>"
)


def _said(*texts, speakers=("human", "gpt"), keys=("from", "value"), **more):
    return [
        {keys[0]: speakers[number % 2], keys[1]: text} | more for number, text in enumerate(texts)
    ]


RESPONSES = (
    "Thought: i need a plate.\nAction: open cabinet 1",
    "Thought: next i look.\nAction: look",
)
ETO = {
    "id": 12,
    "game_file": "json_2.1.1/train/pick_and_place_simple-Plate-None-Fridge-1/trial_T1/game.tw-pddl",
    "conversations": _said(
        INSTRUCTION,
        "OK",
        f"{ROOM}\n\n{TASK}",
        RESPONSES[0],
        "Observation: You open the cabinet 1.",
        RESPONSES[1],
        "Observation: Done.",
    ),
}
AGENTGYM = {
    "item_id": "alfworld_7",
    "conversations": [
        {"from": "human", "loss": None, "value": INSTRUCTION},
        {
            "from": "gpt",
            "loss": False,
            "value": "OK. I'll follow your instructions and try my best to solve the task.",
        },
        {
            "from": "human",
            "loss": None,
            "value": f"{ROOM}\n\n{TASK}\nAVAILABLE ACTIONS: open cabinet 1,look",
        },
        {
            "from": "gpt",
            "loss": True,
            "value": "Thought:\ni need a plate.\n\nAction:\nopen cabinet 1",
        },
        {
            "from": "human",
            "loss": None,
            "value": "You open the cabinet 1.\nAVAILABLE ACTIONS: look, close cabinet 1",
        },
        {"from": "gpt", "loss": False, "value": "Thought:\nnext i look.\n\nAction:\nlook"},
    ],
}
CHAT = ("user", "assistant")
MESSAGES = {
    "id": "m",
    "environment": "alfworld",
    "success": True,
    "messages": [
        {"role": "system", "content": "You play games."},
        *_said(
            f"{ROOM}\n{TASK}",
            "<think>i need a plate.</think>\n<action> open cabinet 1 </action>",
            "You open the cabinet 1.",
            "<action>look</action>",
            speakers=CHAT,
            keys=("role", "content"),
        ),
    ],
}
PAIR = {
    "prompt": f"{ROOM}\n{TASK}",
    "response": "Thought: i need a plate. Action: open cabinet 1",
    "score": 0.5,
}


def _import(tmp_path, rows, array=False, **options):
    file = tmp_path / "public.json"
    file.write_text(
        json.dumps(rows, indent=1) if array else "".join(json.dumps(row) + "\n" for row in rows)
    )
    result = import_files([file], tmp_path / "t.jsonl", **options)
    return result, list(read_trajectories(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("array", [True, False], ids=["array", "lines"])
def test_every_layout_becomes_the_same_steps(tmp_path, array):
    result, imported = _import(tmp_path, [ETO, AGENTGYM, MESSAGES, PAIR], array)
    layouts = ("eto", "agentgym", "messages", "prompt-response")
    assert result.kept == 4 and result.layouts == dict.fromkeys(layouts, 1)
    for trajectory in imported:
        assert trajectory.task == "put a plate in fridge"
        first, *later = trajectory.steps
        assert (first.observation, first.thought) == (ROOM, "i need a plate.")
        assert first.action == "open cabinet 1"
        assert first.provenance == IMPORTED_BEFORE and first.trained
        for second in later[:1]:
            assert (second.observation, second.action) == ("You open the cabinet 1.", "look")
    eto, gym, chat, pair = imported
    assert [len(trajectory.steps) for trajectory in imported] == [2, 2, 2, 1]
    assert eto.task_type == "pick_and_place_simple"
    assert eto.game == "pick_and_place_simple-Plate-None-Fridge-1/trial_T1"
    assert (eto.id, gym.id, chat.id) == ("public/12", "public/alfworld_7", "public/m")
    assert pair.id.startswith("public/")
    assert [one.environment for one in (eto, gym, chat)] == ["alfworld"] * 3
    assert (eto.success, chat.success, pair.reward) == (None, True, 0.5), (
        "what a row does not say is not known"
    )
    assert gym.steps[0].admissible_commands == ("open cabinet 1", "look")
    assert eto.steps[0].admissible_commands == ()
    assert [step.trained for step in gym.steps] == [True, False]
    assert chat.steps[1].thought is None and chat.steps[1].provenance is None


@pytest.mark.parametrize(
    ("first", "task", "observation", "commands"),
    [
        (
            "Task Description:\nYour task is to boil water. For ice, melt it first.\n"
            "You are in a hallway.",
            "boil water",
            "For ice, melt it first.\nYou are in a hallway.",
            (),
        ),
        (
            "Your goal: go to the red ball 1\nYou see a wall.\n"
            'Available actions: ["turn left", "move forward"]',
            "go to the red ball 1",
            "You see a wall.",
            ("turn left", "move forward"),
        ),
        (
            "Commands:\ncraft 1 stick\n\nGoal: craft stick.",
            "craft stick",
            "Commands:\ncraft 1 stick",
            (),
        ),
        (
            "Your task is to: look. You see a cat.\nAVAILABLE ACTIONS: [what",
            "look. You see a cat",
            "AVAILABLE ACTIONS: [what",
            (),
        ),
    ],
    ids=["sentence", "list", "goal", "broken list"],
)
def test_the_task_is_where_the_text_says_so(tmp_path, first, task, observation, commands):
    _, (imported,) = _import(tmp_path, [_chat(first, RESPONSES[0])])
    step = imported.steps[0]
    assert (imported.task, step.observation, step.admissible_commands) == (
        task,
        observation,
        commands,
    )


def test_what_is_imported_is_checked_and_encoded(tmp_path):
    _import(tmp_path, [ETO, AGENTGYM])
    codec = tiny.word_codec(
        tmp_path / "tokenizer", [*tiny.TINY_WORDS, ROOM, RESPONSES[0], RESPONSES[1]]
    )
    assert check(tmp_path / "t.jsonl", codec=codec).bad == 0
    examples = [
        list(trajectory_examples(codec, one, "cot", 768))
        for one in read_trajectories(tmp_path / "t.jsonl")
    ]
    assert [len(each) for each in examples] == [1, 1]


def _chat(*texts):
    return {"conversations": _said(*texts)}


FIRST = f"{ROOM}\n{TASK}"
REJECTED = {
    "no task": (_chat(ROOM, RESPONSES[0]), "names no task"),
    "no action": (_chat(FIRST, "i open cabinet 1"), "step 0: the response is neither"),
    "an empty action": (_chat(FIRST, "Thought: hm\nAction: "), "empty action"),
    "two actions": (_chat(FIRST, "Thought: hm\nAction: look\nAction: look"), "more than one"),
    "a made-up observation": (
        _chat(FIRST, "Thought: hm\nAction: look\nObservation: a cat"),
        "more than one",
    ),
    "the action first": (_chat(FIRST, "Action: look\nThought: hm"), "more than one"),
    "an unclosed thought": (_chat(FIRST, "<think>hm <action>look</action>"), "no </think>"),
    "text behind": (_chat(FIRST, "<action>look</action> and then"), "text after </action>"),
    "two users": (
        {"conversations": [*_said(FIRST), *_said(FIRST), *_said(FIRST, RESPONSES[0])[1:]]},
        "turn 1: user and agent",
    ),
    "nobody answers": (_chat(FIRST), "the agent never speaks"),
    "a stranger": (
        {"messages": [{"role": "narrator", "content": "x"}]},
        "message 0, from 'narrator'",
    ),
    "a tool alone": ({"messages": [{"role": "tool", "content": "x"}]}, "the agent never speaks"),
    "an empty tool call": (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "message 0: a tool call must",
    ),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "its content is not a string",
    ),
    "no list": ({"conversations": "hello"}, "must be a list"),
    "another layout": ({"text": "hello"}, "match no known layout"),
    "no object": ([1], "must be a JSON object"),
    "a tag in the prompt": (
        {"prompt": f"{FIRST}\nAnswer in <action>", "response": RESPONSES[0]},
        "contains '<action>'",
    ),
    "nothing trained": (
        {"conversations": _said(FIRST, RESPONSES[0], loss=False)},
        "no step is trained on",
    ),
    "no text at all": ({"prompt": FIRST, "response": "Action: \ud800"}, "surrogate"),
}


@pytest.mark.parametrize("row, reason", REJECTED.values(), ids=REJECTED)
def test_what_cannot_be_mapped_is_told_and_kept_apart(tmp_path, row, reason):
    result, imported = _import(tmp_path, [ETO, row, AGENTGYM], rejected=tmp_path / "apart.jsonl")
    assert (result.rows, result.kept, result.rejected, len(imported)) == (3, 2, 1, 2) and sum(
        result.reasons.values()
    ) == 1
    (message,) = result.messages
    assert message.startswith(f"{tmp_path / 'public.json'}:2: ") and reason in message
    (kept,) = map(json.loads, (tmp_path / "apart.jsonl").read_text().splitlines())
    assert kept["row"] == row and kept["where"].endswith(":2") and reason in kept["reason"]


def test_a_task_that_was_played_twice_is_two_episodes(tmp_path):
    _, imported = _import(tmp_path, [ETO, ETO])
    assert [trajectory.id for trajectory in imported] == ["public/12", "public/12/2"]


def test_a_broken_line_is_one_row_and_a_broken_array_is_no_file(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(ETO) + "\n{\n\n" + json.dumps(PAIR) + "\n")
    result = import_files([file], tmp_path / "t.jsonl", rejected=tmp_path / "apart.jsonl")
    assert (result.kept, result.rejected) == (2, 1)
    assert result.messages == [f"{file}:2: the line is not valid JSON"]
    before = (tmp_path / "t.jsonl").read_bytes()
    file.write_text(json.dumps([ETO])[:-1])
    with pytest.raises(DataError, match=r"a\.jsonl:1: invalid JSON"):
        import_files([file], tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_bytes() == before and not list(tmp_path.glob("*.partial"))


def test_a_key_that_comes_twice_is_no_row(tmp_path):
    twice = json.dumps(PAIR)[:-1] + ', "score": 1}'
    for text in (f"{twice}\n{json.dumps(ETO)}\n", f"[{twice}, {json.dumps(ETO)}]"):
        (tmp_path / "a.json").write_text(text)
        result = import_files(
            [tmp_path / "a.json"], tmp_path / "t.jsonl", rejected=tmp_path / "apart.jsonl"
        )
        assert (result.kept, result.rejected) == (1, 1)
        assert "the key 'score' occurs twice in one object" in result.messages[0]
        (kept,) = map(json.loads, (tmp_path / "apart.jsonl").read_text().splitlines())
        assert kept["row"] == twice


WHOLE_FILES = {
    "one object over several lines": (json.dumps(ETO, indent=1), [":1"]),
    "one object on a line": (json.dumps(ETO), [":1"]),
    "rows inside an object": (
        json.dumps({"version": 2, "data": [ETO, PAIR]}, indent=2),
        [", data, row 0", ", data, row 1"],
    ),
    "rows inside an object on a line": (json.dumps({"data": [PAIR]}) + "\n\n", [", data, row 0"]),
    "lines with a mark": (
        "\ufeff" + json.dumps(ETO) + "\n" + json.dumps(PAIR) + "\n",
        [":1", ":2"],
    ),
    "an array with a mark": ("\ufeff [" + json.dumps(ETO) + " ]\n", [", row 0"]),
}


@pytest.mark.parametrize("text, places", WHOLE_FILES.values(), ids=WHOLE_FILES)
def test_a_file_is_read_whatever_holds_its_rows(tmp_path, text, places):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    assert import_files([file], tmp_path / "t.jsonl").kept == len(places)
    assert [where for _, where, _, _ in read_rows(file)] == [f"{file}{place}" for place in places]


NO_FILES = {
    "brackets without end": (b"[" * 100_000, "invalid JSON (nested too deeply)"),
    "braces without end": (b'{"a":' * 100_000, "none of 1 rows"),
    "an array that does not end": (
        b'[{"a": 1},',
        ":1: invalid JSON (Expecting value at column 11); the file is incomplete",
    ),
    "an array without commas": (
        b'[{"a": 1} {"b": 1}]',
        "invalid JSON (Expecting ',' or ']' at column 11)",
    ),
    "text behind an array": (b"[{}]\n[{}]", ":1: invalid JSON (Text after the array at column 5)"),
    "objects over several lines": (
        json.dumps(ETO, indent=1).encode() * 2,
        "write one object a line",
    ),
    "bytes that are no text": (b'["\xff"]', "not UTF-8 at byte 2; save the file as UTF-8"),
    "gzip": (b"\x1f\x8b\x08", "compressed with gzip; unpack it"),
    "UTF-16": (json.dumps([ETO]).encode("utf-16"), "in UTF-16; save it as UTF-8"),
    "nothing": (b"", "there are no rows"),
    "an empty array": (b"[ ]", "there are no rows"),
}


@pytest.mark.parametrize("content, words", NO_FILES.values(), ids=NO_FILES)
def test_a_file_that_is_no_json_is_told_in_one_line(tmp_path, capsys, content, words):
    (tmp_path / "a.json").write_bytes(content)
    assert (
        main(["data", "import", str(tmp_path / "a.json"), "--out", str(tmp_path / "t.jsonl")]) == 3
    )
    err = capsys.readouterr().err.splitlines()
    assert words in err[-1] and not (tmp_path / "t.jsonl").exists()


@pytest.mark.parametrize("array", [True, False], ids=["array", "lines"])
def test_progress_is_told_every_hundred_rows(tmp_path, array):
    told = []
    file = tmp_path / "public.json"
    rows = [PAIR | {"id": str(number)} for number in range(250)]
    file.write_text(json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows))
    import_files(
        [file, file], tmp_path / "t.jsonl", progress=lambda rows, share: told.append((rows, share))
    )
    assert [rows for rows, _ in told] == [100, 200, 300, 400, 500]
    assert [share for _, share in told] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=0.01)


def test_bytes_that_are_no_text_are_one_row(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": "\xff"}\n' + json.dumps(ETO).encode() + b"\r\n")
    result = import_files([file], tmp_path / "t.jsonl")
    assert result.messages == [f"{file}:1: the line is not UTF-8 (at byte 7)"] and result.kept == 1


def _link(folder, name):
    (folder / "target.txt").write_text("precious")
    (folder / name).symlink_to("target.txt")
    return folder / name


def _precious(folder, name):
    (folder / name).write_text("precious")
    return folder / name


PLACES = {
    "the input": (lambda folder, name: folder / "a.json", "is an input and cannot be written"),
    "a hard link to the input": (
        lambda folder, name: (folder / name).hardlink_to(folder / "a.json") or folder / name,
        "is an input and",
    ),
    "somebody's file": (_precious, "was not written by this command"),
    "a link": (_link, "is a symbolic link"),
    "a folder": (lambda folder, name: folder, "is a folder"),
    "below a file": (lambda folder, name: folder / "a.json" / name, "nothing can be written there"),
    "a device": (lambda folder, name: Path("/dev/null"), "not a regular file"),
}


@pytest.mark.parametrize("option", ["--out", "--rejected"])
@pytest.mark.parametrize("make, words", PLACES.values(), ids=PLACES)
def test_an_import_writes_over_nothing_that_is_not_its_own(tmp_path, capsys, option, make, words):
    (tmp_path / "a.json").write_text(json.dumps([ETO, {"text": "x"}]))
    place = make(tmp_path, "place.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    places = {"--out": tmp_path / "t.jsonl", "--rejected": tmp_path / "r.jsonl"} | {option: place}
    options = [str(part) for pair in places.items() for part in pair]
    code = main(["data", "import", str(tmp_path / "a.json"), *options])
    err = capsys.readouterr().err
    assert code in (2, 3) and words in err and str(place) in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_import_that_fails_leaves_what_was_there(tmp_path):
    file, out, apart = tmp_path / "a.json", tmp_path / "t.jsonl", tmp_path / "apart.jsonl"
    file.write_text(json.dumps([ETO, {"text": "x"}]))
    import_files([file], out, rejected=apart)
    before, rejected = out.read_bytes(), apart.read_bytes()
    file.write_text(json.dumps([ETO, {"text": "y"}])[:-1])
    with pytest.raises(DataError, match="the file is incomplete"):
        import_files([file], out, rejected=apart)
    assert (out.read_bytes(), apart.read_bytes()) == (before, rejected)
    file.write_text(json.dumps([{"text": "z"}]))
    with pytest.raises(DataError, match="none of 1 rows"):
        import_files([file], out, rejected=apart)
    assert out.read_bytes() == before and json.loads(apart.read_text())["row"] == {"text": "z"}, (
        "why nothing was kept is worth keeping"
    )
    with pytest.raises(UsageError, match="cannot hold both"):
        import_files([file], tmp_path / "new.jsonl", rejected=tmp_path / "new.jsonl")


def test_the_command_tells_what_it_did(tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([ETO, _chat(ROOM, RESPONSES[0])]))
    out = tmp_path / "t.jsonl"
    arguments = ["data", "import", str(file), "--out", str(out)]
    arguments += ["--environment", "household", "--split", "more"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert (
        "1 of 2 rows are trajectories (eto 1)" in told.out
        and "1 rejected: the first observation names no task" in told.out
    )
    assert "1 left out: observations after the last action" in told.out
    assert (
        told.err
        == f"{file}, row 1: the first observation names no task, as in 'Your task is to: …'\n"
    )
    (imported,) = read_trajectories(out)
    assert (imported.environment, imported.split) == ("household", "more")
    assert main(["data", "check", str(out)]) == 0
    file.write_text(json.dumps([{"text": "x"}]))
    assert main(arguments) == 3
    assert "none of 1 rows is a trajectory" in capsys.readouterr().err
    with pytest.raises(UsageError, match="auto, eto"):
        import_files([file], out, layout="parquet")
