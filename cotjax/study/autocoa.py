"""AutoCoA (arXiv 2503.06580), stage by stage: base, SFT-1, SFT-2, SFT-3, RL-1 and RL-2.

    <run>/lessons/<stage>.jsonl        what a stage is trained on, as texts
    <run>/tokenizer, model.json        as in any run
    <run>/stages/<stage>/              checkpoints, metrics, settings; closed_book.json behind facts

A stage starts from the last checkpoint of another one, and its settings and every checkpoint name
that one by its hash (`made_from.base`). One that is complete is not run again; one that was
interrupted resumes, as any training does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.data.chat_template import turn_template
from cotjax.data.codec import Codec
from cotjax.data.growing import choice_pairs, growing_source, replayed
from cotjax.data.growing_text import TOKENS
from cotjax.data.lesson_files import read_choices, read_lessons, write_texts
from cotjax.data.pair_store import PairSource, write_pairs
from cotjax.data.pairs import PairCounts
from cotjax.data.pipeline import Example
from cotjax.data.word_tokenizer import build_word_tokenizer, save_tokenizer
from cotjax.envs.lessons import Choice, Lesson, Lessons
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.model.params import Params
from cotjax.model.sharding import make_mesh
from cotjax.rl.run import RLRun
from cotjax.runtime import distributed
from cotjax.runtime.claim import check_arm
from cotjax.runtime.files import atomic_folder, local_path, read_json, write_atomic
from cotjax.runtime.progress import Reporter, TrainingProgress
from cotjax.study.base import Start, base_folder, keep_model, make_start, recipe_of
from cotjax.study.closed_book import ClosedBook, closed_book
from cotjax.study.evaluate import check_playable
from cotjax.study.export import keep_base
from cotjax.study.games import GameSets, prepare_games
from cotjax.study.other_worlds import with_known_facts, without_known_facts
from cotjax.study.own_facts import own_lessons
from cotjax.study.reinforcing import step_in_words
from cotjax.study.stage_panel import StagePanel
from cotjax.study.stage_rl import games_played, reinforce_stage, rl_run
from cotjax.study.stages import CHOICES, EPISODES, FACTS, PLAY, StagePlan, arms_of_stages, plans_of
from cotjax.study.training_data import load_codec, prompt_of
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.fingerprints import Fingerprints
from cotjax.train.main import train
from cotjax.train.run import Run

_REPLAY = "replay"  # what is replayed beside episodes, as a lesson


@dataclass(frozen=True)
class AutoCoA:
    """A run of the stages.

    folder: the run's, which is claimed.
    games: those to train on, and those that are played at the end.
    lessons: of the games that are trained on.
    """

    config: ConfigDict
    folder: Path
    games: GameSets
    lessons: Lessons
    reporter: Reporter

    def run(self, until: str = "") -> dict[str, str]:
        """Run the stages; return the hash of the last checkpoint of each.

        Args:
          until: the last stage that is run, by name; "": all.

        Raises:
          UsageError: there is no such stage, or a folder holds one of other settings or data.
          DataError: a text cannot be encoded, or the base does not know what it was taught.
        """
        plans = plans_of(self.config)
        if until and until not in plans:
            raise UsageError(f"--until is {until!r}; there are {', '.join(plans)}")
        texts = self._write_texts(plans.values())
        start = self._start(texts.values())
        codec = load_codec(self.config, start.tokenizer)
        keep_model(self.folder, start)
        keep_base(self.folder, base_folder(self.config), start.tokenizer, codec)
        if self.games.played:
            check_playable(self.config, start.model, codec)
        hashes: dict[str, str] = {}
        for plan in plans.values():
            before = None if plan.start is None else plans[plan.start]
            hashes[plan.name] = self._stage(plan, before, texts.get(plan.name), start, codec)
            if plan.name == until:
                return hashes
        arms = arms_of_stages(self.config, plans)
        if arms and self.games.played:
            panel = StagePanel(
                self.config, self.folder, plans, arms, self.games, self.lessons, self.reporter
            )
            panel.play(start.model, codec)
            panel.report(hashes)
        return hashes

    # ---- texts

    def _write_texts(self, plans: Iterable[StagePlan]) -> dict[str, Path]:
        """Write what each stage is trained on; return stage -> its file."""
        made: dict[str, Path] = {}
        with self.reporter.stage("lessons", "Writing lessons"):
            files: dict[tuple[str, str], Path] = {}
            for plan in plans:
                if plan.lesson == PLAY:
                    continue
                wanted = (
                    [plan, replace(plan, lesson=_REPLAY, episodes=0)] if plan.replay else [plan]
                )
                for each in wanted:
                    number = f"-{each.episodes}" if each.episodes else ""
                    key = (f"{each.lesson}{number}", each.choices)
                    if key not in files:
                        files[key] = Path(each.choices or self._lessons(key[0]))
                        if not each.choices:
                            count = write_texts(files[key], self._texts(each))
                            self.reporter.say(f"  {count:,} {each.lesson}: {files[key]}")
                    made.setdefault(plan.name, files[key])
        return made

    def _lessons(self, name: str) -> Path:
        return self.folder / "lessons" / f"{name}.jsonl"

    def _texts(self, plan: StagePlan) -> Sequence[Lesson | Choice]:
        settings = self.config.autocoa
        if plan.lesson == CHOICES:
            return self.lessons.choices(settings.choices)
        if plan.lesson == EPISODES:
            if plan.episodes:
                return self.lessons.episodes(plan.episodes, 0, settings.slips)
            return self.lessons.episodes(settings.episodes, settings.thinking, settings.slips)
        told = [*self.lessons.facts(), *with_known_facts(self.config, self.folder)]
        if plan.lesson == _REPLAY:
            told += without_known_facts(self.config, self.folder)
        return told

    # ---- the base

    def _start(self, files: Iterable[Path]) -> Start:
        """Return what the first stage starts from; of new weights with a tokenizer of the texts."""
        config = self.config.copy_and_resolve_references()
        if base_folder(config) is None and not config.model.tokenizer:
            config.model.tokenizer = str(self._make_tokenizer(files))
        return make_start(config, self.folder, (), self.reporter)

    def _make_tokenizer(self, files: Iterable[Path]) -> Path:
        folder, template = self.folder / "tokenizer", turn_template(self.config.data.template)
        prompt, words = prompt_of(self.config), list(load_world(self.config.world).words())
        words += [f"system {prompt.system}" if prompt.system else "", prompt.instruction]
        for file in dict.fromkeys(files):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                parts = ("observation", "text", "chosen", "rejected")
                words += [prompt.task_line(row["task"]), *(row.get(name, "") for name in parts)]
        tokenizer = build_word_tokenizer(words, template, TOKENS)
        if tokenizer.to_str(pretty=True) != _text_of(folder):
            if begun := sorted((self.folder / "stages").glob("*/checkpoints/[1-9]*")):
                raise UsageError(
                    f"{begun[0].parents[1]} was trained with another tokenizer: the lessons have "
                    "other words now; restore the config, or choose another folder with --out"
                )
            shutil.rmtree(folder, ignore_errors=True)
            with atomic_folder(folder) as unnamed:
                save_tokenizer(tokenizer, unnamed, template)
        return folder

    # ---- one stage

    def _stage(
        self,
        plan: StagePlan,
        before: StagePlan | None,
        texts: Path | None,
        start: Start,
        codec: Codec,
    ) -> str:
        """Run a stage unless it is complete; return the hash of its last checkpoint.

        `texts`: what it is trained on; None where it is trained on what it plays.
        """
        folder, title = plan.folder(self.folder), f"Stage {plan.name!r} ({plan.label})"
        run = self._run_of(
            plan, before, start, codec, self._made_from(plan, before, texts, start, codec)
        )
        if plan.complete(self.folder):
            check_arm(folder, run.bound())
            self.reporter.say(f"{title} is complete")
        else:
            with self.reporter.stage(plan.name, title) as stage:
                if isinstance(run, RLRun):
                    listener = TrainingProgress(self.reporter, stage, step_in_words)
                    reinforce_stage(self.config, plan, run, folder, self.games, codec, listener)
                else:
                    assert texts is not None, f"{plan.name} has no texts"
                    source, said = self._source(plan, texts, codec)
                    self.reporter.say(f"  {said}")
                    train(
                        run,
                        folder=folder,
                        source=source,
                        mesh_shape=dict(self.config.mesh),
                        listener=TrainingProgress(self.reporter, stage),
                    )
        checkpoint = _hash_of(plan, self.folder)
        begun = "the base" if before is None else f"{before.name} {_hash_of(before, self.folder)}"
        self.reporter.say(f"  checkpoint {checkpoint}, from {begun}")
        if plan.lesson == FACTS:
            self._gate(plan, checkpoint, start, codec)
        return checkpoint

    def _run_of(
        self,
        plan: StagePlan,
        before: StagePlan | None,
        start: Start,
        codec: Codec,
        made_from: Mapping[str, Any],
    ) -> Run:
        """Return what the training of a stage is made of."""
        params = self._first_params(before, start)
        if plan.lesson == PLAY:
            return rl_run(self.config, plan, start.model, codec, params, made_from)
        return Run(
            plan.train,
            dropping=plan.dropping,
            model=start.model,
            make_params=params,
            seed=self.config.seed,
            made_from=made_from,
            config=json.loads(self.config.to_json_best_effort()),
            normalizer=self.config.masking.normalizer,
            objective=plan.objective,
        )

    def _first_params(self, before: StagePlan | None, start: Start) -> Any:
        if before is None:
            return start.params_of(self.config.seed)
        return lambda mesh: _params_of(before, self.folder, start, mesh)

    def _source(self, plan: StagePlan, texts: Path, codec: Codec) -> tuple[Sequence[Example], str]:
        """Return the examples of a stage, and a line on them."""
        limit = self._limit(plan)
        if plan.lesson == CHOICES:
            folder = self.folder / "pairs" / self._examples_of(plan, texts, codec)
            if not folder.exists():
                counts = PairCounts()
                write_pairs(folder, choice_pairs(codec, read_choices(texts), limit, counts), counts)
            pairs = PairSource(folder)
            return pairs, "; ".join(pairs.lines())
        source = growing_source(codec, read_lessons(texts), limit)
        if plan.replay:
            facts = growing_source(codec, read_lessons(self._lessons(_REPLAY)), limit)
            source = replayed(source, facts, plan.replay, self.config.seed)
        tokens = int(source.lengths.sum())
        out = f", {source.left_out:,} too long" if source.left_out else ""
        return source, f"{len(source):,} texts, {tokens:,} tokens{out}"

    def _limit(self, plan: StagePlan) -> int:
        """Return the tokens that a text of a stage may have."""
        return min(self.config.data.max_length, plan.train.row_length)

    def _examples_of(self, plan: StagePlan, texts: Path, codec: Codec) -> str:
        """Return 12 digits of a hash of a file's examples: of all that they depend on."""
        tokenizer = codec.encode(codec.template.think_open), codec.vocab_size, codec.opening
        settings = (self._limit(plan), codec.template.name, tokenizer)
        fingerprints = Fingerprints(self.folder / "fingerprints.json")
        content: Any = fingerprints.of(texts)
        if plan.replay:
            content = content, plan.replay, fingerprints.of(self._lessons(_REPLAY))
        return hashlib.sha256(repr((content, settings)).encode()).hexdigest()[:12]

    def _made_from(
        self,
        plan: StagePlan,
        before: StagePlan | None,
        texts: Path | None,
        start: Start,
        codec: Codec,
    ) -> dict[str, Any]:
        """Return fingerprints of texts or games, the tokenizer, and what the stage starts from."""
        fingerprints = Fingerprints(self.folder / "fingerprints.json")
        tokenizer, base = start.tokenizer / "tokenizer.json", base_folder(self.config)
        made: dict[str, Any] = {
            "data": games_played(self.config, self.games)
            if texts is None
            else {
                "file": str(texts),
                "sha256": fingerprints.of(texts),
                "examples": self._examples_of(plan, texts, codec),
            },
            "tokenizer": {"file": str(tokenizer), "sha256": fingerprints.of(tokenizer)},
        }
        if before is not None:
            where = before.folder(self.folder) / "checkpoints" / str(before.train.steps)
            made["base"] = {"file": str(where), "checkpoint": _hash_of(before, self.folder)}
        elif base is None:
            made["base"] = recipe_of(self.config)
        else:
            made["base"] = {"file": str(base), "sha256": fingerprints.of_base(base)}
        fingerprints.keep()
        return made

    def _gate(self, plan: StagePlan, checkpoint: str, start: Start, codec: Codec) -> None:
        """Measure what the stage knows by heart, say it, and check it. Raises DataError."""
        file = plan.folder(self.folder) / "closed_book.json"
        kept = read_json(file, "cotjax") if file.exists() else {}
        if kept.pop("checkpoint", None) == checkpoint:
            found = ClosedBook(**kept)
        else:
            mesh = make_mesh(**dict(self.config.mesh))
            params = _params_of(plan, self.folder, start, mesh)
            with self.reporter.stage("closed_book", "Asking for single facts") as stage:
                asked = self.lessons.recalls()
                report = partial(stage.update, detail="questions")
                found = closed_book(start.model, params, mesh, codec, asked, report)
            values = {"checkpoint": checkpoint, **found.values()}
            write_atomic(file, json.dumps(values, indent=1) + "\n")
        for line in found.lines():
            self.reporter.say(f"  {line}")
        settings = self.config.autocoa
        found.check(
            settings.least_known, settings.most_above_prior, f"autocoa.stages.{plan.name}.steps"
        )


