"""The tensorflow-datasets builder: agent trajectories as token ids and roles, in array_record shards.

Works without tensorflow: it is written with `download_and_prepare` and read with `as_data_source`, both in the array_record
format (TFDS's default, TFRecord, needs tensorflow). Examples keep the order of the trajectory file. Arrays are stored as their
bytes, which are read ten times as fast as lists of integers. Beside the shards stand `lengths-<split>.npy`, every example's number of
tokens, which packing is planned from, and `counts-<split>.json`: what of the file is trained on, and what is not, by reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from cotjax.data.codec import Codec
from cotjax.data.packing import keep_lengths
from cotjax.data.selection import Counts, Selection
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError
from cotjax.runtime.files import read_json, write_whole

ARRAYS = {
    "steps": np.int32,
    "ids": np.int32,
    "roles": np.int8,
    "branches": np.int32,
    "positions": np.int32,
}


@dataclass
class AgentConfig(tfds.core.BuilderConfig):
    """What a prepared dataset depends on.

    `sources`: split name -> trajectory file (JSONL). `tokenizer`: folder with tokenizer.json. `system`: a system message before the
    first user turn. The other fields are those of `cotjax.data.selection.Selection`.
    """

    sources: dict[str, str] | None = None
    tokenizer: str = ""
    template: str = "chatml"
    system: str = ""
    splits: tuple[str, ...] = ("train",)
    won_only: bool = True
    task_types: tuple[str, ...] | None = None
    held_out: tuple[str, ...] = ()
    direct_share: float = 0.0
    no_thought: str = "skip"
    max_length: int = 768
    layout: str = "trajectory"
    history: int = 0
    past_thoughts: bool = False


class AgentTrajectories(tfds.core.GeneratorBasedBuilder):
    """Examples of tokens; see `cotjax.data.tokens`."""

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

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        self.lengths: dict[str, np.ndarray] = {}  # split -> tokens of each example
        return {
            split: self._generate_examples(split, path)
            for split, path in self.builder_config.sources.items()
        }

    def _generate_examples(self, split: str, path: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        codec = Codec.load(config.tokenizer, config.template, config.system)
        selection, counts = Selection.of(config), Counts()
        lengths = array("i")
        for trajectory in read_trajectories(path):
            for example in selection.examples(codec, trajectory, counts):
                arrays = {
                    name: getattr(example, name).astype(dtype) for name, dtype in ARRAYS.items()
                }
                yield len(lengths), {"id": example.id, "first_step": example.first_step, **arrays}
                lengths.append(len(example.ids))
        if not lengths:
            raise DataError(f"{path}: {counts.why_nothing()}")
        self.lengths[split] = np.asarray(lengths, np.int32)
        # Into the folder that TFDS makes, and renames when it is whole: there is no dataset without it.
        write_whole(_counts_file(self, split), json.dumps(counts.as_dict(), indent=2) + "\n")


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def prepare_dataset(
    config: AgentConfig,
    data_dir: str | Path,
    shards: int | None = None,
    digest: Callable[[Path], str] = sha256_of,
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


def dataset_counts(builder: AgentTrajectories, split: str = "train") -> Counts:
    """What of the trajectory file a prepared split trains on, and what it leaves out."""
    return Counts.of(read_json(_counts_file(builder, split), "cotjax"))


def _counts_file(builder: AgentTrajectories, split: str) -> Path:
    return Path(builder.data_dir) / f"counts-{split}.json"


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
        config.system,
        asdict(Selection.of(config)),
        str(AgentTrajectories.VERSION),
    )
    together.update(repr(settings).encode())
    return together.hexdigest()[:12]
