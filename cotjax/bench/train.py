"""How fast the train step is: tokens/s, memory and MFU, alone or beside transformers on torch.

Every side is a process of its own (train_speed_worker), started and warmed up before anything is timed. Then they step in
turn, round by round, never two at a time: a machine that is slower for a minute is slower for both, and the ratio stays.
Before that they must agree: they start from the same weights, on the same ids, so their losses are equal if they compute the
same model, and those after the first updates if their gradients and optimizers are the same too.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cotjax.bench.sides import Side, check_same_platform, devices_of, environment_of_sides
from cotjax.bench.train_worker import Job
from cotjax.errors import CotjaxError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.flops import peak_flops, train_flops, utilisation
from cotjax.model.published import PUBLISHED, published

# Qwen3's layout at 10M parameters: small enough for two cores, and matmuls still take most of the time.
J1 = ModelConfig(
    vocab_size=4096, width=256, layers=8, heads=8, kv_heads=4, head_size=32, feed_forward=768
)
# Most that two sides' losses may differ by, in nats. Both add up in another order.
AGREE = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Measured:
    """What one side took."""

    name: str
    first_step_s: float  # to the end of the first step, from nothing: model, weights, compilation
    rounds: tuple[tuple[float, ...], ...]  # seconds of every step
    peak_bytes: int  # of the process; of a device where there is an accelerator

    @property
    def step_s(self) -> float:
        """Median seconds a step."""
        return median(second for each in self.rounds for second in each)

    @property
    def best_s(self) -> float:
        """Seconds of the fastest step."""
        return min(second for each in self.rounds for second in each)


def benchmark(
    model: str = "j1",
    *,
    batch: int = 16,
    length: int = 512,
    dtype: str = "float32",
    remat: str = "block",
    accumulate: int = 1,
    scan: bool = False,
    peer_accumulate: int = 1,
    mesh: tuple[int, int, int] = (-1, 1, 1),
    cpu_devices: int | None = None,
    peers: tuple[str, ...] = (),
    steps: int = 3,
    rounds: int = 4,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Time the train step, print a table, and return its figures by side.

    {"cotjax" | "transformers, compile" | "transformers, eager": {"step_s" (median), "best_s", "first_step_s", "tokens/s",
    "peak_bytes"}}; "cotjax" has "mfu" where the device's peak is known, the others "ratio", "ratio_low" and "ratio_high" (their
    step's seconds over cotjax's: of the medians, and the lowest and highest of the rounds), "best_ratio" (the same of the best
    steps; where other work takes the cores now and then, it hardly touches these) and "memory_ratio" (cotjax's over theirs).

    Args:
      model: "j1", or a Hugging Face folder, of which config.json alone is read: the weights are random.
      batch, length: rows a step, and tokens a row; all tokens are trained on, none are padding.
      accumulate, peer_accumulate: parts that cotjax and the peers work the batch off in, one after another.
      remat, scan: of cotjax alone; see decoder.hidden_states.
      dtype: of parameters and matmuls. For bfloat16 parameters cotjax keeps a float32 copy and float32 moments, as `cotjax train` does; the
        peers keep neither, which spares them 10 bytes a parameter.
      mesh: devices on the axes data, fsdp and tensor; one may be -1.
      cpu_devices: that cotjax splits a CPU into; None: one a core, as far as that divides the rows of a part.
      peers: "compile" and "eager": transformers' model with or without torch.compile.
      steps, rounds: each side takes `steps` steps in turn, `rounds` times.

    Raises:
      UsageError: sizes that do not fit, no torch, a side that stopped; the message ends with what it said last.
      CotjaxError: sides that do not agree on the loss, or an MFU over 100 %.
    """
    console = console or Console(highlight=False)
    config = replace(named_model(model), param_dtype=dtype, compute_dtype=dtype)
    parts = {"accumulate": accumulate, "peer-accumulate": peer_accumulate}
    _check(
        config,
        {"batch": batch, "length": length, "steps": steps, "rounds": rounds} | parts,
        bool(peers),
        mesh,
    )
    for name, count in parts.items():
        if batch % count:
            raise UsageError(f"--batch ({batch}) must be a multiple of --{name} ({count})")
    job = Job(
        "cotjax",
        asdict(config),
        batch,
        length,
        accumulate,
        remat,
        scan,
        mesh,
        devices_of(batch // accumulate, cpu_devices),
    )
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, weights=str(Path(folder, "weights")) if peers else "")
        sides: list[TrainSide] = []
        try:
            for name in ("cotjax", *peers):
                parts = accumulate if name == "cotjax" else peer_accumulate
                sides.append(TrainSide(replace(job, side=name, accumulate=parts), Path(folder)))
                console.print(sides[-1].describe(), markup=False, soft_wrap=True)
                check_agreement(sides[0], sides[-1])
            for _ in range(rounds):
                for side in sides:
                    side.take(steps)
        finally:
            for side in sides:
                side.close()
        measured = [side.measured() for side in sides]
        figures = _figures(
            measured, sides[0].started, train_flops(config, [length] * batch), batch * length
        )
        how = f"remat {remat}, {'scanned' if scan else 'unrolled'}, accumulate {accumulate} (peer {peer_accumulate})"
        _print(
            console, measured, figures, f"{model}: {batch} rows of {length} tokens, {dtype}, {how}"
        )
    return figures


