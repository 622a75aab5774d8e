"""Several real processes over loopback find each other, take turns, and stop together."""

import socket
import time
from pathlib import Path

import pytest
from helpers.processes import ended, free_address, run_together, start_process

from cotjax.errors import UsageError
from cotjax.runtime import distributed
from cotjax.runtime.joining import check, join
from cotjax.runtime.stopping import stop_all

CONFIG = Path(__file__).parents[2] / "configs" / "base.py"


def train_together(configs, tmp_path, *arguments):
    """`cotjax train` of one process a config."""
    hosts = [
        "--coordinator",
        free_address(),
        "--processes",
        len(configs),
        "--out",
        tmp_path / "run",
        *arguments,
        "--process-id",
    ]
    commands = [
        ["-m", "cotjax.cli", "train", "--config", config, *hosts, process]
        for process, config in enumerate(configs)
    ]
    return ended([start_process(command, devices=None) for command in commands])


def together(scene, tmp_path, count=2, **more):
    return run_together("helpers/together.py", count, scene, tmp_path, **more)


def test_every_mesh_gets_its_batch(tmp_path):
    results = together("arrays", tmp_path, devices=2)
    assert [code for code, _, _ in results] == [0, 0], results
    out = results[0][1]
    assert out.count("of 2 on ") == 2 and ": 2 x cpu" in out and "rows 4" in out
    assert "of 2 on" not in results[1][1], "process 0 alone tells"


def test_process_0_goes_first_and_all_meet(tmp_path):
    results = together("turns", tmp_path)
    assert [code for code, _, _ in results] == [0, 0], results


@pytest.mark.parametrize(
    ("scene", "failed", "words"),
    [("fails", 0, "the disk is full"), ("last_fails", 1, "host z has no memory left")],
)
def test_when_one_fails_all_stop_and_say_why(scene, failed, words, tmp_path):
    started = time.monotonic()
    results = together(scene, tmp_path)
    assert [code for code, _, _ in results] == [2, 2], results
    assert f"cotjax: {words}\n" in results[failed][2]
    other = results[1 - failed][2]
    assert (
        f"cotjax: process {failed} on " in other
        and f" stopped: {words}\n" in other
        and "Traceback" not in other
    )
    assert time.monotonic() - started < 55, "the others did not wait"


def test_a_folder_that_is_not_shared_is_named(tmp_path):
    results = together("folders", tmp_path)
    assert [code for code, _, _ in results] == [2, 2], results
    assert (
        f"{tmp_path / '1'}: host " in results[1][2]
        and "file system that all hosts share" in results[1][2]
    )
    assert not list(tmp_path.glob(".seen*")), "nothing of the check stays"


def test_processes_with_different_configs_do_not_start(tmp_path):
    results = together("configs", tmp_path)
    assert [code for code, _, _ in results] == [2, 2], results
    assert "config: train.steps is 6 on host" in results[1][2] and "5 in process 0" in results[1][2]


def test_a_process_that_cannot_read_the_config_stops_all(tmp_path):
    """Through the command line, before any device is made: the others do not wait for it."""
    missing = tmp_path / "none.py"
    results = train_together([CONFIG, missing], tmp_path)
    assert [code for code, _, _ in results] == [2, 2], results
    assert (
        f"cotjax: process 1 on {socket.gethostname()} stopped: {missing}: no such config file"
        in results[0][2]
    )


def test_each_process_splits_its_cpu_as_the_config_has_it(tmp_path):
    results = train_together([CONFIG, CONFIG], tmp_path, "--config.cpu_devices=2", "--devices", 5)
    assert [code for code, _, _ in results] == [2, 2], results
    assert "cotjax: --devices is 5, but the 2 processes have 4" in results[0][2]


def test_when_one_dies_the_others_end_and_say_so(tmp_path):
    started = time.monotonic()
    results = together("dies", tmp_path)
    assert results[1][0] == -9 and results[0][0] != 0, results
    assert "The following tasks are unhealthy" in results[0][2]
    assert time.monotonic() - started < 120


START = """
import sys
from cotjax.runtime import distributed
from cotjax.runtime.joining import check, join
from cotjax.errors import CotjaxError
try:
    join(*{}, timeout_s={})
except CotjaxError as error:
    sys.exit(f"cotjax: {{error}}")
"""


def test_processes_that_do_not_meet_say_what_to_look_at():
    """Process 1 where nobody is, and process 0 to which nobody comes."""
    nobody, alone = free_address(), free_address()
    started = [
        start_process(["-c", START.format(call, 2)]) for call in ((nobody, 3, 1), (alone, 3, 0))
    ]
    results = ended(started)
    assert [code for code, _, _ in results] == [2, 2], results
    for (_, _, error), words in zip(
        results,
        (
            f"process 1 cannot reach process 0 at {nobody} in 2 s",
            f"not all of the 3 processes have come to {alone} in 2 s",
        ),
        strict=True,
    ):
        lines = [line for line in error.splitlines() if line.startswith("cotjax: ")]
        assert len(lines) == 1 and words in lines[0] and "the network" in lines[0], error
        assert "Traceback" not in error and "stack trace" not in error


def test_slurm_tasks_find_each_other():
    """With the variables that srun sets; jax reads them."""
    port = free_address().rpartition(":")[2]
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": port,
    }
    code = (
        START.format((), 60) + "check(devices=2)\nprint(distributed.count(), distributed.first())"
    )
    results = ended(
        [
            start_process(["-c", code], SLURM_PROCID=str(task), SLURM_LOCALID=str(task), **step)
            for task in range(2)
        ]
    )
    assert [code for code, _, _ in results] == [0, 0], results
    assert [out.splitlines()[-1] for _, out, _ in results] == ["2 True", "2 False"]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (("10.0.0.1:8476", None, None), "--processes is missing"),
        ((None, 2, 0), "--coordinator is missing"),
        (("10.0.0.1", 2, 0), "host and a free port"),
        (("10.0.0.1:8476", 2, 2), "--process-id is 2 of --processes 2"),
    ],
)
def test_addresses_that_cannot_be_are_refused(named, words):
    with pytest.raises(UsageError, match=words):
        join(*named)


def test_one_process_is_all_there_is(tmp_path):
    join()
    check(devices=1)
    with pytest.raises(UsageError, match="--devices is 4, but 1 are there"):
        check(devices=4)
    with distributed.in_turn("alone"):
        distributed.barrier("alone")
    distributed.check_folder(tmp_path)
    stop_all("nobody is told", 1)
    assert (
        distributed.first()
        and distributed.count() == 1
        and distributed.share(5)
        and not list(tmp_path.iterdir())
    )
