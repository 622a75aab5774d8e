"""`cotjax bench sample`: new tokens/s of greedy generation, also compared with transformers.

All sides start from the same weights and the same prompts, so their greedy ids must be equal.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from rich.console import Console

from cotjax.bench.comparison import (
    Figures,
    check_counts,
    compare,
    flat,
    print_table,
    ratios,
    say,
)
from cotjax.bench.jobs import SampleJob
from cotjax.bench.models import named_model
from cotjax.bench.sides import Side, check_same_platform, devices_of, environment_of_sides
from cotjax.errors import InternalError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.flops import (
    PEAK_BANDWIDTH,
    decode_bytes,
    peak_flops,
    prompt_flops,
    utilisation,
)

# The first ids of a continuation that must be equal (None: all), and the least share of prompts
# in which they are. Random weights have near ties, which rounding breaks; in bfloat16 every
# continuation meets one early.
COMPARED = {"float32": None, "bfloat16": 1}
AGREE = 0.8


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      model: see `models.named_model`.
      slots, prompt, new: prompts, tokens of each, new tokens of each.
      dtype: of parameters and matmuls.
      cpu_devices: devices that cotjax splits the CPU into; None: see `sides.devices_of`.
      peers: the baselines: "dynamic", "static": the cache of transformers' `generate`.
      rounds: one generation of every side in each.
    """

    model: str = "j1"
    slots: int = 32
    prompt: int = 256
    new: int = 64
    dtype: str = "float32"
    cpu_devices: int | None = None
    peers: tuple[str, ...] = ()
    rounds: int = 5

    def __str__(self) -> str:
        prompts = f"{self.slots} prompts of {self.prompt} tokens"
        return f"{self.model}: {prompts}, {self.new} new ones each, greedy, {self.dtype}"


def benchmark(settings: Settings, console: Console | None = None) -> Figures:
    """Time greedy generation, print a table, and return its figures by side.

    Sides are "cotjax", "transformers, dynamic" and "transformers, static". Figures are "tokens/s"
    (new ones), "median_s", "best_s", "first_token_s" (a generation of one token),
    "first_generation_s" (from nothing: model, weights, compilation) and "peak_bytes"; of cotjax,
    where the device's peaks are known, "bandwidth" (the share that reading weights and valid cache
    takes) and "prompt_mfu" (the share of its arithmetic that reading the prompts takes); of the
    baselines those of `comparison.ratios`.

    Raises:
      UsageError: sizes that do not fit, no torch, or a side that stopped.
      InternalError: ids that differ, or a bandwidth over 100 %.
    """
    console = console or Console(highlight=False)
    config = named_model(settings.model, settings.dtype)
    _check(config, settings)

    def check(ours: Side, other: Side) -> None:
        check_same_ids(ours, other, settings.dtype)

    with tempfile.TemporaryDirectory() as folder:
        ours = SampleJob(
            model=asdict(config),
            slots=settings.slots,
            prompt=settings.prompt,
            new=settings.new,
            cpu_devices=devices_of(settings.slots, settings.cpu_devices),
            weights=str(Path(folder, "weights")) if settings.peers else "",
        )
        jobs = [ours, *(replace(ours, side=name) for name in settings.peers)]
        sides = compare(
            jobs, Path(folder), console, describe=_describe, check=check, rounds=settings.rounds
        )
    figures = _figures(sides, config, settings)
    _print(console, figures, settings)
    return figures


def _check(config: ModelConfig, settings: Settings) -> None:
    sizes = {name: getattr(settings, name) for name in ("slots", "prompt", "new", "rounds")}
    # The first of the new tokens is timed apart from the others.
    check_counts(sizes, least={"new": 2})
    length = settings.prompt + settings.new
    if length > config.max_length:
        raise UsageError(
            f"--prompt and --new are {length} tokens together: this model's positions end at "
            f"{config.max_length}"
        )


