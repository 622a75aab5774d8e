"""An interrupted collection goes on where it stopped, and gives the same bytes."""

import os
from dataclasses import replace
from functools import partial

import pytest
from helpers.pools import Stairs

from cotjax.envs.base import Decision, Game
from cotjax.envs.worlds import IN_DOMAIN, World
from cotjax.errors import EnvError
from cotjax.rollout.collect import Collecting, collect

PLAYED: list[str] = []
SETTINGS = Collecting("expert", seed=0, max_steps=12)


class Worn(Stairs):
    """Says itself that it failed."""

    def step(self, action):
        try:
            return super().step(action)
        except RuntimeError as error:
            raise EnvError(str(error)) from error


class Climber:
    def start(self, task, observation):
        PLAYED.append(task)

    def act(self, observation):
        return Decision("one more stair.", "up")


class StairWorld(World):
    """Games 2 to 8 are won, 9 fails, 40 takes too many steps."""

    name, domains, agents = "stairs", {"climb": IN_DOMAIN}, ("expert",)

    def games(self, root, split, left_out=None):
        return [Game(str(number), "", split, "climb") for number in (2, 3, 40, 9, 4, 5, 6)]

    def make_env(self, max_steps, games_kept=None):
        return partial(Worn, max_steps)

    def agent(self, name, seed, settings):
        return Climber()


WORLD = StairWorld()
GAMES = WORLD.games("", "train")


@pytest.fixture(autouse=True)
def nothing_played():
    PLAYED.clear()


def interrupted(out, after: int) -> None:
    """Begin to collect, and be interrupted after so many episodes."""

    def stop(done, total):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(WORLD, GAMES, out, SETTINGS, progress=stop)
    assert not out.exists()


@pytest.mark.parametrize("after", [1, 4, 7])
def test_only_what_is_left_is_played_and_the_file_is_the_same(tmp_path, after):
    whole = collect(WORLD, GAMES, tmp_path / "whole.jsonl", SETTINGS)
    assert (whole.played, whole.won, whole.kept, whole.failed, whole.before) == (7, 5, 5, 1, 0)
    out, seen = tmp_path / "out.jsonl", []
    interrupted(out, after)
    PLAYED.clear()
    summary = collect(
        WORLD, GAMES, out, SETTINGS, progress=lambda done, total: seen.append((done, total))
    )
    assert len(PLAYED) == len(GAMES) - after and summary == replace(whole, before=after)
    assert seen == [(done, 7) for done in range(1, 8)]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "whole.jsonl"]
    assert f"{after} of them were played before an interruption" in "\n".join(summary.lines())


def test_half_a_line_is_played_again(tmp_path):
    out = tmp_path / "out.jsonl"
    interrupted(out, 3)
    begun = tmp_path / ".out.jsonl.begun"
    begun.write_bytes(begun.read_bytes()[:-20])
    assert collect(WORLD, GAMES, out, SETTINGS).before == 2
    collect(WORLD, GAMES, tmp_path / "whole.jsonl", SETTINGS)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("games", "settings"),
    [
        (GAMES, replace(SETTINGS, seed=1)),
        (GAMES, replace(SETTINGS, max_steps=11)),
        (GAMES[1:], SETTINGS),
        ([replace(GAMES[0], path=__file__), *GAMES[1:]], SETTINGS),
    ],
)
def test_episodes_of_another_collection_are_dropped(tmp_path, games, settings):
    out = tmp_path / "out.jsonl"
    interrupted(out, 3)
    assert collect(WORLD, games, out, settings).before == 0
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_lines_of_two_calls_at_a_time_are_not_taken_for_one(tmp_path):
    out = tmp_path / "out.jsonl"
    interrupted(out, 3)
    begun = tmp_path / ".out.jsonl.begun"
    lines = begun.read_bytes().splitlines(keepends=True)
    begun.write_bytes(b"".join([*lines[:3], *lines[2:]]))
    assert collect(WORLD, GAMES, out, SETTINGS).before == 2
