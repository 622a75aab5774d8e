"""Tiny training runs, and what they leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cotjax.config import default_config
from cotjax.data.tfds_agent import AgentConfig, prepare_dataset
from cotjax.data.trajectories import write_trajectories
from cotjax.masking import Dropping
from cotjax.model import lora, params
from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.sharding import make_mesh
from cotjax.runtime.progress import Listener
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.main import train
from cotjax.train.metrics import read_metrics
from cotjax.train.run import Run
from helpers import tiny

MODEL = tiny.model_config(vocab_size=64)
LORA_MODEL = tiny.model_config(vocab_size=64, lora=LoRA(4, 8.0, r".*\.(q|k|v|o|gate|up|down)_proj"))
ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def settings(**changes: Any) -> ConfigDict:
    """Return `config.train` for a run of 8 updates, with `changes`."""
    values = default_config().train
    values.update(
        {
            "steps": 8,
            "batch": 8,
            "row_length": 128,
            "save_every": 4,
            "warmup": 2,
            "learning_rate": 3e-3,
        }
    )
    values.update(changes)
    return values


def make_source(folder: Path) -> Any:
    """Build a dataset of 40 tiny episodes in `folder`; return its training split."""
    tiny.word_codec(folder / "tokenizer", tiny.TINY_WORDS)
    write_trajectories(
        folder / "t.jsonl", [tiny.trajectory(name=f"t{i}", steps=1 + i % 2) for i in range(40)]
    )
    config = AgentConfig(
        name="t",
        sources={"train": str(folder / "t.jsonl")},
        tokenizer=str(folder / "tokenizer"),
        max_length=128,
    )
    return prepare_dataset(config, folder / "tfds").as_data_source(split="train")


def init_params(mesh: jax.sharding.Mesh) -> Any:
    """Return the parameters of MODEL at the start of a run."""
    return params.init_params(MODEL, jax.random.key(0), mesh)


def init_lora_params(mesh: jax.sharding.Mesh) -> Any:
    """Return those of MODEL with fresh adapters, for LORA_MODEL."""
    key = jax.random.key(0)
    return lora.add(MODEL, init_params(mesh), LORA_MODEL.lora, key, mesh)[1]


class Hears(Listener):
    """Hands what a run tells to functions."""

    def __init__(
        self,
        report: Callable[..., None] = lambda *row: None,
        say: Callable[[str], None] = print,
        warn: Callable[[str], None] = print,
    ):
        self.report, self.say, self.warn = report, say, warn


def run(
    folder: Path,
    source: Any,
    *,
    model: ModelConfig = MODEL,
    make_params: Callable[[jax.sharding.Mesh], Any] = init_params,
    dropping: Dropping | None = None,
    normalizer: str = "token_sum",
    mesh_shape: dict[str, int] = ONE,
    made_from: dict[str, Any] | None = None,
    seed: int = 3,
    report: Callable[..., None] = lambda *row: None,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
    **changes: Any,
) -> Any:
    """Train a tiny model in `folder`; `changes` are fields of `config.train`."""
    what = Run(
        settings(**changes),
        dropping or Dropping.of(),
        model,
        make_params,
        seed,
        made_from,
        normalizer=normalizer,
    )
    return train(
        what,
        folder=Path(folder),
        source=source,
        mesh_shape=mesh_shape,
        listener=Hears(report, say, warn),
    )


def run_lora(folder: Path, source: Any, **rest: Any) -> Any:
    """Train LORA_MODEL's adapters in `folder`, as `run` does."""
    return run(folder, source, model=LORA_MODEL, make_params=init_lora_params, **rest)


def params_at(checkpoints: Path, step: int, model: Any = MODEL) -> Any:
    """Restore the parameters of a checkpoint as numpy arrays."""
    manager = Checkpoints(checkpoints)
    params = manager.restore_params(step, model, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    manager.close()
    return jax.tree.map(np.asarray, params)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run without their times."""
    return [
        {name: value for name, value in row.items() if name != "time"}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same(folder: Path, other: Path, step: int) -> None:
    """Assert that two runs left the same rows, checkpoints and parameters, to the bit."""
    assert rows(folder) == rows(other)
    assert [row["step"] for row in rows(folder)] == list(range(1, step + 1))
    names = [
        sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (folder, other)
    ]
    assert names[0] == names[1]
    jax.tree.map(
        np.testing.assert_array_equal,
        *(params_at(each / "checkpoints", step) for each in (folder, other)),
    )
