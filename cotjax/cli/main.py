"""The `cotjax` command: argument parsing, errors and exit codes.

Each command group has its own file in this folder. Heavy packages are imported inside each
command, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import os
import select
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cotjax.cli.autocoa import add_autocoa
from cotjax.cli.bench import add_bench
from cotjax.cli.data import add_data
from cotjax.cli.games import add_games
from cotjax.cli.mask import add_mask
from cotjax.cli.models import add_base, add_convert, add_plan, add_replay
from cotjax.cli.play import add_play
from cotjax.cli.results import add_export, add_view
from cotjax.cli.study import add_demo, add_stages
from cotjax.errors import CotjaxError, UsageError
from cotjax.runtime.compiled import keep_compiled
from cotjax.runtime.files import disk_errors, local_path
from cotjax.runtime.signals import (
    INTERRUPTED,
    caused_by_interrupt,
    resend_swallowed_signals,
    stop_at_sigterm,
)
from cotjax.runtime.terminal import visible

# Commands that run compiled programs, which the next start may reuse. `plan` compiles for other
# devices, and `bench` measures compilers and memory: both compile afresh.
_COMPILING = ("demo", "study", "train", "rl", "autocoa", "evaluate", "play", "replay")

_UNREAD = 141  # as a shell has it of a process that SIGPIPE ended

DESCRIPTION = """\
cotjax shows where the gains of chain-of-thought (CoT) training of agents land: in the prompt action
(decoded without reasoning) or in the CoT advantage (what reasoning adds).

  cotjax demo                        the whole study on this machine, from made games to report.html
  cotjax study --config FILE         the same for any config
  cotjax play --game PATH            play one game, or watch a checkpoint play it
  cotjax train|evaluate|report       its stages, one by one, on the same --config and --out
  cotjax rl --config FILE            train by reinforcement learning instead, with the same report
  cotjax autocoa --config FILE       teach one model when and how to search, stage by stage
  cotjax plan --config FILE          does it fit a TPU slice? compiled here, without one
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0    done
    1    the command's own answer is no (`plan`: it does not fit; `bench faults`: results differ),
         or an error that cotjax does not know: a traceback follows
    2    usage: a wrong argument, config or folder, or a missing package
    3    data: a file is malformed or missing, or the disk is full
    4    environment: it failed too often
    5    a bug in cotjax
    75   stopped by SIGTERM; the same command resumes
    130  interrupted by Ctrl-C; the same command resumes
    141  nobody reads its output any more, as behind `| head`; the same command resumes

    Whatever ends one process of several with a code other than 0 ends the others too.
    """
    _replace_unprintable()
    arguments = _parse(argv)
    _quiet_libraries()
    if arguments.command in _COMPILING and (warning := keep_compiled()):
        print(f"cotjax: {warning}", file=sys.stderr)
    try:
        with resend_swallowed_signals(), stop_at_sigterm(), disk_errors():
            _expand_paths(arguments)
            code = arguments.run(arguments) or 0
            sys.stdout.flush()
    except CotjaxError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        return _interrupted(str(interrupt))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "cotjax"):
            raise
        return _fail(
            f"this command needs the package {package!r}; "
            "install cotjax with all its dependencies (`pip install .`)",
            UsageError.exit_code,
        )
    except Exception as error:
        if caused_by_interrupt(error):
            return _interrupted()
        if isinstance(error, BrokenPipeError) and _unread():
            _stop_others("nobody reads its output", _UNREAD)
            return _UNREAD
        _stop_others(f"{type(error).__name__}: {error}", 1)
        raise
    if code:
        _stop_others(f"{arguments.command} ended with exit code {code}", code)
    return code


def entry_point() -> None:
    """Run the `cotjax` command and end the process with its exit code."""
    code = main()
    if code:
        # What failed may have left threads of libraries behind, such as reads of a checkpoint. An
        # interpreter that is torn down below them can crash, and then the exit code is lost. What
        # comes before that is done, in the interpreter's order: pools of processes end with their
        # threads, and without these nobody tells the processes that are waited for to end.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(0)


def _unread() -> bool:
    """Return whether the reader of standard output went away; what is left of it goes nowhere."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    unread = any(events & select.POLLERR for _, events in output.poll(0))
    if unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return unread


# ---- before a command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `overrides` holds the `--config.a.b=value` arguments, unprefixed."""
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    overrides = [item.removeprefix("--config.") for item in extra if item.startswith("--config.")]
    unknown = [item for item in extra if not item.startswith("--config.")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r} (see cotjax {arguments.command} --help)")
    arguments.overrides = overrides
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cotjax", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_demo(commands)
    add_stages(commands)
    add_autocoa(commands)
    add_games(commands)
    add_data(commands)
    add_mask(commands)
    add_play(
        commands.add_parser(
            "play", help="play a game in the terminal, or watch a checkpoint play it"
        )
    )
    add_base(commands)
    add_view(commands)
    add_export(commands)
    add_replay(commands)
    add_plan(commands)
    add_convert(commands)
    add_bench(commands)
    return parser


def _replace_unprintable() -> None:
    """Print a replacement for characters that the terminal's or log's encoding cannot represent."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _quiet_libraries() -> None:
    """Hide the libraries' information and warnings; errors are still printed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import logging

    for name in ("absl", "orbax", "jax", "tensorflow_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _expand_paths(arguments: argparse.Namespace) -> None:
    """Expand `~` and variables in every path argument. Raises UsageError for a URL."""
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, local_path(value))
        elif isinstance(value, list):
            paths = [local_path(item) if isinstance(item, Path) else item for item in value]
            setattr(arguments, name, paths)


# ---- ends other than success


def _fail(message: str, exit_code: int) -> int:
    print(f"cotjax: {visible(message)}", file=sys.stderr)
    _stop_others(message, exit_code)
    return exit_code


def _interrupted(message: str = "") -> int:
    print(
        f"cotjax: {message or 'interrupted; finished work is kept, and the same command resumes'}",
        file=sys.stderr,
    )
    _stop_others("interrupted", INTERRUPTED)
    return INTERRUPTED


def _stop_others(message: str, exit_code: int) -> None:
    """End the other processes of this run, if there are any: they would wait for this one."""
    if "cotjax.runtime.stopping" in sys.modules:
        sys.modules["cotjax.runtime.stopping"].stop_all(message, exit_code)