def open_autocoa(config: ConfigDict, reporter: Reporter) -> AutoCoA:
    """Make or find the games of a run, whose folder is claimed, and return the run.

    Raises:
      UsageError: the world has no lessons, or there are several processes.
    """
    if distributed.several():
        raise UsageError("cotjax autocoa runs as one process; give it no --coordinator")
    with reporter.stage("games", "Making games") as stage:
        games = prepare_games(config, lambda done, total: stage.update(done, total, "games"))
    if not games.train:
        raise UsageError("games.train is 0, and lessons are about training games; set it")
    folder = local_path(config.out)
    root = config.games.root or str(folder / "games")
    lessons: Lessons = load_world(config.world).lessons(root, config.seed)
    if config.autocoa.closed_book:
        lessons = own_lessons(config, folder, lessons, reporter)
    return AutoCoA(config, folder, games, lessons, reporter)


def _hash_of(plan: StagePlan, run: Path) -> str:
    """Return the hash of a stage's last checkpoint."""
    checkpoints = Checkpoints(plan.folder(run) / "checkpoints")
    try:
        return checkpoints.digest(plan.train.steps)
    finally:
        checkpoints.close()


def _params_of(plan: StagePlan, run: Path, start: Start, mesh: Mesh) -> Params:
    """Return the parameters of a stage's last checkpoint on a mesh."""
    checkpoints = Checkpoints(plan.folder(run) / "checkpoints")
    try:
        return checkpoints.restore_params(plan.train.steps, start.model, mesh)
    finally:
        checkpoints.close()


def _text_of(tokenizer: Path) -> str:
    file = tokenizer / "tokenizer.json"
    return file.read_text(encoding="utf-8") if file.exists() else ""
