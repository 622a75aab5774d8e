"""Plays the arms of AutoCoA's ablation on one panel of questions.

    <run>/records/<stage>/<step>/…     once, greedily; the world answers searches
    <run>/simulated/<stage>/<step>/…   the same, but the policy writes the results itself
    <run>/sampled/<stage>/<step>/…     several samples a question (temperature 0.7, top_p 0.8)
    <run>/grafts/<stage>-<step>.jsonl  what follows thoughts that contradict what is known (D5)
    <run>/aligned/<stage>-<step>.jsonl what is done in the expert's states (D1, D2, D4, D6, D7)
    <run>/stages.json                  what was trained and played, for the report

An arm is a checkpoint of a stage, so two arms that are the same one share its records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.envs.base import plays_of
from cotjax.envs.lessons import Lessons
from cotjax.envs.worlds import load_world
from cotjax.model.config import ModelConfig
from cotjax.probes.asking import Programs
from cotjax.probes.probe import Weights
from cotjax.report.autocoa import ABOUT, ALIGNED, GRAFTS, REAL, SAMPLED, SIMULATED
from cotjax.rollout import elicitation
from cotjax.rollout.contracts import Policy
from cotjax.rollout.record import Kind
from cotjax.runtime.files import read_json, write_atomic
from cotjax.runtime.progress import Reporter
from cotjax.runtime.provenance import git_revision, package_versions
from cotjax.study.evaluate import elicitation_of, play_unplayed
from cotjax.study.games import GameSets
from cotjax.study.jobs import Job
from cotjax.study.players import LocalPlayer, playing_mesh
from cotjax.study.stage_grafts import measure_grafts
from cotjax.study.stage_states import Measuring, expert_states, measure_states
from cotjax.study.stages import EPISODES, PLAY, StageArm, StagePlan
from cotjax.train.checkpoint import Checkpoints

# How the paper samples.
_TEMPERATURE, _TOP_P = 0.7, 0.8


@dataclass(frozen=True)
class StagePanel:
    """Plays arms and describes the run.

    folder: the run's. plans, arms: all of the config, by name. games, lessons: those of the run.
    """

    config: ConfigDict
    folder: Path
    plans: Mapping[str, StagePlan]
    arms: Mapping[str, StageArm]
    games: GameSets
    lessons: Lessons
    reporter: Reporter

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Return the folders of records that are played."""
        writes = any(self._writes_results(arm.stage) for arm in self.arms.values())
        simulated = (SIMULATED,) if self.config.autocoa.simulated and writes else ()
        return (REAL, *simulated, *((SAMPLED,) if self.config.autocoa.samples else ()))

    def play(self, model: ModelConfig, codec: Codec) -> None:
        """Play every question that has no record yet."""
        widest = self._config_of(SIMULATED if SIMULATED in self.sources else REAL)
        players: list[LocalPlayer] = []

        def player(slots: int) -> LocalPlayer:
            """Return the same player each time: its programs are compiled once."""
            if not players:
                players.append(LocalPlayer(widest, model, codec, slots))
            return players[0]

        with self.reporter.stage("evaluate", "Playing the arms") as stage:
            for source in self.sources:
                play_unplayed(
                    self._config_of(source),
                    self._jobs(source),
                    player=player,
                    games=self.games,
                    expert={},
                    records=self.folder / source,
                    report=stage.update,
                    warn=self.reporter.say,
                )
            slots = min(self.config.evaluate.slots, len(self.games.played))
            self._graft(partial(player, slots), codec, stage.update)
            self._align(partial(player, slots), model, codec, stage.update)

    def _graft(
        self, player: Callable[[], LocalPlayer], codec: Codec, report: Callable[..., None]
    ) -> None:
        """Measure what each checkpoint does after thoughts that contradict what is known (D5)."""
        choices = self.lessons.held_out_choices(self.config.autocoa.grafts)
        for job in self._jobs(REAL) if choices else ():
            measure_grafts(
                self.folder / GRAFTS / f"{job.arm}-{job.checkpoint}.jsonl",
                job.checkpoint_hash,
                partial(_first_policy, player, job),
                codec,
                elicitation_of(self.config, codec.template),
                choices,
                partial(report, detail=f"grafted thoughts, {job.arm}"),
            )

    def _align(
        self,
        player: Callable[[], LocalPlayer],
        model: ModelConfig,
        codec: Codec,
        report: Callable[..., None],
    ) -> None:
        """Measure what each checkpoint does in the expert's states (D1, D2, D4, D6, D7)."""
        if not self.config.autocoa.states:
            return
        games = {game.id: game for game in self.games.played}
        written = self.lessons.written(self.games.played)
        states = expert_states(codec, written, games, self.config.autocoa.states, self.config.seed)
        mesh, programs = playing_mesh(self.config), list[Programs]()

        def measuring(job: Job) -> Measuring:
            """Return what measures a checkpoint; programs are compiled once for all."""
            params = job.checkpoints.restore_params(job.checkpoint, model, mesh)
            weights = Weights(model, params, mesh)
            rows = self.config.probes.gradient.rows
            programs[:] = [programs[0].of(weights) if programs else Programs(weights, rows, True)]
            policy = _first_policy(player, job)
            how = elicitation_of(self.config, codec.template)
            return Measuring(policy, programs[0], codec, how, load_world(self.config.world))

        for job in self._jobs(REAL) if states else ():
            measure_states(
                self.folder / ALIGNED / f"{job.arm}-{job.checkpoint}.jsonl",
                job.checkpoint_hash,
                partial(measuring, job),
                states,
                partial(report, detail=f"states of the expert, {job.arm}"),
            )

    def report(self, hashes: Mapping[str, str]) -> None:
        """Write stages.json, and from it and the records the report.

        `hashes`: of the last checkpoint of each stage.
        """
        # The page's colours come with matplotlib, which is slow to import.
        from cotjax.report.autocoa_page import make_report

        with self.reporter.stage("report", "Writing the report"):
            about = json.dumps(self._about(hashes), indent=1)
            write_atomic(self.folder / ABOUT, about + "\n")
            text = make_report(self.folder)
        self.reporter.say(text)
        self.reporter.say(f"Report: {self.folder / 'report.html'}")

    def _config_of(self, source: str) -> ConfigDict:
        """Return the config with which a folder of records is played."""
        config = self.config.copy_and_resolve_references()
        if source == SIMULATED:
            config.evaluate.search = elicitation.SIMULATED
        if source == SAMPLED:
            config.evaluate.samples = config.autocoa.samples
            config.evaluate.temperature, config.evaluate.top_p = _TEMPERATURE, _TOP_P
        return config

    def _jobs(self, source: str) -> list[Job]:
        world = load_world(self.config.world).name
        # A prompt action is an answer without further reasoning: what is known by heart.
        kinds: tuple[Kind, ...] = ("cot", "prompt") if source == REAL else ("cot",)
        plays = plays_of(self.games.played, self._config_of(source).evaluate.samples)
        places = dict.fromkeys((arm.stage, arm.step) for arm in self.arms.values())
        return [
            Job(world, stage, step, self._checkpoints(stage), "cot", plays, kinds)
            for stage, step in places
            if source != SIMULATED or self._writes_results(stage)
        ]

    def _checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.plans[stage].folder(self.folder) / "checkpoints")

    def _writes_results(self, stage: str) -> bool:
        """Return whether a stage, or one before it, was trained on texts with results."""
        plan = self.plans[stage]
        return plan.lesson in (EPISODES, PLAY) or (
            plan.start is not None and self._writes_results(plan.start)
        )

    def _about(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        config = self.config
        return {
            "title": config.title,
            "world": config.world,
            "games": config.games.root or "games",
            "games_hash": self.games.hash,
            "seed": config.seed,
            "sources": self.sources,
            "samples": config.autocoa.samples,
            "arms": [asdict(arm) for arm in self.arms.values()],
            "stages": [self._stage(plan, hashes[plan.name]) for plan in self.plans.values()],
            "git": git_revision(),
            "versions": package_versions(),
        }

    def _stage(self, plan: StagePlan, checkpoint: str) -> dict[str, Any]:
        file = plan.folder(self.folder) / "closed_book.json"
        return {
            "name": plan.name,
            "label": plan.label,
            "lesson": plan.lesson,
            "start": plan.start,
            "supervised": [role.name for role in plan.dropping.supervised],
            "steps": plan.train.steps,
            "simulated_steps": plan.rl.simulated_steps if plan.rl is not None else 0,
            "learning_rate": plan.train.learning_rate,
            "checkpoint": checkpoint,
            "closed_book": read_json(file, "cotjax") if file.exists() else None,
        }


def _first_policy(player: Callable[[], LocalPlayer], job: Job) -> Policy:
    """Return a policy with the weights of a job's checkpoint."""
    return player().policies(job, 1)[0]
