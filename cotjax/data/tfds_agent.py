"""The tensorflow-datasets builder: agent trajectories as token ids and roles, in array_record shards.

Works without tensorflow: it is written with `download_and_prepare` and read with `as_data_source`, both in the array_record
format (TFDS's default, TFRecord, needs tensorflow). Examples keep the order of the trajectory file. Arrays are stored as their
bytes, which are read ten times as fast as lists of integers. Beside the shards stands `lengths-<split>.npy`, every example's number of
tokens: what packing is planned from.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from cotjax.data.packing import keep_lengths
from cotjax.data.tokens import Codec, Layout, trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError
from cotjax.masking import drops_action

ARRAYS = {"ids": np.int32, "roles": np.int8, "branches": np.int32, "positions": np.int32}


@dataclass
class AgentConfig(tfds.core.BuilderConfig):
    """What a prepared dataset depends on.

    `sources`: split name -> trajectory file (JSONL). `tokenizer`: folder with tokenizer.json. `direct_share`: the share of
    trajectories written in the direct form (no reasoning), drawn by a stable hash of their id; the others in the CoT form.
    `task_types`: only these (None: all). `max_length`: tokens an example. `layout`, `history`, `past_thoughts`: see
    `cotjax.data.tokens.Layout`.
    """

    sources: dict[str, str] | None = None
    tokenizer: str = ""
    template: str = "chatml"
    direct_share: float = 0.0
    task_types: tuple[str, ...] | None = None
    max_length: int = 768
    layout: str = "trajectory"
    history: int = 0
    past_thoughts: bool = False


class AgentTrajectories(tfds.core.GeneratorBasedBuilder):
    """Examples of tokens; see `cotjax.data.tokens`."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = {name: tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes") for name, dtype in ARRAYS.items()}
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "first_step": np.int32, **tokens})
        return self.dataset_info_from_configs(
            features=features,
            description="Agent trajectories as token ids, roles, branches and positions.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        self.lengths = {}  # split -> tokens of each example
        return {split: self._generate_examples(split, path) for split, path in self.builder_config.sources.items()}

    def _generate_examples(self, split: str, path: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        codec = Codec.load(config.tokenizer, config.template)
        layout = Layout(config.layout, config.history, config.past_thoughts)
        lengths = array("i")
        for trajectory in read_trajectories(path):
            if config.task_types is not None and trajectory.task_type not in config.task_types:
                continue
            form = "direct" if drops_action(0, f"form/{trajectory.id}", config.direct_share) else "cot"
            for example in trajectory_examples(codec, trajectory, form, config.max_length, layout):
                arrays = {name: getattr(example, name).astype(dtype) for name, dtype in ARRAYS.items()}
                yield len(lengths), {"id": example.id, "first_step": example.first_step, **arrays}
                lengths.append(len(example.ids))
        if not lengths:
            raise DataError(f"{path}: no step{_of_types(config.task_types)}; nothing to train on")
        self.lengths[split] = np.asarray(lengths, np.int32)


def _of_types(task_types: tuple[str, ...] | None) -> str:
    return f" in trajectories of the task types {', '.join(task_types)}" if task_types else ""


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def prepare_dataset(
    config: AgentConfig, data_dir: str | Path, shards: int | None = None, digest: Callable[[Path], str] = sha256_of
) -> AgentTrajectories:
    """Build the dataset under `data_dir` unless it is there; return the builder to read it with `as_data_source`.

    The dataset's name holds a hash of everything it depends on, so changed data, tokenizer or settings make a new one. `shards`:
    files a split (None: by size, 64 MB or more each). `digest`: what tells a file's content.
    """
    config.name = f"{config.name}-{fingerprint(config, digest)}"
    builder = AgentTrajectories(config=config, data_dir=str(data_dir), file_format="array_record")
    download = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards)
    # TFDS prints what it downloads; nothing is downloaded here, and the caller reports the stage.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=download)
    for split, lengths in getattr(builder, "lengths", {}).items():
        keep_lengths(builder.as_data_source(split=split), lengths)
    return builder


def fingerprint(config: AgentConfig, digest: Callable[[Path], str] = sha256_of) -> str:
    """Return 12 hexadecimal digits that name the examples: of the data, the tokenizer and every setting that they depend on."""
    together = hashlib.sha256()
    tokenizer = Path(config.tokenizer) / "tokenizer.json"
    files = [tokenizer, *(Path(path) for path in config.sources.values())]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        together.update(bytes.fromhex(digest(file)))
    settings = (
        sorted(config.sources),
        config.template,
        config.direct_share,
        config.task_types,
        config.max_length,
        config.layout,
        config.history,
        config.past_thoughts,
        str(AgentTrajectories.VERSION),
    )
    together.update(repr(settings).encode())
    return together.hexdigest()[:12]
