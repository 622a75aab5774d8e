"""The command line's exit codes: every one is documented, and every failure ends all processes."""

import io
import os
import re
import subprocess
import sys

import pytest

from cotjax import errors
from cotjax.cli.main import main
from cotjax.runtime import stopping


@pytest.fixture
def stopped(monkeypatch):
    """What the other processes of the run are told."""
    told = []
    monkeypatch.setattr(stopping, "stop_all", lambda message, code: told.append((message, code)))
    return told


def _kinds(kind=errors.CotjaxError):
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def test_the_docstring_of_main_names_every_exit_code():
    documented = {int(code) for code in re.findall(r"^    (\d+) ", main.__doc__, re.MULTILINE)}
    assert documented == {0, 1, 130, 141, *(kind.exit_code for kind in _kinds())}


def test_a_command_whose_answer_is_no_ends_the_other_processes_too(monkeypatch, stopped):
    monkeypatch.setattr("cotjax.bench.faults.benchmark", lambda *arguments: False)
    assert main(["bench", "faults"]) == 1
    assert stopped == [("bench ended with exit code 1", 1)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("no"), 2),
        (errors.DataError("no"), 3),
        (errors.EnvError("no"), 4),
        (errors.InternalError("no"), 5),
        (errors.Stopped("no"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_ends_all_processes_with_its_code(monkeypatch, stopped, capsys, error, code):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("cotjax.bench.faults.benchmark", fail)
    assert main(["bench", "faults"]) == code
    assert [stop[1] for stop in stopped] == [code]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("cotjax: ")


def test_an_unknown_error_is_a_traceback_and_ends_all_processes(monkeypatch, stopped):
    def fail(*arguments):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("cotjax.bench.faults.benchmark", fail)
    with pytest.raises(ZeroDivisionError):
        main(["bench", "faults"])
    assert stopped == [("ZeroDivisionError: division by zero", 1)]


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize("flush", [True, False])
def test_output_that_nobody_reads_ends_without_a_traceback(
    monkeypatch, stopped, capsys, flush, unbuffered
):
    """Unbuffered, as PYTHONUNBUFFERED has it, nothing is left to be written when it is noticed."""
    read, write = os.pipe()
    os.close(read)
    with io.TextIOWrapper(
        open(write, "wb", buffering=0 if unbuffered else -1), write_through=unbuffered
    ) as unread:
        monkeypatch.setattr("sys.stdout", unread)
        monkeypatch.setattr("cotjax.bench.faults.benchmark", lambda *_: print("a", flush=flush))
        assert main(["bench", "faults"]) == 141
    assert stopped == [("nobody reads its output", 141)]
    assert capsys.readouterr().err == ""


def test_another_broken_pipe_is_an_unknown_error(monkeypatch, stopped):
    def fail(*arguments):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr("cotjax.bench.faults.benchmark", fail)
    with pytest.raises(BrokenPipeError):
        main(["bench", "faults"])


_LEAVES_A_POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from cotjax.cli import main as cli

def main():
    global pool
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    return 75 - (pool.submit(abs, -2).result() - 2)

cli.main = main
cli.entry_point()
"""


def test_a_pool_of_processes_that_was_left_behind_ends_with_the_command():
    assert subprocess.run([sys.executable, "-c", _LEAVES_A_POOL], timeout=120).returncode == 75
