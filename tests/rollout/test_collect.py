"""Collecting trajectories: which are kept and counted, and what the file depends on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.data.trajectories import SCRIPTED_BEFORE, read_trajectories
from cotjax.envs.alfworld import WORLD
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.alfworld.scripted.expert import Expert
from cotjax.envs.alfworld.tasks import TASK_TYPES
from cotjax.envs.alfworld.world import Alfworld
from cotjax.envs.base import Decision, Game, Observation
from cotjax.envs.worlds import IN_DOMAIN, World
from cotjax.errors import UsageError
from cotjax.rollout.collect import Collecting, CollectSummary, collect


@pytest.fixture(scope="module")
def games(tmp_path_factory) -> list[Game]:
    return make_games(
        tmp_path_factory.mktemp("games"), {"train": dict.fromkeys(TASK_TYPES, 1)}, seed=5
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_the_expert_wins_every_game_and_each_step_is_what_it_saw_then_did(games, tmp_path):
    calls = []
    summary = collect(
        WORLD,
        games,
        tmp_path / "out.jsonl",
        Collecting("expert", seed=0),
        progress=lambda done, total: calls.append((done, total)),
    )
    trajectories = list(read_trajectories(tmp_path / "out.jsonl"))
    assert calls == [(done, 6) for done in range(1, 7)]
    assert (summary.played, summary.won, summary.kept, summary.failed, summary.inadmissible) == (
        6,
        6,
        6,
        0,
        0,
    )
    assert summary.steps == sum(len(trajectory.steps) for trajectory in trajectories)
    assert [trajectory.id for trajectory in trajectories] == [
        f"expert/train/{game.id}/0" for game in games
    ]
    for game, trajectory in zip(games, trajectories, strict=True):
        assert (trajectory.game, trajectory.task_type, trajectory.split) == (
            game.id,
            game.task_type,
            "train",
        )
        assert trajectory.success and trajectory.reward == 1.0
        assert trajectory.steps[0].observation.startswith("You are in the middle of a room.")
        assert not trajectory.task.endswith(".")
        for step in trajectory.steps:
            assert step.action in step.admissible_commands and step.provenance == SCRIPTED_BEFORE


def test_the_bytes_do_not_depend_on_the_number_of_workers(games, tmp_path):
    settings = Collecting("explorer", seed=3, only_won=False, max_steps=8, episodes_per_game=2)
    for workers in (1, 2):
        out = tmp_path / f"{workers}.jsonl"
        assert collect(WORLD, games, out, settings, workers=workers).kept == 12
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_an_episode_depends_on_the_seed_its_game_and_its_number_only(games, tmp_path):
    def lines(games: list[Game], seed: int, episodes: int) -> dict[str, dict]:
        settings = Collecting(
            "explorer", seed, max_steps=6, only_won=False, episodes_per_game=episodes
        )
        collect(WORLD, games, tmp_path / "out.jsonl", settings)
        return {
            row["id"]: row
            for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        }

    two, alone, other = lines(games[:2], 1, 2), lines(games[1:2], 1, 1), lines(games[1:2], 2, 1)
    (name,) = alone
    assert alone[name] == two[name] and alone[name] != other[name]
    assert len({row["seed"] for row in two.values()}) == 4


def test_lost_episodes_are_counted_and_kept_only_on_request(games, tmp_path):
    settings = Collecting("explorer", seed=0, max_steps=3, skill=(0.0, 0.0))
    won = collect(WORLD, games, tmp_path / "won.jsonl", settings)
    every = collect(WORLD, games, tmp_path / "every.jsonl", replace(settings, only_won=False))
    assert (won.played, won.won, won.kept, won.steps) == (6, 0, 0, 0)
    assert (every.played, every.won, every.kept, every.steps) == (6, 0, 6, 18)
    assert all(
        not trajectory.success and trajectory.reward == 0.0
        for trajectory in read_trajectories(tmp_path / "every.jsonl")
    )


def test_a_broken_game_is_counted_and_named_and_the_others_go_on(games, tmp_path):
    Path(tmp_path / "broken.tw-pddl").write_text("{}")
    broken = replace(games[0], id="broken/trial_0", path=str(tmp_path / "broken.tw-pddl"))
    summary = collect(
        WORLD, [broken, games[1]], tmp_path / "out.jsonl", Collecting("expert", seed=0)
    )
    assert (summary.played, summary.kept, summary.failed, summary.inadmissible) == (2, 1, 1, 0)
    assert len(summary.faults) == 1 and "broken.tw-pddl" in summary.faults[0]


def test_an_inadmissible_action_is_counted_and_named_with_its_game_and_step(games, tmp_path):
    class Stubborn(Expert):
        def act(self, observation):
            decision = super().act(observation)
            return (
                decision
                if observation.text.startswith("You are in")
                else Decision(decision.thought, "take the biscuit")
            )

    class World(Alfworld):
        def agent(self, name, seed, settings):
            return Stubborn(seed)

    summary = collect(World(), games[:1], tmp_path / "out.jsonl", Collecting("expert", seed=0))
    assert (summary.played, summary.kept, summary.failed, summary.inadmissible) == (1, 0, 0, 1)
    assert summary.faults == (
        f"{games[0].id}, step 1: the expert chose 'take the biscuit', which the game does not take",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent": "oracle"}, "'oracle'"),
        ({"skill": (0.5, 0.1)}, r"\(0\.5, 0\.1\)"),
        ({"max_steps": 0}, "max_steps"),
        ({"episodes_per_game": 0}, "episodes_per_game"),
        ({"mistakes": 1.0}, "slips"),
    ],
)
def test_a_request_that_makes_no_sense_says_so(games, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        settings = Collecting(**{"agent": "expert", "seed": 0} | change)
        collect(WORLD, games, tmp_path / "out.jsonl", settings)
    assert not (tmp_path / "out.jsonl").exists()


def test_no_games_or_one_game_twice_says_so(games, tmp_path):
    with pytest.raises(UsageError, match="no games"):
        collect(WORLD, [], tmp_path / "out.jsonl", Collecting("expert", seed=0))
    with pytest.raises(UsageError, match="2 times"):
        collect(WORLD, games[:1] * 2, tmp_path / "out.jsonl", Collecting("expert", seed=0))


def test_what_was_left_out_is_told_by_reason_with_the_first_examples():
    faults = tuple(f"game {number}: fell" for number in range(6))
    summary = CollectSummary(
        played=20, won=9, kept=9, steps=70, failed=4, inadmissible=2, faults=faults
    )
    left_out = {
        "not won": 5,
        "the environment or the game file failed": 4,
        "the agent chose an action that the game does not take": 2,
    }
    assert summary.left_out == left_out
    first, *broke = summary.lines()
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    assert first == f"won 9 of 20; kept 9 trajectories, 70 steps; left out 11: {reasons}"
    assert broke == [f"  left out: game {number}: fell" for number in range(3)] + ["  and 3 more"]
    assert CollectSummary(played=3, won=2, kept=3, steps=9).lines() == [
        "won 2 of 3; kept 3 trajectories, 9 steps"
    ]


SAID = {
    "polly": ("hello", "again"),
    "tag": ("hello", "a </think> b"),
    "silent": ("hello", ""),
    "half": ("hello", "\ud800"),
    "nul": ("\0", "again"),
    "long": ("hello", "again " * 3_000_000),
    "lost": ("<think>", "again"),
}


class Parrot:
    """An environment that says two things, and is over after two steps."""

    def reset(self, game):
        self.game, self.steps = game, 0
        return "listen", Observation(SAID[game.id][0], None, False, False)

    def step(self, action):
        self.steps += 1
        over = self.steps == 2
        return Observation(SAID[self.game.id][1], None, over and self.game.id != "lost", over)

    def close(self):
        pass


class Listener:
    def start(self, task, observation):
        pass

    def act(self, observation):
        return Decision("i listen.", "listen")


class Parrots(World):
    name, domains, agents = "parrots", {"listen": IN_DOMAIN}, ("expert",)

    def games(self, root, split, left_out=None):
        return []

    def make_env(self, max_steps, games_kept=None):
        return Parrot

    def agent(self, name, seed, settings):
        return Listener()


@pytest.mark.parametrize("only_won", [True, False])
def test_an_episode_that_could_not_be_read_again_is_dropped_and_said(tmp_path, only_won):
    games = [Game(name, "", "train", "listen") for name in SAID]
    settings = Collecting("expert", 0, only_won=only_won)
    summary = collect(Parrots(), games, tmp_path / "out.jsonl", settings)
    kept = [each.game for each in read_trajectories(tmp_path / "out.jsonl")]
    assert kept == ["polly"] and (summary.played, summary.won, summary.kept) == (7, 6, 1)
    dropped = 5 if only_won else 6  # a lost episode is not wanted, whatever was said in it
    assert summary.left_out == {"text that a trajectory cannot hold": dropped} | (
        {"not won": 1} if only_won else {}
    )
    lines = "\n".join(summary.lines())
    assert f"{dropped} text that a trajectory cannot hold" in lines
    assert "tag: step 1: the observation contains '</think>', a tag" in lines
    assert "silent: step 1: the observation is empty" in lines


def test_the_command_says_which_games_and_episodes_were_left_out(games, tmp_path, capsys):
    root = tmp_path / "json_2.1.1" / "train"
    for number, game in enumerate(games[:3]):
        shutil.copytree(Path(game.path).parent, root / f"g{number}" / "trial")
    broken = root / "g0" / "trial" / "game.tw-pddl"
    broken.write_text(json.dumps(json.loads(broken.read_text()) | {"grammar": "nonsense"}))
    (root / "g1" / "trial" / "traj_data.json").unlink()
    command = [
        "collect",
        "--games",
        str(tmp_path),
        "--out",
        str(tmp_path / "out.jsonl"),
        "--workers",
        "1",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 without traj_data.json" in said
    assert (
        "won 1 of 2; kept 1 trajectories" in said
        and "left out 1: 1 the environment or the game file failed" in said
    )
    assert "left out: " in said and str(broken) in said
    shutil.rmtree(root / "g2")
    assert main(command) == 3
    assert "no episode could be kept" in capsys.readouterr().err
