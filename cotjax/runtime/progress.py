"""Progress of a study for people: a line per stage, a progress bar on a terminal, and a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cotjax.runtime.terminal import visible

PLAIN_INTERVAL_S = 10.0  # between the lines that replace the bar where there is no terminal


class Reporter:
    """Prints stages and their progress, times the stages, and appends every line to `log`."""

    def __init__(self, log: Path | None = None, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self._errors = Console(highlight=False, stderr=True)
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._log = log

    def say(self, text: str) -> None:
        """Print a line to the terminal and the log."""
        elapsed, text = time.perf_counter() - self._started, visible(text)
        self.console.print(f"[{elapsed:6.0f} s] {text}", markup=False, soft_wrap=True)
        self._note(text)

    def warn(self, text: str) -> None:
        """Print a warning to standard error and the log."""
        text = visible(text)
        self._errors.print(f"cotjax: {text}", markup=False, soft_wrap=True)
        self._note(f"warning: {text}")

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[Stage]:
        """Time a stage, and show its progress until the block ends."""
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
    """Progress of one stage; `update` may be called at any rate."""

    def __init__(self, reporter: Reporter, title: str):
        self._reporter = reporter
        self._bar: tuple[Progress, TaskID] | None = None
        self._last = time.perf_counter()
        if reporter.console.is_terminal:
            columns = (
                TextColumn("  {task.percentage:3.0f} %"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            progress = Progress(*columns, console=reporter.console, transient=True)
            self._bar = progress, progress.add_task("", total=None)

    def __enter__(self) -> Stage:
        if self._bar:
            self._bar[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar[0].stop()

    def update(self, done: int, total: int, detail: str = "") -> None:
        """Show that `done` of `total` things are done; `detail` names the things."""
        if self._bar:
            progress, task = self._bar
            progress.update(
                task, completed=done, total=total, description=f"{done}/{total} {detail}"
            )
        elif time.perf_counter() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.perf_counter()
            self._reporter.say(f"  {done}/{total} {detail}")


class Listener:
    """What `cotjax.train.main.train` tells of its run; this one prints the warnings alone."""

    def say(self, text: str) -> None:
        """Hear a line for people."""

    def warn(self, text: str) -> None:
        """Hear that something is wrong, although the run continues."""
        print(f"cotjax: {visible(text)}", file=sys.stderr)

    def report(self, step: int, steps: int, row: Mapping[str, Any]) -> None:
        """Hear the metrics row of one of `steps` updates."""


def _loss_in_words(row: Mapping[str, Any]) -> str:
    return f"loss {'none' if row['loss'] is None else format(row['loss'], '.3f')}"


class TrainingProgress(Listener):
    """Shows the loss, the speed and the time left of a training run as a stage's progress."""

    def __init__(
        self,
        reporter: Reporter,
        stage: Stage,
        in_words: Callable[[Mapping[str, Any]], str] = _loss_in_words,
    ):
        """`in_words`: what a row says, but for its speed."""
        self._reporter, self._stage, self._in_words = reporter, stage, in_words
        # The first step reported (a resumed run starts at any) and its time.
        self._begun: tuple[int, float] | None = None

    def say(self, text: str) -> None:
        self._reporter.say(f"  {text}")

    def warn(self, text: str) -> None:
        self._reporter.warn(text)

    def report(self, step: int, steps: int, row: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        first, started = self._begun = self._begun or (step, now)
        seconds = (now - started) / (step - first) * (steps - step) if step > first else None
        left = "" if seconds is None else f", {seconds:.0f} s left"
        speed = f"{row['time']['tokens_per_s']:,.0f} tokens/s"
        self._stage.update(step, steps, f"steps, {self._in_words(row)}, {speed}{left}")
