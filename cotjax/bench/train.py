"""`cotjax bench train`: the train step's tokens/s, memory and MFU, also compared with transformers.

All sides start from the same weights, on the same ids. Equal first losses show that they compute
the same model, equal later losses that their gradients and optimizers agree too.
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
from cotjax.bench.jobs import TrainJob, rows_of
from cotjax.bench.models import named_model
from cotjax.bench.profile import profile
from cotjax.bench.sides import Side, check_same_platform, devices_of, environment_of_sides
from cotjax.config import default_config
from cotjax.errors import InternalError, UsageError
from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.flops import attended_flops, peak_flops, utilisation

# The largest difference between two sides' losses, in nats. They sum in different orders.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      model: see `models.named_model`.
      batch, length: rows a step, tokens a row. There is no padding, and all tokens are trained on.
      dtype: of parameters and matmuls. For bfloat16 parameters, cotjax keeps a float32 copy and
        float32 moments, as `cotjax train` does. The baselines keep neither, which saves them 10
        bytes a parameter.
      remat, attention, scan: of cotjax alone; see `decoder.hidden_states`.
      accumulate, peer_accumulate: micro-batches of cotjax and of the baselines.
      mesh: cotjax's devices on the axes data, fsdp and tensor; one may be -1.
      cpu_devices: devices that cotjax splits the CPU into; None: see `sides.devices_of`.
      lora_rank: of adapters on all projections, which alone are trained; 0: all weights.
      peers: the baselines: "compile", "eager": transformers with or without torch.compile.
      rows: what cotjax's rows hold: one of jobs.ROWS.
      profile: afterwards also print where a step's time goes.
      steps, rounds: steps a round, rounds.
    """

    model: str = "j1"
    batch: int = 16
    length: int = 512
    dtype: str = "float32"
    remat: str = "block"
    attention: str = "auto"
    scan: bool = False
    accumulate: int = 1
    peer_accumulate: int = 1
    mesh: tuple[int, int, int] = (-1, 1, 1)
    cpu_devices: int | None = None
    lora_rank: int = 0
    peers: tuple[str, ...] = ()
    rows: str = "plain"
    profile: bool = False
    steps: int = 3
    rounds: int = 4

    def __str__(self) -> str:
        rows = "rows" if self.rows == "plain" else f"{self.rows} rows"
        layers = "scanned" if self.scan else "unrolled"
        lora = f"LoRA of rank {self.lora_rank}, " if self.lora_rank else ""
        accumulate = f"accumulate {self.accumulate} (peer {self.peer_accumulate})"
        return (
            f"{self.model}: {self.batch} {rows} of {self.length} tokens, "
            f"{self.dtype}, {lora}remat {self.remat}, {layers}, {accumulate}"
        )


def benchmark(settings: Settings, console: Console | None = None) -> Figures:
    """Time the train step, print a table, and return its figures by side.

    Sides are "cotjax", "transformers, compile" and "transformers, eager". Figures are "step_s"
    (median), "best_s", "first_step_s" (from nothing: model, weights, compilation), "tokens/s",
    "peak_bytes", and "mfu" where the device's peak is known; of the baselines also those of
    `comparison.ratios` and "memory_ratio" (cotjax's memory over theirs).

    Raises:
      UsageError: sizes that do not fit, no torch, or a side that stopped.
      InternalError: losses that differ, or an MFU over 100 %.
    """
    console = console or Console(highlight=False)
    config = named_model(settings.model, settings.dtype)
    _check(config, settings)
    if settings.lora_rank:
        usual = default_config().model
        config = replace(
            config, lora=LoRA(settings.lora_rank, usual.lora_alpha, usual.lora_targets)
        )

    def check(ours: Side, other: Side) -> None:
        check_agreement(ours, other, settings.dtype)

    with tempfile.TemporaryDirectory() as folder:
        sides = compare(
            _jobs(config, settings, Path(folder)),
            Path(folder),
            console,
            describe=_describe,
            check=check,
            rounds=settings.rounds,
            count=settings.steps,
        )
    _, _, positions = rows_of(settings.rows, settings.batch, settings.length)
    flops = attended_flops(config, positions.size, int((positions + 1).sum()))
    figures = _figures(sides, flops, settings.batch * settings.length)
    _print(console, figures, settings)
    if settings.profile:
        profile(_jobs(config, settings, Path())[0], console)
    return figures


