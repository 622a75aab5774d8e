"""Checks of a config before its folder is claimed, so that a start that fails claims nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.config import ARM_FIELDS, default_config, own_files
from cotjax.data.chat_template import AUTO
from cotjax.data.codec import Codec
from cotjax.data.prompt_examples import NONE_DRAWN, Drawn
from cotjax.data.tokens import GROWING
from cotjax.envs.worlds import load_world
from cotjax.errors import DataError, UsageError
from cotjax.formats import TEMPLATES
from cotjax.model.config import ModelConfig
from cotjax.model.published import PUBLISHED
from cotjax.model.sharding import make_mesh
from cotjax.rl.checks import check_rl
from cotjax.runtime import distributed
from cotjax.runtime.claim import check_run
from cotjax.runtime.ranges import check_all_ranges
from cotjax.study.arms import check_arms, check_thoughts, collects, reinforced_arms
from cotjax.study.base import DTYPES, SIZES, adapters_of, base_folder
from cotjax.study.evaluate import (
    check_layout,
    check_playable,
    elicitation_of,
    limits_of,
    playing_of,
)
from cotjax.study.games import NUMBERS, check_world, wanted_games
from cotjax.study.players import playing_mesh
from cotjax.study.power import check_primary
from cotjax.study.probing import check_probes
from cotjax.study.stages import StagePlan, arms_of_stages, config_of, plans_of
from cotjax.study.starts import train_of
from cotjax.study.training_data import (
    check_opening,
    drawn_of,
    load_codec,
    prompt_of,
    selection_of,
)
from cotjax.train.checks import check_batch, check_counts
from cotjax.train.trackers import check_trackers
from cotjax.weights.convert import folder_kind, read_config, tokenizer_folder


def check(config: ConfigDict, trains: bool = True) -> None:
    """Check a config and the files that it names. Nothing is written.

    `trains`: whether training follows; otherwise neither the data nor the base needs to exist.

    Raises:
      UsageError: a setting is impossible, or does not fit another one, the base or the devices.
      DataError: a file is missing or malformed.
    """
    check_all_ranges(config)
    check_counts(config.train)
    check_world(config)
    check_arms(config)
    _check_own_training(config)
    _check_data(config)
    # What was trained is played, whatever it was trained on.
    if trains or load_world(config.world).agents:
        _check_collection(config)
    adapters_of(config)
    elicitation_of(config)
    limits_of(config)
    check_primary(config)
    plays = bool(wanted_games(config))
    if plays:
        playing_of(config)
        check_probes(config)
    if plays and config.train.keep_last:
        kept = f"train.keep_last is {config.train.keep_last}, but the study plays every checkpoint"
        raise UsageError(f"{kept}: set it to 0, or {NUMBERS} to 0 to train alone")
    if plays and distributed.several():
        playing_mesh(config)
    if trains:
        if arms := reinforced_arms(config):
            check_rl(config, arms)
        _check_training(config, plays)


def check_reinforced(config: ConfigDict) -> None:
    """Check a config whose arms are trained by reinforcement learning. Nothing is written.

    Raises as `check` does.
    """
    check(config, trains=False)
    check_rl(config)
    check_trackers(config.train)
    model, codec = _check_base(config, NONE_DRAWN)
    assert codec is not None, "the base is a folder"
    check_batch(config.train, make_mesh(**config.mesh))
    check_opening(config, codec)
    check_playable(config, model, codec)


def check_stages(config: ConfigDict) -> dict[str, StagePlan]:
    """Check a config of AutoCoA's stages; return them. Nothing is written. Raises as `check`."""
    check_all_ranges(config)
    check_world(config)
    if config.data.layout != GROWING:
        raise UsageError(
            f"data.layout is {config.data.layout!r}, and AutoCoA's stages write growing texts; set "
            f"it to {GROWING!r}"
        )
    _check_data(config)
    adapters_of(config)
    plans, mesh = plans_of(config), make_mesh(**config.mesh)
    for plan in plans.values():
        check_counts(plan.train)
        check_trackers(plan.train)
        check_batch(plan.train, mesh)
        if plan.rl is not None:
            check_rl(config_of(config, plan), ())
        if plan.choices and not Path(plan.choices).is_file():
            raise UsageError(
                f"autocoa.stages.{plan.name}.choices: {plan.choices}: no such file; `cotjax data "
                "choices` makes one"
            )
    if arms_of_stages(config, plans) and wanted_games(config):
        elicitation_of(config)
        playing_of(config)
        limits_of(config)
    _check_base(config, NONE_DRAWN)
    return plans


def check_alone(config: ConfigDict) -> None:
    """Check a config whose base is played as it is, without arms. Nothing is written.

    Raises as `check` does.
    """
    check_games_alone(config)
    _check_data(config)
    model, codec = _check_base(config, examples_alone(config))
    assert codec is not None, "the base is a folder"
    check_playable(config, model, codec)


