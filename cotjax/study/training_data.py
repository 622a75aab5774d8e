"""What a config trains on: steps of the trajectories, their form, and the tokenizer.

A run builds its dataset from these, and `cotjax data check --config` shows what it would build.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tokenizers import Tokenizer

from cotjax.assets import BASE_FOLDER
from cotjax.data.codec import Codec
from cotjax.data.selection import Selection
from cotjax.data.tfds_agent import AgentConfig
from cotjax.data.trajectories import read_trajectories
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.worlds import load_world
from cotjax.formats import TEMPLATES, first_turn


def selection_of(config: ConfigDict, direct_share: float | None = None) -> Selection:
    """Return which steps a config trains on. Raises UsageError for impossible settings.

    `direct_share`: an arm's; None for the config's own. OOD task types are held out. Of collected
    data only the in-domain types are trained on, of a user's file all others.
    """
    types = config.task_types
    own: dict[str, Any] = (
        {"held_out": tuple(types.ood)}
        if config.data.trajectories
        else {"task_types": tuple(types.in_domain)}
    )
    if direct_share is not None:
        own["direct_share"] = direct_share
    return Selection.of(config.data, **own)


def agent_config(
    config: ConfigDict, trajectories: Path, tokenizer: Path, direct_share: float | None = None
) -> AgentConfig:
    """Return the settings of the dataset that a config, or an arm of it, trains on."""
    return AgentConfig(
        name="agent",
        sources={"train": str(trajectories)},
        tokenizer=str(tokenizer),
        template=config.data.template,
        system=config.data.system,
        task_text=load_world(config.world).task_text,
        **vars(selection_of(config, direct_share)),
    )


def make_tokenizer(config: ConfigDict, *files: Path) -> Tokenizer:
    """Return the word-level tokenizer of a "random" model: the world's and the data's words."""
    world = load_world(config.world)

    def texts() -> Iterator[str]:
        yield from world.words()
        if config.data.system:
            yield f"system {config.data.system}"
        for trajectory in chain.from_iterable(map(read_trajectories, files)):
            yield first_turn(trajectory.task, trajectory.steps[0].observation, world.task_text)
            for step in trajectory.steps:
                yield from (step.observation, step.action, step.thought or "")

    return build_word_tokenizer(texts(), TEMPLATES[config.data.template])


def codec_of(config: ConfigDict, trajectories: Path) -> Codec:
    """Return the codec that a run of this config encodes its data with.

    Raises:
      UsageError: there is no such tokenizer or template.
      DataError: the tokenizer, or a trajectory that it would be made from, cannot be read.
    """
    settings = config.model
    if settings.base == "random" and not settings.tokenizer:
        return Codec(
            make_tokenizer(config, trajectories),
            TEMPLATES[config.data.template],
            config.data.system,
            load_world(config.world).task_text,
        )
    folder = settings.tokenizer or (BASE_FOLDER if settings.base == "package" else settings.base)
    return load_codec(config, folder)


def load_codec(config: ConfigDict, tokenizer: str | Path) -> Codec:
    """Return a tokenizer folder's codec, with the config's template, system message and world."""
    task_text = load_world(config.world).task_text
    return Codec.load(tokenizer, config.data.template, config.data.system, task_text)
