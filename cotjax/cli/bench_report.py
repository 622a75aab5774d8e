"""`cotjax bench viewer` and `cotjax bench coverage`: measurements of what a report shows."""

from __future__ import annotations

import argparse

from cotjax.errors import UsageError


def add_report_bench(bench: argparse._SubParsersAction) -> None:
    """Add the two to the subcommands of `bench`."""
    viewer = bench.add_parser(
        "viewer", help="the viewer of made-up episodes: how long it takes to make and to open"
    )
    viewer.add_argument(
        "--episodes", type=int, default=5000, help="number of episodes (default 5000)"
    )
    viewer.add_argument(
        "--repeats", type=int, default=3, help="how often the page is opened (default 3)"
    )
    viewer.set_defaults(run=_viewer)
    _add_coverage(
        bench.add_parser(
            "coverage",
            help="the report's intervals: how often they hold the truth in simulated studies",
        )
    )


def _viewer(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from cotjax.bench.viewer import measure

    measure(arguments.episodes, arguments.repeats, Console(highlight=False))


def _add_coverage(coverage: argparse.ArgumentParser) -> None:
    coverage.add_argument(
        "--studies", type=int, default=1000, help="simulated studies a row (default 1000)"
    )
    coverage.add_argument(
        "--rules", action="store_true", help="compare rules for games and seeds instead"
    )
    coverage.set_defaults(run=_coverage)


def _coverage(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from cotjax.bench import coverage

    if arguments.studies < 1:
        raise UsageError(f"--studies is {arguments.studies}; it must be at least 1")
    print_rows = coverage.print_rules if arguments.rules else coverage.print_coverage
    print_rows(arguments.studies, Console().print)
