"""The tensorflow-datasets builder: trajectories -> a dataset of token examples on disk.

Works without tensorflow: datasets are written with `download_and_prepare` and read with
`as_data_source`, both in the array_record format (TFRecord, TFDS's default, needs tensorflow).
Examples keep the order of the trajectory file. Arrays are stored as bytes, which are read ten
times as fast as lists of integers. Beside the shards are `lengths-<split>.npy`, the number of
tokens of every example, from which packing is planned; and `counts-<split>.json`, the steps that
are trained on, and by reason those that are not.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cotjax.data.chat_template import resolved
from cotjax.data.codec import TASK_ALONE, Codec
from cotjax.data.packing import keep_lengths
from cotjax.data.selection import Counts, Selection
from cotjax.errors import DataError
from cotjax.formats import TASK, Prompt
from cotjax.runtime.files import read_json, sha256_of, write_atomic

ARRAYS = {
    "steps": np.int32,
    "ids": np.int32,
    "roles": np.int8,
    "branches": np.int32,
    "positions": np.int32,
}


class AgentConfig(tfds.core.BuilderConfig):
    """What a prepared dataset depends on.

    Args:
      name: the beginning of the dataset's name.
      sources: split name -> trajectory file (JSONL).
      tokenizer: folder with tokenizer.json.
      template: name of the turn template, or "auto".
      prompt: what prompts say beside the episode.
      selection: fields of `cotjax.data.selection.Selection`.

    Raises:
      UsageError: a field of the selection has an invalid value.
    """

    def __init__(
        self,
        *,
        name: str,
        sources: dict[str, str],
        tokenizer: str,
        template: str = "chatml",
        prompt: Prompt = TASK_ALONE,
        **selection: Any,
    ):
        super().__init__(name=name)
        self.sources = sources
        self.tokenizer = tokenizer
        self.template = template
        self.prompt = prompt
        self.selection = Selection(**selection)


class AgentTrajectories(tfds.core.GeneratorBasedBuilder):
    """Builds the dataset of an `AgentConfig`; `cotjax.data.tokens` defines its examples."""

    VERSION = tfds.core.Version("3.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = {
            name: tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")
            for name, dtype in ARRAYS.items()
        }
        features = tfds.features.FeaturesDict(
            {"id": tfds.features.Text(), "first_step": np.int32, **tokens}
        )
        return self.dataset_info_from_configs(
            features=features,
            description="Agent trajectories as token ids, roles, branches and positions.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        self.lengths: dict[str, np.ndarray] = {}  # split -> tokens of each example
        return {
            split: self._generate_examples(split, path)
            for split, path in self.builder_config.sources.items()
        }

    def _generate_examples(self, split: str, path: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        codec = Codec.load(config.tokenizer, config.template, config.prompt)
        selection, counts = config.selection, Counts()
        lengths = array("i")
        for example in selection.read(codec, path, counts):
            arrays = {name: getattr(example, name).astype(dtype) for name, dtype in ARRAYS.items()}
            yield len(lengths), {"id": example.id, "first_step": example.first_step, **arrays}
            lengths.append(len(example.ids))
        self.lengths[split] = np.asarray(lengths, np.int32)
        # Written into TFDS's temporary folder, which is renamed on success: no dataset lacks it.
        write_atomic(_counts_file(self, split), json.dumps(counts.as_dict(), indent=2) + "\n")


def prepare_dataset(
    config: AgentConfig,
    data_dir: str | Path,
    shards: int | None = None,
    digest: Callable[[Path], str] = sha256_of,
) -> AgentTrajectories:
    """Build the dataset under `data_dir` unless it exists; return its builder.

    Read it with the builder's `as_data_source`. The dataset's name ends with the fingerprint, so
    changed data, tokenizer or settings make a new one.

    Args:
      shards: files per split (None: by size, at least 64 MB each).
      digest: returns a file's SHA-256 (or a remembered one) in hexadecimal digits.

    Raises:
      DataError: a file is missing, a trajectory is invalid, or there is nothing to train on.
    """
    named = copy.copy(config)
    named.name = f"{config.name}-{fingerprint(config, digest)}"
    builder = AgentTrajectories(config=named, data_dir=str(data_dir), file_format="array_record")
    download = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards)
    # TFDS prints its progress; the caller reports the stage.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=download)
    for split, lengths in getattr(builder, "lengths", {}).items():
        keep_lengths(builder.as_data_source(split=split), lengths)
    return builder


def dataset_counts(builder: AgentTrajectories, split: str = "train") -> Counts:
    """Return the counts of a prepared split: what it trains on, and what it leaves out."""
    return Counts.of(read_json(_counts_file(builder, split), "cotjax"))


def fingerprint(config: AgentConfig, digest: Callable[[Path], str] = sha256_of) -> str:
    """Return 12 hexadecimal digits of a hash of everything that the examples depend on.

    That is the data, the tokenizer and the settings.

    Raises:
      DataError: a file is missing.
    """
    together = hashlib.sha256()
    tokenizer = Path(config.tokenizer) / "tokenizer.json"
    files = [tokenizer, *(Path(path) for path in config.sources.values())]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        together.update(bytes.fromhex(digest(file)))
    selection = asdict(config.selection)
    if not selection["shown"]:
        del selection["shown"]
    template, prompt = resolved(config.template, config.prompt, config.tokenizer)
    settings = (
        sorted(config.sources),
        template.name,
        prompt.system,
        selection,
        str(AgentTrajectories.VERSION),
    )
    together.update(repr(settings).encode())
    # Datasets made before these settings existed keep their names.
    if prompt.task_text != TASK:
        together.update(prompt.task_text.encode())
    if (rest := replace(prompt, system="", task_text=TASK)) != TASK_ALONE:
        together.update(repr(rest).encode())
    return together.hexdigest()[:12]


def _counts_file(builder: AgentTrajectories, split: str) -> Path:
    return Path(builder.data_dir) / f"counts-{split}.json"
