"""Measure the tests by mutation: change the code in one place at a time, and run the tests.

    pip install cosmic-ray
    python tests/mutation.py statistics --sample 200 --jobs 2

cosmic-ray makes and runs the mutants, each in a copy of the checkout. Mutants without an effect are
left out: annotations, and those that tests/mutation_equivalent.toml lists with a reason.
tests/mutation.md says how to read the result.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = ROOT / "tests" / "mutation_equivalent.toml"
# Room -> (modules to mutate, tests that should fail).
ROOMS = {
    "masking": ("cotjax/masking", "tests/masking"),
    "objectives": (
        "cotjax/objectives/supervised.py cotjax/objectives/cross_entropy.py "
        "cotjax/objectives/chunks.py cotjax/objectives/weighted.py cotjax/train/optim.py",
        "tests/objectives tests/train/test_optim.py",
    ),
    "packing": (
        "cotjax/data/packing.py cotjax/data/pipeline.py",
        "tests/data/test_packing_plan.py tests/data/test_pipeline.py",
    ),
    "sampler": ("cotjax/sample", "tests/sample"),
    "statistics": ("cotjax/diagnostics/statistics.py", "tests/diagnostics/test_statistics.py"),
    "crossed": ("cotjax/diagnostics/crossed.py", "tests/diagnostics/test_statistics.py"),
    "family": ("cotjax/report/family.py", "tests/report/test_family.py"),
    "share": ("cotjax/diagnostics/share.py", "tests/diagnostics/test_share.py"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument(
        "--sample", type=int, default=0, help="mutants to run, drawn at random (default 0: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default 1)")
    arguments = parser.parse_args()
    if shutil.which("cosmic-ray") is None:
        sys.exit("mutation.py: cosmic-ray is not here; pip install cosmic-ray")
    with tempfile.TemporaryDirectory(prefix="cotjax-mutation-") as scratch:
        copies = [_copy(Path(scratch) / str(number)) for number in range(arguments.jobs)]
        modules, tests = (words.split() for words in ROOMS[arguments.room])
        started = time.monotonic()
        if subprocess.run(_pytest(tests), cwd=copies[0]).returncode:
            sys.exit("mutation.py: the tests fail without a mutant; fix them first")
        timeout = 60 + 5 * (time.monotonic() - started)
        chosen = _chosen(copies[0], modules, tests, timeout, arguments.sample, arguments.seed)
        shares = [chosen[number :: arguments.jobs] for number in range(arguments.jobs)]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            rows = pool.map(
                lambda copy, share: _run(copy, share, modules, tests, timeout), copies, shares
            )
            results = [result for share in rows for result in share]
    return _report(arguments.room, results)


def _copy(folder: Path) -> Path:
    """Copy the tracked files of this checkout in their present state."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _pytest(tests: list[str]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--durations=0",
        "-m",
        "not slow",
        *tests,
    ]


def _session(copy: Path, modules: list[str], tests: list[str], timeout: float) -> Path:
    """Return a cosmic-ray session of all mutants of the modules."""
    config = copy / "mutation.toml"
    command = json.dumps(" ".join(f"'{word}'" for word in _pytest(tests)))
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {json.dumps(modules)}\ntimeout = {timeout:.1f}\n"
        "excluded-modules = []\n"
        f'test-command = {command}\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    session = copy / "mutation.sqlite"
    session.unlink(missing_ok=True)
    subprocess.run(["cosmic-ray", "init", config.name, session.name], cwd=copy, check=True)
    return session


def _chosen(
    copy: Path, modules: list[str], tests: list[str], timeout: float, sample: int, seed: int
) -> list[tuple]:
    """Return (module, operator, occurrence) of the mutants to run, in a random order."""
    with closing(connect(_session(copy, modules, tests, timeout))) as session:
        rows = session.execute(
            "select module_path, operator_name, occurrence, start_pos_row, start_pos_col "
            "from mutation_specs"
        ).fetchall()
    annotated = {module: _annotations(copy / module) for module in {row[0] for row in rows}}
    found = sorted(
        tuple(row[:3]) for row in rows if not any(a <= row[3:] < b for a, b in annotated[row[0]])
    )
    random.Random(seed).shuffle(found)
    print(
        f"{len(found)} mutants" + (f", of which {sample} are drawn" if sample else ""), flush=True
    )
    return found[: sample or None]


def _annotations(module: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return (start, end) of every annotation as (line, column).

    With `from __future__ import annotations` they have no effect.
    """
    parts = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        parts += [getattr(node, name, None) for name in ("annotation", "returns")]
    return [
        ((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset))
        for part in parts
        if part is not None
    ]


def _run(
    copy: Path, share: list[tuple], modules: list[str], tests: list[str], timeout: float
) -> list[tuple[str, str]]:
    """Run a share of the mutants; return (outcome, diff) of each."""
    file = _session(copy, modules, tests, timeout)
    with closing(connect(file)) as session:
        wanted = set(share)
        rows = session.execute(
            "select job_id, module_path, operator_name, occurrence from mutation_specs"
        ).fetchall()
        drop = [(row[0],) for row in rows if tuple(row[1:]) not in wanted]
        session.executemany("delete from mutation_specs where job_id = ?", drop)
        session.executemany("delete from work_items where job_id = ?", drop)
        session.commit()
    subprocess.run(["cosmic-ray", "exec", "mutation.toml", file.name], cwd=copy, check=True)
    with closing(connect(file)) as session:
        return session.execute("select test_outcome, diff from work_results").fetchall()


def _change(diff: str) -> tuple[str, str]:
    """Return the removed and the added text of a diff, as one line each."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    return tuple(
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )


def _report(room: str, results: list[tuple[str, str]]) -> int:
    known = [
        tuple(entry[name] for name in ("line", "becomes"))
        for entry in tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    ]
    survivors = [diff for outcome, diff in results if outcome == "SURVIVED"]
    changes = [_change(diff) for diff in survivors]
    alive = [diff for diff, change in zip(survivors, changes, strict=True) if change not in known]
    counted = len(results) - (len(survivors) - len(alive))
    for diff in alive:
        print("\n".join(diff.splitlines()[1:]), flush=True)
    killed = counted - len(alive)
    share = f"{killed} of {counted} mutants killed ({killed / max(counted, 1):.1%})"
    print(f"{room}: {share}; {len(survivors) - len(alive)} equivalent left out")
    return 0 if killed >= 0.9 * counted else 1


if __name__ == "__main__":
    sys.exit(main())