def named_model(name: str) -> ModelConfig:
    """The sizes that `--model` names. Raises UsageError for a name that is neither known nor a folder."""
    if name == "j1":
        return J1
    if name in PUBLISHED:
        return published(name)
    if not Path(name).exists():
        raise UsageError(
            f"--model {name}: neither j1, nor a folder with a config.json, nor one of {', '.join(PUBLISHED)}"
        )
    return ModelConfig.from_hf(name)


def _check(
    config: ModelConfig, counts: dict[str, int], peers: bool, mesh: tuple[int, int, int]
) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    if counts["length"] > config.max_length:
        raise UsageError(
            f"--length {counts['length']}: this model's positions end at {config.max_length}"
        )
    if peers and any(size > 1 for size in mesh):
        raise UsageError(
            "--peer trains on one device: leave out --data, --fsdp and --tensor, and show cotjax one device alone"
        )


class TrainSide(Side):
    """A process that works; see train_speed_worker. Started, it is warm."""

    worker = "cotjax.bench.train_worker"

    def __init__(self, job: Any, folder: Path):
        self.dtype = job.model["param_dtype"]
        self.taken: list[dict] = []
        super().__init__(
            "cotjax" if job.side == "cotjax" else f"transformers, {job.side}", job, folder
        )

    def take(self, steps: int) -> None:
        """Let it take `steps` steps, and note what they took."""
        self.taken.append(self.ask(str(steps)))

    def describe(self) -> str:
        """What it runs on, and how it started."""
        losses = ", ".join(f"{loss:.5f}" for loss in self.started["losses"])
        return f"{self.where}; first step after {self.started['first_step_s']:.1f} s; first losses {losses}"

    def measured(self) -> Measured:
        """All that was noted."""
        rounds = tuple(tuple(each["seconds"]) for each in self.taken)
        return Measured(
            self.name, self.started["first_step_s"], rounds, self.taken[-1]["peak_bytes"]
        )


def check_agreement(ours: TrainSide, other: TrainSide) -> None:
    """Raise CotjaxError when two sides' first losses differ, or run on different kinds of device."""
    check_same_platform(ours, other)
    for update, (mine, theirs) in enumerate(
        zip(ours.started["losses"], other.started["losses"], strict=True)
    ):
        if not abs(mine - theirs) <= AGREE[ours.dtype]:
            raise CotjaxError(
                f"cotjax and {other.name} do not train the same model: after {update} updates the loss is {mine:.5f} here and "
                f"{theirs:.5f} there; {AGREE[ours.dtype]:g} apart is the most that rounding explains"
            )


def _figures(
    measured: list[Measured], started: dict[str, Any], flops: int, tokens: int
) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    ours = measured[0]
    peak = peak_flops(started["device_kind"])
    for side in measured:
        row = {
            "step_s": side.step_s,
            "best_s": side.best_s,
            "first_step_s": side.first_step_s,
            "peak_bytes": side.peak_bytes,
        }
        row["tokens/s"] = tokens / side.step_s
        if peak is not None:
            row["mfu"] = utilisation(flops, side.step_s, peak * started["devices"])
        if side is not ours:
            by_round = [
                median(theirs) / median(mine)
                for theirs, mine in zip(side.rounds, ours.rounds, strict=True)
            ]
            row |= {
                "ratio": side.step_s / ours.step_s,
                "ratio_low": min(by_round),
                "ratio_high": max(by_round),
            }
            row["best_ratio"] = side.best_s / ours.best_s
            row["memory_ratio"] = ours.peak_bytes / side.peak_bytes
        figures[side.name] = row
    return figures


def _print(
    console: Console, measured: list[Measured], figures: dict[str, dict[str, float]], title: str
) -> None:
    console.print(title, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("side")
    for column in ("tokens/s", "median step", "best step", "MFU", "memory"):
        table.add_column(column, justify="right")
    for name, row in figures.items():
        mfu = f"{100 * row['mfu']:.1f} %" if "mfu" in row else "unknown"
        times = (f"{row[column]:.3g} s" for column in ("step_s", "best_s"))
        table.add_row(
            name, f"{row['tokens/s']:,.0f}", *times, mfu, f"{row['peak_bytes'] / 1e9:.2f} GB"
        )
    console.print(table)
    rounds = f"{len(measured[0].rounds)} rounds of {len(measured[0].rounds[0])} steps, in turn"
    console.print(
        f"{rounds}; environment of all sides: {environment_of_sides()}",
        markup=False,
        soft_wrap=True,
    )
    for name, row in figures.items():
        if "ratio" in row:
            spread = f"rounds {row['ratio_low']:.2f} to {row['ratio_high']:.2f}; best steps {row['best_ratio']:.2f}"
            said = f"cotjax is {row['ratio']:.2f} times as fast as {name} ({spread}), with {row['memory_ratio']:.2f} of its memory"
            console.print(said, markup=False, soft_wrap=True)
