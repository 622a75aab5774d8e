"""The model that a study trains: its base, with fresh adapters where the config asks for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.assets import BASE_FOLDER
from cotjax.data.chat_template import turn_template
from cotjax.data.codec import TOKENIZER_FILES, Codec
from cotjax.data.word_tokenizer import save_tokenizer
from cotjax.errors import DataError, UsageError
from cotjax.model import lora
from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.induction import place_induction_head
from cotjax.model.params import Params, init_params, param_shardings, trainable_paths
from cotjax.runtime import distributed
from cotjax.runtime.claim import arms_begun, saved_steps
from cotjax.runtime.files import atomic_folder, write_atomic
from cotjax.runtime.progress import Reporter
from cotjax.study.arms import arms_of
from cotjax.study.starts import start_of
from cotjax.study.training_data import kept_of, load_codec, make_tokenizer
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.recall import grow_recall
from cotjax.weights.convert import load_params, read_config, tokenizer_folder

VOCAB_MULTIPLE = 64
SIZES = ("width", "layers", "heads", "kv_heads", "head_size", "feed_forward")
DTYPES = ("param_dtype", "compute_dtype")


@dataclass(frozen=True)
class Start:
    """What training starts from.

    model: the decoder.
    make_params: returns its first parameters on a mesh; a seed makes the adapters, if any.
    tokenizer: the tokenizer's folder.
    """

    model: ModelConfig
    make_params: Callable[[Mesh, int], Params]
    tokenizer: Path

    def params_of(self, seed: int) -> Callable[[Mesh], Params]:
        """Return the function that makes an arm's first parameters on a mesh."""
        return lambda mesh: self.make_params(mesh, seed)


@dataclass(frozen=True)
class Beginning:
    """What one arm starts from.

    make_params: returns its first parameters on a mesh.
    made_from: `start` of its `made_from` (`cotjax.runtime.content`); {} for the base.
    """

    make_params: Callable[[Mesh], Params]
    made_from: dict[str, dict[str, Any]]


def beginning(config: ConfigDict, run: Path, arm: str, start: Start) -> Beginning:
    """Return what an arm starts from: the base, or the checkpoint that its `start` names.

    Raises DataError where that is not there, or damaged.
    """
    place = start_of(config, arm)
    if place is None:
        return Beginning(start.params_of(arms_of(config)[arm].seed), {})
    folder = run / "arms" / place.member / "checkpoints"
    if place.step not in saved_steps(folder):
        raise DataError(
            f"{folder}: no checkpoint of step {place.step}, which {arm!r} starts from; start the "
            "same command again, which trains that arm first"
        )
    checkpoints = Checkpoints(folder)

    def make_params(mesh: Mesh) -> Params:
        return checkpoints.restore_params(place.step, start.model, mesh)

    about = {
        "file": str(folder / str(place.step)),
        "arm": place.member,
        "step": place.step,
        "sha256": checkpoints.digest(place.step),
    }
    return Beginning(make_params, {"start": about})


def base_folder(config: ConfigDict) -> Path | None:
    """Return the folder of the base's weights; None when they are new."""
    base = config.model.base
    return None if base == "random" else BASE_FOLDER if base == "package" else Path(base)


def adapters_of(config: ConfigDict) -> LoRA | None:
    """Return the adapters that the config asks for. Raises UsageError for impossible settings."""
    settings = config.model
    if not settings.lora_rank:
        return None
    return LoRA(settings.lora_rank, settings.lora_alpha, settings.lora_targets)


def make_start(
    config: ConfigDict, run: Path, trajectories: Collection[Path], reporter: Reporter
) -> Start:
    """Return the base of a run, with fresh adapters where the config asks for them.

    A "random" base without a tokenizer gets one made from the trajectories, in the run's folder.
    All arms start from the same base, whose own randomness has the config's seed.
    """
    start = _base(config, run, trajectories, reporter)
    adapters = adapters_of(config)
    if adapters is None:
        return start
    model = replace(start.model, lora=adapters)
    trainable_paths(model)  # raises, before the dataset is built, when the targets match nothing

    def make_params(mesh: Mesh, seed: int) -> Params:
        key = jax.random.key(seed)
        return lora.add(start.model, start.make_params(mesh, seed), adapters, key, mesh)[1]

    return Start(model, make_params, start.tokenizer)


