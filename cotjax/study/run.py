"""The main job, stage by stage: games, trajectories, dataset, base model, arms, play, report.

Every stage finds what an earlier run of the same config left in the run's folder and goes on from there. `cotjax train`,
`cotjax evaluate` and `cotjax report` are the same stages one by one. Of several processes the first makes the files, all train one
model together, each plays its share of the games, and the first writes the report.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from cotjax.data.codec import TOKENIZER_FILES, Codec
from cotjax.data.tfds_agent import dataset_counts, fingerprint, prepare_dataset, sha256_of
from cotjax.data.trajectories import read_trajectories, write_trajectories
from cotjax.data.word_tokenizer import save_tokenizer
from cotjax.envs.base import Game
from cotjax.envs.worlds import World, load_world
from cotjax.errors import DataError, UsageError
from cotjax.formats import TEMPLATES
from cotjax.model import lora
from cotjax.model.config import ModelConfig
from cotjax.model.params import abstract_params, init_params, param_shardings, trainable_paths
from cotjax.rollout.collect import Collecting, collect, expert_episodes
from cotjax.runtime import distributed
from cotjax.runtime.claim import (
    arms_begun,
    bind_held_out,
    check_arm_content,
    claim_run,
    content_of_arm,
    planned_steps,
)
from cotjax.runtime.content import contents
from cotjax.runtime.files import atomic_folder, local_path, read_json, write_atomic
from cotjax.runtime.progress import Reporter, TrainingProgress
from cotjax.runtime.provenance import git_revision, package_versions
from cotjax.study.evaluate import check_playable, evaluate
from cotjax.study.export import keep_base
from cotjax.study.games import GameSets, left_out_text, prepare_games
from cotjax.study.ready import adapters_of, base_folder, check, check_folder, dropping_of
from cotjax.study.training_data import agent_config, load_codec, made_tokenizer
from cotjax.train.fingerprints import Fingerprints
from cotjax.train.main import train
from cotjax.train.recall import grow_recall
from cotjax.train.run import Run
from cotjax.weights.convert import load_params, read_config, tokenizer_folder

VOCAB_MULTIPLE = 64


@dataclass
class Study:
    """One run's folder and what its stages hand on."""

    config: ConfigDict
    folder: Path
    reporter: Reporter

    @property
    def world(self) -> World:
        return load_world(self.config.world)

    @property
    def arm_folders(self) -> dict[str, Path]:
        return {arm: self.folder / "arms" / arm for arm in self.config.arms}

    def run(self) -> dict | None:
        """All stages; return the report's summary (None where nothing is played, and on all processes but the first)."""
        games = self.games()
        self.train(games)
        if not games.played:
            return None
        self.evaluate(games)
        return self.report()

    # ---- stages

    def games(self) -> GameSets:
        made = "Making" if self.config.games.source == "made" else "Finding"
        with self.reporter.stage("games", f"{made} games") as stage, distributed.in_turn("games"):
            games = prepare_games(
                self.config, lambda done, total: stage.update(done, total, "games")
            )
        for split, reasons in games.left_out.items():
            self.reporter.say(f"  left out of {split}: {left_out_text(reasons)}")
        self.reporter.say(
            f"  {len(games.train)} to train on, {len(games.in_domain)} in-domain and {len(games.ood)} OOD games to play"
        )
        return games

    def train(self, games: GameSets) -> None:
        """Collect, build the dataset, and train every arm from the base."""
        with distributed.in_turn("dataset"):
            trajectories = self._training_trajectories(games)
            model, make_params, tokenizer = self._start(trajectories)
            if games.played:
                check_playable(self.config, model, load_codec(self.config, tokenizer))
            source, made_from = self._dataset(trajectories, tokenizer)
            if distributed.first():
                self._keep_model(model, tokenizer)
                keep_base(
                    self.folder,
                    base_folder(self.config),
                    tokenizer,
                    load_codec(self.config, tokenizer),
                )
        distributed.check_same("what the run is made from", contents(made_from))
        for arm, settings in self.config.arms.items():
            title = f"Training {arm!r} ({settings.label}) on {jax.device_count()} {jax.default_backend()} device(s)"
            with self.reporter.stage("train", title) as stage:
                run = Run(
                    self.config.train,
                    dropping=dropping_of(self.config, arm),
                    model=model,
                    make_params=make_params,
                    normalizer=self.config.masking.normalizer,
                    seed=self.config.seed,
                    made_from=made_from,
                    config=json.loads(self.config.to_json_best_effort()),
                )
                train(
                    run,
                    folder=self.arm_folders[arm],
                    source=source,
                    mesh_shape=dict(self.config.mesh),
                    listener=TrainingProgress(self.reporter, stage),
                )

    def evaluate(self, games: GameSets) -> None:
        """Play every checkpoint of every arm."""
        if not games.played:
            raise UsageError("games.in_domain and games.ood are both 0: there is nothing to play")
        model, codec = self._trained()
        check_playable(self.config, model, codec)
        with distributed.in_turn("held out"):
            expert = self._held_out_trajectories(games)
            if distributed.first():
                bind_held_out(
                    self.folder, sha256_of(self.folder / "trajectories" / "held_out.jsonl")
                )
        with self.reporter.stage(
            "evaluate", "Playing every checkpoint: CoT actions, prompt actions, expert states"
        ) as stage:
            evaluate(
                self.config,
                model=model,
                codec=codec,
                games=games,
                expert=expert,
                arms={arm: folder / "checkpoints" for arm, folder in self.arm_folders.items()},
                records=self.folder / "records",
                report=stage.update,
                warn=self.reporter.say,
            )
            distributed.barrier("played")
        if distributed.first():
            self._describe(games, model, expert)

    def report(self) -> dict | None:
        """Read the records; write summary.json, the figures and report.html. Only the first process does."""
        from cotjax.report.page import (
            make_report,
        )  # matplotlib is slow to import, and only this stage draws

        summary = None
        with self.reporter.stage("report", "Writing the report"):
            if distributed.first():
                summary = make_report(self.folder)
            distributed.barrier("reported")
        return summary

    # ---- parts

    def _training_trajectories(self, games: GameSets) -> Path:
        if self.config.data.trajectories:
            return Path(self.config.data.trajectories)
        path = self.folder / "trajectories" / "train.jsonl"
        settings = self.config.collect
        self._collect(games.train, path, settings.agent, settings.episodes_per_game, settings.slips)
        return path

    def _held_out_trajectories(self, games: GameSets) -> dict:
        path = self.folder / "trajectories" / "held_out.jsonl"
        if "expert" in self.world.agents:
            self._collect(games.played, path, "expert", 1, slips=0.0, needed=False)
        elif not path.exists():
            write_trajectories(path, expert_episodes(self.config.data.trajectories, games.played))
        return {trajectory.game: trajectory for trajectory in read_trajectories(path)}

    def _collect(
        self,
        games: tuple[Game, ...],
        path: Path,
        agent: str,
        episodes: int,
        slips: float,
        needed: bool = True,
    ) -> None:
        if path.exists():
            return
        settings = self.config.collect
        with self.reporter.stage(
            "collect", f"Collecting trajectories: the {agent} plays {len(games)} games"
        ) as stage:
            how = Collecting(
                agent=agent,
                seed=self.config.seed,
                max_steps=settings.max_steps,
                only_won=agent == "expert",
                skill=tuple(settings.skill),
                news=settings.news,
                mistakes=slips,
                episodes_per_game=episodes,
            )
            summary = collect(
                self.world,
                games,
                path,
                how,
                workers=self.config.workers,
                progress=lambda done, total: stage.update(done, total, "episodes"),
            )
        for line in summary.lines():
            self.reporter.say(f"  {line}")
        if needed and not summary.kept:
            path.unlink()  # an empty file is not taken for a finished one
            raise DataError(
                f"{path}: the {agent} could not play one of {summary.played} games to keep; see why above"
            )

    def _start(self, trajectories: Path):
        """What training starts from: as `_base`, with fresh adapters where the config asks for them."""
        base, make_base, tokenizer = self._base(trajectories)
        adapters = adapters_of(self.config)
        if adapters is None:
            return base, make_base, tokenizer
        model = replace(base, lora=adapters)
        trainable_paths(
            model
        )  # targets that match nothing are an error here, before the dataset is built
        key = jax.random.key(self.config.seed)
        return (
            model,
            lambda mesh: lora.add(base, make_base(mesh), adapters, key, mesh)[1],
            tokenizer,
        )

    def _base(self, trajectories: Path):
        """(model config, how its parameters come onto a mesh, tokenizer folder)."""
        settings = self.config.model
        dtypes = {name: settings[name] for name in ("param_dtype", "compute_dtype")}
        if settings.base == "random":
            tokenizer = (
                Path(settings.tokenizer)
                if settings.tokenizer
                else self._make_tokenizer(trajectories)
            )
            codec = load_codec(self.config, tokenizer)
            sizes = {
                name: settings[name]
                for name in ("width", "layers", "heads", "kv_heads", "head_size", "feed_forward")
            }
            # Rounded up, so that the vocabulary can be shared out over a tensor axis.
            model = ModelConfig(
                vocab_size=-(-codec.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
                **sizes,
                **dtypes,
            )
            return model, lambda mesh: self._random_params(model, mesh), tokenizer
        folder = base_folder(self.config)
        model = read_config(folder, lambda line: self.reporter.say(f"  {line}"), **dtypes)
        tokenizer = Path(settings.tokenizer) if settings.tokenizer else tokenizer_folder(folder)
        return model, lambda mesh: load_params(folder, mesh, **dtypes), tokenizer

    def _random_params(self, model: ModelConfig, mesh: Mesh) -> dict:
        key, steps = jax.random.key(self.config.seed), self.config.model.recall_steps
        if not steps:
            return init_params(model, key, mesh)
        # On one device, whatever the mesh is: the same start for every mesh, and it is a small model's business.
        params = init_params(model, key)
        with self.reporter.stage("recall", "Growing heads that look things up") as stage:
            params = grow_recall(
                model,
                params,
                jax.random.fold_in(key, 1),
                steps,
                lambda done, total, right: stage.update(
                    done, total, f"updates, {right:.2f} recalled"
                ),
            )
        if distributed.several():
            params = multihost_utils.broadcast_one_to_all(
                params
            )  # each has grown its own, equal up to the order of its sums
        return jax.device_put(params, param_shardings(model, mesh))

    def _make_tokenizer(self, trajectories: Path) -> Path:
        folder = self.folder / "tokenizer"
        made = (folder / "tokenizer.json").exists()
        if made and (arms_begun(self.folder) or not distributed.first()):
            return folder  # else the data that it was made of may be others by now
        template = TEMPLATES[self.config.data.template]

        tokenizer = made_tokenizer(self.config, trajectories)
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder) as partial:
            save_tokenizer(tokenizer, partial, template)
        return folder

    def _keep_model(self, model: ModelConfig, tokenizer: Path) -> None:
        """Keep the model's sizes and its tokenizer in the run, so that it can be evaluated and exported without its base."""
        write_atomic(self.folder / "model.json", json.dumps(asdict(model), indent=2) + "\n")
        kept = self.folder / "tokenizer"
        if tokenizer.resolve() == kept.resolve():
            return
        kept.mkdir(exist_ok=True)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                write_atomic(kept / name, (tokenizer / name).read_bytes())
            else:
                (kept / name).unlink(missing_ok=True)

    def _dataset(self, trajectories: Path, tokenizer: Path):
        builder_config = agent_config(self.config, trajectories, tokenizer)
        fingerprints = Fingerprints(self.folder / "fingerprints.json")
        made_from = self._made_from(
            trajectories, tokenizer, fingerprint(builder_config, fingerprints.of), fingerprints
        )
        with self.reporter.stage("dataset", "Building the dataset"):
            builder = prepare_dataset(
                builder_config, self.folder / "dataset", digest=fingerprints.of
            )
        counts = dataset_counts(builder)
        for line in counts.lines():
            self.reporter.say(f"  {line}")
        if distributed.first():
            write_atomic(self.folder / "data.json", json.dumps(counts.as_dict(), indent=2) + "\n")
        return builder.as_data_source(split="train"), made_from

    def _made_from(
        self, trajectories: Path, tokenizer: Path, examples: str, fingerprints: Fingerprints
    ) -> dict:
        """Return what binds the run besides its settings. Raises UsageError when an arm was begun with other content."""
        base, file = base_folder(self.config), tokenizer / "tokenizer.json"
        made_from = {
            "data": {
                "file": str(trajectories),
                "sha256": fingerprints.of(trajectories),
                "examples": examples,
            },
            "tokenizer": {"file": str(file), "sha256": fingerprints.of(file)},
            "base": {"recipe": "random", "recall_steps": self.config.model.recall_steps}
            if base is None
            else {"file": str(base), "sha256": fingerprints.of_base(base)},
        }
        if distributed.first():
            fingerprints.keep()
        known = any((self.folder / "dataset").glob(f"*/agent-{examples}"))
        for arm in arms_begun(self.folder):
            check_arm_content(self.folder / "arms" / arm, made_from, self.config.train.steps, known)
        return made_from

    def _trained(self) -> tuple[ModelConfig, Codec]:
        """The model that `train` trained, and its codec."""
        file = self.folder / "model.json"
        if not file.exists():
            raise UsageError(
                f"{self.folder}: nothing was trained here; run `cotjax train` with the same --out first"
            )
        return ModelConfig.from_saved(file), load_codec(self.config, self.folder / "tokenizer")

    def _seconds(self) -> dict[str, float]:
        """Seconds a stage took. A later run that finds a stage done does not make it look free."""
        file = self.folder / "run.json"
        before = read_json(file, "cotjax").get("seconds", {}) if file.exists() else {}
        now = self.reporter.seconds
        return {
            stage: round(max(before.get(stage, 0.0), now.get(stage, 0.0)), 1)
            for stage in {**before, **now}
        }

    def _describe(self, games: GameSets, model: ModelConfig, expert: dict) -> None:
        """Write run.json: what the report says about the run."""
        config = self.config
        counts = read_json(self.folder / "data.json", "cotjax train")
        shapes = abstract_params(model)
        run = {
            "name": self.folder.name,
            "title": config.title,
            "world": self.world.name,
            "arms": {arm: dict(settings) for arm, settings in config.arms.items()},
            "checkpoints": sorted(
                {step for folder in self.arm_folders.values() for step in planned_steps(folder)}
            ),
            "model": {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
                "base": config.model.base,
            },
            "games": {
                "source": "made by cotjax"
                if config.games.source == "made"
                else self.world.title or self.world.name,
                "hash": games.hash,
                "in_domain": {
                    "games": len(games.in_domain),
                    "split": config.games.eval_split,
                    "task_types": list(config.task_types.in_domain),
                },
                "ood": {
                    "games": len(games.ood),
                    "split": config.games.eval_split,
                    "task_types": list(config.task_types.ood),
                },
            },
            "data": {
                "trajectories": counts["trained_trajectories"],
                "steps": counts["trained_steps"],
                "examples": counts["examples"],
                "left_out": counts["left_out"],
                "held_out_trajectories": len(expert),
                "thought_provenance": counts["thought_provenance"],
            },
            "made_from": next(map(content_of_arm, self.arm_folders.values())),
            "train": dict(config.train),
            "masking": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in config.masking.items()
            },
            "versions": package_versions(),
            "git": git_revision(),
            "devices": f"{jax.device_count()} {jax.default_backend()}",
            "seed": config.seed,
            "seconds": self._seconds(),
            "config": json.loads(config.to_json_best_effort()),
        }
        write_atomic(self.folder / "run.json", json.dumps(run, indent=2) + "\n")


def open_study(config: ConfigDict, trains: bool = True) -> Study:
    """Take the config's output folder, once all is checked that can be, and be ready to run. `trains`: as `cotjax.study.ready.check`.

    Raises UsageError when a setting cannot be, the folder holds another run, naming what differs, or processes have different configs or
    folders; DataError when a file that is needed is missing or broken.
    """
    folder = local_path(config.out)
    mine = json.loads(config.to_json_best_effort())
    mine.pop("out")
    distributed.check_same("config", {**mine, "jax": jax.__version__})
    if distributed.first():
        check_folder(folder, mine)
    check(config, trains)
    if distributed.first():
        claim_run(folder, mine)
    distributed.check_folder(folder)
    reporter = (
        Reporter(folder / "log.txt")
        if distributed.first()
        else Reporter(console=Console(quiet=True, force_terminal=False))
    )
    return Study(config, folder, reporter)