def _jobs(config: ModelConfig, settings: Settings, folder: Path) -> list[TrainJob]:
    ours = TrainJob(
        model=asdict(config),
        batch=settings.batch,
        length=settings.length,
        accumulate=settings.accumulate,
        remat=settings.remat,
        attention=settings.attention,
        rows=settings.rows,
        scan=settings.scan,
        mesh=settings.mesh,
        cpu_devices=devices_of(settings.batch // settings.accumulate, settings.cpu_devices),
        weights=str(folder / "weights") if settings.peers else "",
    )
    return [
        ours,
        *(replace(ours, side=name, accumulate=settings.peer_accumulate) for name in settings.peers),
    ]


def _check(config: ModelConfig, settings: Settings) -> None:
    accumulate = {
        "accumulate": settings.accumulate,
        "peer-accumulate": settings.peer_accumulate,
    }
    sizes = {name: getattr(settings, name) for name in ("batch", "length", "steps", "rounds")}
    check_counts(sizes | accumulate)
    if settings.length > config.max_length:
        raise UsageError(
            f"--length {settings.length}: this model's positions end at {config.max_length}"
        )
    if settings.lora_rank and settings.peers:
        raise UsageError("--lora-rank: the baselines train all weights: leave out --peer")
    if settings.peers and settings.rows != "plain":
        raise UsageError(f"--rows {settings.rows}: the baselines know plain rows alone")
    if settings.peers and settings.profile:
        raise UsageError("--profile: of cotjax alone; leave out --peer")
    if settings.peers and any(size > 1 for size in settings.mesh):
        raise UsageError(
            "--peer trains on one device: leave out --data, --fsdp and --tensor, and show cotjax "
            "one device alone"
        )
    for name, count in accumulate.items():
        if settings.batch % count:
            raise UsageError(f"--batch ({settings.batch}) must be a multiple of --{name} ({count})")


def _describe(side: Side) -> str:
    losses = ", ".join(f"{loss:.5f}" for loss in side.started["losses"])
    remat = f"; remat {side.started['remat']}" if "remat" in side.started else ""
    return f"{side.where}; first step after {side.first_s:.1f} s; first losses {losses}{remat}"


def check_agreement(ours: Side, other: Side, dtype: str) -> None:
    """Raise InternalError when two sides' first losses differ, or their kinds of device."""
    check_same_platform(ours, other)
    tolerance = TOLERANCE[dtype]
    pairs = zip(ours.started["losses"], other.started["losses"], strict=True)
    for update, (mine, theirs) in enumerate(pairs):
        # NaN fails too.
        if not abs(mine - theirs) <= tolerance:
            raise InternalError(
                f"cotjax and {other.name} do not train the same model: after {update} updates the "
                f"loss is {mine:.5f} here and {theirs:.5f} there; {tolerance:g} apart is the most "
                "that rounding explains"
            )


def _figures(sides: list[Side], flops: int, tokens: int) -> Figures:
    figures: Figures = {}
    ours = sides[0]
    peak = peak_flops(ours.started["device_kind"])
    for side in sides:
        step_s, peak_bytes = median(flat(side.seconds)), side.rounds[-1]["peak_bytes"]
        row = {
            "step_s": step_s,
            "best_s": min(flat(side.seconds)),
            "first_step_s": side.first_s,
            "peak_bytes": peak_bytes,
            "tokens/s": tokens / step_s,
        }
        if peak is not None:
            row["mfu"] = utilisation(flops, step_s, peak * ours.started["devices"])
        if side is not ours:
            row |= ratios(ours, side)
            row["memory_ratio"] = ours.rounds[-1]["peak_bytes"] / peak_bytes
        figures[side.name] = row
    return figures


def _print(console: Console, figures: Figures, settings: Settings) -> None:
    say(console, str(settings))
    rows = []
    for name, row in figures.items():
        mfu = f"{100 * row['mfu']:.1f} %" if "mfu" in row else "unknown"
        times = (f"{row[column]:.3g} s" for column in ("step_s", "best_s"))
        memory = f"{row['peak_bytes'] / 1e9:.2f} GB"
        rows.append([name, f"{row['tokens/s']:,.0f}", *times, mfu, memory])
    print_table(console, ("side", "tokens/s", "median step", "best step", "MFU", "memory"), rows)
    rounds = f"{settings.rounds} rounds of {settings.steps} steps, in turn"
    say(console, f"{rounds}; environment of all sides: {environment_of_sides()}")
    for name, row in figures.items():
        if "ratio" in row:
            spread = (
                f"rounds {row['ratio_low']:.2f} to {row['ratio_high']:.2f}; "
                f"best steps {row['best_ratio']:.2f}"
            )
            say(
                console,
                f"cotjax is {row['ratio']:.2f} times as fast as {name} ({spread}), "
                f"with {row['memory_ratio']:.2f} of its memory",
            )
