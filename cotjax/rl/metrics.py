"""The row of a step in metrics.jsonl: what was played, and what the updates did."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from cotjax.data.pipeline import DROPPED
from cotjax.diagnostics.episodes import compared
from cotjax.errors import DataError
from cotjax.masking import Role
from cotjax.objectives.objective import MOST
from cotjax.rl.advantages import FLAT, Played, StepAdvantages
from cotjax.rl.batches import UpdateRows
from cotjax.rl.play import Waits
from cotjax.rl.rewards import has_thought, is_invalid, response_of
from cotjax.rl.rollouts import Rollouts, rollouts_file
from cotjax.rollout.record import Episode, Turn


def step_row(
    rollouts: Rollouts,
    advantages: StepAdvantages,
    settings: Any,
    updates: Sequence[UpdateRows],
    found: Sequence[Mapping[str, Any]],
    rate: float,
) -> dict[str, Any]:
    """Return a step's row, without its `time`.

    Args:
      settings: `config.rl`.
      updates: the micro-batches of each update.
      found: what `Update` returned for each.
      rate: learning rate of the first update.

    Raises:
      DataError: a loss, or the norm of a gradient, is not finite.
    """
    step = rollouts.about.step
    for metrics in found:
        for name, value in (("loss", metrics["loss"]), ("gradient's norm", metrics["grad_norm"])):
            if not math.isfinite(value):
                raise DataError(
                    f"step {step}: the {name} is {value}; lower train.learning_rate or look at "
                    f"what the step played, rollouts/{rollouts_file(Path(), step).name}"
                )
    batches = [batch for update in updates for batch in update.batches]
    tokens = sum(int((batch["segment_ids"] > 0).sum()) for batch in batches)
    size = sum(batch["ids"].size for batch in batches)
    return {
        "step": step,
        "loss": mean(metrics["loss"] for metrics in found),
        "grad_norm": max((float(metrics["grad_norm"]) for metrics in found), default=None),
        "learning_rate": rate,
        "updates": len(found),
        "tokens": tokens,
        "padding": 1 - tokens / size if size else None,
        "stream": rollouts.about.end,
        **played_metrics(rollouts, settings),
        **({"anchors": _anchors(advantages)} if advantages.anchors else {}),
        **(_policy_metrics(found, settings) if found else {}),
        "dropped": {
            name: int(sum(batch["dropped"][:, column].sum() for batch in batches))
            for column, name in enumerate(DROPPED)
        },
    }


def _policy_metrics(found: Sequence[Mapping[str, Any]], settings: Any) -> dict[str, Any]:
    """Return the objective's metrics over all updates of a step (docs/rl.md)."""
    pairs = [
        {name: value for name, value in metrics.items() if isinstance(value, tuple)}
        for metrics in found
    ]
    names = {name for name in pairs[0] if not name.startswith(MOST)}
    sums = {
        name: np.sum([np.asarray(each[name], np.float64) for each in pairs], 0) for name in names
    }
    ratio = {
        name: float(total / weight) for name, (total, weight) in sums.items()
        if np.ndim(total) == 0 and weight
    }  # fmt: skip
    most = {
        name.removeprefix(MOST): max(float(each[name][0]) for each in pairs)
        for name in pairs[0].keys() - names
    }
    return {
        "policy_loss": ratio.get("policy_loss"),
        **({"kl": ratio.get("kl")} if settings.kl else {}),
        "kl_old": ratio.get("kl_old"),
        "entropy": ratio.get("entropy"),
        "entropy_by_role": _by_role(sums["entropy_by_role"]),
        "nll_by_role": _by_role(sums["by_role"]),
        "clip": {"low": ratio.get("clip_low"), "high": ratio.get("clip_high")},
        "ratio": {"min": math.exp(-most["ratio_down"]), "max": math.exp(most["ratio_up"])},
        "sampler_trainer": {
            "difference": ratio.get("sampler_difference"),
            "most_difference": most["sampler_difference"],
            "token_mult_prob_error": ratio.get("sampler_factor"),
            "gen_kl": ratio.get("sampler_kl"),
        },
        "tis": {"mean": ratio.get("importance"), "min": math.exp(-most["importance_cut"])},
        "advantage": {
            "size": ratio.get("advantage_size"),
            "nonzero": ratio.get("advantage_share"),
        },
    }


def _anchors(advantages: StepAdvantages) -> dict[str, float]:
    """Return the groups of steps in one state: their number, size, and those of one step."""
    return {
        "groups": advantages.anchors,
        "size": advantages.anchor_size,
        "singletons": advantages.singletons / advantages.anchors,
    }


