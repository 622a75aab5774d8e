"""The range of every number in a config, and the check of a section against it.

The check comes before any work: with a decay of 2 or a negative rate an optimizer trains without
complaint, and wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotjax.errors import UsageError

FLOAT32_MAX = 2.0**128 - 2.0**104
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`. `above` and `below` exclude that end. NaN is in no range."""

    low: float
    high: float = FLOAT32_MAX
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = self.low < value if self.above else self.low <= value
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.above else f"at least {self.low:g}"
        if self.high == INT32_MAX:
            return low
        return f"{low} and {'less than' if self.below else 'at most'} {self.high:.3g}"


_COUNT, _SOME = Range(0, INT32_MAX), Range(1, INT32_MAX)
_SHARE = Range(0, 1)
_DECAY = Range(0, 1, below=True)  # of a moving average, which never moves at 1
_NOT_NEGATIVE, _POSITIVE = Range(0), Range(0, above=True)

# Section of a config ("" is its top level) -> field -> range. Fields that are no numbers, or depend
# on others, are checked where they are used.
RANGES: dict[str, dict[str, Range]] = {
    "": {"seed": _COUNT, "workers": _COUNT, "cpu_devices": _SOME},
    "games": dict.fromkeys(("train", "in_domain", "ood", "seed"), _COUNT),
    "data": {"direct_share": _SHARE},
    "prompt": {"admissible_count": _SOME, "examples": _COUNT},
    "collect": {
        **dict.fromkeys(("news", "slips"), _SHARE),
        **dict.fromkeys(("max_steps", "episodes_per_game"), _SOME),
    },
    "model": {"lora_rank": _COUNT, "lora_alpha": _POSITIVE, "recall_steps": _COUNT},
    "train": {
        **dict.fromkeys(("steps", "batch", "row_length", "accumulate", "save_every"), _SOME),
        **dict.fromkeys(("warmup", "schedule_steps", "eval_every"), _COUNT),
        "information_examples": _COUNT,
        **dict.fromkeys(("keep_last", "keep_every", "keep_best"), _COUNT),
        **dict.fromkeys(("profile_start", "profile_steps"), _COUNT),
        **dict.fromkeys(("learning_rate", "vector_rate"), _POSITIVE),
        **dict.fromkeys(("weight_decay", "clip_norm"), _NOT_NEGATIVE),
        "b1": _DECAY,
        "b2": _DECAY,
        "eval_share": Range(0, 1, below=True),
    },
    "rl": {
        **dict.fromkeys(("tasks", "slots", "updates", "constant"), _SOME),
        "group": Range(2, INT32_MAX),
        **dict.fromkeys(("refills", "information", "simulated_steps", "play_devices"), _COUNT),
        **dict.fromkeys(("win_reward", "tis_cap", "temperature"), _POSITIVE),
        **dict.fromkeys(("score_reward", "format_penalty", "refused_penalty"), _NOT_NEGATIVE),
        **dict.fromkeys(("kl", "entropy", "kl_target", "entropy_target"), _NOT_NEGATIVE),
        **dict.fromkeys(("kl_rate", "entropy_step"), _POSITIVE),
        "off_policy_steps": Range(0, 1),
        "least_deviation": _NOT_NEGATIVE,
        "omega": _NOT_NEGATIVE,
        "gamma": _SHARE,
        "clip_low": Range(0, 1, above=True, below=True),
        "clip_high": _POSITIVE,
        "dual_clip": _NOT_NEGATIVE,
    },
    "evaluate": {"max_result_tokens": _SOME},
    "autocoa": {
        **dict.fromkeys(
            (
                *("choices", "episodes", "thinking", "other_episodes", "samples", "grafts"),
                *("states", "closed_book", "least_right", "replay_episodes"),
            ),
            _COUNT,
        ),
        **dict.fromkeys(("least_known", "most_above_prior", "slips"), _SHARE),
    },
    "primary": {
        "margin": Range(0, 1, above=True, below=True),
        "assumed_states": _SOME,
        "assumed_deviation": Range(0, 10),
    },
}


def check_ranges(section: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError, naming field, value and range, when a number of a section is out of it."""
    for name, allowed in RANGES[section].items():
        if values[name] not in allowed:
            raise UsageError(
                f"{'.'.join(filter(None, (section, name)))} is {values[name]}; it must be {allowed}"
            )


def check_all_ranges(config: Mapping[str, Any]) -> None:
    """Check every section of a config, as `check_ranges` does."""
    for section in RANGES:
        check_ranges(section, config[section] if section else config)
