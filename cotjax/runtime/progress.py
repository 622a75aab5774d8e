"""What a person sees while a study runs: one line a stage, a bar on a terminal, plain lines elsewhere, all of it in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cotjax.runtime.terminal import visible

PLAIN_INTERVAL_S = 10.0


class Reporter:
    """Prints stages and their progress, keeps the seconds that each took, and appends everything to `log`."""

    def __init__(self, log: Path | None = None, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self._errors = Console(highlight=False, stderr=True)
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._log = log

    def say(self, text: str) -> None:
        """Print one line, on the terminal and in the log."""
        elapsed, text = time.perf_counter() - self._started, visible(text)
        self.console.print(f"[{elapsed:6.0f} s] {text}", markup=False, soft_wrap=True)
        self._note(text)

    def warn(self, text: str) -> None:
        """Print a line where errors go, and keep it in the log: something is wrong, and the run goes on."""
        text = visible(text)
        self._errors.print(f"cotjax: {text}", markup=False, soft_wrap=True)
        self._note(f"warning: {text}")

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[Stage]:
        """Time a stage; its progress shows until the block ends."""
        self.say(title)
        started = time.perf_counter()
        with Stage(self, title) as stage:
            yield stage
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def _note(self, text: str) -> None:
        if self._log:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


class Stage:
    """Progress of one stage: call `update(done, total, detail)` as often as you like."""

    def __init__(self, reporter: Reporter, title: str):
        self._reporter = reporter
        self._bar = None
        self._task = None
        self._last = time.perf_counter()
        if reporter.console.is_terminal:
            columns = (
                TextColumn("  {task.percentage:3.0f} %"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=reporter.console, transient=True)
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Stage:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int, detail: str = "") -> None:
        if self._bar:
            self._bar.update(
                self._task, completed=done, total=total, description=f"{done}/{total} {detail}"
            )
        elif time.perf_counter() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.perf_counter()
            self._reporter.say(f"  {done}/{total} {detail}")


def training_progress(stage: Stage) -> Callable[[int, int, dict], None]:
    """What `cotjax.train.main.train` reports its rows to."""
    begun: tuple[int, float] | None = (
        None  # the first step seen, for a run may go on from any, and when
    )

    def report(step: int, steps: int, row: dict) -> None:
        nonlocal begun
        now = time.perf_counter()
        begun = begun or (step, now)
        left = (
            f", {(now - begun[1]) / (step - begun[0]) * (steps - step):.0f} s left"
            if step > begun[0]
            else ""
        )
        loss = "none" if row["loss"] is None else f"{row['loss']:.3f}"
        stage.update(
            step, steps, f"steps, loss {loss}, {row['time']['tokens_per_s']:,.0f} tokens/s{left}"
        )

    return report
