"""`cotjax bench sample --growth`: a turn's time by the length of the history and by slots.

A turn reads an observation and generates a response. Beyond its own tokens it costs attention to
the history, so its time should grow at most linearly with the history; no token is read again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import jax
import numpy as np
from rich.console import Console

from cotjax.bench.comparison import print_table, say
from cotjax.model.config import ModelConfig
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.runtime.files import atomic_file, check_output
from cotjax.sample.sampler import Sampler

# Small, so that 16k tokens and 256 slots take minutes on two cores. With these heads, attention
# dominates at long histories.
MODEL = ModelConfig(
    vocab_size=512,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=16,
    feed_forward=128,
    max_length=32_768,
)
HISTORIES = (1024, 2048, 4096, 8192, 16_384)  # tokens
SLOTS = (1, 4, 16, 64, 256)
# In the figure's file: a later run may replace a file with this mark.
MARK = b"cotjax bench sample --growth"
# Tokens that a turn reads and generates, and timed turns.
READ, NEW, TURNS = 32, 16, 3


@dataclass(frozen=True)
class Turn:
    """A turn's time.

    Attributes:
      history: tokens in each slot before it.
      slots: how many take the turn together.
      seconds: the median.
      first_s: seconds to read the history, with compilation.
    """

    history: int
    slots: int
    seconds: float
    first_s: float


def growth(
    *,
    histories: Sequence[int] = HISTORIES,
    slots: Sequence[int] = SLOTS,
    out: Path | None = None,
    console: Console | None = None,
) -> tuple[list[Turn], list[Turn]]:
    """Time turns by history (two slots) and by slots (the shortest history); return both lists.

    Prints tables, and draws a figure to `out`. Raises UsageError when `out` holds another file.
    """
    console = console or Console(highlight=False)
    if out is not None:
        check_output(out, mark=MARK)
    by_history = [_turn(history, 2) for history in histories]
    turn = f"a turn of {READ} tokens read and {NEW} generated"
    _print(console, f"{turn}, 2 slots, by history", by_history)
    by_slots = [_turn(min(histories), count) for count in slots]
    _print(console, f"the same, {min(histories)} tokens of history, by slots", by_slots)
    if out is not None:
        _draw(by_history, by_slots, out)
        say(console, f"figure: {out}")
    return by_history, by_slots


def _turn(history: int, slots: int) -> Turn:
    mesh = make_mesh(devices=jax.devices()[:1])
    sampler = Sampler(
        MODEL, mesh, slots=slots, max_length=2 * history, stop=[], pad_id=0, max_new=NEW
    )
    sampler.load(init_params(MODEL, jax.random.key(0), mesh))
    draw = np.random.default_rng(0)

    def ids(count: int) -> dict[int, list[int]]:
        return dict(enumerate(draw.integers(MODEL.vocab_size, size=(slots, count)).tolist()))

    # The turns' observations complete the history.
    started = time.perf_counter()
    sampler.extend(ids(history - (TURNS + 1) * READ))
    first_s = time.perf_counter() - started
    seconds = []
    for _ in range(TURNS + 1):  # the first compiles
        started = time.perf_counter()
        sampler.extend(ids(READ))
        sampler.sample(dict.fromkeys(range(slots), ()), max_new=NEW)
        seconds.append(time.perf_counter() - started)
    return Turn(history, slots, median(seconds[1:]), first_s)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return p such that seconds grow as size ** p, by least squares over logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _print(console: Console, title: str, turns: Sequence[Turn]) -> None:
    say(console, title)
    rows = [
        [
            f"{turn.history:,}",
            str(turn.slots),
            f"{1000 * turn.seconds:,.1f} ms",
            f"{turn.slots * NEW / turn.seconds:,.0f}",
            f"{turn.first_s:.2f} s",
        ]
        for turn in turns
    ]
    print_table(
        console, ("history", "slots", "turn", "new tokens/s", "history read, compiled"), rows
    )
    sizes = [turn.history * turn.slots for turn in turns]
    if len(set(sizes)) > 1:
        power = exponent(sizes, [turn.seconds for turn in turns])
        say(console, f"a turn's time grows as the power {power:.2f} of it (1: linear, 2: squared)")


def _draw(by_history: Sequence[Turn], by_slots: Sequence[Turn], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    histories = [turn.history for turn in by_history]
    slots = [turn.slots for turn in by_slots]
    right_label = f"slots ({by_slots[0].history:,} tokens of history)"
    for axes, turns, sizes, label in (
        (left, by_history, histories, "tokens of history (2 slots)"),
        (right, by_slots, slots, right_label),
    ):
        seconds = [turn.seconds for turn in turns]
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        axes.loglog(sizes, seconds, marker="o", label="a turn")
        axes.loglog(sizes, linear, linestyle=":", color="grey", label="linear")
        axes.set(xlabel=label, ylabel="seconds a turn")
        axes.legend()
    with atomic_file(out, "wb", mark=MARK) as file:
        figure.savefig(file, dpi=150, format="png", metadata={"Software": MARK.decode()})
