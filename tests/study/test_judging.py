"""Rejected responses that the environment judged to lead farther from the goal."""

import pytest

from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.data.pairs import PairCounts, step_pairs
from cotjax.data.trajectories import read_trajectories
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.formats import CHATML
from cotjax.rollout.collect import Collecting, collect
from cotjax.rollout.finish import Ending, Fork, finished
from cotjax.study.arms import check_arms, plays_to_train
from cotjax.study.judging import JudgedStates, is_worse, worse_steps

WORLD = load_world("alfworld")
MADE = {"train": {"pick_clean_then_place_in_recep": 1, "pick_and_place_simple": 1}}


@pytest.fixture(scope="module")
def household(tmp_path_factory):
    """Games, and the expert's episodes of them."""
    folder = tmp_path_factory.mktemp("judged")
    games = WORLD.make_games(folder / "games", MADE, 3)
    collect(WORLD, games, folder / "played.jsonl", Collecting("expert", seed=0, max_steps=60))
    return games, list(read_trajectories(folder / "played.jsonl"))


def config_of(**own):
    config = default_config()
    config.workers = 0
    config.arms = {"dpo": {"label": "DPO", "objective": "dpo", **own}}
    return config


def test_a_rejected_action_leaves_the_expert_farther_from_the_goal(household):
    games, played = household
    found = worse_steps(config_of(), 0, played, games)
    assert found and found == worse_steps(config_of(), 0, played, games)
    by_id = {each.id: each for each in played}
    forks = [
        Fork(
            next(game for game in games if game.id == by_id[name].game),
            by_id[name].task,
            tuple(step.action for step in by_id[name].steps[:number]),
            tuple(step.observation for step in by_id[name].steps[: number + 1]),
            (by_id[name].steps[number].action, worse.action),
        )
        for (name, number), worse in found.items()
    ]
    with finished(WORLD, forks, 60, 0) as outcomes:
        for fork, (own, worse) in (
            (fork, found.endings.values()) for fork, found in zip(forks, outcomes, strict=True)
        ):
            assert own.steps is not None, fork
            assert worse.steps is None or worse.steps > own.steps, fork
    for (name, number), worse in found.items():
        assert worse.action in by_id[name].steps[number].admissible_commands
    # Of a game that is not there nothing is known.
    assert worse_steps(config_of(), 0, played, games[:0]) == {}


def test_pairs_are_made_of_judged_states_alone(household):
    games, played = household
    tasks = [f"Your task is to: {each.task}.\n" for each in played]
    steps = [step for each in played for step in each.steps]
    said = [text for step in steps for text in (step.observation, step.action, step.thought or "")]
    codec = Codec(build_word_tokenizer([*tasks, *said]), CHATML)
    worse = dict(list(worse_steps(config_of(), 0, played, games).items())[:2])
    counts = PairCounts()
    pairs = list(step_pairs(codec, played, JudgedStates(codec, worse), 4096, counts))
    assert {(pair.id, int(pair.first_step)) for pair in pairs} <= set(worse)
    assert counts.pairs == len(worse) and counts.left_out["no_rejected"] > 0


@pytest.mark.parametrize(
    ("other", "own", "worse"),
    [
        (Ending(4), Ending(3), True),
        (Ending(3), Ending(3), False),
        (Ending(2), Ending(3), False),
        (Ending(None), Ending(3), True),
        (Ending(None), Ending(None), False),
        (Ending(9), Ending(None), False),
        (Ending(None, "gone"), Ending(3), False),
        (Ending(9), Ending(None, "gone"), False),
    ],
)
def test_an_ending_is_worse_only_where_both_are_known(other, own, worse):
    assert is_worse(other, own) is worse


def test_an_arm_asks_the_environment_where_its_world_has_an_expert():
    config = config_of(rejected="environment")
    check_arms(config)
    config.data.trajectories = "given.jsonl"
    assert plays_to_train(config), "the games are needed to judge"
    config.preference.pairs = "trajectory"
    with pytest.raises(UsageError, match="pairs of episodes are for 'dpo', and need a file"):
        check_arms(config)
    config = default_config("helpers.doors:WORLD")
    config.arms = {"dpo": {"label": "DPO", "objective": "dpo", "rejected": "environment"}}
    with pytest.raises(UsageError, match="world 'doors' has none"):
        check_arms(config)
