"""A model that is played as it is: the base of a study that trains no arm.

Episodes, records, run.json and the report are those of a study whose one checkpoint is 0, the base.
Records are bound to the content of the model, its tokenizer and the games (`played.json`) and to
the settings of playing (`config.json`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.config import default_config, load_config, set_fields
from cotjax.data.chat_template import AUTO, has_template
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.report.summary import Summary
from cotjax.runtime import distributed
from cotjax.runtime.content import changed
from cotjax.runtime.files import read_json, write_atomic
from cotjax.study.base import DTYPES
from cotjax.study.describe import describe_run
from cotjax.study.evaluate import evaluate
from cotjax.study.games import GameSets, whole_split
from cotjax.study.memory import playing_memory
from cotjax.study.players import LocalPlayer
from cotjax.study.ready import examples_alone
from cotjax.study.run import Study
from cotjax.study.spelling import check_spelling
from cotjax.study.training_data import load_codec
from cotjax.train.fingerprints import Fingerprints
from cotjax.weights.convert import folder_kind, load_params, read_config, tokenizer_folder


@dataclass(frozen=True)
class ModelFolder:
    """The weights of a Hugging Face, Orbax or PEFT folder, as those of a checkpoint.

    Attributes:
      dtypes: param_dtype and compute_dtype.
      sha256: fingerprint of its weight files.
    """

    folder: Path
    dtypes: dict[str, str]
    sha256: str

    def digest(self, step: int) -> str:
        return self.sha256

    def restore_params(self, step: int, model: ModelConfig, mesh: Mesh) -> Params:
        return load_params(self.folder, mesh, **self.dtypes)


def config_of_model(
    model: Path,
    *,
    world: str | None = None,
    split: str | None = None,
    games: Path | None = None,
    kinds: Sequence[str] = (),
    out: Path | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> ConfigDict:
    """Return the config with which a model's folder is played.

    Args:
      model: its own chat template and number of positions are taken, unless a config file or an
        override gives data.template and evaluate.max_length.
      world, split: None: those of the config file, else ALFWorld's valid_unseen.
      games: folder of the games; None: as config.games says, made in `out` by default. All games of
        the split are played unless a config file or an override says how many.
      kinds: kinds of action that drive episodes; (): those of the config.
      out: None: runs/<the model folder's name>-<split>.
      file: a config file, whose settings of training are ignored.
      overrides: as for `load_config`.

    Raises:
      UsageError: an unknown field, world or split, or no model in the folder.
      DataError: the games cannot be read.
    """
    folder_kind(model)
    name = model.resolve().name
    config = config_without_arms(str(model), name, world, split, games, kinds, out, file, overrides)
    if file is None:
        given = {override.partition("=")[0] for override in overrides}
        if "evaluate.max_length" not in given:
            positions = read_config(model).max_length
            config.evaluate.max_length = min(config.evaluate.max_length, positions)
        if "data.template" not in given and has_template(tokenizer_folder(model)):
            config.data.template = AUTO
    return config


def config_without_arms(
    base: str,
    name: str,
    world: str | None,
    split: str | None,
    games: Path | None,
    kinds: Sequence[str],
    out: Path | None,
    file: Path | None,
    overrides: Sequence[str],
) -> ConfigDict:
    """Return the config with which one model, whatever it is, is played as it is.

    `base`: in the config; `name`: in the name of the folder. The others are as for
    `config_of_model`, which says what is raised.
    """
    if file is None:
        config = default_config(world) if world else default_config()
        set_fields(config, overrides)
    else:
        config = load_config(file, [f"world={world}", *overrides] if world else overrides)
    usual = default_config(config.world)
    config.train, config.masking = usual.train, usual.masking
    config.data.max_length = usual.data.max_length
    config.model.base, config.arms, config.games.train = base, ConfigDict(), 0
    config.evaluate.episodes_at = ()  # the only checkpoint is 0
    if split:
        config.games.eval_split = split
    own = load_world(config.world)
    if config.games.eval_split not in own.splits:
        raise UsageError(
            f"world {own.name!r} has no split {config.games.eval_split!r}; there are "
            f"{', '.join(own.splits)}"
        )
    if games:
        config.games.source, config.games.root = own.name, str(games)
    if kinds:
        config.evaluate.elicitations = tuple(kinds)
    config.out = str(out or Path("runs") / f"{name}-{config.games.eval_split}")
    given = {override.partition("=")[0] for override in overrides}
    if file is None and config.games.source != "made":
        named = config.games.ood_domains if "games.ood_domains" in given else ()
        for name, value in whole_split(config, named).items():
            if f"games.{name}" not in given:
                config.games[name] = value
    return config


def play_model(study: Study, games: GameSets) -> Summary | None:
    """Play the base of a study as it is; return the report's summary.

    Raises UsageError when episodes were played with another model, tokenizer or games.
    """
    config, run = study.config, study.folder
    folder, dtypes = Path(config.model.base), {name: config.model[name] for name in DTYPES}
    model = read_config(folder, lambda line: study.reporter.say(f"  {line}"), **dtypes)
    tokenizer = Path(config.model.tokenizer or tokenizer_folder(folder))
    with distributed.in_turn("model"):
        made_from = _contents(run, folder, tokenizer)
        if distributed.first():
            bind_played(run, made_from, games.hash, asdict(model))
    codec, expert = (
        load_codec(config, tokenizer, examples_alone(config)),
        study.trajectories.expert(games),
    )
    check_spelling(study.world, codec, games.by_domain(expert), study.reporter.say)
    study.reporter.say(playing_memory(config, model))
    base = ModelFolder(folder, dtypes, made_from["base"]["sha256"])
    with study.reporter.stage("evaluate", f"Playing {folder.resolve().name}") as stage:
        evaluate(
            config,
            player=partial(LocalPlayer, config, model, codec),
            games=games,
            expert=expert,
            arms={},
            base=base,
            records=run / "records",
            report=stage.update,
            warn=study.reporter.say,
        )
        distributed.barrier("played")
    if config.probes.names:
        study.measure(games, model, codec, {}, base)
    if distributed.first():
        seconds = study.reporter.seconds
        describe_run(config, run, games, model, codec, expert, seconds, made_from)
    return study.report()


def _contents(run: Path, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Return what is played, by fingerprints, as `cotjax.runtime.content` describes it."""
    fingerprints, file = Fingerprints(run / "fingerprints.json"), tokenizer / "tokenizer.json"
    made_from = {
        "tokenizer": {"file": str(file), "sha256": fingerprints.of(file)},
        "base": {"file": str(folder), "sha256": fingerprints.of_base(folder)},
    }
    if distributed.first():
        fingerprints.keep()
    return made_from


def bind_played(
    folder: Path, made_from: Mapping[str, Any], games_hash: str, model: Mapping[str, Any]
) -> None:
    """Keep what a model that is played without a run is made from, and what it plays.

    Args:
      made_from: its tokenizer and weights (`runtime.content`).
      games_hash: of the content of the games.
      model: its sizes, from its config file, as far as they are known.

    Raises UsageError when episodes were played with others.
    """
    file = folder / "played.json"
    mine = json.loads(json.dumps({"made_from": made_from, "games": games_hash, "model": model}))
    theirs = read_json(file, "cotjax") if file.exists() else mine
    difference = changed(theirs["made_from"], mine["made_from"])
    if theirs["games"] != games_hash:
        difference = difference or "the content of the played games changed"
    # A field that theirs lacks is newer than those episodes.
    if theirs["model"] != {name: mine["model"].get(name) for name in theirs["model"]}:
        difference = difference or "the sizes in the model's config file changed"
    if difference and any((folder / "records").rglob("*.json")):
        raise UsageError(
            f"{folder} holds another run ({difference}); restore what it was begun with, or "
            "choose another folder with --out"
        )
    if difference or not file.exists():
        write_atomic(file, json.dumps(mine, indent=2) + "\n")
