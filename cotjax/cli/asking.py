"""What `cotjax study` and `report` say of a config or a finished run, without running anything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cotjax.errors import DataError


def check_run(run: Path) -> int:
    """Check a run's report against its records; return the exit code."""
    from cotjax.check.main import check
    from cotjax.runtime.archive import unpacked
    from cotjax.runtime.terminal import visible

    with unpacked(run) as folder:
        return 0 if check(folder, lambda line: print(visible(line))) else 1


def print_power(arguments: argparse.Namespace) -> None:
    """Print a config's hash, and what a study of its size can find."""
    from cotjax.config import load_config
    from cotjax.runtime.claim import protocol_hash
    from cotjax.study.power import power_of, power_text

    config = load_config(arguments.config, arguments.overrides)
    print(f"hash of the config: {protocol_hash(json.loads(config.to_json_best_effort()))}")
    for power in power_of(config, studies=400):
        print(power_text(config, power))


def print_parts(arguments: argparse.Namespace) -> None:
    """Print the parts of a config's study."""
    from cotjax.config import load_config
    from cotjax.study.parts import parts_of

    for part in parts_of(load_config(arguments.config, arguments.overrides)):
        print(",".join(part))


def print_tables(run: Path) -> None:
    """Print the main numbers of a run, or of its archive, as tables in Markdown."""
    from cotjax.report.published import published_tables
    from cotjax.runtime.archive import read_text

    text = read_text(run, "summary.json")
    try:
        print(published_tables(json.loads(text)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run}: summary.json is of another version ({type(error).__name__}: {error}); "
            "write it with `cotjax report`"
        ) from None
