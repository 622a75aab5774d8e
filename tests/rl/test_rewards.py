"""Rewards and rates of planted episodes."""

import pytest
from helpers.doors import settings
from helpers.studies import response

from cotjax.errors import DataError
from cotjax.rl.advantages import Played
from cotjax.rl.batches import advantages_of
from cotjax.rl.metrics import live_prompt, played_metrics
from cotjax.rl.play import is_flat
from cotjax.rl.rewards import as_played
from cotjax.rl.rollouts import About, Rollouts
from cotjax.rollout.record import Episode, PlayedGame, Timing, Turn

ABOUT = About(step=1, begin=0, end=3, policy="p", broken=("g: it broke",), refills=1)


def turn(action, thought="i need it.", prompt="look", **changes):
    given = response(action, thought, 20).model_copy(update=changes)
    return Turn(
        observation="You see a plate 1.",
        admissible_commands=("look",),
        prompt_ids=(1, 2),
        prompt_length=2,
        cot=given,
        prompt=response(prompt, None, 4),
        reference=None,
        executed=action or "",
        accepted=action == "look",
        score=None,
    )


def episode(game, sample, turns, success=False, score=None, ended=None):
    return Episode(
        driver="cot",
        game=PlayedGame(id=game, task_type="pick", split="train"),
        seed=0,
        sample=sample,
        task="put a plate in fridge",
        success=success,
        score=score,
        ended=ended or ("won" if success else "step_limit"),
        env_error=None,
        env_faults=(),
        elicitation={},
        steps=tuple(turns),
        final_observation="Done.",
        timing=Timing(environment_s=0.0, waited_s=0.0, sampler_s=0.0, total_s=0.0),
    )


@pytest.mark.parametrize(
    ("given", "changes", "reward"),
    [
        ({"success": True}, {}, 1.0),
        ({"success": False}, {}, 0.0),
        ({"success": True, "score": 1.0}, {"win_reward": 10.0, "score_reward": 2.0}, 12.0),
        ({"success": False, "score": 0.25}, {"score_reward": 2.0}, 0.5),
        ({"success": True, "score": 0.5}, {"reward": "em", "win_reward": 3.0}, 1.0),
        ({"success": False, "score": 0.5}, {"reward": "f1", "win_reward": 3.0}, 0.5),
        ({"success": False, "score": 1.0}, {"reward": "autocoa"}, 1.0),
    ],
)
def test_a_reward_is_of_the_win_and_the_score_alone(given, changes, reward):
    """A malformed step takes nothing from it: its penalty is its own."""
    played = as_played(episode("g", 2, [turn(None), turn("look")], **given), 7, settings(**changes))
    assert (played.reward, played.penalties) == (reward, (0.1, 0.0))
    assert (played.group, played.name) == (7, "g#2")


def test_a_response_without_a_thought_is_invalid_where_one_is_needed():
    turns = [turn("look", thought=None), turn("look", thought="  "), turn("look")]
    for needed, taken in ((True, (0.1, 0.1, 0.0)), (False, (0.0, 0.0, 0.0))):
        played = as_played(episode("g", 0, turns), 0, settings(need_thought=needed))
        assert played.penalties == taken


def test_a_refused_action_has_a_penalty_of_its_own_and_a_malformed_one_that_of_its_form():
    """Where a world does not say what it refuses, nothing is taken."""
    unknown = turn("jump").model_copy(update={"accepted": None})
    turns = [turn("look"), turn("jump"), turn(None), unknown]
    what = settings(group=2, format_penalty=0.5, refused_penalty=0.1)
    lost, won = episode("a", 0, turns), episode("a", 1, [turn("look")], success=True)
    assert as_played(lost, 0, what).penalties == (0.0, 0.1, 0.5, 0.0)
    # The mean over the two plays is (0 - 0.6 / 4 + 1) / 2; without a deviation the rest is exact.
    what.advantage = "dr_grpo"
    of_lost, of_won = advantages_of(Rollouts.of(ABOUT, (0, 0), [lost, won], what), what).values
    assert of_lost.tolist() == pytest.approx([-0.425, -0.525, -0.925, -0.425])
    assert of_won.tolist() == pytest.approx([0.575])


def test_rates_of_a_step_are_those_counted_by_hand():
    episodes = [
        episode("a", 0, [turn("look"), turn("look", prompt="fly")], success=True),
        episode("a", 1, [turn(None, stopped=False)], ended="length"),
        episode("b", 0, [turn("fly", thought=None)]),
        episode("b", 1, [turn("look", prompt=None)]),
    ]
    what = settings(need_thought=True)
    found = played_metrics(Rollouts.of(ABOUT, (0, 0, 2, 2), episodes, what), what)
    assert found["reward"] == {"mean": 0.25, "std": pytest.approx(0.433013), "min": 0, "max": 1}
    assert found["success"] == 0.25 and "score" not in found
    assert found["groups"] == {
        **{"played": 2, "all_won": 0, "all_lost": 1, "broken": 1, "refills": 1}
    }
    assert found["steps_an_episode"] == {"won": 2, "lost": 1} and found["length_ended"] == 0.25
    assert found["response_tokens"] == 20 and found["thought_words"] == 3
    assert found["think_rate"] == 0.8 and found["invalid"] == 0.4 and found["cut"] == 0.2
    assert found["inadmissible"] == 0.25 and found["not_accepted"] == 0.4
    assert found["live"] == {
        "agreement": pytest.approx(1 / 3),
        "revision_rate": pytest.approx(2 / 3),
        "not_comparable": 0.4,
    }
    assert live_prompt([]) == dict.fromkeys(found["live"])


