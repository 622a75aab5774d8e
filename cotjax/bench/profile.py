"""Where the time of a train step goes, by the model's named scopes, from a profiler's trace."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import jax
from rich.console import Console

from cotjax.bench.comparison import print_table, say
from cotjax.bench.jobs import TrainJob
from cotjax.errors import InternalError

# An instruction of a compiled program, and the path of scopes that it comes from.
_NAMED = re.compile(r"%?([\w.-]+) = [^\n]*?op_name=\"([^\"]*)\"")
# Scopes of the model and of the objective, the inner ones first.
SCOPES = ("norm", "attend", "attention", "mlp", "loss", "embed", "stack", "optimizer")
# A loop's own event spans those of its body.
_SPANS = ("while", "conditional", "call", "command_buffer")


def profile(job: TrainJob, console: Console) -> dict[tuple[str, str], float]:
    """Trace one warm step of a job in this process, and print and return its seconds by scope.

    Keys are (scope, phase): one of SCOPES or "other", and "forward", "again" (computed again for
    the backward pass) or "backward". Events that run side by side all count, so on a CPU of
    several cores they add up to more than the step.

    Raises:
      InternalError: the trace holds no event of the program.
    """
    from cotjax.bench.ours import CotjaxTrain

    # A GPU replays a whole graph of kernels as one event, which hides where each belongs.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=".strip()
    try:
        task = CotjaxTrain(job)
    finally:
        os.environ["XLA_FLAGS"] = flags
    task.step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            task.step()
        seconds = by_scope(Path(folder), task.program)
    total = sum(seconds.values())
    rows = [
        [scope, phase, f"{1e3 * each:.1f} ms", f"{100 * each / total:.1f} %"]
        for (scope, phase), each in seconds.most_common()
    ]
    say(console, f"one step's time by scope, {total:.3g} s of events")
    print_table(console, ("scope", "pass", "time", "share"), rows)
    return dict(seconds)


def by_scope(folder: Path, program: str) -> Counter[tuple[str, str]]:
    """Return the seconds of a trace's events by (scope, phase), for the text of its program."""
    paths = {name: path for name, path in _NAMED.findall(program)}
    # A GPU's kernels are named like instructions, without what no symbol may hold.
    paths |= {re.sub(r"[.-]", "_", name): path for name, path in paths.items()}
    seconds: Counter[tuple[str, str]] = Counter()
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in paths and not event.name.startswith(_SPANS):
                        seconds[_scope(paths[event.name])] += event.duration_ns / 1e9
    if not seconds:
        raise InternalError("the profiler's trace holds no event of the train step")
    return seconds


def _scope(path: str) -> tuple[str, str]:
    """Return the innermost scope of an instruction, and the pass that it belongs to."""
    parts = re.split(r"[/()]", path)
    scope = next((scope for scope in SCOPES if scope in parts), "other")
    if "rematted_computation" in parts:
        return scope, "again"
    return scope, "backward" if "transpose" in parts and "jvp" in parts else "forward"
