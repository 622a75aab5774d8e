"""Measures a checkpoint by a probe, and keeps every row as soon as there is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cotjax.diagnostics.probe_rows import FOLDER, ProbeHeading, ProbeRow, read_probe
from cotjax.diagnostics.probes import PROBE_ROWS
from cotjax.errors import DataError, InternalError
from cotjax.probes.probe import Checkpoint, Probe
from cotjax.runtime.files import put_aside, write_atomic
from cotjax.runtime.members import arm_and_seed


def probe_path(run_folder: Path, probe: str, arm: str, step: int) -> Path:
    """Return the file of a checkpoint's rows."""
    return run_folder / FOLDER / probe / arm / f"{step}.jsonl"


def measure(
    probe: Probe,
    at: Checkpoint,
    run_folder: Path,
    games_hash: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Measure the states that have no row yet, and return how many the file has then.

    While states are measured the rows are in `<step>.part`, in the order in which they came. The
    finished file has them in the order of their states, so it has the same bytes however often
    measuring was interrupted. Rows under other settings, or of other weights, are set aside.

    `progress`: called with (rows done, rows in all).
    """
    path = probe_path(run_folder, probe.name, at.arm, at.step)
    arm, seed = arm_and_seed(at.arm)
    states = probe.states(at)
    heading = ProbeHeading(
        probe=probe.name,
        arm=arm,
        training_seed=seed,
        checkpoint=at.step,
        checkpoint_hash=at.digest,
        games_hash=games_hash,
        settings=json.loads(json.dumps(probe.settings(at.config))),
        states=len(states),
    )
    row = PROBE_ROWS[probe.name]
    if path.exists() and _rows(path, heading, row, at.say) is not None:
        return len(states)
    part = path.with_suffix(".part")
    rows = {each.key: each for each in _rows(part, heading, row, at.say) or ()}
    wanted = {state.key: state for state in states}
    left = [state for key, state in wanted.items() if key not in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not rows:
        write_atomic(part, heading.model_dump_json() + "\n")
    with part.open("a", encoding="utf-8") as file:
        for each in probe.measure(left, at):
            file.write(each.model_dump_json() + "\n")
            file.flush()
            rows[each.key] = each
            progress(len(rows), len(states))
    if missing := wanted.keys() - rows.keys():
        raise InternalError(f"probe {probe.name!r} gave no row for {min(missing)}")
    lines = (rows[key].model_dump_json() + "\n" for key in sorted(wanted))
    write_atomic(path, "".join((heading.model_dump_json() + "\n", *lines)))
    part.unlink()
    return len(states)


def _rows(
    path: Path, heading: ProbeHeading, row: type[ProbeRow], say: Callable[[str], None]
) -> list[ProbeRow] | None:
    """Return a file's rows; None where there are none that fit the heading."""
    if not path.exists():
        return None
    _drop_cut_line(path)
    try:
        found, rows = read_probe(path, row)
        fault = "" if found == heading else f"{path}: measured under other settings or weights"
    except DataError as error:
        fault, rows = str(error).partition(";")[0], []
    if fault:
        say(f"{fault}; set aside as {put_aside(path).name}, and measured again")
        return None
    return rows


def _drop_cut_line(path: Path) -> None:
    """Take off a last line that a killed process left without its end."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole and whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
