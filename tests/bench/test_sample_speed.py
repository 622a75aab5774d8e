"""`cotjax bench sample` at a tiny size, with real processes and real generations."""

import json
from dataclasses import asdict, replace

import pytest
from helpers import tiny
from rich.console import Console

from cotjax.bench.growth import exponent, growth
from cotjax.bench.jobs import SampleJob
from cotjax.bench.sample import Settings, _figures, benchmark, check_same_ids
from cotjax.bench.sides import Side
from cotjax.cli.main import main
from cotjax.errors import CotjaxError, UsageError
from cotjax.model.flops import decode_bytes, matmul_params, prompt_flops
from cotjax.model.published import published


@pytest.mark.slow
def test_alone(model_folder, capsys):
    assert (
        main(
            [
                "bench",
                "sample",
                "--model",
                str(model_folder),
                "--slots",
                "2",
                "--prompt",
                "12",
                "--new",
                "4",
                "--rounds",
                "2",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "2 prompts of 12 tokens, 4 new ones each, greedy, float32" in printed
    assert "times as fast" not in printed


@pytest.mark.slow
def test_beside_transformers(model_folder, capsys):
    pytest.importorskip("torch")
    sizes = {"slots": 4, "prompt": 20, "new": 6, "rounds": 3, "cpu_devices": 2}
    settings = Settings(str(model_folder), **sizes, peers=("dynamic", "static"))
    figures = benchmark(settings, Console(width=200))
    ours = figures["cotjax"]
    assert ours["tokens/s"] == pytest.approx(4 * 6 / ours["median_s"])
    assert "bandwidth" not in ours  # a CPU's is unknown
    for name in ("transformers, dynamic", "transformers, static"):
        row = figures[name]
        assert row["ratio"] == pytest.approx(row["median_s"] / ours["median_s"])
        assert row["ratio_low"] <= row["ratio_high"]
        assert row["first_token_s"] > 0
    printed = capsys.readouterr().out
    assert "; 2 x cpu, " in printed, "the baseline has all cores too"
    assert printed.splitlines()[-1].startswith(
        f"cotjax is {row['ratio']:.2f} times as fast as transformers, static ("
    )


@pytest.mark.slow
def test_sides_that_run_different_models_are_not_compared(tmp_path):
    pytest.importorskip("torch")
    weights = str(tmp_path / "weights")
    job = SampleJob(model=asdict(tiny.model_config()), slots=4, prompt=20, new=6, weights=weights)
    ours = Side(job, tmp_path)
    try:
        config_file = tmp_path / "weights" / "config.json"
        config = json.loads(config_file.read_text())
        config["rms_norm_eps"] = 3.0
        config_file.write_text(json.dumps(config))
        other = Side(replace(job, side="dynamic"), tmp_path)
        other.close()
        with pytest.raises(
            CotjaxError, match=r"do not run the same model: \d of 4 greedy texts are the same"
        ):
            check_same_ids(ours, other, "float32")
    finally:
        ours.close()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"slots": 0}, "--slots is 0; it must be at least 1"),
        ({"new": 1}, "--new is 1; it must be at least 2"),
        ({"prompt": 510}, "516 tokens together: this model's positions end at 512"),
        ({"model": "j2"}, "neither j1, nor a folder"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model_folder, wrong, named):
    with pytest.raises(UsageError, match=named):
        benchmark(
            Settings(**{"model": str(model_folder), "slots": 2, "prompt": 12, "new": 6, **wrong})
        )


def test_bytes_of_a_decode_step():
    config = tiny.model_config()
    a_token = 2 * config.layers * config.kv_heads * config.head_size
    assert decode_bytes(config, 10) == 4 * (matmul_params(config) + 10 * a_token)
    assert decode_bytes(replace(config, compute_dtype="bfloat16"), 10) == 2 * (
        matmul_params(config) + 10 * a_token
    )


def test_shares_of_a_known_device_are_by_hand():
    """A side as the worker tells of it: one second for prompts, two for all."""
    side = type("Side", (), {"name": "cotjax", "seconds": ((2.0,),), "first_s": 9.0})()
    side.started = {"device_kind": "NVIDIA H200", "devices": 1}
    side.rounds = [{"first_token": [1.0], "peak_bytes": 1}]
    config = published("qwen3-4b", param_dtype="bfloat16", compute_dtype="bfloat16")
    settings = Settings("qwen3-4b", slots=64, prompt=512, new=3, dtype="bfloat16")
    row = _figures([side], config, settings)["cotjax"]
    assert row["prompt_mfu"] == pytest.approx(prompt_flops(config, 64, 512) / 989e12)
    step = decode_bytes(config, 64 * 513.5) / 4.8e12
    assert row["bandwidth"] == pytest.approx(step / 0.5)


@pytest.mark.slow
def test_growth(tmp_path, capsys):
    by_history, by_slots = growth(
        histories=(256, 512),
        slots=(1, 2),
        out=tmp_path / "figures" / "growth.png",
        console=Console(width=200),
    )
    assert [turn.history for turn in by_history] == [256, 512]
    assert [(turn.history, turn.slots) for turn in by_slots] == [(256, 1), (256, 2)]
    assert (tmp_path / "figures" / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "grows as the power" in capsys.readouterr().out


def test_exponent():
    assert exponent([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2)
