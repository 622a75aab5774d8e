"""`cotjax bench rl`: both sides play the same games; figures are of the steps that were timed."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cotjax.bench.jobs import TRL_ROWS, RLJob, from_line, to_line
from cotjax.bench.rl import Settings, _figures, benchmark
from cotjax.bench.tasks import RLStep
from cotjax.cli.main import main
from cotjax.envs.base import Game
from cotjax.errors import UsageError

GAMES = [Game(f"g{number}", "", "train", "look") for number in range(5)]


def job(**changes):
    return Settings(tasks=2, group=4, batch=4, **changes).job(GAMES, Path("folder"))


def test_a_job_in_another_process_plays_the_same_games_at_temperature_1():
    own = job()
    other = from_line(to_line(own))
    assert type(other) is RLJob and other == own
    assert (own.slots, own.elicitation.temperature, own.elicitation.max_steps) == (8, 1.0, 12)
    played = [game.id for step in range(5) for game in own.games_of(step)]
    assert played == [game.id for step in range(5) for game in other.games_of(step)]
    # Each epoch of five games is played once before any of them comes again.
    assert sorted(played[:5]) == sorted(played[5:]) == [game.id for game in GAMES]


def test_figures_are_of_all_timed_steps():
    steps = [
        RLStep(seconds=2.0, play_s=1.5, transfer_s=0.1, reward=0.5, sampled=10, trained=30),
        RLStep(seconds=4.0, play_s=2.5, transfer_s=0.0, reward=0.0, sampled=20, trained=50),
    ]
    rounds = [{"steps": [asdict(each)]} for each in steps]
    found = _figures(SimpleNamespace(rounds=rounds, seconds=((2.0,), (4.0,))))
    assert found["steps/h"] == 1200 and found["step_s"] == 3.0
    assert found["play"] == pytest.approx(4 / 6) and found["transfer"] == pytest.approx(0.1 / 6)
    assert (found["reward"], found["sampled"], found["trained"]) == (0.25, 15, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group": 1}, "--group is 1; it must be at least 2"),
        ({"tasks": 0}, "--tasks is 0"),
        ({"tasks": 2, "group": 3, "batch": 4}, "--batch is 4; it must divide the 6 episodes"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(changes, words):
    with pytest.raises(UsageError, match=words):
        benchmark(Settings(**changes), Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("rows", TRL_ROWS)
def test_beside_trl(rows, capsys):
    pytest.importorskip("trl", reason="TRL is a test extra")
    sizes = ["--tasks", "1", "--group", "2", "--batch", "2", "--steps", "2", "--rounds", "1"]
    assert main(["bench", "rl", "--peer", "trl", "--peer-rows", rows, *sizes]) == 0
    printed = capsys.readouterr().out
    assert "greedily 1 of 1 games are played alike" in printed
    assert "times as many steps as TRL (steps " in printed.splitlines()[-1]
