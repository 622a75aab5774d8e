"""`cotjax bench train` at a tiny size, with real processes and real steps."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import tiny
from rich.console import Console

from cotjax.bench.jobs import TrainJob
from cotjax.bench.sides import Side
from cotjax.bench.train import Settings, benchmark, check_agreement
from cotjax.cli.main import main
from cotjax.errors import CotjaxError, UsageError

BATCH, LENGTH = 4, 64


@pytest.mark.slow
def test_alone(model_folder, capsys):
    arguments = [
        "bench",
        "train",
        "--model",
        str(model_folder),
        "--batch",
        "4",
        "--length",
        "64",
        "--rounds",
        "2",
        "--steps",
        "2",
        "--remat",
        "auto",
    ]
    assert main([*arguments, "--accumulate", "2", "--lora-rank", "2"]) == 0
    printed = capsys.readouterr().out
    assert "remat dots" in printed, "on a CPU the least, where memory is enough"
    assert "4 rows of 64 tokens, float32, LoRA of rank 2" in printed
    assert "times as fast" not in printed


@pytest.mark.slow
def test_beside_transformers(model_folder, capsys):
    pytest.importorskip("torch")
    console = Console(width=200)
    settings = Settings(
        str(model_folder),
        batch=BATCH,
        length=LENGTH,
        accumulate=2,
        peers=("eager",),
        steps=2,
        rounds=2,
    )
    figures = benchmark(settings, console)
    ours, theirs = figures["cotjax"], figures["transformers, eager"]
    assert theirs["ratio"] == pytest.approx(theirs["step_s"] / ours["step_s"])
    assert theirs["ratio_low"] <= theirs["ratio_high"]
    assert ours["tokens/s"] == pytest.approx(BATCH * LENGTH / ours["step_s"])
    assert 0 < ours["best_s"] <= ours["step_s"]
    assert "mfu" not in ours  # a CPU's peak is unknown
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        f"cotjax is {theirs['ratio']:.2f} times as fast as transformers, eager (rounds "
    )


@pytest.mark.slow
def test_sides_that_train_different_models_are_not_compared(tmp_path):
    pytest.importorskip("torch")
    job = TrainJob(
        model=asdict(tiny.model_config()),
        batch=BATCH,
        length=LENGTH,
        weights=str(tmp_path / "weights"),
    )
    ours = Side(job, tmp_path)
    try:
        config_file = tmp_path / "weights" / "config.json"
        config = json.loads(config_file.read_text())
        config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 100.0
        config_file.write_text(json.dumps(config))
        other = Side(replace(job, side="eager"), tmp_path)
        other.close()
        with pytest.raises(CotjaxError, match="do not train the same model: after 0 updates"):
            check_agreement(ours, other, "float32")
    finally:
        ours.close()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"batch": 0}, "--batch is 0"),
        ({"length": 513}, "positions end at 512"),
        ({"batch": 3, "accumulate": 2}, "multiple of --accumulate"),
        ({"peers": ("eager",), "mesh": (1, 2, 1)}, "one device"),
        ({"peers": ("eager",), "lora_rank": 2}, "leave out --peer"),
        ({"lora_rank": -1}, "the rank is -1"),
        ({"mesh": (1, 3, 1)}, "3 devices, but"),  # found by the worker
    ],
)
def test_settings_that_do_not_fit_are_refused(model_folder, wrong, named):
    with pytest.raises(UsageError, match=named):
        benchmark(Settings(str(model_folder), **{"batch": BATCH, "length": LENGTH, **wrong}))


def test_a_baseline_without_torch_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('hidden')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UsageError, match="pip install torch"):
        Side(job_of_eager(asdict(tiny.model_config()), tmp_path), tmp_path)


def job_of_eager(model: dict, weights: Path) -> TrainJob:
    return TrainJob(side="eager", model=model, batch=BATCH, length=LENGTH, weights=str(weights))


def test_a_side_that_stops_is_reported_with_its_last_line(tmp_path):
    with pytest.raises(UsageError, match=r"transformers, eager stopped .*: .*Error"):
        Side(
            job_of_eager({"vocab_size": 61, "param_dtype": "float32"}, tmp_path / "nothing"),
            tmp_path,
        )


def test_an_unknown_model_is_refused():
    with pytest.raises(UsageError, match="neither j1, nor a folder"):
        benchmark(Settings("j2"))
