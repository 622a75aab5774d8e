"""`cotjax bench data` on tiny data, and training on imported data by the command line."""

import json

import pytest
from helpers import tiny

from cotjax.bench.data import benchmark
from cotjax.cli.main import main
from cotjax.data.trajectories import write_trajectories
from cotjax.train.metrics import read_metrics

CONFIG = '''
"""Training alone."""
from cotjax.config import default_config


def get_config():
    config = default_config()
    config.games.in_domain = config.games.ood = 0
    config.task_types.collect = config.task_types.in_domain
    config.games.train = 1
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 32, 2, 2, 1
    config.model.head_size, config.model.feed_forward = 16, 48
    config.train.steps, config.train.save_every = 2, 2
    config.train.batch, config.train.warmup = 2, 1
    config.train.row_length = config.data.max_length = 256
    config.arms = {"sft": {"label": "standard SFT", "fraction": 0.0}}
    return config
'''


@pytest.mark.slow
def test_the_figures_of_the_pipeline(tmp_path, capsys):
    tiny.word_codec(tmp_path / "tokenizer", tiny.TINY_WORDS)
    write_trajectories(
        tmp_path / "t.jsonl",
        [tiny.trajectory(name=f"t{number}", steps=1 + number % 4) for number in range(60)],
    )
    figures = benchmark(
        tmp_path / "t.jsonl", tmp_path / "tokenizer", length=256, batch=2, seconds=0.3
    )
    printed = capsys.readouterr().out
    assert (
        figures["ratio"] == pytest.approx(figures["dropping tokens/s"] / figures["step tokens/s"])
        and figures["ratio"] > 1
    )
    assert (
        0.5 < figures["filling at 256"] <= 1
        and "60 examples" in printed
        and "train step" in printed
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [[], ["layout=step", "history=1", "past_thoughts=True"]], ids=["trees", "steps"]
)
def test_imported_data_train(tmp_path, layout):
    texts = [
        "You see a cabinet 1.\nYour task is to: put a plate in fridge.",
        "Thought: i look.\nAction: look",
    ]
    texts += ["You see a plate 1.", "Thought: i take it.\nAction: take plate 1"]
    turns = [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)
    ]
    (tmp_path / "public.json").write_text(json.dumps([{"conversations": turns}] * 20))
    assert (
        main(["data", "import", str(tmp_path / "public.json"), "--out", str(tmp_path / "t.jsonl")])
        == 0
    )
    (tmp_path / "config.py").write_text(CONFIG)
    options = [
        f"--config.data.{field}" for field in (f"trajectories={tmp_path / 't.jsonl'}", *layout)
    ]
    assert (
        main(
            [
                "train",
                "--config",
                str(tmp_path / "config.py"),
                "--out",
                str(tmp_path / "run"),
                *options,
            ]
        )
        == 0
    )
    rows = read_metrics(tmp_path / "run" / "arms" / "sft" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["loss"] < 10
