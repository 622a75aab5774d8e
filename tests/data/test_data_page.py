"""docs/data.md: its commands and blocks run, one after another."""

import json
import re
import shlex
from pathlib import Path

from helpers import tiny

from cotjax.cli.main import main
from cotjax.data.json_lines import MAX_LINE_BYTES
from cotjax.data.trajectories import KNOWN_FIELDS, KNOWN_STEP_FIELDS, read_trajectories

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    text = PAGE.read_text()
    blocks = re.findall(r"```(json|sh|python)\n(.*?)```", text, re.DOTALL)
    line, public = (json.loads(body) for kind, body in blocks if kind == "json")
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(json.dumps(line) + "\n")
    Path("public.json").write_text(json.dumps([public]))
    tiny.word_codec(
        tmp_path / "my-tokenizer", [*tiny.TINY_WORDS, json.dumps(line).replace('"', " ")]
    )
    names = {}
    for number, (kind, body) in enumerate(blocks):
        if kind == "python":
            exec(compile(body, f"{PAGE.name}, block {number + 1}", "exec"), names)
        for command in body.splitlines() if kind == "sh" else ():
            assert main(shlex.split(command)[1:]) == 0, command
    assert names["batch"]["ids"].shape == (4, 256) and names["state"] == {"next_index": 1}
    (mine,), (imported,) = (
        list(read_trajectories(name)) for name in ("mine.jsonl", "imported.jsonl")
    )
    assert [step.action for step in imported.steps] == [step.action for step in mine.steps]
    assert imported.game == mine.game and Path("rejected.jsonl").read_text() == ""
    assert "tokens per episode" in capsys.readouterr().out


def test_the_page_names_every_field_and_the_limit():
    text = PAGE.read_text()
    rows = re.findall(r"^\| (`.*?) \|", text.split("## Check")[0], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named == KNOWN_FIELDS | {f"steps[].{name}" for name in KNOWN_STEP_FIELDS}
    assert f"{MAX_LINE_BYTES:,} bytes" in text
