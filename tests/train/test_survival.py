"""A run that is stopped, killed or damaged resumes to the same result, or ends with a reason."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.training import assert_same, make_source, params_at, rows, run

from cotjax.data.pipeline import batches, dropped_weights
from cotjax.errors import DataError, Stopped, UsageError
from cotjax.masking import Dropping
from cotjax.train.replay import replay

HERE = Path(__file__).parent
DROPPING = Dropping.of(fraction=0.4, redraw=True)
CHANGES = {"steps": 6, "save_every": 2, "row_length": 96, "batch": 4, "warmup": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    said = []
    run(folder, source, dropping=DROPPING, say=said.append, **CHANGES)
    memory, loop = said
    assert "a step needs" in memory
    assert "saving blocked" in loop and "input wait" in loop
    return folder


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_been(tmp_path):
    """Real processes, real SIGKILL: while it starts, compiles, steps, saves and ends."""
    places = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "killed.py"), str(tmp_path), "12", "0"]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": places}
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert len(told["kills"]) >= 12
    undisturbed, *killed = map(Path, told["runs"])
    for folder in killed:
        assert_same(folder, undisturbed, 9)
        assert not list(folder.rglob("*.partial")) or all(
            path.name.startswith(".") for path in folder.rglob("*.partial")
        )


@pytest.mark.parametrize(
    ("number", "raised", "words"),
    [
        (signal.SIGTERM, Stopped, "stopped by SIGTERM"),
        (signal.SIGINT, KeyboardInterrupt, "interrupted"),
    ],
)
def test_a_signal_saves_the_step_and_the_same_command_goes_on(
    whole, source, tmp_path, number, raised, words
):
    """In step 3, where no checkpoint is planned: it is saved, and deleted when the run is done."""
    before = signal.getsignal(number)

    def interrupt(step, steps, row):
        if step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(
        raised, match=rf"{words} after step 3 of 6, which is saved; the same command resumes"
    ) as stopped:
        run(tmp_path, source, dropping=DROPPING, report=interrupt, **CHANGES)
    assert raised is KeyboardInterrupt or stopped.value.exit_code == 75
    assert signal.getsignal(number) is before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0", "2", "3"]
    assert len(rows(tmp_path)) == 3
    run(tmp_path, source, dropping=DROPPING, **CHANGES)
    assert_same(tmp_path, whole, 6)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_in_the_last_step_is_not_lost(whole, source, tmp_path, number, raised):
    """What comes behind training is not begun."""

    def interrupt(step, steps, row):
        if step == 6:
            os.kill(os.getpid(), number)

    with pytest.raises(raised, match="after step 6 of 6, which is saved"):
        run(tmp_path, source, dropping=DROPPING, report=interrupt, **CHANGES)
    assert_same(tmp_path, whole, 6)


def test_a_second_interrupt_does_not_wait_for_the_step(whole, source, tmp_path):
    def interrupt(step, steps, row):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path, source, dropping=DROPPING, report=interrupt, **CHANGES)
    assert "is saved" not in str(stopped.value)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0", "2"]
    run(tmp_path, source, dropping=DROPPING, **CHANGES)
    assert_same(tmp_path, whole, 6)


def test_a_damaged_checkpoint_is_made_again(whole, source, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    largest = max(
        (tmp_path / "checkpoints" / "6").rglob("*"),
        key=lambda path: path.stat().st_size * path.is_file(),
    )
    os.truncate(largest, 100)
    warned = []
    run(tmp_path, source, dropping=DROPPING, warn=warned.append, **CHANGES)
    assert (
        len(warned) == 1
        and str(tmp_path / "checkpoints" / "6") in warned[0]
        and largest.name in warned[0]
    )
    (aside,) = (tmp_path / "checkpoints").glob("*.damaged-*")
    assert aside.name == "6.damaged-1"
    shutil.rmtree(aside)
    assert_same(tmp_path, whole, 6)


def test_a_checkpoint_tells_what_made_it(whole):
    run_item = json.loads(
        next(path for path in (whole / "checkpoints" / "4" / "run").rglob("metadata")).read_text()
    )
    assert (run_item["step"], run_item["seed"], run_item["masking"]["fraction"]) == (4, 3, 0.4)
    assert run_item["versions"]["jax"] == jax.__version__
    assert run_item["git"] is None or len(run_item["git"].removesuffix("-dirty")) == 40
    assert {"iterator", "config", "train", "model"} <= run_item.keys()


def test_what_only_looks_on_may_change_and_what_counts_may_not(whole, source, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    run(tmp_path, source, dropping=DROPPING, **CHANGES | {"keep_last": 1})
    with pytest.raises(UsageError, match=r"train\.b2 is"):
        run(tmp_path, source, dropping=DROPPING, **CHANGES | {"b2": 0.5})


def test_the_logged_learning_rate_is_that_of_the_update(source, tmp_path):
    """Adam's first update moves a parameter by the learning rate, whatever its gradient."""
    checkpoints = run(
        tmp_path,
        source,
        **CHANGES
        | {"steps": 2, "save_every": 1, "warmup": 0, "schedule": "linear", "clip_norm": 0.0},
    )
    first, second = rows(tmp_path)
    assert second["learning_rate"] < 0.6 * first["learning_rate"]
    leaves = [jax.tree.leaves(params_at(checkpoints, step)) for step in (0, 1)]
    moved = max(np.abs(after - before).max() for before, after in zip(*leaves, strict=True))
    assert moved == pytest.approx(first["learning_rate"], rel=1e-3)