def _by_role(sums: np.ndarray) -> dict[str, float]:
    totals, weights = sums
    return {role.name: float(totals[role] / weights[role]) for role in Role if weights[role]}


def played_metrics(rollouts: Rollouts, settings: Any) -> dict[str, Any]:
    """Return rates and means over all that a step played; None where there is nothing to count.

    Groups that broke are counted, and in no other figure.

    Args:
      settings: `config.rl`.
    """
    episodes = rollouts.episodes
    turns = [turn for episode in episodes for turn in episode.steps]
    scores = [episode.score for episode in episodes if episode.score is not None]
    return {
        "reward": _spread([play.reward for play in rollouts.plays]),
        "success": mean(episode.success for episode in episodes),
        **({"score": mean(scores)} if scores else {}),
        "groups": _groups(rollouts),
        "steps_an_episode": {
            "won": mean(len(each.steps) for each in episodes if each.success),
            "lost": mean(len(each.steps) for each in episodes if not each.success),
        },
        "length_ended": mean(episode.ended == "length" for episode in episodes),
        **_responses(turns, settings),
        **({"live": live_prompt(turns)} if settings.live_prompt else {}),
    }


def _responses(turns: Sequence[Turn], settings: Any) -> dict[str, Any]:
    responses = [response_of(turn) for turn in turns]
    thoughts = [len((each.thought or "").split()) for each in responses if has_thought(each)]
    return {
        "response_tokens": mean(len(response.ids) for response in responses),
        "thought_words": mean(thoughts),
        "think_rate": mean(has_thought(response) for response in responses),
        "invalid": mean(is_invalid(turn, settings.need_thought) for turn in turns),
        "cut": mean(not response.stopped for response in responses),
        "inadmissible": mean(
            not each.admissible for each in responses if each.valid and each.admissible is not None
        ),
        # What ALFWorld answers with "Nothing happens."
        "not_accepted": mean(not turn.accepted for turn in turns if turn.accepted is not None),
    }


def live_prompt(turns: Iterable[Turn]) -> dict[str, float | None]:
    """Return how a state's greedy prompt action agrees with its sampled CoT action.

    "agreement" is the share of comparable states whose two actions are the same; "revision_rate" is
    the others' (D2 in the states that the policy comes to).
    """
    pairs = [compared(turn.cot, turn.prompt) for turn in turns]
    same = [pair for pair in pairs if pair is not None]
    agreement = mean(same)
    return {
        "agreement": agreement,
        "revision_rate": None if agreement is None else 1 - agreement,
        "not_comparable": mean(pair is None for pair in pairs),
    }


def _groups(rollouts: Rollouts) -> dict[str, int]:
    """Count groups: those whose plays all won, all lost, or have equal rewards otherwise."""
    plays: dict[int, list[tuple[Played, Episode]]] = {}
    for position, play, episode in zip(
        rollouts.positions, rollouts.plays, rollouts.episodes, strict=True
    ):
        plays.setdefault(position, []).append((play, episode))
    flat = [own for own in plays.values() if _equal([play.reward for play, _ in own])]
    won = sum(all(episode.success for _, episode in own) for own in flat)
    lost = sum(not any(episode.success for _, episode in own) for own in flat)
    return {
        "played": len(plays),
        "all_won": won,
        "all_lost": lost,
        "broken": len(rollouts.about.broken),
        "refills": rollouts.about.refills,
    }


def _equal(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) <= FLAT


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "mean": fmean(values),
        "std": pstdev(values),
        "min": min(values),
        "max": max(values),
    }


class Clock:
    """Seconds of a step, by phase."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.phases: dict[str, float] = {}

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Add the block's time to a phase."""
        began = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - began

    def row(self, tokens: int, waits: Waits) -> dict[str, float]:
        """Return the `time` of a step's row; `tokens`: of its rows.

        A step whose rollouts were read took no time to play them.
        """
        return {
            "seconds": time.perf_counter() - self._started,
            "tokens_per_s": tokens / max(self.phases["update_s"], 1e-9),
            "sampled_tokens_per_s": waits.sampled / max(waits.seconds, 1e-9),
            **self.phases,
            "environment_s": waits.environment,
            "waited_s": waits.waited,
            "transfer_s": waits.transfer,
        }


def mean(values: Iterable[float]) -> float | None:
    """Return the mean; None of nothing."""
    known = [float(value) for value in values]
    return fmean(known) if known else None
