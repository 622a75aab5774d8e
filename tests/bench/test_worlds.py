"""`cotjax bench worlds` counts what the expert's episodes came to."""

import os
import subprocess
from functools import partial

import pytest
from helpers.pools import Stairs

from cotjax.bench.worlds import _of_types, benchmark, run
from cotjax.cli.main import main
from cotjax.envs.base import Decision, Game
from cotjax.envs.worlds import IN_DOMAIN, World
from cotjax.errors import UsageError


class Climber:
    def start(self, task, observation):
        assert task.startswith("climb")

    def act(self, observation):
        return Decision(None, "up")


class StairWorld(World):
    name, domains, agents = "stairs", {"climb": IN_DOMAIN}, ("expert",)

    def games(self, root, split, left_out=None):
        return [Game(str(number), "", split, "climb") for number in (2, 3, 40, 9)]

    def make_env(self, max_steps, games_kept=None):
        return partial(Stairs, max_steps)

    def agent(self, name, seed, settings):
        assert settings.game is not None
        return Climber()


WORLD = StairWorld()


def test_wins_steps_faults_and_processes_are_counted():
    world, done = StairWorld(), []
    figures = run(
        world,
        world.games("", "test"),
        episodes=12,
        slots=3,
        max_steps=45,
        progress=lambda *counts: done.append(counts),
    )
    # Each of the games 2, 3, 40 and 9 three times: 9 fails, and 40 takes more than 30 steps.
    assert (figures.episodes, figures.won, figures.won_within) == (12, 9, 6)
    assert len(figures.faults) == 3 and "9" in figures.faults[0]
    assert "a stair broke" in figures.faults[0]
    assert figures.steps == 3 * (2 + 3 + 40 + 2) and figures.scores == 9
    assert figures.left == 0 and min(figures.memory) > 10 and min(figures.speeds) > 0
    assert done[-1] == (12, 12)


def test_episodes_that_run_out_of_steps_are_not_won():
    world = StairWorld()
    games = [game for game in world.games("", "test") if game.id != "9"]
    figures = run(world, games, episodes=3, slots=2, max_steps=5)
    assert (figures.won, figures.steps, figures.faults) == (2, 2 + 3 + 5, [])


def test_processes_that_ran_before_are_none_of_the_benchmarks():
    with subprocess.Popen(["sleep", "60"]) as other:
        figures = run(WORLD, WORLD.games("", "test")[:2], episodes=4, slots=2, max_steps=9)
        other.kill()
    assert figures.left == 0


def test_the_command_makes_the_games_of_a_world_that_makes_them(capsys):
    counts = "--episodes", "4", "--environments", "2", "--steps", "30"
    assert main(["bench", "worlds", "--world", "alfworld", *counts]) == 0
    said = capsys.readouterr().out
    assert "the expert won 4 of 4 episodes (100.0 %)" in said
    assert "18 games of valid_unseen, 2 environments in 2 processes" in said  # the split of configs
    assert "processes left behind: 0; environments that failed: 0" in said


def test_games_are_of_the_task_types_asked_for_and_as_many():
    games = [Game(f"{kind}-{number}", "", "test", kind) for kind in "ab" for number in range(5)]
    chosen = _of_types(games, ("a", "b"), 2, seed=0)
    assert [game.task_type for game in chosen] == ["a", "a", "b", "b"]
    assert _of_types(games, ("b",), 0, seed=0) == games[5:]
    with pytest.raises(UsageError, match="no task type 'heat'; there are climb"):
        benchmark(
            StairWorld(), "", "", episodes=3, slots=1, max_steps=5, seed=0, task_types=["heat"]
        )


def test_environments_share_processes_where_their_world_says_so():
    class Heavy(StairWorld):
        envs_per_process = 8

    cores = os.cpu_count() or 1
    assert StairWorld().processes_for(64) == 64
    assert Heavy().processes_for(64) == max(8, min(cores, 64))
    assert Heavy().processes_for(1) == 1


def test_impossible_counts_are_refused():
    world = StairWorld()
    for counts in ({"episodes": 2}, {"slots": 0}, {"max_steps": 0}):
        with pytest.raises(UsageError, match="--episodes of 3 or more"):
            run(
                world,
                world.games("", "test"),
                **{"episodes": 3, "slots": 1, "max_steps": 5} | counts,
            )
