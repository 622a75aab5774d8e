"""`cotjax play`, by hand through a pipe and by a checkpoint, on a real game."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cotjax
from cotjax.assets import BASE_FOLDER
from cotjax.cli.main import main
from cotjax.envs.alfworld.maker.make import make_games


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    root = tmp_path_factory.mktemp("games")
    return root, make_games(
        root,
        {"valid_seen": {"look_at_obj_in_light": 1, "pick_and_place_simple": 1}},
        seed=2,
        workers=1,
    )


def by_hand(lines, *arguments) -> str:
    command = [sys.executable, "-m", "cotjax.cli", "play", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(cotjax.__file__).parents[1])}
    run = subprocess.run(
        command,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


def test_a_person_wins_through_a_pipe(games):
    _, (game, *_) = games
    walkthrough = json.loads(Path(game.path).read_text())["walkthrough"]
    said = by_hand(walkthrough, "--game", Path(game.path).parent)
    assert said.startswith("Your task is to: ")
    assert said.rstrip().endswith(f"Won after {len(walkthrough)} steps, score 1 of 1.")
    assert f"[step {len(walkthrough)} of 30, score 1 of 1]" in said


def test_a_person_asks_chooses_by_number_errs_and_leaves(games):
    root, _ = games
    said = by_hand(
        ["?", "2", "fly to the moon", "999", "", "quit", "look"], "--games", root, "--index", 1
    )
    lines = said.splitlines()
    second = next(line.split(maxsplit=1)[1] for line in lines if line.startswith("   2 "))
    assert lines.count(second) == 1 and lines.index(second) > lines.index("> 2"), (
        "the command of that number is played"
    )
    assert "Nothing happens." in lines and "[step 2 of 30, score 0 of 1]" in lines
    assert any("there are commands 1 to" in line for line in lines)
    assert lines[-2:] == ["> quit", "Not won after 2 steps, score 0 of 1."]
    # The end of the input is the end of the game.
    assert by_hand(["look"], "--games", root).splitlines()[-2:] == [
        "> quit",
        "Not won after 1 step, score 0 of 1.",
    ]


@pytest.mark.parametrize("driver", ["cot", pytest.param("prompt", marks=pytest.mark.slow)])
def test_a_checkpoint_is_watched(games, capsys, driver):
    root, _ = games
    arguments = [
        "play",
        "--games",
        str(root),
        "--model",
        str(BASE_FOLDER),
        "--max-steps",
        "2",
        "--driver",
        driver,
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    blocks = said.split("\nStep ")[1:]
    assert len(blocks) == 2 and "Step 2 of 2" in said
    for block in blocks:
        for part in ("admissible  ", "thought  ", "CoT action  ", "prompt action  ", "answer  "):
            assert block.count(f"  {part}") == 1
        played = next(line for line in block.splitlines() if "(played" in line)
        assert played.strip().startswith("CoT action" if driver == "cot" else "prompt action")
    assert "after 2 steps" in said


def test_a_world_s_own_games_are_played_without_a_folder(games, capsys, monkeypatch):
    root, (game, *_) = games
    monkeypatch.setenv("ALFWORLD_DATA", str(root))
    monkeypatch.setattr("sys.stdin", io.StringIO("quit\n"))
    assert main(["play", "--split", game.split]) == 0
    assert "Not won after 0 steps" in capsys.readouterr().out


def test_wrong_arguments_are_one_clear_line(games, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    root, (game, *_) = games
    for arguments, words in (
        ([], "set ALFWORLD_DATA"),
        (["--game", game.path, "--games", str(root)], "--game PATH"),
        (["--game", str(tmp_path)], "no ALFWorld game"),
        (["--games", str(root), "--index", "7"], "there are games 0 to 1"),
        (["--games", str(root), "--split", "train"], "no ALFWorld games of split 'train'"),
        (["--game", game.path, "--run", str(tmp_path)], "nothing was trained here"),
        (
            ["--game", game.path, "--run", str(tmp_path), "--model", str(tmp_path)],
            "--run or --model",
        ),
        (["--game", game.path, "--model", str(tmp_path)], "holds neither config.json"),
        (["--game", game.path, "--model", str(BASE_FOLDER), "--delay", "-1"], "--delay is -1"),
        (["--game", game.path, "--max-steps", "0"], "--max-steps is 0"),
    ):
        assert main(["play", *arguments]) in (2, 3), arguments
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "somewhere"], "a run plays as it was trained; only --model takes"),
        ([], "a run plays as it was trained; only --model takes"),
        (["--model", BASE_FOLDER, "--config.prompt.examples=1"], "examples are of a run's"),
        (["--model", BASE_FOLDER, "--config.world=search_qa"], "the world is --world"),
    ],
)
def test_only_a_model_is_prompted_as_its_user_says(games, capsys, arguments, words):
    root, _ = games
    watch = ["play", "--games", root, *arguments, "--config.prompt.instruction=world"]
    assert main([*map(str, watch)]) == 2
    assert words in capsys.readouterr().err
