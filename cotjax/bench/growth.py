"""How a turn's time grows with the history behind it and with the slots beside it: `cotjax bench sample --growth`.

A turn reads a new observation and makes a response, as in an episode. What it costs beyond its own tokens is attention to the
history, so its time is to grow about linearly in the history at worst, and the tokens that are read again are none.
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
from rich.table import Table

from cotjax.model.config import ModelConfig
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.runtime.files import check_output, whole
from cotjax.sample.sampler import Sampler

# Small, so that 16k tokens and 256 slots take minutes on two cores; its heads make attention the larger part at long histories.
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
MARK = b"cotjax bench sample --growth"  # in the figure's file, so that a later run may replace it
READ, MADE, TURNS = 32, 16, 3  # tokens that a turn reads and makes, and turns that are timed


@dataclass(frozen=True)
class Turn:
    """A turn's median time."""

    history: int  # tokens in each slot before it
    slots: int
    seconds: float
    first_s: float  # to read the history, in pieces


def growth(
    *,
    histories: Sequence[int] = HISTORIES,
    slots: Sequence[int] = SLOTS,
    out: Path | None = None,
    console: Console | None = None,
) -> tuple[list[Turn], list[Turn]]:
    """Time a turn against history (two slots) and against slots (the shortest history); print tables, and draw a figure to `out`.

    Returns both lists. A turn reads READ tokens a slot and makes MADE.
    """
    console = console or Console(highlight=False)
    if out is not None:
        check_output(out, mark=MARK)
    by_history = [_turn(history, 2) for history in histories]
    _print(
        console, f"a turn of {READ} tokens read and {MADE} made, 2 slots, by history", by_history
    )
    by_slots = [_turn(min(histories), count) for count in slots]
    _print(console, f"the same, {min(histories)} tokens of history, by slots", by_slots)
    if out is not None:
        _draw(by_history, by_slots, out)
        console.print(f"figure: {out}", markup=False, soft_wrap=True)
    return by_history, by_slots


def _turn(history: int, slots: int) -> Turn:
    mesh = make_mesh(devices=jax.devices()[:1])
    sampler = Sampler(
        MODEL, mesh, slots=slots, max_length=2 * history, stop=[], pad_id=0, max_new=MADE
    )
    sampler.load(init_params(MODEL, jax.random.key(0), mesh))
    draw = np.random.default_rng(0)

    def ids(count: int) -> dict[int, list[int]]:
        return dict(enumerate(draw.integers(MODEL.vocab_size, size=(slots, count)).tolist()))

    # The last turn fills the history's own room to the end, so that the room is what was asked for.
    started = time.perf_counter()
    sampler.extend(ids(history - (TURNS + 1) * READ))
    first_s = time.perf_counter() - started
    seconds = []
    for _ in range(TURNS + 1):  # the first compiles
        started = time.perf_counter()
        sampler.extend(ids(READ))
        sampler.branch(dict.fromkeys(range(slots), ()), max_new=MADE)
        seconds.append(time.perf_counter() - started)
    return Turn(history, slots, median(seconds[1:]), first_s)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """p where seconds grow as size ** p, by least squares over logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _print(console: Console, title: str, turns: Sequence[Turn]) -> None:
    table = Table()
    for column in ("history", "slots", "turn", "new tokens/s", "history read, compiled"):
        table.add_column(column, justify="right")
    for turn in turns:
        rate = turn.slots * MADE / turn.seconds
        table.add_row(
            f"{turn.history:,}",
            str(turn.slots),
            f"{1000 * turn.seconds:,.1f} ms",
            f"{rate:,.0f}",
            f"{turn.first_s:.2f} s",
        )
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)
    sizes = [turn.history * turn.slots for turn in turns]
    if len(set(sizes)) > 1:
        power = exponent(sizes, [turn.seconds for turn in turns])
        console.print(
            f"a turn's time grows as the power {power:.2f} of it (1: linear, 2: squared)",
            markup=False,
            soft_wrap=True,
        )


def _draw(by_history: Sequence[Turn], by_slots: Sequence[Turn], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, turns, sizes, label in (
        (left, by_history, [turn.history for turn in by_history], "tokens of history (2 slots)"),
        (
            right,
            by_slots,
            [turn.slots for turn in by_slots],
            f"slots ({by_slots[0].history:,} tokens of history)",
        ),
    ):
        seconds = [turn.seconds for turn in turns]
        axes.loglog(sizes, seconds, marker="o", label="a turn")
        axes.loglog(
            sizes,
            [seconds[-1] * size / sizes[-1] for size in sizes],
            linestyle=":",
            color="grey",
            label="linear",
        )
        axes.set(xlabel=label, ylabel="seconds a turn")
        axes.legend()
    with whole(out, "wb", mark=MARK) as file:
        figure.savefig(file, dpi=150, format="png", metadata={"Software": MARK.decode()})
