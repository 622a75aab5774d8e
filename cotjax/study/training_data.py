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
from cotjax.data.chat_template import turn_template
from cotjax.data.codec import Codec
from cotjax.data.growing_text import TOKENS
from cotjax.data.prompt_examples import FILE, NONE_DRAWN, Drawn, draw_examples, kept_examples
from cotjax.data.selection import Selection
from cotjax.data.tfds_agent import AgentConfig
from cotjax.data.tokens import GROWING
from cotjax.data.trajectories import read_trajectories
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.formats import Prompt, search
from cotjax.study.arms import Arm
from cotjax.study.games import held_out_types, wanted_games


def selection_of(
    config: ConfigDict, arm: Arm | None = None, drawn: Drawn = NONE_DRAWN
) -> Selection:
    """Return which steps a config trains on. Raises UsageError for impossible settings.

    `arm`: one of its arms; None for the config's own settings. `drawn`: the prompt's examples. OOD
    task types are held out. Of collected data only the in-domain types are trained on, of a user's
    file all others; an arm that names task types is trained on these.
    """
    own: dict[str, Any] = (
        {"held_out": held_out_types(config)}
        if config.data.trajectories or (arm and arm.trajectories)
        else {"task_types": tuple(config.task_types.in_domain)}
    )
    if arm is not None and arm.task_types:
        own = {"task_types": arm.task_types}
    own["shown"] = drawn.left_out
    if arm is not None:
        own["direct_share"] = arm.direct_share
    return Selection.of(config.data, **own)


def agent_config(
    config: ConfigDict,
    trajectories: Path,
    tokenizer: Path,
    arm: Arm | None = None,
    drawn: Drawn = NONE_DRAWN,
) -> AgentConfig:
    """Return the settings of the dataset that a config, or an arm of it, trains on."""
    return AgentConfig(
        name="agent",
        sources={"train": str(trajectories)},
        tokenizer=str(tokenizer),
        template=config.data.template,
        prompt=prompt_of(config, drawn),
        **vars(selection_of(config, arm, drawn)),
    )


def make_tokenizer(config: ConfigDict, *files: Path) -> Tokenizer:
    """Return the word-level tokenizer of a "random" model: the world's and the data's words."""
    world, prompt = load_world(config.world), prompt_of(config)

    def texts() -> Iterator[str]:
        yield from world.words()
        if prompt.system:
            yield f"system {prompt.system}"
        yield from search.MARKS[-1:] if prompt.growing else ()
        yield from (prompt.instruction, prompt.actions_line((), "") if prompt.lists_actions else "")
        for trajectory in chain.from_iterable(map(read_trajectories, files)):
            yield prompt.task_line(trajectory.task)
            for step in trajectory.steps:
                yield from (step.observation, step.action, step.thought or "")
                yield from step.admissible_commands if prompt.lists_actions else ()

    tags = TOKENS if prompt.growing else ()
    return build_word_tokenizer(texts(), turn_template(config.data.template), tags)


def codec_of(config: ConfigDict, trajectories: Path, drawn: Drawn = NONE_DRAWN) -> Codec:
    """Return the codec that a run of this config encodes its data with.

    Raises:
      UsageError: there is no such tokenizer or template.
      DataError: the tokenizer, or a trajectory that it would be made from, cannot be read.
    """
    settings = config.model
    if settings.base == "random" and not settings.tokenizer:
        template = turn_template(config.data.template)
        return Codec(make_tokenizer(config, trajectories), template, prompt_of(config, drawn))
    folder = settings.tokenizer or (BASE_FOLDER if settings.base == "package" else settings.base)
    return load_codec(config, folder, drawn)


def load_codec(config: ConfigDict, tokenizer: str | Path, drawn: Drawn = NONE_DRAWN) -> Codec:
    """Return a tokenizer folder's codec, with the config's template and prompt."""
    return Codec.load(tokenizer, config.data.template, prompt_of(config, drawn))


# ---- the prompt


def prompt_of(config: ConfigDict, drawn: Drawn = NONE_DRAWN) -> Prompt:
    """Return what the prompts of a config say beside the episode. Raises UsageError."""
    growing = config.data.layout == GROWING
    return Prompt.of(config.prompt, load_world(config.world), drawn.examples, growing=growing)


def drawn_of(config: ConfigDict, trajectories: Path) -> Drawn:
    """Draw the prompt's examples from a trajectory file. Raises DataError for too few of them."""
    return draw_examples(trajectories, selection_of(config), config.prompt.examples, config.seed)


def kept_of(config: ConfigDict, run: Path) -> Drawn:
    """Return the examples of a run's prompts, which its training kept. Raises UsageError."""
    kept = kept_examples(run) if config.prompt.examples else NONE_DRAWN
    if kept is None:
        raise UsageError(f"{run}: its examples are lost ({FILE}); run `cotjax train` again")
    return kept


def check_opening(config: ConfigDict, codec: Codec) -> None:
    """Check that the prompt leaves tokens for the episode.

    Raises:
      UsageError: what stands before the task is as long as an example, or as a slot that plays.
    """
    opening, examples = len(codec.opening), len(codec.prompt.examples)
    limits = {"data.max_length": config.data.max_length}
    if wanted_games(config):
        limits["evaluate.max_length"] = config.evaluate.max_length
    for name, limit in limits.items():
        if opening >= limit:
            raise UsageError(
                f"prompts begin with {opening} tokens before the task (system message, "
                f"instruction, {examples} examples), but {name} is {limit}; raise it, or lower "
                "prompt.examples"
            )
