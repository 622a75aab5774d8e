"""The tensorflow-datasets builder: agent trajectories as token ids and roles, in array_record shards.

Works without tensorflow: it is written with `download_and_prepare` and read with `as_data_source`, both in the array_record
format (TFDS's default, TFRecord, needs tensorflow). Examples keep the order of the trajectory file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from cotjax.data.tokens import Codec, trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError
from cotjax.masking import drops_action

ARRAYS = ("ids", "roles", "branches", "positions")


@dataclass
class AgentConfig(tfds.core.BuilderConfig):
    """What a prepared dataset depends on.

    `sources`: split name -> trajectory file (JSONL). `tokenizer`: folder with tokenizer.json. `direct_share`: the share of
    trajectories written in the direct form (no reasoning), drawn by a stable hash of their id; the others in the CoT form.
    `task_types`: only these (None: all). `max_length`: tokens a tree.
    """

    sources: dict[str, str] | None = None
    tokenizer: str = ""
    template: str = "chatml"
    direct_share: float = 0.0
    task_types: tuple[str, ...] | None = None
    max_length: int = 768


class AgentTrajectories(tfds.core.GeneratorBasedBuilder):
    """Trees of tokens, one example each; see `cotjax.data.tokens`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = {name: tfds.features.Tensor(shape=(None,), dtype=np.int32) for name in ARRAYS}
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "first_step": np.int32, **tokens})
        return self.dataset_info_from_configs(
            features=features,
            description="Agent trajectories as token ids, roles, branches and positions.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(path) for split, path in self.builder_config.sources.items()}

    def _generate_examples(self, path: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        codec = Codec.load(config.tokenizer, config.template)
        key = 0
        for trajectory in read_trajectories(path):
            if config.task_types is not None and trajectory.task_type not in config.task_types:
                continue
            form = "direct" if drops_action(0, f"form/{trajectory.id}", config.direct_share) else "cot"
            for example in trajectory_examples(codec, trajectory, form, config.max_length):
                arrays = {name: getattr(example, name) for name in ARRAYS}
                yield key, {"id": example.id, "first_step": example.first_step, **arrays}
                key += 1
        if key == 0:
            raise DataError(f"{path}: no trajectory of the task types {', '.join(config.task_types or ())}; nothing to train on")


def prepare_dataset(config: AgentConfig, data_dir: str | Path) -> AgentTrajectories:
    """Build the dataset under `data_dir` unless it is there; return the builder to read it with `as_data_source`.

    The dataset's name holds a hash of everything it depends on, so changed data, tokenizer or settings make a new one.
    """
    config.name = f"{config.name}-{_fingerprint(config)}"
    builder = AgentTrajectories(config=config, data_dir=str(data_dir), file_format="array_record")
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS prints what it downloads; nothing is downloaded here, and the caller reports the stage.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=download)
    return builder


def _fingerprint(config: AgentConfig) -> str:
    digest = hashlib.sha256()
    tokenizer = Path(config.tokenizer) / "tokenizer.json"
    files = [tokenizer, *(Path(path) for path in config.sources.values())]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    settings = (
        sorted(config.sources),
        config.template,
        config.direct_share,
        config.task_types,
        config.max_length,
        str(AgentTrajectories.VERSION),
    )
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:12]