def keep_model(run: Path, start: Start) -> None:
    """Write the model's sizes and its tokenizer into the run.

    With them it can be evaluated and exported without its base.
    """
    write_atomic(run / "model.json", json.dumps(asdict(start.model), indent=2) + "\n")
    kept = run / "tokenizer"
    if start.tokenizer.resolve() == kept.resolve():
        return
    kept.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (start.tokenizer / name).exists():
            write_atomic(kept / name, (start.tokenizer / name).read_bytes())
        else:
            (kept / name).unlink(missing_ok=True)


def load_trained(config: ConfigDict, run: Path) -> tuple[ModelConfig, Codec]:
    """Return the model that a run trained, and its codec. Raises UsageError when there is none."""
    file = run / "model.json"
    if not file.exists():
        raise UsageError(
            f"{run}: nothing was trained here; run `cotjax train` with the same --out first"
        )
    return ModelConfig.from_saved(file), load_codec(config, run / "tokenizer", kept_of(config, run))


def _base(
    config: ConfigDict, run: Path, trajectories: Collection[Path], reporter: Reporter
) -> Start:
    settings = config.model
    dtypes = {name: settings[name] for name in DTYPES}
    folder = base_folder(config)
    if folder is None:
        tokenizer = Path(settings.tokenizer or _make_tokenizer(config, run, trajectories))
        codec = load_codec(config, tokenizer)
        # Rounded up, so that the vocabulary divides over a tensor axis.
        vocab_size = -(-codec.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        sizes = {name: settings[name] for name in SIZES}
        model = ModelConfig(vocab_size=vocab_size, **sizes, **dtypes)
        return Start(model, lambda mesh, _: _new_params(config, model, mesh, reporter), tokenizer)
    model = read_config(folder, lambda line: reporter.say(f"  {line}"), **dtypes)
    tokenizer = Path(settings.tokenizer or tokenizer_folder(folder))
    return Start(model, lambda mesh, _: load_params(folder, mesh, **dtypes), tokenizer)


def recipe_of(config: ConfigDict) -> dict[str, Any]:
    """Return how a "random" model is made, as `cotjax.runtime.content` has it."""
    settings = config.model
    recipe: dict[str, Any] = {"recipe": "random", "recall_steps": settings.recall_steps}
    return recipe | ({"induction": True} if settings.induction else {})


def _new_params(config: ConfigDict, model: ModelConfig, mesh: Mesh, reporter: Reporter) -> Params:
    """Return random parameters on a mesh, with heads that look up if the config says so."""
    key, steps = jax.random.key(config.seed), config.model.recall_steps
    if not steps and not config.model.induction:
        return init_params(model, key, mesh)
    # On one device, so that the result is the same for every mesh; the model is small.
    params = init_params(model, key)
    if config.model.induction:
        params = place_induction_head(model, params, jax.random.fold_in(key, 2))
    if steps:
        params = _recalling(model, params, jax.random.fold_in(key, 1), steps, reporter)
    return jax.device_put(params, param_shardings(model, mesh))


def _recalling(
    model: ModelConfig, params: Params, key: jax.Array, steps: int, reporter: Reporter
) -> Params:
    """Return parameters trained on associative recall."""
    with reporter.stage("recall", "Training on associative recall") as stage:
        params = grow_recall(
            model,
            params,
            key,
            steps,
            lambda done, total, right: stage.update(done, total, f"updates, {right:.2f} recalled"),
        )
    if distributed.several():
        # The processes' results may differ by rounding.
        params = multihost_utils.broadcast_one_to_all(params)
    return params


def _make_tokenizer(config: ConfigDict, run: Path, trajectories: Collection[Path]) -> Path:
    folder = run / "tokenizer"
    exists = (folder / "tokenizer.json").exists()
    # Before training began, an existing one may have been made from other data.
    if exists and (arms_begun(run) or not distributed.first()):
        return folder
    tokenizer = make_tokenizer(config, *trajectories)
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as partial:
        save_tokenizer(tokenizer, partial, turn_template(config.data.template))
    return folder
