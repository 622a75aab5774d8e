"""The datasets of a study, and the fingerprints of what its arms are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.data.pipeline import Example
from cotjax.data.selection import Counts
from cotjax.data.tfds_agent import AgentConfig, dataset_counts, fingerprint, prepare_dataset
from cotjax.envs.base import Game
from cotjax.objectives.named import SUPERVISED
from cotjax.runtime import distributed
from cotjax.runtime.claim import arms_begun, check_arm_content
from cotjax.runtime.files import write_atomic
from cotjax.runtime.progress import Reporter
from cotjax.study.arms import Arm, Data, arms_of
from cotjax.study.base import base_folder, recipe_of
from cotjax.study.pairs import build_pairs, pairs_made_from
from cotjax.study.starts import train_of
from cotjax.study.training_data import agent_config, kept_of
from cotjax.train.fingerprints import Fingerprints


@dataclass(frozen=True)
class Dataset:
    """What one arm is trained on, or several that have the same data.

    source: its examples.
    made_from: fingerprints of data, tokenizer and base (`cotjax.runtime.content`).
    counts: what it trains on, and what it leaves out.
    """

    source: Sequence[Example]
    made_from: dict[str, Any]
    counts: Counts


def build_datasets(
    config: ConfigDict,
    run: Path,
    trajectories: Mapping[str, Path],
    tokenizer: Path,
    games: Sequence[Game],
    reporter: Reporter,
) -> dict[str, Dataset]:
    """Build the datasets of a run unless they exist; return that of each arm that has one.

    `trajectories`: the file of each kind of thoughts. `games`: those of training. Raises UsageError
    when an arm was begun with other content (`cotjax.runtime.content`).
    """
    arms = {name: arm for name, arm in arms_of(config).items() if not arm.reinforced}
    if not arms:
        return {}
    fingerprints = Fingerprints(run / "fingerprints.json")
    begun = arms_begun(run)
    drawn = kept_of(config, run)
    settings = {
        arm.data: agent_config(config, trajectories[arm.thoughts], tokenizer, arm, drawn)
        for arm in arms.values()
    }
    made_from = {
        data: _made_from(config, trajectories[data[0]], agent, fingerprints, tokenizer)
        for data, agent in settings.items()
    }
    for name, arm in arms.items():
        if name in begun and arm.objective == SUPERVISED:
            content = made_from[arm.data]
            known = any((run / "dataset").glob(f"*/agent-{content['data']['examples']}"))
            check_arm_content(run / "arms" / name, content, train_of(config, name).steps, known)
    if distributed.first():
        fingerprints.keep()
    datasets: dict[Data, Dataset] = {}
    with reporter.stage("dataset", "Building the dataset"):
        for data, agent in settings.items():
            builder = prepare_dataset(agent, run / "dataset", digest=fingerprints.of)
            source = builder.as_data_source(split="train")
            datasets[data] = Dataset(source, made_from[data], dataset_counts(builder))
    _say_counts(datasets, arms, reporter)
    of_arm = {name: datasets[arm.data] for name, arm in arms.items()}
    for name, arm in arms.items():
        if arm.objective != SUPERVISED:
            pairs = build_pairs(config, run, arm, settings[arm.data], games, fingerprints.of)
            reporter.say(f"  {name}: {'; '.join(pairs.lines())}")
            own = of_arm[name]
            made = pairs_made_from(own.made_from, pairs)
            check_arm_content(run / "arms" / name, made, train_of(config, name).steps, known=True)
            of_arm[name] = Dataset(pairs, made, own.counts)
    if distributed.first():
        write_atomic(run / "data.json", json.dumps(_counts(of_arm), indent=2) + "\n")
    return of_arm


def _say_counts(
    datasets: Mapping[Data, Dataset], arms: Mapping[str, Arm], reporter: Reporter
) -> None:
    for data, dataset in datasets.items():
        if len(datasets) > 1:
            thoughts, share, types = data
            users = [name for name, arm in arms.items() if arm.data == data]
            kind = f"{thoughts} thoughts, " if thoughts else ""
            kind = f"{thoughts}, " if arms[users[0]].trajectories else kind
            kind = f"{', '.join(types)}; {kind}" if types else kind
            reporter.say(f"  {', '.join(users)} ({kind}direct_share {share or 0:g}):")
        for line in dataset.counts.lines():
            reporter.say(f"  {line}")


def _made_from(
    config: ConfigDict,
    trajectories: Path,
    agent: AgentConfig,
    fingerprints: Fingerprints,
    tokenizer: Path,
) -> dict[str, Any]:
    return {
        "data": {
            "file": str(trajectories),
            "sha256": fingerprints.of(trajectories),
            "examples": fingerprint(agent, fingerprints.of),
        },
        "tokenizer": _file(tokenizer / "tokenizer.json", fingerprints),
        "base": base_content(config, fingerprints),
    }


def _counts(datasets: Mapping[str, Dataset]) -> dict[str, Any]:
    """Return the counts of the first arm's dataset, and under "arms" those of each arm's."""
    counts = {arm: dataset.counts.as_dict() for arm, dataset in datasets.items()}
    return next(iter(counts.values())) | {"arms": counts}


def _file(file: Path, fingerprints: Fingerprints) -> dict[str, Any]:
    return {"file": str(file), "sha256": fingerprints.of(file)}


def base_content(config: ConfigDict, fingerprints: Fingerprints) -> dict[str, Any]:
    """Return the fingerprint of the base (`cotjax.runtime.content`)."""
    base = base_folder(config)
    if base is None:
        return recipe_of(config)
    return {"file": str(base), "sha256": fingerprints.of_base(base)}
