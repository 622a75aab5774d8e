"""The dataset of a study, and the fingerprints of what the run is made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.data.pipeline import Example
from cotjax.data.tfds_agent import dataset_counts, fingerprint, prepare_dataset
from cotjax.runtime import distributed
from cotjax.runtime.claim import arms_begun, check_arm_content
from cotjax.runtime.files import write_atomic
from cotjax.runtime.progress import Reporter
from cotjax.study.base import base_folder
from cotjax.study.training_data import agent_config
from cotjax.train.fingerprints import Fingerprints


def build_dataset(
    config: ConfigDict, run: Path, trajectories: Path, tokenizer: Path, reporter: Reporter
) -> tuple[Sequence[Example], dict[str, Any]]:
    """Build a run's dataset unless it exists; return its source and what the run is made from.

    Raises UsageError when an arm was begun with other content (`cotjax.runtime.content`).
    """
    builder_config = agent_config(config, trajectories, tokenizer)
    fingerprints = Fingerprints(run / "fingerprints.json")
    examples = fingerprint(builder_config, fingerprints.of)
    made_from = {
        "data": {
            "file": str(trajectories),
            "sha256": fingerprints.of(trajectories),
            "examples": examples,
        },
        "tokenizer": _file(tokenizer / "tokenizer.json", fingerprints),
        "base": _base_content(config, fingerprints),
    }
    if distributed.first():
        fingerprints.keep()
    known = any((run / "dataset").glob(f"*/agent-{examples}"))
    for arm in arms_begun(run):
        check_arm_content(run / "arms" / arm, made_from, config.train.steps, known)
    with reporter.stage("dataset", "Building the dataset"):
        builder = prepare_dataset(builder_config, run / "dataset", digest=fingerprints.of)
    counts = dataset_counts(builder)
    for line in counts.lines():
        reporter.say(f"  {line}")
    if distributed.first():
        write_atomic(run / "data.json", json.dumps(counts.as_dict(), indent=2) + "\n")
    return builder.as_data_source(split="train"), made_from


def _file(file: Path, fingerprints: Fingerprints) -> dict[str, Any]:
    return {"file": str(file), "sha256": fingerprints.of(file)}


def _base_content(config: ConfigDict, fingerprints: Fingerprints) -> dict[str, Any]:
    base = base_folder(config)
    if base is None:
        return {"recipe": "random", "recall_steps": config.model.recall_steps}
    return {"file": str(base), "sha256": fingerprints.of_base(base)}
