"""Impossible settings give one clear line, before anything is played."""

import pytest

from cotjax.config import default_config, set_field
from cotjax.errors import UsageError
from cotjax.rl import checks
from cotjax.rl.checks import check_rl


def config(*overrides):
    config = default_config()
    config.games.train = 10
    config.train.row_length = 2048
    config.arms = {"grpo": {"label": "GRPO", "fraction": 0.0}}
    for override in overrides:
        set_field(config, override)
    return config


def test_the_defaults_are_possible():
    check_rl(config())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rl.tasks=0", "rl.tasks is 0; it must be at least 1"),
        ("rl.group=1", "rl.group is 1; it must be at least 2"),
        ("rl.slots=0", "rl.slots is 0"),
        ("rl.refills=-1", "rl.refills is -1"),
        ("rl.updates=0", "rl.updates is 0"),
        ("rl.updates=3", "rl.updates is 3, which does not divide rl.tasks (16)"),
        ("rl.constant=0", "rl.constant is 0"),
        ("rl.temperature=0", "rl.temperature is 0.0; it must be more than 0"),
        ("rl.top_p=0.9", "rl.top_p is 0.9; it must be 1.0"),
        ("rl.top_k=50", "rl.top_k is 50; it must be 0"),
        ("rl.win_reward=0", "rl.win_reward is 0"),
        ("rl.score_reward=-1", "rl.score_reward is -1"),
        ("rl.format_penalty=-0.1", "rl.format_penalty is -0.1; it must be at least 0"),
        ("rl.refused_penalty=-1.0", "rl.refused_penalty is -1.0; it must be at least 0"),
        ("rl.refused_penalty=0.5", "rl.refused_penalty is 0.5, more than rl.format_penalty (0.1)"),
        ("rl.format_penalty=nan", "'nan' is not of type float"),
        ("rl.advantage=ppo", "rl.advantage is 'ppo'; there are grpo, dr_grpo, rloo"),
        ("arms.grpo.advantage=ppo", "arms.grpo.advantage is 'ppo'"),
        ("rl.omega=-1", "rl.omega is -1"),
        ("rl.gamma=1.5", "rl.gamma is 1.5"),
        ("rl.anchor=text", "rl.anchor is 'text'"),
        ("rl.flat=drop", "rl.flat is 'drop'; there are keep, skip, refill"),
        ("rl.aggregation=sequence", "rl.aggregation is 'sequence'"),
        ("rl.normalizer=example_mean", "rl.normalizer is 'example_mean'"),
        ("rl.clip_low=1", "rl.clip_low is 1.0; it must be more than 0 and less than 1"),
        ("rl.clip_high=0", "rl.clip_high is 0"),
        ("rl.dual_clip=1.1", "rl.dual_clip is 1.1; it must be more than 1 + rl.clip_high (1.2)"),
        ("rl.kl=-0.01", "rl.kl is -0.01"),
        ("rl.stat_unit=turn", "rl.stat_unit is 'turn'; there are trajectory, step"),
        ("rl.entropy=-0.1", "rl.entropy is -0.1; it must be at least 0"),
        ("rl.off_policy_steps=2", "rl.off_policy_steps is 2; it must be at least 0 and at most 1"),
        ("rl.least_deviation=-1", "rl.least_deviation is -1"),
        ("rl.resume=slow", "rl.resume is 'slow'; there are exact, fast"),
        ("rl.kl_target=-1", "rl.kl_target is -1"),
        ("rl.kl_rate=0", "rl.kl_rate is 0"),
        ("rl.entropy_target=-1", "rl.entropy_target is -1"),
        ("rl.entropy_step=0", "rl.entropy_step is 0"),
        ("rl.information=1", "rl.information is 1: a thought is compared behind several"),
        ("rl.kl_in=both", "rl.kl_in is 'both'; there are loss, reward"),
        ("rl.kl_in=reward", "rl.kl_in is 'reward' with rl.kl 0.01 and rl.kl_estimator 'k2'"),
        ("rl.kl_estimator=k4", "rl.kl_estimator is 'k4'; there are k1, k2, k3"),
        ("rl.old=both", "rl.old is 'both'; there are sampler, trainer"),
        ("rl.tis_cap=0.5", "rl.tis_cap is 0.5; it must be at least 1"),
        ("model.base=random", "model.base is 'random': give the policy to start from"),
        ("data.trajectories=a.jsonl", "data.trajectories is a.jsonl: what is trained on is played"),
        ("prompt.examples=2", "prompt.examples is 2"),
        ("games.train=0", "games.train is 0: there is nothing to play in training"),
        ("train.accumulate=2", "train.accumulate is 2"),
        ("train.eval_every=5", "train.eval_every is 5"),
        ("train.keep_best=1", "train.keep_best is 1"),
        ("train.row_length=768", "evaluate.max_length is 2048, more than train.row_length (768)"),
        ("masking.unit=token", "masking.unit is 'token'"),
        ("arms.grpo.control=reasoning tokens", "arms.grpo.control is 'reasoning tokens'"),
        ("arms.grpo.objective=dpo", "arms.grpo.objective is 'dpo'"),
        ("arms.grpo.thoughts=unnamed", "arms.grpo.thoughts is 'unnamed'"),
        ("arms.grpo.trajectories=a.jsonl", "arms.grpo.trajectories is 'a.jsonl'"),
        ("arms.grpo.direct_share=0.3", "arms.grpo.direct_share is 0.3"),
    ],
)
def test_an_impossible_setting_is_one_clear_line(override, words):
    with pytest.raises(UsageError) as caught:
        check_rl(config(override))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_divergence_of_whole_plays_has_no_token_to_leave_out():
    in_reward = ("rl.kl_in=reward", "rl.kl_estimator=k1")
    check_rl(config(*in_reward))
    with pytest.raises(UsageError, match="kl_on_dropped is False with"):
        check_rl(config(*in_reward, "rl.kl_on_dropped=False"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("rl.kl=0", "rl.kl_target=0.01"), "rl.kl_target is 0.01 with rl.kl 0, which is what"),
        (
            ("rl.least_deviation=0.1", "rl.flat=keep"),
            "rl.least_deviation is 0.1 with rl.flat 'keep'",
        ),
        (("rl.play_devices=1",), "rl.play_devices is 1 with rl.off_policy_steps 0"),
        (
            ("rl.play_devices=1", "rl.off_policy_steps=1", "rl.offload=True"),
            "rl.play_devices is 1 with rl.offload",
        ),
        (("data.layout=growing", "rl.sample_end=True"), "rl.sample_end is True with data.layout"),
    ],
)
def test_two_settings_that_exclude_each_other(overrides, words):
    with pytest.raises(UsageError) as caught:
        check_rl(config(*overrides))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_each_of_several_processes_has_a_group_to_play(monkeypatch):
    monkeypatch.setattr(checks.distributed, "count", lambda: 2)
    monkeypatch.setattr(checks.distributed, "several", lambda: True)
    check_rl(config("rl.tasks=2"))
    with pytest.raises(UsageError, match="each of 2 processes plays whole groups"):
        check_rl(config("rl.tasks=1"))
    with pytest.raises(UsageError, match="there are 2 processes, each of which plays on its own"):
        check_rl(config("rl.off_policy_steps=1", "rl.play_devices=1"))
