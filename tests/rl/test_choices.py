"""Choices from planted runs: which play is chosen, what both begin with, and the command."""

import pytest
from helpers.studies import write_episode

from cotjax.cli.main import main
from cotjax.data.lesson_files import read_choices
from cotjax.envs.worlds import load_world
from cotjax.errors import DataError
from cotjax.rl.choices import choices_of_records
from cotjax.rollout.record import read_records

WORLD = load_world("search_qa")
NEED = "I need the land of Ko Po."
SEARCHED = (("search: Ko Po land", "look"), ("answer: Ma Ti", "look"))
ANSWERED = (("answer: Ma Ti", "look"),)


def plant(run, game, *plays):
    """Write a question's plays, each (searched, won)."""
    for sample, (searched, won) in enumerate(plays):
        write_episode(
            run,
            game,
            SEARCHED if searched else ANSWERED,
            success=won,
            thought=f"{NEED} So I search." if searched else f"{NEED} It is Ma Ti.",
            world="search_qa",
            sample=sample,
        )


@pytest.fixture
def run(tmp_path):
    plant(tmp_path, "a", (True, True), (False, False))
    plant(tmp_path, "b", (True, False), (False, True))
    plant(tmp_path, "c", (True, True), (False, False))
    plant(tmp_path, "both", (True, True), (False, True))
    plant(tmp_path, "neither", (True, False), (False, False))
    plant(tmp_path, "mixed", (True, True), (False, False), (False, True))
    plant(tmp_path, "alone", (True, True), (True, False))
    write_episode(tmp_path, "d", SEARCHED, ended="env_error", success=False, world="search_qa")
    write_episode(tmp_path, "e", (("look around", "look"),), world="search_qa")
    write_episode(tmp_path, "f", ((None, "look"),), success=False, world="search_qa")
    return tmp_path


def test_a_search_is_chosen_where_it_alone_was_right_and_the_reverse(run):
    choices, counts = choices_of_records(WORLD, read_records(run / "records"), 10, 0)
    assert len(choices) == 2 and "choice/b" in {choice.id for choice in choices}
    assert (counts.searches, counts.others) == (2, 1)
    assert counts.left_out == {"equal": 3, "one_kind": 1, "env_error": 1, "invalid": 2}
    for choice in choices:
        assert choice.searches == (choice.id != "choice/b")
        assert choice.text == NEED and choice.task == "put a plate in fridge"
        ways = {
            True: " So I search. <begin_search> Ko Po land </end_search>",
            False: " It is Ma Ti. </think>\n\n\\boxed{Ma Ti}",
        }
        assert choice.chosen == ways[choice.searches]
        assert choice.rejected == ways[not choice.searches]


def test_runs_without_a_direction_are_refused(tmp_path):
    plant(tmp_path, "a", (True, True), (False, False))
    with pytest.raises(DataError, match="no choice in one direction: 1 questions are right with"):
        choices_of_records(WORLD, read_records(tmp_path / "records"), 10, 0)


def test_the_command_writes_them(run, capsys):
    out = run / "choices.jsonl"
    assert main(["data", "choices", "--records", str(run / "records"), "--out", str(out)]) == 0
    assert "2 pairs (1 choose a search, 1 none)" in capsys.readouterr().out
    assert len(read_choices(out)) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give --games FOLDER for its facts, or --records FOLDER for runs"),
        (["--games", "/no"], 2, "/no: no questions of split 'train'"),
        (["--records", "/no"], 3, "/no: no such folder of episode records"),
        (["--games", "/no", "--count", "1"], 2, "--count is 1; give at least 2"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, code, message):
    command = ["data", "choices", "--out", str(tmp_path / "out.jsonl"), *arguments]
    assert main(command) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
