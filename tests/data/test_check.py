"""`cotjax data check`: every bad line is named, and the rest is counted."""

import json
from dataclasses import replace

import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.data.check import check
from cotjax.data.oddities import CONTRADICTION, NOT_ADMISSIBLE
from cotjax.data.trajectories import write_trajectories


@pytest.fixture
def played(tmp_path):
    whole = [
        tiny.trajectory(name=f"t{number}", steps=1 + number % 3, success=number % 2 == 0)
        for number in range(6)
    ]
    first = whole[5].steps[0]
    silent = (
        replace(first, thought=None, provenance=None),
        replace(first, trained=False),
        replace(first, provenance="imported"),
    )
    whole[5] = replace(whole[5], steps=silent, split="valid", success=None, reward=None)
    path = tmp_path / "t.jsonl"
    write_trajectories(path, whole)
    return path


def test_what_a_file_holds(played):
    contents = check(played)
    assert (contents.bad, contents.episodes, contents.steps) == (0, 6, 12)
    assert (contents.untrained, contents.thoughtless) == (1, 1)
    assert contents.outcomes == {"won": 3, "lost": 2, "not known": 1}
    assert contents.splits == {"train": 5, "valid": 1} and contents.environments == {"tiny": 6}
    assert contents.lengths == {1: 2, 2: 2, 3: 2}
    assert contents.provenance == {"scripted, before the action": 9, "imported": 1}
    assert not contents.unknown and not contents.tokens


def test_every_bad_line_is_named_up_to_the_limit_and_the_rest_counted(played, capsys):
    lines = played.read_text().splitlines()
    broken = [
        lines[0],
        "{",
        lines[1],
        lines[0],
        lines[2].replace("i need", "</think> i need", 1),
        "",
        lines[3].replace("t3", "t9"),
    ]
    played.write_text("\n".join(broken) + "\n")
    contents = check(played, limit=3)
    assert (contents.bad, contents.episodes) == (4, 3)
    named = [error.removeprefix(f"{played}:").split(":")[0] for error in contents.errors]
    assert named == ["2", "4", "5"]
    assert main(["data", "check", str(played), "--limit", "3"]) == 3
    out, err = capsys.readouterr()
    assert f"{played}:5: step 0: the thought contains '</think>'" in out
    assert "and 1 more" in out and "3 episodes" in out
    assert err == f"cotjax: {played}: 4 of 7 lines are bad\n"


def test_a_good_file_is_told_and_ends_well(played, capsys):
    assert main(["data", "check", str(played)]) == 0
    out = capsys.readouterr().out
    for words in (
        "6 episodes, 12 steps",
        "60.0% of the 5 whose outcome is known",
        "train 5, valid 1",
        "scripted, before the action 9",
    ):
        assert words in out, out


def test_unknown_fields_are_passed_over_and_counted(played):
    rows = [json.loads(line) for line in played.read_text().splitlines()]
    rows[0]["difficulty"] = 3
    for step in rows[2]["steps"]:
        step["score"] = 1
    played.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(played).unknown == {"difficulty": 1, "steps.score": 3}


def test_what_is_odd_is_told(played, capsys):
    played.write_text(
        played.read_text().replace('"action": "open cabinet 1"', '"action": "dance"', 2)
    )
    assert check(played).odd == {
        NOT_ADMISSIBLE: 2,
        CONTRADICTION: 2,
    }  # the lost episodes have reward 1
    assert main(["data", "check", str(played)]) == 0
    assert "2 actions not among their admissible commands" in capsys.readouterr().out


def test_tokens_are_counted_and_what_does_not_fit_is_told(played, tmp_path, capsys):
    codec = tiny.word_codec(tmp_path / "tokenizer", tiny.TINY_WORDS)
    contents = check(played, codec=codec, max_length=60)
    assert sum(contents.tokens.values()) == 6 and contents.long == sum(
        count for length, count in contents.tokens.items() if length > 60
    )
    assert 0 < contents.lost < contents.steps
    assert check(played, codec=codec, max_length=1000).long == 0
    text = played.read_text().replace("You open the cabinet 1.", "You see a dragon.", 1)
    played.write_text(text)
    assert main(["data", "check", str(played), "--tokenizer", str(tmp_path / "tokenizer")]) == 3
    out = capsys.readouterr().out
    assert (
        f"{played}:2: trajectory 't1', step 1: the tokenizer does not know 'dragon'" in out
        and "tokens per episode" in out
    )


def test_an_episode_of_just_the_longest_length_is_not_too_long(tmp_path):
    codec, path = tiny.word_codec(tmp_path / "tokenizer", tiny.TINY_WORDS), tmp_path / "t.jsonl"
    write_trajectories(path, [tiny.trajectory(steps=1)])
    ((length, _),) = check(path, codec=codec).tokens.items()
    contents = {most: check(path, codec=codec, max_length=most) for most in (length - 1, length)}
    assert {most: (one.long, one.lost) for most, one in contents.items()} == {
        length - 1: (1, 1),
        length: (0, 0),
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.jsonl"], 3, "no such trajectory file"),
        (["none.jsonl", "--limit", "-1"], 2, "--limit is -1"),
        (["none.jsonl", "--max-length", "0"], 2, "--max-length is 0"),
        (["none.jsonl", "--tokenizer", "none"], 2, "no such tokenizer"),
    ],
)
def test_what_cannot_be_checked_is_one_line(capsys, arguments, code, words):
    assert main(["data", "check", *arguments]) == code
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