def test_rows_that_are_lost_are_not_made_up(whole, source, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(DataError, match=r"metrics\.jsonl: does not hold the rows of steps 1 to 6"):
        run(tmp_path, source, dropping=DROPPING, **CHANGES)


def test_a_loss_that_is_not_finite_stops_and_can_be_looked_into(source, tmp_path, capsys):
    arm = tmp_path / "arms" / "sft"
    with pytest.raises(
        DataError, match=r"step (\d+): the (loss|gradient's norm) is (nan|inf).*cotjax replay"
    ) as stopped:
        run(
            arm,
            source,
            learning_rate=1e30,
            clip_norm=0.0,
            schedule="constant",
            **CHANGES | {"warmup": 0},
        )
    step = int(str(stopped.value).split(":")[0].removeprefix("step "))
    failed = arm / "failed" / f"step-{step:06d}"
    assert f"cotjax replay {failed}" in str(stopped.value)
    assert [row["step"] for row in rows(arm)] == list(range(1, step))
    assert all(int(path.name) < step for path in (arm / "checkpoints").iterdir()), (
        "its parameters are not kept"
    )
    told = json.loads((failed / "about.json").read_text())
    assert (told["step"], told["seed"]) == (step, 3) and told["checkpoint"] < step
    found = replay(failed, None)
    shown = capsys.readouterr().out
    assert (
        f"Step {step} failed" in shown and "ACTION" in shown and "model.layers.0.self_attn" in shown
    )
    assert found.losses_BT.shape == (4, 96) and found.wrong_params == ()
    # A batch that is wrong by itself is found by row and token.
    with np.load(failed / "batch-0.npz") as batch:
        batch = dict(batch)
    place = tuple(np.argwhere(batch["weights"] > 0)[0])
    batch["weights"][place] = np.inf
    np.savez(failed / "batch-0.npz", **batch)
    replay(failed, 0)
    shown = capsys.readouterr().out
    assert (
        f"row {place[0]}: not finite at {place[1]} (" in shown
        and "own weights is not finite" in shown
    )
    (failed / "batch-0.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="not the complete folder of a failed step"):
        replay(failed, None)


def test_dropped_counts_are_those_of_the_draws(source):
    """Counted again one by one from the batch."""
    batch = next(iter(batches(source, row_length=96, batch=4, dropping=DROPPING, seed=3)))
    lost = {
        (row, place)
        for row in range(4)
        for place in range(96)
        if batch["weights"][row, place] > 0 and batch["draws"][row, place] < np.float32(0.4)
    }
    turns = {
        (row, batch["segment_ids"][row, place], batch["branches"][row, place])
        for row, place in lost
    }
    assert len(turns) > 1
    counted = [
        [
            len([one for one in found if one[0] == row])
            for found in (lost, turns, {turn[:2] for turn in turns})
        ]
        for row in range(4)
    ]
    assert dropped_weights(batch, 0.4)["dropped"].tolist() == counted
    assert not dropped_weights(batch, 0.0)["dropped"].any()


def test_tensorboard_has_every_row_once(source, whole, tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    run(
        tmp_path,
        source,
        dropping=DROPPING,
        tensorboard=True,
        profile_start=5,
        profile_steps=1,
        **CHANGES,
    )
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, losses = file.read_bytes(), {}
    while data:  # a record: length (8), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        losses.update(
            (event.step, value.simple_value) for value in event.summary.value if value.tag == "loss"
        )
    assert losses == {row["step"]: pytest.approx(row["loss"]) for row in rows(tmp_path)[4:]}
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_wandb_takes_rows_without_a_network(source, whole, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    run(tmp_path, source, dropping=DROPPING, wandb_project="cotjax-test", **CHANGES)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_tracker_that_is_not_installed_says_what_to_install(source, tmp_path):
    import importlib.util

    missing = [
        (field, name)
        for field, name in (("tensorboard", "tensorboardX"), ("wandb_project", "wandb"))
        if not importlib.util.find_spec(name)
    ]
    if not missing:
        pytest.skip("both trackers are installed")
    for field, name in missing:
        with pytest.raises(UsageError, match=f"train.{field} needs {name}.*pip install {name}"):
            run(tmp_path / name, source, **{field: True if field == "tensorboard" else "p"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep_last": -1}, "train.keep_last is -1"),
        ({"keep_every": 2}, "train.keep_last is 0, which keeps all"),
        ({"profile_steps": -1}, "train.profile_steps is -1"),
        (
            {"profile_steps": 2, "profile_start": 7},
            r"train.profile_start is 7; it must be a step, from 1 to train.steps \(6\)",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(source, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        run(tmp_path, source, **CHANGES | changes)


TWO = """
import os, signal, sys, time
import jax
me = int(sys.argv[1])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=me)
from cotjax.train.stop import StopRequest
with StopRequest() as stop:
    stop.stepping = True
    for step in range(1, 400):
        time.sleep(0.02 * (1 + me))
        if step == 5 and me == 1:
            os.kill(os.getpid(), int(sys.argv[3]))
        if stop.at(step):
            print("stopped", step, flush=True)
            break
jax.distributed.shutdown()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_at_the_same_step(number):
    """Only one of them is sent the signal, and they are at different steps when it comes."""
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    commands = [[sys.executable, "-c", TWO, str(me), str(port), str(int(number))] for me in (0, 1)]
    each = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        outs = [process.communicate(timeout=120) for process in each]
    finally:
        for process in each:
            process.kill()
    found = [out.splitlines() for out, _ in outs]
    assert found[0] == found[1] and found[0][0].startswith("stopped "), outs
    assert int(found[0][0].split()[1]) > 5
