"""How fast the sampler generates: new tokens/s, alone or beside transformers on torch.

Every side is a process of its own (sample_speed_worker), and they take turns as those of train_speed do. Before that they must
agree: they start from the same weights and the same prompts, so their greedy ids are the same.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cotjax.bench.sample_worker import Job
from cotjax.bench.sides import check_same_platform, devices_of, environment_of_sides
from cotjax.bench.train import TrainSide, named_model
from cotjax.errors import CotjaxError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.flops import PEAK_BANDWIDTH, decode_bytes

# How many first ids of a prompt two sides are compared by, None: all; and the least share of prompts in which they are the same.
# Random weights have near ties, in which rounding chooses; in bfloat16 soon every text has met one.
COMPARED = {"float32": None, "bfloat16": 1}
AGREE = 0.8


class SampleSide(TrainSide):
    """A process that generates."""

    worker = "cotjax.bench.sample_worker"

    def describe(self) -> str:
        """What it runs on, and how it started."""
        return f"{self.where}; first texts after {self.started['first_step_s']:.1f} s"


@dataclass(frozen=True)
class Timed:
    """What one side took, in seconds: one generation a round."""

    name: str
    first_step_s: (
        float  # to the end of the first generation, from nothing: model, weights, compilation
    )
    seconds: tuple[float, ...]
    first_token: tuple[float, ...]  # for one new token: the prompts' own time
    peak_bytes: int

    @property
    def median_s(self) -> float:
        """Median seconds of a generation."""
        return median(self.seconds)


def benchmark(
    model: str = "j1",
    *,
    slots: int = 32,
    prompt: int = 256,
    new: int = 64,
    dtype: str = "float32",
    cpu_devices: int | None = None,
    peers: tuple[str, ...] = (),
    rounds: int = 5,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Time greedy generation, print a table, and return its figures by side.

    {"cotjax" | "transformers, dynamic" | "transformers, static": {"tokens/s" (new ones), "median_s", "best_s", "first_token_s",
    "first_step_s", "peak_bytes"}}; "cotjax" has "bandwidth" where the device's is known (the share of it that decoding's weights
    and valid cache take), the others "ratio", "ratio_low" and "ratio_high" (their seconds over cotjax's: of the medians, and the
    lowest and highest of the rounds) and "best_ratio" (of the best rounds).

    Args:
      model: "j1", a published name, or a Hugging Face folder, of which config.json alone is read: the weights are random.
      slots, prompt, new: prompts, tokens of each, and new tokens of each.
      cpu_devices: that cotjax splits a CPU into; None: one a core, as far as that divides the slots.
      peers: "dynamic" and "static": the cache of transformers' generate.

    Raises:
      UsageError: sizes that do not fit, no torch, a side that stopped; the message ends with what it said last.
      CotjaxError: sides whose texts differ, or a bandwidth over 100 %.
    """
    console = console or Console(highlight=False)
    config = replace(named_model(model), param_dtype=dtype, compute_dtype=dtype)
    _check(config, {"slots": slots, "prompt": prompt, "new": new, "rounds": rounds})
    job = Job("cotjax", asdict(config), slots, prompt, new, devices_of(slots, cpu_devices))
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, weights=str(Path(folder, "weights")) if peers else "")
        sides: list[SampleSide] = []
        try:
            for name in ("cotjax", *peers):
                sides.append(SampleSide(replace(job, side=name), Path(folder)))
                console.print(sides[-1].describe(), markup=False, soft_wrap=True)
                check_same_texts(sides[0], sides[-1])
            for _ in range(rounds):
                for side in sides:
                    side.take(1)
        finally:
            for side in sides:
                side.close()
        timed = [_timed(side) for side in sides]
    figures = _figures(timed, sides[0].started, config, job)
    _print(
        console,
        figures,
        rounds,
        f"{model}: {slots} prompts of {prompt} tokens, {new} new ones each, greedy, {dtype}",
    )
    return figures


