"""Checks of a config for reinforcement learning, made before anything is played."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ml_collections import ConfigDict

from cotjax.data.tokens import GROWING
from cotjax.envs.worlds import World, load_world
from cotjax.errors import UsageError
from cotjax.masking import KL_ESTIMATORS
from cotjax.objectives.named import REINFORCED, SUPERVISED
from cotjax.rl.advantages import KINDS, UNITS
from cotjax.rl.rewards import AUTOCOA, REWARDS, WIN
from cotjax.runtime import distributed
from cotjax.runtime.ranges import check_ranges

_NAMES: dict[str, tuple[str, ...]] = {
    "advantage": KINDS,
    "stat_unit": UNITS,
    "anchor": ("observation", "observation+admissible", "state"),
    "flat": ("keep", "skip", "refill"),
    "aggregation": ("token", "trajectory", "constant"),
    "normalizer": ("fixed_budget", "token_sum"),
    "kl_in": ("loss", "reward"),
    "kl_estimator": KL_ESTIMATORS,
    "old": ("sampler", "trainer"),
    "reward": REWARDS,
    "resume": ("exact", "fast"),
}
# What the sampler's log-probabilities are those of the policy at.
_SAMPLING = {"top_p": 1.0, "top_k": 0}
# Fields of an arm that say what it is fine-tuned on, and by what.
_OF_DATA = {
    **{"thoughts": "", "trajectories": "", "direct_share": -1.0},
    **{"task_types": (), "rejected": ""},
}


def check_rl(config: ConfigDict, arms: Collection[str] | None = None) -> None:
    """Raise UsageError for a setting with which no policy can be trained by what it plays.

    The checks of the other sections come before (`cotjax.study.ready`).

    Args:
      arms: those of a study that play what they learn from; others may be trained on data. None:
        all, as by `cotjax rl`.
    """
    check_ranges("rl", config.rl)
    checks = (_check_names, _check_reward, _check_sampling, _check_searches, _check_devices)
    for check in (*checks, _check_loss, _check_sections):
        check(config)
    _check_data(config, arms)
    for arm in config.arms if arms is None else arms:
        _check_arm(config, arm)
    if config.rl.tasks < distributed.count():
        raise UsageError(
            f"rl.tasks is {config.rl.tasks}, and each of {distributed.count()} processes plays "
            "whole groups; set it to a multiple of the processes"
        )


def _check_names(config: ConfigDict) -> None:
    for name, allowed in _NAMES.items():
        if config.rl[name] not in allowed:
            raise UsageError(f"rl.{name} is {config.rl[name]!r}; there are {', '.join(allowed)}")


def _check_reward(config: ConfigDict) -> None:
    world = load_world(config.world)
    if config.rl.reward == AUTOCOA and type(world).published_reward is World.published_reward:
        raise UsageError(
            f"rl.reward is {AUTOCOA!r}, and world {world.name!r} has no answers; set {WIN!r}"
        )
    refused, malformed = config.rl.refused_penalty, config.rl.format_penalty
    if refused > malformed:
        raise UsageError(
            f"rl.refused_penalty is {refused:g}, more than rl.format_penalty ({malformed:g}): "
            "malformed responses would pay; raise the latter"
        )


def _check_sampling(config: ConfigDict) -> None:
    for name, value in _SAMPLING.items():
        if config.rl[name] != value:
            raise UsageError(
                f"rl.{name} is {config.rl[name]}; it must be {value}, for what is drawn otherwise "
                "has other probabilities than the policy that is trained"
            )


def _check_searches(config: ConfigDict) -> None:
    if config.data.layout == GROWING:
        _check_result_tokens(config)
        if config.rl.sample_end:
            raise UsageError(
                "rl.sample_end is True with data.layout 'growing', where the end of the text is "
                "sampled anyway; set it to False"
            )
    elif config.rl.simulated_steps:
        raise UsageError(
            f"rl.simulated_steps is {config.rl.simulated_steps}, which needs one growing text; set "
            f"it to 0, or data.layout to {GROWING!r}"
        )


def _check_result_tokens(config: ConfigDict) -> None:
    if config.evaluate.max_result_tokens >= config.evaluate.max_length:
        raise UsageError(
            f"evaluate.max_result_tokens is {config.evaluate.max_result_tokens}; it must be less "
            f"than evaluate.max_length, {config.evaluate.max_length}"
        )


def _check_devices(config: ConfigDict) -> None:
    rl = config.rl
    if not rl.play_devices:
        return
    told: list[tuple[bool, str]] = [
        (not rl.off_policy_steps, f"rl.play_devices is {rl.play_devices} with rl.off_policy_steps "
         "0: a step is then played by the weights that the one before it makes, and nothing can be "
         "played meanwhile; set the latter to 1"),
        (rl.offload, f"rl.play_devices is {rl.play_devices} with rl.offload, which makes room for "
         "a sampler on the same devices; set it to False"),
        (distributed.several(), f"rl.play_devices is {rl.play_devices}, and there are "
         f"{distributed.count()} processes, each of which plays on its own devices; set it to 0"),
    ]  # fmt: skip
    _refuse(told)


def _check_loss(config: ConfigDict) -> None:
    rl = config.rl
    if rl.dual_clip and rl.dual_clip <= 1 + rl.clip_high:
        raise UsageError(
            f"rl.dual_clip is {rl.dual_clip:g}; it must be more than 1 + rl.clip_high "
            f"({1 + rl.clip_high:g}), where it acts, or 0"
        )
    if rl.tasks % rl.updates:
        raise UsageError(
            f"rl.updates is {rl.updates}, which does not divide rl.tasks ({rl.tasks}): each update "
            "takes as many whole groups"
        )
    if rl.kl_in == "reward" and (not rl.kl or rl.kl_estimator != "k1"):
        raise UsageError(
            f"rl.kl_in is 'reward' with rl.kl {rl.kl:g} and rl.kl_estimator {rl.kl_estimator!r}; "
            "there it must be more than 0 and 'k1', which alone adds up to the divergence of a play"
        )
    if rl.kl_in == "reward" and not rl.kl_on_dropped:
        raise UsageError(
            "rl.kl_on_dropped is False with rl.kl_in 'reward', which is the divergence of whole "
            "plays; set it to True, or rl.kl_in to 'loss'"
        )
    if rl.kl_target and not rl.kl:
        raise UsageError(
            f"rl.kl_target is {rl.kl_target:g} with rl.kl 0, which is what is adapted to it: set "
            "rl.kl to the weight to begin with, or rl.kl_target to 0"
        )
    if rl.least_deviation and rl.flat == "keep":
        raise UsageError(
            f"rl.least_deviation is {rl.least_deviation:g} with rl.flat 'keep', by which flat "
            "groups are trained on: set it to 0, or rl.flat to 'skip' or 'refill'"
        )
    if rl.information == 1:
        raise UsageError(
            "rl.information is 1: a thought is compared behind several prompts; give at least 2, "
            "or 0 to measure nothing"
        )
    if rl.tis_cap < 1:
        raise UsageError(
            f"rl.tis_cap is {rl.tis_cap:g}; it must be at least 1, the weight of a token that both "
            "sides give one probability"
        )


def _check_data(config: ConfigDict, arms: Collection[str] | None) -> None:
    """Refuse a base that cannot play, and what concerns data, where no arm has any."""
    told: list[tuple[bool, str]] = []
    from_base = [arm for arm in config.arms if not config.arms[arm].get("start")]
    if any(arms is None or arm in arms for arm in from_base):
        told += [
            (config.model.base == "random", "model.base is 'random': give the policy to start "
             "from, the folder of a model that was trained to respond (cotjax export), or another "
             "arm as the arm's start"),
        ]  # fmt: skip
    if arms is None:
        trajectories, eval_every = config.data.trajectories, config.train.eval_every
        told += [
            (bool(trajectories), f"data.trajectories is {trajectories}: what is trained on is "
             "played; remove it, or use `cotjax train`"),
            (eval_every > 0, f"train.eval_every is {eval_every}: nothing is held out of what is "
             "played; set it to 0. Checkpoints are played on the games of games.in_domain"),
        ]  # fmt: skip
    _refuse(told)


def _check_sections(config: ConfigDict) -> None:
    train, evaluate, examples = config.train, config.evaluate, config.prompt.examples
    told: list[tuple[bool, str]] = [
        (examples > 0, f"prompt.examples is {examples}: the games that they are drawn from would "
         "be played in training; set it to 0"),
        (not config.games.train and config.games.source == "made", "games.train is 0: there is "
         "nothing to play in training; set the number of games of each task type"),
        (train.accumulate > 1, f"train.accumulate is {train.accumulate}: rows of a step are "
         "processed train.batch at a time anyway; set it to 1"),
        (train.keep_best > 0, f"train.keep_best is {train.keep_best}, but there are no held-out "
         "losses to rank checkpoints by; set it to 0"),
        (evaluate.max_length > train.row_length, f"evaluate.max_length is {evaluate.max_length}, "
         f"more than train.row_length ({train.row_length}): a prompt with its response must fit "
         "into a row"),
        (config.masking.unit == "token", "masking.unit is 'token'; the action's loss is dropped by "
         "'turn' or 'example'"),
    ]  # fmt: skip
    _refuse(told)


def _refuse(told: Iterable[tuple[bool, str]]) -> None:
    for wrong, message in told:
        if wrong:
            raise UsageError(message)


def _check_arm(config: ConfigDict, arm: str) -> None:
    own = config.arms[arm]
    objective = own.get("objective", SUPERVISED)
    if own.get("advantage") and own.advantage not in KINDS:
        raise UsageError(f"arms.{arm}.advantage is {own.advantage!r}; there are {', '.join(KINDS)}")
    if own.get("control") == "reasoning tokens":
        raise UsageError(
            f"arms.{arm}.control is 'reasoning tokens', but a sampled thought may have fewer "
            "tokens than its action: choose another control"
        )
    if objective not in (SUPERVISED, *REINFORCED):
        raise UsageError(
            f"arms.{arm}.objective is {objective!r}: what is trained on is played; there are "
            f"{', '.join(REINFORCED)} (or use `cotjax study`)"
        )
    if objective == "grpo" and config.rl.omega:
        raise UsageError(
            f"arms.{arm}.objective is 'grpo' and rl.omega {config.rl.omega:g}, which compares "
            "steps, too: set the objective to 'gigpo', or rl.omega to 0"
        )
    for name, usual in _OF_DATA.items():
        if own.get(name, usual) != usual:
            raise UsageError(
                f"arms.{arm}.{name} is {own[name]!r}: what is trained on is played; remove it"
            )
