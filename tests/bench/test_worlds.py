"""`cotjax bench worlds` counts what the expert's episodes came to."""

from functools import partial

import pytest
from helpers.pools import Stairs

from cotjax.bench.worlds import run
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


def test_wins_steps_faults_and_processes_are_counted():
    world, done = StairWorld(), []
    figures = run(
        world,
        world.games("", "test"),
        episodes=10,
        slots=3,
        max_steps=45,
        progress=lambda *counts: done.append(counts),
    )
    # Games 2, 3, 40, 9, again, and 2, 3: eight are won, two of them after more than 30 steps.
    assert (figures.episodes, figures.won, figures.won_within) == (10, 8, 6)
    assert len(figures.faults) == 2 and "9" in figures.faults[0]
    assert "a stair broke" in figures.faults[0]
    assert figures.steps == 3 * (2 + 3) + 2 * (40 + 2) and figures.scores == 8
    assert figures.left == 0 and min(figures.memory) > 10 and min(figures.speeds) > 0
    assert done[-1] == (10, 10)


def test_episodes_that_run_out_of_steps_are_not_won():
    world = StairWorld()
    games = [game for game in world.games("", "test") if game.id != "9"]
    figures = run(world, games, episodes=3, slots=2, max_steps=5)
    assert (figures.won, figures.steps, figures.faults) == (2, 2 + 3 + 5, [])


def test_the_command_makes_the_games_of_a_world_that_makes_them(capsys):
    counts = "--episodes", "4", "--slots", "2", "--steps", "30"
    assert main(["bench", "worlds", "alfworld", *counts]) == 0
    said = capsys.readouterr().out
    assert "the expert won 4 of 4 episodes (100.0 %)" in said
    assert "games of valid_unseen" in said  # the split that configs play
    assert "processes left behind: 0; environments that failed: 0" in said


def test_impossible_counts_are_refused():
    world = StairWorld()
    for counts in ({"episodes": 2}, {"slots": 0}, {"max_steps": 0}):
        with pytest.raises(UsageError, match="--episodes of 3 or more"):
            run(
                world,
                world.games("", "test"),
                **{"episodes": 3, "slots": 1, "max_steps": 5} | counts,
            )