def _check(config: ModelConfig, counts: dict[str, int]) -> None:
    for name, value in counts.items():
        if value < (2 if name == "new" else 1):
            raise UsageError(
                f"--{name} is {value}; it must be at least {2 if name == 'new' else 1}"
            )
    length = counts["prompt"] + counts["new"]
    if length > config.max_length:
        raise UsageError(
            f"--prompt and --new are {length} tokens together: this model's positions end at {config.max_length}"
        )


def check_same_texts(ours: SampleSide, other: SampleSide) -> None:
    """Raise CotjaxError when two sides' greedy ids differ in too many prompts, UsageError when they run on different kinds of device."""
    check_same_platform(ours, other)
    compared = COMPARED[ours.dtype]
    same = [
        mine[:compared] == theirs[:compared]
        for mine, theirs in zip(ours.started["ids"], other.started["ids"], strict=True)
    ]
    if sum(same) < AGREE * len(same):
        raise CotjaxError(
            f"cotjax and {other.name} do not run the same model: {sum(same)} of {len(same)} greedy texts are the same; "
            f"{AGREE:.0%} is the least that rounding explains"
        )


def _timed(side: SampleSide) -> Timed:
    seconds, first_token = (
        tuple(each[name][0] for each in side.taken) for name in ("seconds", "first_token")
    )
    return Timed(
        side.name, side.started["first_step_s"], seconds, first_token, side.taken[-1]["peak_bytes"]
    )


def _figures(
    timed: list[Timed], started: dict[str, Any], config: ModelConfig, job: Job
) -> dict[str, dict[str, float]]:
    ours, figures = timed[0], {}
    peak = PEAK_BANDWIDTH.get(started["device_kind"])
    for side in timed:
        row = {
            "tokens/s": job.slots * job.new / side.median_s,
            "median_s": side.median_s,
            "best_s": min(side.seconds),
        }
        row |= {
            "first_token_s": median(side.first_token),
            "first_step_s": side.first_step_s,
            "peak_bytes": side.peak_bytes,
        }
        if side is ours and peak is not None:
            step_s = (row["median_s"] - row["first_token_s"]) / (job.new - 1)
            row["bandwidth"] = (
                decode_bytes(config, job.slots * (job.prompt + job.new / 2))
                / step_s
                / (peak * started["devices"])
            )
            if not 0 < row["bandwidth"] <= 1:
                raise CotjaxError(
                    f"{row['bandwidth']:.0%} of the memory bandwidth: the clock did not wait for the device, or its table is wrong"
                )
        if side is not ours:
            by_round = [
                theirs / mine for theirs, mine in zip(side.seconds, ours.seconds, strict=True)
            ]
            row |= {
                "ratio": side.median_s / ours.median_s,
                "ratio_low": min(by_round),
                "ratio_high": max(by_round),
            }
            row["best_ratio"] = min(side.seconds) / min(ours.seconds)
        figures[side.name] = row
    return figures


def _print(console: Console, figures: dict[str, dict[str, float]], rounds: int, title: str) -> None:
    console.print(title, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("side")
    for column in ("new tokens/s", "median", "best", "first token", "bandwidth", "memory"):
        table.add_column(column, justify="right")
    for name, row in figures.items():
        share = f"{100 * row['bandwidth']:.1f} %" if "bandwidth" in row else "unknown"
        times = (f"{row[column]:.3g} s" for column in ("median_s", "best_s", "first_token_s"))
        table.add_row(
            name, f"{row['tokens/s']:,.0f}", *times, share, f"{row['peak_bytes'] / 1e9:.2f} GB"
        )
    console.print(table)
    console.print(
        f"{rounds} rounds, in turn; environment of all sides: {environment_of_sides()}",
        markup=False,
        soft_wrap=True,
    )
    for name, row in figures.items():
        if "ratio" in row:
            spread = f"rounds {row['ratio_low']:.2f} to {row['ratio_high']:.2f}; best rounds {row['best_ratio']:.2f}"
            console.print(
                f"cotjax is {row['ratio']:.2f} times as fast as {name} ({spread})",
                markup=False,
                soft_wrap=True,
            )
