"""The range of every number in a config, in one table, and the check of a section against it.

It is made before anything is spent: an optimizer with a decay of 2 or a negative rate trains without complaint, and wrongly.
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
    """Numbers from `low` to `high`; `above` and `below` leave out the end itself. NaN is in none."""

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
_DECAY = Range(0, 1, below=True)  # of a moving average: at 1 it never moves
_NOT_NEGATIVE, _POSITIVE = Range(0), Range(0, above=True)

RANGES: dict[str, dict[str, Range]] = {
    "": {"seed": _COUNT, "workers": _COUNT, "cpu_devices": _SOME},
    "games": {"train": _COUNT, "in_domain": _COUNT, "ood": _COUNT, "seed": _COUNT},
    "data": {"direct_share": _SHARE},
    "collect": {"news": _SHARE, "slips": _SHARE, "max_steps": _SOME, "episodes_per_game": _SOME},
    "model": {"lora_rank": _COUNT, "lora_alpha": _POSITIVE, "recall_steps": _COUNT},
    "train": {
        "steps": _SOME, "batch": _SOME, "row_length": _SOME, "accumulate": _SOME, "save_every": _SOME, "warmup": _COUNT,
        "schedule_steps": _COUNT, "eval_every": _COUNT, "eval_share": Range(0, 1, below=True),
        "keep_last": _COUNT, "keep_every": _COUNT, "keep_best": _COUNT, "profile_start": _COUNT, "profile_steps": _COUNT,
        "learning_rate": _POSITIVE, "b1": _DECAY, "b2": _DECAY, "weight_decay": _NOT_NEGATIVE, "vector_rate": _POSITIVE,
        "clip_norm": _NOT_NEGATIVE,
    },
}  # fmt: skip
"""Section of a config ("" is its top) -> field -> what it may be. Fields that are no numbers, or depend on others, are checked where they
are used."""


def check_ranges(section: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError, naming the field, its value and its range, when a number of this section of a config is out of it."""
    for name, allowed in RANGES[section].items():
        if values[name] not in allowed:
            raise UsageError(
                f"{'.'.join(filter(None, (section, name)))} is {values[name]}; it must be {allowed}"
            )


def check_all_ranges(config: Mapping[str, Any]) -> None:
    """`check_ranges` for every section that the table has."""
    for section in RANGES:
        check_ranges(section, config[section] if section else config)