def test_a_step_that_played_nothing_has_no_rates():
    what = settings()
    found = played_metrics(Rollouts.of(ABOUT, (), (), what), what)
    assert found["reward"] is None and found["success"] is None
    assert found["groups"]["broken"] == 1


def test_an_episode_that_never_began_has_a_reward_and_no_steps():
    played = as_played(episode("g", 0, [], ended="length"), 0, settings())
    assert played.reward == 0 and played.penalties == ()


def test_advantages_are_within_groups_and_a_wrong_group_is_an_error():
    """With the groups of another order of the plays, what was better would be worse."""
    what = settings(group=2, format_penalty=0.0)
    episodes = [episode(game, n, [turn("look")] * 2, won) for game, n, won in (
        ("a", 0, True), ("a", 1, False), ("b", 0, False), ("b", 1, False)
    )]  # fmt: skip
    of_first = advantages_of(Rollouts.of(ABOUT, (4, 4, 5, 5), episodes, what), what).values
    assert [own.round(3).tolist() for own in of_first] == [
        *([0.707] * 2, [-0.707] * 2, [0.0] * 2, [0.0] * 2)
    ]
    with pytest.raises(DataError, match=r"the group 4 has 3 plays \(a#0, …\), it must have 2"):
        advantages_of(Rollouts.of(ABOUT, (4, 4, 4, 5), episodes, what), what)
    with pytest.raises(DataError, match="a#0: the play occurs twice"):
        advantages_of(Rollouts.of(ABOUT, (4, 4), [episodes[0]] * 2, what), what)


def test_a_penalty_is_of_its_step_and_an_anchor_of_its_state():
    episodes = [
        episode("a", 0, [turn("look"), turn(None)], success=True),
        episode("a", 1, [turn("look"), turn("look")]),
    ]
    what = settings(group=2, advantage="dr_grpo", format_penalty=0.5, need_thought=True)
    rollouts = Rollouts.of(ABOUT, (0, 0), episodes, what)
    # The plays count as 1 - 0.25 and 0; the malformed step is half a win worse than its play.
    for own, expected in zip(
        advantages_of(rollouts, what).values, ([0.625, 0.125], [-0.375, -0.375]), strict=True
    ):
        assert own.tolist() == pytest.approx(expected)
    # All four steps see the same: one anchor, of the discounted returns 0.475, 0.5, 0 and 0.
    what = settings(group=2, advantage="dr_grpo", format_penalty=0.5, omega=1.0, gamma=0.95)
    for own, expected in zip(
        advantages_of(rollouts, what).values,
        ([0.48125, 0.50625], [-0.49375, -0.49375]),
        strict=True,
    ):
        assert own.tolist() == pytest.approx(expected)


def test_a_refused_action_leaves_the_state_as_it_was_and_two_states_are_never_one():
    """Every step sees the same text: as the observation alone says, there is one state."""
    episodes = [
        episode("a", 0, [turn("jump"), turn("look"), turn("jump")], success=True),
        episode("a", 1, [turn("look"), turn("look")]),
    ]
    what = settings(group=2, advantage="dr_grpo", format_penalty=0.0, omega=1.0, gamma=1.0)
    found = {}
    for anchor in ("observation", "observation+admissible", "state"):
        what.anchor = anchor
        found[anchor] = advantages_of(Rollouts.of(ABOUT, (0, 0), episodes, what), what)
    assert [found[name].anchors for name in found] == [1, 1, 2]
    # Of the state at the start there are three steps: two of the first play, which jumped in vain.
    first, second = (own - own_plays for own, own_plays in zip(
        found["state"].values, (0.5, -0.5), strict=True
    ))  # fmt: skip
    assert first.tolist() == pytest.approx([1 / 3, 1 / 3, 0.5])
    assert second.tolist() == pytest.approx([-2 / 3, -0.5])


def test_statistics_over_steps_are_a_setting():
    episodes = [
        episode("a", 0, [turn("look")], success=True),
        episode("a", 1, [turn("look")] * 3),
    ]
    what = settings(group=2, advantage="dr_grpo", stat_unit="step")
    first, second = advantages_of(Rollouts.of(ABOUT, (0, 0), episodes, what), what).values
    assert first.tolist() == [0.75] and second.tolist() == [-0.25] * 3


@pytest.mark.parametrize(
    ("rewards", "penalties", "least", "flat"),
    [
        ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 0.0, True),
        ((1.0, 0.0, 1.0), (0.0, 0.0, 0.0), 0.0, False),
        ((0.0, 0.0, 0.0), (0.1, 0.0, 0.0), 0.0, False),
        ((0.0, 0.0, 0.0), (0.1, 0.0, 0.0), 0.1, True),  # deviates by 0.058
        ((1.0, 0.0, 0.0), (0.1, 0.0, 0.0), 0.1, False),
        ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.58, True),  # by 0.577
    ],
)
def test_a_group_of_which_little_can_be_learnt_counts_as_flat(rewards, penalties, least, flat):
    plays = [
        Played(f"g#{n}", 0, reward, (penalty,))
        for n, (reward, penalty) in enumerate(zip(rewards, penalties, strict=True))
    ]
    assert is_flat(plays, settings(least_deviation=least)) == flat
