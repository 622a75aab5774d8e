"""A study, stage by stage: games, trajectories, dataset, base model, arms, play, report.

Every stage reuses what an earlier run of the same config left in the run's folder. `cotjax train`,
`cotjax evaluate` and `cotjax report` run the stages one by one. Of several processes the first
makes the files, all train one model together, each plays its share of the games, and the first
writes the report. Processes that work alone can share a run's arms (`cotjax.study.parts`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from cotjax.config import own_files
from cotjax.data.codec import Codec
from cotjax.data.prompt_examples import NONE_DRAWN, Drawn, keep_examples
from cotjax.diagnostics.progress import PROBE as PROGRESS
from cotjax.envs.worlds import World, load_world
from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.report.labels import domain_label
from cotjax.report.summary import Summary
from cotjax.runtime import distributed
from cotjax.runtime.claim import arms_begun, claim_run
from cotjax.runtime.content import contents
from cotjax.runtime.files import local_path
from cotjax.runtime.progress import Reporter, TrainingProgress
from cotjax.study.arms import arms_of, dropping_of, objective_of
from cotjax.study.base import Start, base_folder, beginning, keep_model, load_trained, make_start
from cotjax.study.dataset import Dataset, build_datasets
from cotjax.study.describe import describe_run
from cotjax.study.evaluate import check_playable, evaluate
from cotjax.study.export import keep_base
from cotjax.study.games import NUMBERS, GameSets, left_out_text, prepare_games
from cotjax.study.information import measure_of
from cotjax.study.jobs import Weights
from cotjax.study.memory import playing_memory
from cotjax.study.parts import in_turn, part_of, root_of
from cotjax.study.players import LocalPlayer
from cotjax.study.power import power_of, power_text
from cotjax.study.probing import needs_progress, probe_checkpoints, require_probes
from cotjax.study.ready import check, check_folder, check_reinforced
from cotjax.study.reinforcing import Reinforcing, reinforce_arms
from cotjax.study.spelling import check_spelling
from cotjax.study.starts import in_order, train_of
from cotjax.study.training_data import check_opening, drawn_of, kept_of, load_codec
from cotjax.study.trajectories import Trajectories
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.main import train
from cotjax.train.run import Run


@dataclass
class Study:
    """A run's config and folder; each method is a stage.

    `trains`: whether it trains arms, or plays its base alone (`cotjax.study.model`). `only`: the
    arms or members of this part of the study; (): all.
    """

    config: ConfigDict
    folder: Path
    reporter: Reporter
    trains: bool = True
    only: tuple[str, ...] = ()

    @property
    def world(self) -> World:
        """Return the world that is played."""
        return load_world(self.config.world)

    @property
    def arm_folders(self) -> dict[str, Path]:
        """Return the folder of each arm, in order of training; with several seeds each member's.

        Of a part of the study, those of the part.
        """
        return {arm: self.folder / "arms" / arm for arm in part_of(self.config, self.only)}

    @property
    def base(self) -> Weights | None:
        """Return the base's weights where a part plays; None: those of its first arm."""
        if not self.only:
            return None
        root = root_of(self.config, next(iter(self.arm_folders)))
        return Checkpoints(self.folder / "arms" / root / "checkpoints")

    @property
    def plays_base(self) -> bool:
        """Whether this part has the first arm, with which the base is played."""
        return next(iter(self.arm_folders), None) == next(iter(in_order(self.config)), None)

    @property
    def trajectories(self) -> Trajectories:
        """Return the trajectory files."""
        return Trajectories(self.config, self.folder, self.reporter)

    def run(self) -> Summary | None:
        """Run all stages; return the report's summary.

        None where nothing is played, for a part of the study, and in all processes but the first.
        """
        self.say_power()
        games = self.games()
        self.train(games)
        return self._after_training(games)

    def _after_training(self, games: GameSets) -> Summary | None:
        """Play, measure and report what was trained; None where nothing is played."""
        if not games.played:
            return None
        self.evaluate(games)
        names = tuple(self.config.probes.names)
        whole = not self.only
        if whole and PROGRESS not in names and needs_progress(self.config, self.folder, games):
            names = (*names, PROGRESS)
        if names:
            self.probe(games, names)
        return self.report() if whole else None

    def say_power(self) -> None:
        """Say what a study of this size can find, by the config's assumptions."""
        for power in power_of(self.config):
            self.reporter.say(f"Power: {power_text(self.config, power)}")

    def games(self) -> GameSets:
        """Make or find the games."""
        title = "Making games" if self.config.games.source == "made" else "Finding games"
        with (
            self.reporter.stage("games", title) as stage,
            distributed.in_turn("games"),
            self._shared(),
        ):
            games = prepare_games(
                self.config, lambda done, total: stage.update(done, total, "games"), self.trains
            )
        for split, reasons in games.left_out.items():
            self.reporter.say(f"  left out of {split}: {left_out_text(reasons)}")
        numbers = ", ".join(
            f"{len(played)} {domain_label(domain)}" for domain, played in games.domains.items()
        )
        self.reporter.say(f"  {len(games.train)} games to train on; to play: {numbers or 'none'}")
        return games

    def train(self, games: GameSets) -> None:
        """Collect, build the dataset, and train every arm: first those that others start from."""
        config = self.config
        with self._shared():
            expert = self.trajectories.expert_before_training(games)
        with distributed.in_turn("dataset"), self._shared():
            trajectories = self.trajectories.training(games)
            rejected = map(Path, own_files(config, "rejected").values())
            files = [*trajectories.values(), *filter(Path.is_file, rejected)]
            start = make_start(config, self.folder, files, self.reporter)
            codec = load_codec(config, start.tokenizer, self._examples(trajectories))
            check_opening(config, codec)
            if games.played:
                check_playable(config, start.model, codec)
                check_spelling(self.world, codec, games.by_domain(expert), self.reporter.say)
                self.reporter.say(playing_memory(config, start.model))
            datasets = build_datasets(
                config, self.folder, trajectories, start.tokenizer, games.train, self.reporter
            )
            if distributed.first():
                keep_model(self.folder, start)
                keep_base(self.folder, base_folder(config), start.tokenizer, codec)
        made_from = {arm: contents(dataset.made_from) for arm, dataset in datasets.items()}
        distributed.check_same("what the run is made from", made_from)
        how = config, self.folder, games, start, codec, self.reporter
        with Reinforcing(*how) as reinforcing:
            for arm in self.arm_folders:
                if arm in datasets:
                    self._train_on(datasets[arm], arm, start)
                else:
                    reinforcing.train(arm)

    def _train_on(self, dataset: Dataset, arm: str, start: Start) -> None:
        """Train an arm on its dataset."""
        config, folder, about = self.config, self.arm_folders[arm], arms_of(self.config)[arm]
        devices = f"{jax.device_count()} {jax.default_backend()} device(s)"
        begins = beginning(config, self.folder, arm, start)
        run = Run(
            train_of(config, arm),
            dropping=dropping_of(config, arm),
            model=start.model,
            make_params=begins.make_params,
            seed=about.seed,
            made_from=dataset.made_from | begins.made_from,
            config=json.loads(config.to_json_best_effort()),
            normalizer=config.masking.normalizer,
            objective=objective_of(config, arm),
        )
        # What the action has left to learn is measured of the supervised loss.
        measure = measure_of(config, arm, run, folder, self.reporter)
        title = f"Training {arm!r} ({about.label}) on {devices}"
        with self.reporter.stage("train", title) as stage:
            train(
                run,
                folder=folder,
                source=dataset.source,
                mesh_shape=dict(config.mesh),
                listener=TrainingProgress(self.reporter, stage),
                measure=None if run.objective else measure,
            )

    def reinforce(self, games: GameSets) -> Summary | None:
        """Train every arm by reinforcement learning, play its checkpoints, and report them."""
        expert = self.trajectories.expert(games) if games.played else {}
        reinforce_arms(self.config, self.folder, games, expert, self.reporter)
        return self._after_training(games)

    def evaluate(self, games: GameSets) -> None:
        """Play every checkpoint of every arm."""
        if not games.played:
            raise UsageError(f"{NUMBERS} are all 0: there is nothing to play")
        model, codec = load_trained(self.config, self.folder)
        check_playable(self.config, model, codec)
        with self._shared():
            expert = self.trajectories.expert(games)
        title = "Playing every checkpoint: CoT actions, prompt actions, expert states"
        with self.reporter.stage("evaluate", title) as stage:
            evaluate(
                self.config,
                player=partial(LocalPlayer, self.config, model, codec),
                games=games,
                expert=expert,
                arms={arm: folder / "checkpoints" for arm, folder in self.arm_folders.items()},
                records=self.folder / "records",
                base=self.base,
                plays_base=self.plays_base,
                report=stage.update,
                warn=self.reporter.say,
            )
            distributed.barrier("played")
        if distributed.first():
            seconds = self.reporter.seconds
            with self._shared():
                describe_run(self.config, self.folder, games, model, codec, expert, seconds)

    def probe(self, games: GameSets, names: Sequence[str] = ()) -> None:
        """Measure checkpoints at states of their episodes, by the config's probes or by `names`."""
        require_probes(self.config, names)
        model, codec = load_trained(self.config, self.folder)
        arms = {arm: folder / "checkpoints" for arm, folder in self.arm_folders.items()}
        self.measure(games, model, codec, arms, self.base, names)

    def measure(
        self,
        games: GameSets,
        model: ModelConfig,
        codec: Codec,
        arms: Mapping[str, Path],
        base: Weights | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """Measure these checkpoints; the arguments are those of `probe_checkpoints`."""
        with self.reporter.stage("probe", "Measuring states") as stage:
            probe_checkpoints(
                self.config,
                model=model,
                codec=codec,
                games=games,
                arms=arms,
                run=self.folder,
                base=base,
                measures_base=self.plays_base,
                names=names,
                stage=stage.update,
                say=self.reporter.say,
            )
            distributed.barrier("probed")

    def report(self) -> Summary | None:
        """Write and print the report from the records, in process 0; return its summary."""
        # matplotlib is slow to import, and only this stage draws.
        from cotjax.report.page import make_report

        summary = None
        with self.reporter.stage("report", "Writing the report"):
            if distributed.first():
                summary = make_report(self.folder, self.reporter.console)
            distributed.barrier("reported")
        return summary

    def _shared(self) -> AbstractContextManager[None]:
        """Return a block that parts of the study enter one at a time."""
        return in_turn(self.folder, self.reporter.say) if self.only else nullcontext()

    def _examples(self, files: Mapping[str, Path]) -> Drawn:
        """Return the prompt's examples: those that arms were begun with, else newly drawn ones."""
        if not self.config.prompt.examples:
            return NONE_DRAWN
        if arms_begun(self.folder) or not distributed.first():
            return kept_of(self.config, self.folder)
        # Of the first kind of thoughts, in the prompts of every arm.
        drawn = drawn_of(self.config, next(iter(files.values())))
        keep_examples(self.folder, drawn)
        return drawn


def open_study(
    config: ConfigDict,
    trains: bool = True,
    alone: Callable[[ConfigDict], None] | None = None,
    reinforced: bool = False,
    only: Sequence[str] = (),
) -> Study:
    """Claim the config's output folder, after all checks that are possible, and return the study.

    `trains`: as in `cotjax.study.ready.check`. `alone`: where the base is played as it is, and
    there are no arms, the check of such a config (`cotjax.study.ready.check_alone`). `reinforced`:
    whether arms are trained by reinforcement learning. `only`: arms or members of a part.

    Raises:
      UsageError: a setting is impossible, the folder holds another run (the message names what
        differs), processes have different configs or folders, or `only` names no arm.
      DataError: a file is missing or malformed.
    """
    folder = local_path(config.out)
    mine = json.loads(config.to_json_best_effort())
    mine.pop("out")
    distributed.check_same("config", {**mine, "jax": jax.__version__})
    if distributed.first():
        check_folder(folder, mine)
    if alone:
        alone(config)
    elif reinforced:
        check_reinforced(config)
    else:
        check(config, trains)
    part_of(config, only)
    if distributed.first():
        claim_run(folder, mine)
    distributed.check_folder(folder)
    reporter = (
        Reporter(folder / "log.txt")
        if distributed.first()
        else Reporter(console=Console(quiet=True, force_terminal=False))
    )
    return Study(config, folder, reporter, trains=alone is None, only=tuple(only))