def check_games_alone(config: ConfigDict) -> None:
    """Check all that concerns the games of such a config, whatever model plays them."""
    check_all_ranges(config)
    check_world(config)
    elicitation_of(config)
    playing_of(config)
    check_probes(config)
    limits_of(config)
    if not wanted_games(config):
        raise UsageError(
            f"split {config.games.eval_split!r} has no games of the task types of any domain "
            f"({NUMBERS} are 0): there is nothing to play"
        )


def examples_alone(config: ConfigDict) -> Drawn:
    """Return the prompt's examples where no arm is trained, from data.trajectories.

    Raises UsageError where there should be some, but there is no such file.
    """
    if not config.prompt.examples:
        return NONE_DRAWN
    if not Path(config.data.trajectories or "/").is_file():
        raise UsageError(
            f"prompt.examples is {config.prompt.examples}: give the file that they are drawn from, "
            "--config.data.trajectories=FILE"
        )
    return drawn_of(config, Path(config.data.trajectories))


def check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that the run of a config (as JSON) may use a folder, as `check_run` does."""
    defaults = json.loads(default_config().to_json_best_effort())
    check_run(folder, config, defaults, ARM_FIELDS)


def _check_own_training(config: ConfigDict) -> None:
    """Check the `train` section of each arm that has steps or a rate of its own."""
    for arm in config.arms:
        own = train_of(config, arm)
        if own.to_dict() != config.train.to_dict():
            try:
                check_counts(own)
            except UsageError as error:
                raise UsageError(f"arms.{arm}: {error}") from None


def _check_data(config: ConfigDict) -> None:
    if config.data.max_length > config.train.row_length:
        raise UsageError(
            f"data.max_length ({config.data.max_length}) must be at most train.row_length "
            f"({config.train.row_length})"
        )
    if config.data.template not in (*TEMPLATES, AUTO):
        raise UsageError(
            f"data.template is {config.data.template!r}; there are {', '.join((*TEMPLATES, AUTO))}"
        )
    prompt_of(config)
    check_layout(config)
    selection_of(config)


def _check_collection(config: ConfigDict) -> None:
    settings, world = config.collect, load_world(config.world)
    # A world without scripted agents needs trajectories, and then the agent does not matter.
    if world.agents or collects(config):
        try:
            world.check_agent(settings.agent)
        except UsageError as error:
            raise UsageError(f"collect.agent: {error}") from None
        check_thoughts(config, settings.thoughts, "collect.thoughts")
    skill = tuple(settings.skill)
    if len(skill) != 2 or not 0 <= skill[0] <= skill[1] <= 1:
        raise UsageError(f"collect.skill is {skill}; give two shares of 0..1, the lower first")


def _check_base(config: ConfigDict, drawn: Drawn) -> tuple[ModelConfig, Codec | None]:
    """Return the base's sizes and codec.

    The codec is None, and the vocabulary's size unknown, when the tokenizer is made from the data.
    """
    folder = base_folder(config)
    dtypes = {name: config.model[name] for name in DTYPES}
    codec = load_codec(config, config.model.tokenizer, drawn) if config.model.tokenizer else None
    if folder is None:
        sizes = {name: config.model[name] for name in SIZES}
        return ModelConfig(vocab_size=codec.vocab_size if codec else 1, **sizes, **dtypes), codec
    if config.model.base in PUBLISHED and not folder.exists():
        raise UsageError(
            f"model.base is {config.model.base!r}, a name for plans: give the folder with it, "
            "--config.model.base=FOLDER"
        )
    try:
        folder_kind(folder)
    except UsageError as error:
        raise UsageError(f"model.base: {error}; 'package' and 'random' are bases too") from None
    if codec is None:
        tokenizer = tokenizer_folder(folder)
        if not (tokenizer / "tokenizer.json").is_file():
            raise UsageError(
                f"model.base: {tokenizer} holds no tokenizer.json; set model.tokenizer to a folder "
                "that does"
            )
        codec = load_codec(config, tokenizer, drawn)
    return read_config(folder, **dtypes), codec


def _check_training(config: ConfigDict, plays: bool) -> None:
    check_trackers(config.train)
    trajectories = config.data.trajectories
    own = {f"arms.{arm}.trajectories": file for arm, file in own_files(config).items()}
    for field, file in {"data.trajectories": trajectories, **own}.items():
        if file and not Path(file).is_file():
            raise DataError(
                f"{field}: {file}: no such file; give one with a JSON line per episode, as in "
                "docs/data.md"
            )
    drawn = drawn_of(config, Path(trajectories)) if trajectories else NONE_DRAWN
    model, codec = _check_base(config, drawn)
    check_batch(config.train, make_mesh(**config.mesh))
    model.check_length(config.data.max_length, "data.max_length")
    if codec is not None:
        model.check_ids(codec.vocab_size)
        check_opening(config, codec)
    # With a tokenizer made from the data, this is checked once it exists.
    if plays and codec is not None:
        check_playable(config, model, codec)
