"""Text of environments, models and files is shown on a terminal, and never obeyed by it."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny
from rich.console import Console

from cotjax.cli.main import main
from cotjax.data.trajectories import write_trajectories
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.runtime.progress import Reporter
from cotjax.runtime.terminal import visible

HOSTILE = (
    "\x1b]0;title\x07 \x1b]52;c;Zm9v\x07 \x9b2J \x1b[2J a\rb \x7f "
    "\u202egnp\u202c \u2066x\u2069 \u200bz \U000e0041 \u2028 \ufeff \ud800"
)


def acts(text: str, kept: str = "\n\t") -> set[str]:
    """The characters of a text that a terminal would obey, or not show."""
    return {
        char
        for char in text
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and char not in kept
    }


def test_what_would_act_on_a_terminal_is_written_out():
    shown = visible(HOSTILE)
    assert acts(HOSTILE) and not acts(shown)
    assert (
        shown.startswith(r"\x1b]0;title\x07 \x1b]52;c;Zm9v\x07 \x9b2J")
        and r"a\rb" in shown
        and r"\u202egnp\u202c" in shown
    )
    assert shown.endswith(r"\U000e0041 \u2028 \ufeff \ud800")
    assert all(
        visible(chr(code), kept="") != chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]
    )


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "two\nlines\tand a tab",
        "żółć 漢字 ﷽ e\u0301",
        "👩\u200d🚀",
        "می\u200cخواهم",
        "",
        "\u00a0",
    ],
)
def test_every_other_text_stays_as_it_is(text):
    assert visible(text) == text


def test_a_game_is_played_with_its_text_made_visible(tmp_path, capsys, monkeypatch):
    (game,) = make_games(
        tmp_path / "games", {"train": {"look_at_obj_in_light": 1}}, seed=2, workers=1
    )
    content = json.loads(Path(game.path).read_text())
    assert "You arrive at" in content["grammar"] and "examine {r}" in content["grammar"]
    grammar = (
        content["grammar"]
        .replace("You arrive at", "You\\u001bc arrive\\u202e at")
        .replace("examine {r}", "examine\\u009b {r}")
    )
    content["grammar"] = grammar.replace("Your task is to: ", "Your task is to: \\u001bPx\\u0007")
    Path(game.path).write_text(json.dumps(content))
    go = next(command for command in content["walkthrough"] if command.startswith("go to"))
    (tmp_path / "lines").write_text(f"{go}\n?\nquit\n")
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main(["play", "--game", game.path]) == 0
    said = capsys.readouterr().out
    assert not acts(said)
    assert r"You\x1bc arrive\u202e at" in said and r"to: \x1bPx\x07" in said


def test_commands_on_files_show_their_text_made_visible(tmp_path, capsys):
    first = tiny.trajectory(name="t")
    step = replace(first.steps[0], observation=f"you see {HOSTILE}".replace("\ud800", ""))
    write_trajectories(
        tmp_path / "t.jsonl",
        [replace(first, id="\x1b[2J", split="[/red]\x1b[2J", steps=(step, *first.steps[1:]))],
    )
    assert main(["data", "check", str(tmp_path / "t.jsonl")]) == 0
    texts = [*tiny.TINY_WORDS, step.observation, *(other.thought for other in first.steps)]
    tiny.word_codec(tmp_path / "words", texts)
    assert (
        main(
            [
                "show-mask",
                "--data",
                str(tmp_path / "t.jsonl"),
                "--tokenizer",
                str(tmp_path / "words"),
            ]
        )
        == 0
    )
    (tmp_path / "bad.jsonl").write_text(json.dumps({"id": "\x1b[2J", "split": "\x1b[2J"}) + "\n")
    assert main(["data", "check", str(tmp_path / "bad.jsonl")]) == 3
    assert (
        main(
            ["collect", "--games", str(tmp_path / "\x1b[2J"), "--out", str(tmp_path / "out.jsonl")]
        )
        == 2
    )
    said = capsys.readouterr()
    assert not acts(said.out) and not acts(said.err)
    assert r"[/red]\x1b[2J" in said.out and r"\u202egnp" in said.out and r"\x1b[2J" in said.err


def test_a_reporters_lines_and_log_are_made_visible(tmp_path, capsys):
    reporter = Reporter(tmp_path / "log.txt", Console(highlight=False))
    reporter.say(f"the environment said {HOSTILE}")
    reporter.warn(HOSTILE)
    said = capsys.readouterr()
    for text in (said.out, said.err, (tmp_path / "log.txt").read_text()):
        assert r"\x1b]0;title\x07" in text and not acts(text)
