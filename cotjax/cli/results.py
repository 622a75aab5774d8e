"""`cotjax view` and `export`: what a run left, for a browser, other tools, or other stacks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cotjax.errors import UsageError

_RUN_HELP = "a run's folder, e.g. runs/demo"


def add_view(commands: Any) -> None:
    """Add `view` to the commands of the parser."""
    view = commands.add_parser(
        "view",
        help="write the viewer of one or more runs: every episode, step by step",
        description="Write the viewer of the records of one or more runs, a folder that opens in a "
        "browser without a server. `cotjax report` writes that of its own run too.",
    )
    view.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=_RUN_HELP)
    view.add_argument(
        "--out", type=Path, help="folder to write (default: viewer/ in the folder of the first run)"
    )
    view.set_defaults(run=_view)


def add_export(commands: Any) -> None:
    """Add `export` and its subcommands to the commands of the parser."""
    export = commands.add_parser(
        "export",
        help="write a checkpoint for other stacks, or a run's episodes for other tools",
        description="Without a subcommand: write a checkpoint as a Hugging Face folder (LoRA "
        "merged), or its adapters as PEFT's.",
    )
    # Of a checkpoint. The subcommands have no use for them, so none is required here.
    export.add_argument("--run", dest="run_folder", type=Path, help=_RUN_HELP)
    export.add_argument("--arm", help="arm to export, e.g. sft")
    export.add_argument("--step", type=int, help="checkpoint (default: the last)")
    export.add_argument("--out", type=Path, help="folder to write")
    export.add_argument(
        "--adapter", action="store_true", help="write only the LoRA adapters, for PEFT"
    )
    export.set_defaults(run=_export)
    kinds = export.add_subparsers(dest="what", metavar="inspect|tables|archive")
    for name, run, text in (
        ("inspect", _export_inspect, "write the episodes as logs that `inspect view` opens"),
        ("tables", _export_tables, "write the episodes as tidy tables, in CSV and Parquet"),
        (
            "archive",
            _export_archive,
            "write records and the report's numbers in one small file",
        ),
    ):
        kind = kinds.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        kind.add_argument("run_folder", metavar="RUN", type=Path, help=_RUN_HELP)
        written = (
            "file to write, *.tar.xz" if name == "archive" else "folder to write; new or empty"
        )
        kind.add_argument("--out", required=True, type=Path, help=written)
        kind.set_defaults(run=run)


def _view(arguments: argparse.Namespace) -> None:
    from cotjax.report.viewer.make import FOLDER, make_viewer

    viewer = make_viewer(arguments.runs, arguments.out or arguments.runs[0] / FOLDER)
    print(
        f"{viewer.episodes:,} episodes, {viewer.data_bytes / 1e6:.1f} MB of data: "
        f"{viewer.index.resolve()}"
    )


def _export(arguments: argparse.Namespace) -> None:
    for name, option in (("run_folder", "--run"), ("arm", "--arm"), ("out", "--out")):
        if getattr(arguments, name) is None:
            raise UsageError(f"export needs {option}; or name what to export: inspect, tables")
    from cotjax.study.export import export

    step = export(
        arguments.run_folder, arguments.arm, arguments.step, arguments.out, arguments.adapter
    )
    print(f"{arguments.arm} at step {step}: {arguments.out}")


def _export_inspect(arguments: argparse.Namespace) -> None:
    from cotjax.report.exports.inspect_logs import export_inspect

    logs = export_inspect(arguments.run_folder, arguments.out)
    print(f"{len(logs)} logs: {arguments.out}; inspect view --log-dir {arguments.out}")


def _export_tables(arguments: argparse.Namespace) -> None:
    from cotjax.report.exports.tables import export_tables

    written = export_tables(arguments.run_folder, arguments.out)
    for name, rows in written.rows.items():
        print(f"{name}: {rows:,} rows")
    print(f"Tables: {arguments.out}{'' if written.parquet else ' (CSV alone: no pyarrow here)'}")


def _export_archive(arguments: argparse.Namespace) -> None:
    from cotjax.report.exports.archive import export_archive

    number = export_archive(arguments.run_folder, arguments.out)
    size = arguments.out.stat().st_size
    print(f"{number:,} records, {size / 1e6:.1f} MB: {arguments.out}")
