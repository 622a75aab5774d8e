"""Broken input gives one clear line, an exit code and no traceback, and loses no user file."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.data.trajectories import write_trajectories

USAGE, DATA = 2, 3
CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with good input: trajectories, a tokenizer, a config, and a run trained on them."""
    folder = tmp_path_factory.mktemp("good")
    tiny.word_codec(folder / "tokenizer", tiny.TINY_WORDS)
    write_trajectories(
        folder / "data.jsonl", [tiny.trajectory(name=f"t{i}", steps=2) for i in range(6)]
    )
    assert main(["train", *_training(folder), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def place(good, tmp_path):
    """A copy of it to break."""
    copy = Path(shutil.copytree(good, tmp_path / "here"))
    (copy / "origin").write_text(str(good))
    return copy


def _training(folder, *overrides):
    """Arguments of a training that plays nothing."""
    settings = {
        "data.trajectories": folder / "data.jsonl",
        "data.max_length": 128,
        "model.base": "random",
        "model.tokenizer": folder / "tokenizer",
        "model.width": 16,
        "model.layers": 1,
        "model.heads": 2,
        "model.kv_heads": 1,
        "model.head_size": 8,
        "model.feed_forward": 16,
        "train.steps": 2,
        "train.save_every": 1,
        "train.batch": 1,
        "train.row_length": 128,
        "train.warmup": 1,
        "games.train": 0,
        "games.in_domain": 0,
        "games.ood": 0,
        "cpu_devices": 1,
    }
    return [
        "--config",
        str(CONFIGS / "study.py"),
        *[f"--config.{name}={value}" for name, value in settings.items()],
        *overrides,
    ]


def _row(**changes):
    """The first trajectory's JSON with some fields changed; the value `...` removes a field."""
    return lambda row: json.dumps(
        {name: value for name, value in (row | changes).items() if value is not ...}
    ).encode()


def _step(**changes):
    """The same for the second step of it."""

    def made(row):
        steps = [dict(step) for step in row["steps"]]
        steps[1] = {name: value for name, value in (steps[1] | changes).items() if value is not ...}
        return json.dumps(row | {"steps": steps}).encode()

    return made


def _bytes(line):
    return lambda row: line


# Line 2 of the data file -> words of the message. `data check` and `train` both get each.
LINES = {
    "cut JSON": (lambda row: json.dumps(row).encode()[:-20], ":2: invalid JSON"),
    "no JSON": (_bytes(b"id,observation,action"), ":2: invalid JSON"),
    "a list": (_bytes(b"[1, 2]"), ":2: a trajectory is a JSON object"),
    "not UTF-8": (
        lambda row: json.dumps(row | {"task": "caf"}).encode().replace(b"caf", b"caf\xe9"),
        ":2: not UTF-8",
    ),
    "a line of 50 MB": (lambda row: json.dumps(row | {"task": "x" * 50_000_000}).encode(), ":2: "),
    "another schema": (_row(schema_version=99), "schema_version is 99"),
    "no schema": (_row(schema_version=...), "schema_version is None"),
    "no id": (_row(id=...), "'id' is missing"),
    "an id twice": (_row(id="t0"), "id 't0'"),
    "an empty id": (_row(id=" "), "id"),
    "no task": (_row(task=...), "'task' is missing"),
    "a task that is a number": (_row(task=7), "'task' is a number"),
    "steps that are text": (_row(steps="go"), "'steps' is a string"),
    "no steps": (_row(steps=[]), "no steps"),
    "a step that is text": (_row(steps=["go"]), "step 0"),
    "success that is text": (_row(success="yes"), "'success' is a string"),
    "a reward that is not finite": (_row(reward=float("nan")), "reward"),
    "a seed that is true": (_row(seed=True), "'seed' is a boolean"),
    "no action": (_step(action=...), "step 1: the field 'action' is missing"),
    "an empty action": (_step(action="  "), "step 1: the action is empty"),
    "an empty thought": (_step(thought=""), "step 1: the thought is empty"),
    "a thought that is a list": (_step(thought=["a"]), "step 1: the field 'thought' is an array"),
    "a tag in a thought": (_step(thought="so </think> it is"), "</think>"),
    "a tag in an action": (_step(action="go <action> north"), "<action>"),
    "an observation that is null": (
        _step(observation=None),
        "step 1: the field 'observation' is null",
    ),
    "commands that are text": (_step(admissible_commands="look"), "step 1"),
    "a command that is a number": (_step(admissible_commands=["look", 3]), "step 1"),
    "trained that is text": (_step(trained="no"), "'trained' is a string"),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_bad_line(name, command, place, capsys):
    make, words = LINES[name]
    data = place / "data.jsonl"
    lines = data.read_bytes().splitlines()
    lines[1] = make(json.loads(lines[1]))
    data.write_bytes(b"\n".join(lines) + b"\n")
    arguments = (
        ["data", "check", str(data)]
        if command == "check"
        else ["train", *_training(place), "--out", str(place / "other")]
    )
    _refused(arguments, DATA, [str(data), ":2", words], place, capsys)


def _refused(arguments, code, words, place, capsys):
    """The command exits with `code`, its last line on stderr has `words`; `place` is unchanged."""
    before = _contents(place)
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("cotjax: ")
    everything = said.out + said.err
    assert "Traceback" not in everything
    for word in words:
        assert str(word) in everything
    assert max(map(len, said.err.splitlines())) < 1000
    assert _contents(place) == before


def _contents(place):
    """The bytes of every file, except the output folder, the log and the remembered sums."""
    files = (
        path
        for path in place.rglob("*")
        if path.is_file() and "other" not in path.relative_to(place).parts
    )
    return {
        path: path.read_bytes()
        for path in files
        if path.name not in ("log.txt", "fingerprints.json")
    }


def _train(*overrides):
    return lambda place: ["train", *_training(place), "--out", place / "other", *overrides]


def _again(*overrides):
    """The training that made the run, again."""
    return lambda place: [
        "train",
        *_training(Path((place / "origin").read_text())),
        "--out",
        place / "run",
        *overrides,
    ]


def _write(name, content, arguments):
    """The same arguments after a file was written over."""

    def broken(place):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return arguments(place)

    return broken


def _change(name, old, new, arguments):
    def broken(place):
        text = (place / name).read_text()
        assert old in text
        (place / name).write_text(text.replace(old, new))
        return arguments(place)

    return broken


def _cut(name, arguments):
    def broken(place):
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[: len(content) // 2])
        return arguments(place)

    return broken


def _remove(name, arguments):
    def broken(place):
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return arguments(place)

    return broken


def _read_only(place):
    folder = place / "read_only"
    folder.mkdir()
    folder.chmod(0o500)
    # Nothing is read-only for root, but what the system shows of itself.
    return [*_train()(place), "--out", "/sys/kernel/run" if os.geteuid() == 0 else folder / "run"]


def _export(place):
    return ["export", "--run", place / "run", "--arm", "sft", "--out", place / "other"]


def _on(*command):
    return lambda place: [place / part[1:] if part.startswith("@") else part for part in command]


# What is wrong -> (what breaks it and gives the command, exit code, words).
OTHERS = {
    "no data file": (_remove("data.jsonl", _train()), DATA, ["data.jsonl", "no such"]),
    "an empty data file": (
        _write("data.jsonl", "", _train()),
        DATA,
        ["data.jsonl: the trajectory file is empty"],
    ),
    "no tokenizer": (_remove("tokenizer", _train()), USAGE, ["tokenizer"]),
    "a tokenizer that is cut": (
        _cut("tokenizer/tokenizer.json", _train()),
        DATA,
        ["tokenizer.json"],
    ),
    "a tokenizer without the tags": (
        _change("tokenizer/tokenizer.json", "<action>", "<xction>", _train()),
        DATA,
        ["<action>"],
    ),
    "examples longer than a row": (
        _train("--config.data.max_length=512"),
        USAGE,
        ["data.max_length (512)", "train.row_length (128)"],
    ),
    "no step that fits": (
        _train("--config.data.max_length=4"),
        DATA,
        ["nothing to train on", "data.max_length"],
    ),
    "eight devices on one": (
        _train("--config.mesh.data=1", "--config.mesh.fsdp=8"),
        USAGE,
        ["8", "devices"],
    ),
    "a batch in more parts than rows": (
        _train("--config.train.accumulate=3"),
        USAGE,
        ["train.batch (1)"],
    ),
    "an unknown key": (_train("--config.train.stepz=3"), USAGE, ["did you mean 'train.steps'"]),
    "a value that is no number": (
        _train("--config.train.steps=many"),
        USAGE,
        ["train.steps", "'many'"],
    ),
    "no steps": (_train("--config.train.steps=0"), USAGE, ["train.steps is 0"]),
    "an unknown argument of a command": (_train("--config.masking.unit=word"), USAGE, ["'word'"]),
    "no config": (_on("train", "--config", "@none.py"), USAGE, ["none.py: no such config file"]),
    "a config that is no Python": (
        _write("c.py", "def get_config(:\n", _on("train", "--config", "@c.py")),
        USAGE,
        ["c.py", "line 1"],
    ),
    "a config that gives nothing": (
        _write("c.py", "x = 1\n", _on("train", "--config", "@c.py")),
        USAGE,
        ["c.py", "get_config"],
    ),
    "an output folder that is a file": (
        lambda place: [*_train()(place), "--out", place / "data.jsonl"],
        USAGE,
        ["data.jsonl"],
    ),
    "an output folder with other things": (
        lambda place: [*_train()(place), "--out", place / "tokenizer"],
        USAGE,
        ["holds no cotjax run"],
    ),
    "an output folder that is read-only": (_read_only, USAGE, ["run"]),
    "another run's folder": (
        _again("--config.seed=7"),
        USAGE,
        ["holds another run", "seed is 0 there, 7 here"],
    ),
    "a run's config that is cut": (_cut("run/config.json", _again()), DATA, ["config.json"]),
    "an arm's settings that are cut": (
        _cut("run/arms/sft/settings.json", _again()),
        DATA,
        ["settings.json"],
    ),
    "metrics that are gone": (
        _remove("run/arms/sft/metrics.jsonl", _again()),
        DATA,
        ["metrics.jsonl", "steps 1 to 2"],
    ),
    "a base that is no model": (_train("--config.model.base=/"), USAGE, ["model.base"]),
    "a base of an unknown kind": (
        _write(
            "base/config.json",
            '{"model_type": "gpt2"}',
            lambda place: _train(f"--config.model.base={place / 'base'}")(place),
        ),
        DATA,
        ["gpt2"],
    ),
    "games that are not there": (
        _on("collect", "--games", "@none", "--out", "@other/x.jsonl"),
        USAGE,
        ["none"],
    ),
    "a game that is none": (
        _write("g/game.tw-pddl", "{", _on("play", "--game", "@g/game.tw-pddl")),
        USAGE,
        ["game.tw-pddl"],
    ),
    "an arm that is not there": (lambda place: [*_export(place), "--arm", "none"], USAGE, ["none"]),
    "a step that is not there": (lambda place: [*_export(place), "--step", "77"], DATA, ["77"]),
    "a checkpoint of another model": (
        _change("run/model.json", '"width": 16', '"width": 32', _export),
        DATA,
        ["another model"],
    ),
    "a model file that is cut": (_cut("run/model.json", _export), DATA, ["model.json"]),
    "a run that is not there": (_remove("run", _export), USAGE, ["run"]),
    "nothing to play": (
        lambda place: ["evaluate", *_training(place), "--out", place / "other"],
        USAGE,
        ["nothing to play"],
    ),
    "nothing that was played": (
        lambda place: ["report", *_training(place), "--out", place / "run"],
        USAGE,
        ["run"],
    ),
    "rows of no known layout": (
        _write("r.jsonl", '{"x": 1}\n', _on("data", "import", "@r.jsonl", "--out", "@other.jsonl")),
        DATA,
        ["r.jsonl:1"],
    ),
    "an array that is cut": (
        _write("r.json", '[{"a": 1}, {', _on("data", "import", "@r.json", "--out", "@other.jsonl")),
        DATA,
        ["r.json:1"],
    ),
    "fewer than no messages": (
        _on("data", "check", "@data.jsonl", "--limit", "-1"),
        USAGE,
        ["--limit is -1"],
    ),
    "messages without a template": (
        _write(
            "m.jsonl",
            '{"id": "a", "messages": [{"role": "user", "content": "hi"}, '
            '{"role": "assistant", "content": "hm"}]}\n',
            _on("show-mask", "--data", "@m.jsonl", "--tokenizer", "@tokenizer"),
        ),
        USAGE,
        ["chat template"],
    ),
    "a fraction above one": (
        _on("show-mask", "--data", "@data.jsonl", "--tokenizer", "@tokenizer", "--drop", "2"),
        USAGE,
        ["2"],
    ),
    "a source that is no model": (_on("convert", "@tokenizer", "@other"), USAGE, ["tokenizer"]),
    "a slice that does not exist": (
        _on("plan", "--config", str(CONFIGS / "demo.py"), "--topology", "v99:2x2"),
        USAGE,
        ["v99"],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_bad_input(name, place, capsys):
    broken, code, words = OTHERS[name]
    _refused(broken(place), code, words, place, capsys)


def test_there_are_enough():
    assert len(LINES) + len(OTHERS) >= 40