def _describe(side: Side) -> str:
    return f"{side.where}; first texts after {side.first_s:.1f} s"


def check_same_ids(ours: Side, other: Side, dtype: str) -> None:
    """Raise InternalError when the greedy ids of too many prompts differ.

    Raises UsageError when the sides run on different kinds of device.
    """
    check_same_platform(ours, other)
    compared = COMPARED[dtype]
    same = [
        mine[:compared] == theirs[:compared]
        for mine, theirs in zip(ours.started["ids"], other.started["ids"], strict=True)
    ]
    if sum(same) < AGREE * len(same):
        raise InternalError(
            f"cotjax and {other.name} do not run the same model: {sum(same)} of {len(same)} greedy "
            f"texts are the same; {AGREE:.0%} is the least that rounding explains"
        )


def _figures(sides: list[Side], config: ModelConfig, settings: Settings) -> Figures:
    figures: Figures = {}
    ours = sides[0]
    peak = PEAK_BANDWIDTH.get(ours.started["device_kind"])
    for side in sides:
        median_s = median(flat(side.seconds))
        row = {
            "tokens/s": settings.slots * settings.new / median_s,
            "median_s": median_s,
            "best_s": min(flat(side.seconds)),
            "first_token_s": median(flat([each["first_token"] for each in side.rounds])),
            "first_generation_s": side.first_s,
            "peak_bytes": side.rounds[-1]["peak_bytes"],
        }
        if side is ours and peak is not None:
            step_s = (median_s - row["first_token_s"]) / (settings.new - 1)
            bandwidth = peak * ours.started["devices"]
            row["bandwidth"] = _bandwidth(config, settings, step_s, bandwidth)
        if side is ours and (most := peak_flops(ours.started["device_kind"])) is not None:
            flops = prompt_flops(config, settings.slots, settings.prompt)
            most *= ours.started["devices"]
            row["prompt_mfu"] = utilisation(flops, row["first_token_s"], most)
        if side is not ours:
            row |= ratios(ours, side)
        figures[side.name] = row
    return figures


def _bandwidth(config: ModelConfig, settings: Settings, step_s: float, peak: float) -> float:
    """Return the share of `peak` bytes/s that decode steps of `step_s` seconds read."""
    valid = settings.slots * (settings.prompt + settings.new / 2)
    share = decode_bytes(config, valid) / step_s / peak
    if not 0 < share <= 1:
        raise InternalError(
            f"{share:.0%} of the memory bandwidth: the clock did not wait for the device, or its "
            "table is wrong"
        )
    return share


def _print(console: Console, figures: Figures, settings: Settings) -> None:
    say(console, str(settings))
    rows = []
    for name, row in figures.items():
        share = f"{100 * row['bandwidth']:.1f} %" if "bandwidth" in row else "unknown"
        times = (f"{row[column]:.3g} s" for column in ("median_s", "best_s", "first_token_s"))
        memory = f"{row['peak_bytes'] / 1e9:.2f} GB"
        rows.append([name, f"{row['tokens/s']:,.0f}", *times, share, memory])
    columns = ("side", "new tokens/s", "median", "best", "first token", "bandwidth", "memory")
    print_table(console, columns, rows)
    if "prompt_mfu" in figures["cotjax"]:
        share = f"{100 * figures['cotjax']['prompt_mfu']:.1f} %"
        say(console, f"cotjax reads prompts, up to the first token, at {share} of the peak")
    say(
        console,
        f"{settings.rounds} rounds, in turn; environment of all sides: {environment_of_sides()}",
    )
    for name, row in figures.items():
        if "ratio" in row:
            spread = (
                f"rounds {row['ratio_low']:.2f} to {row['ratio_high']:.2f}; "
                f"best rounds {row['best_ratio']:.2f}"
            )
            say(console, f"cotjax is {row['ratio']:.2f} times as fast as {name} ({spread})")
