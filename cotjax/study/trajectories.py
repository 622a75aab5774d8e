"""The trajectories of a study: what arms are trained on, and the expert's play of other games.

Each file is collected once; a later run of the same config reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.data.trajectories import Trajectory, read_trajectories, write_trajectories
from cotjax.envs.base import Game
from cotjax.envs.worlds import NAMED, World, load_world
from cotjax.errors import DataError, UsageError
from cotjax.rollout.collect import Collecting, collect, expert_episodes
from cotjax.runtime import distributed
from cotjax.runtime.claim import bind_held_out
from cotjax.runtime.files import sha256_of
from cotjax.runtime.progress import Reporter
from cotjax.study.arms import arms_of, collects, given_files
from cotjax.study.games import GameSets


@dataclass
class Trajectories:
    """The trajectory files in a run's folder."""

    config: ConfigDict
    folder: Path
    reporter: Reporter

    @property
    def _world(self) -> World:
        return load_world(self.config.world)

    def training(self, games: GameSets) -> dict[str, Path]:
        """Return the file of each kind of thoughts that an arm trains on."""
        settings, files = self.config.collect, dict[str, Path]()
        for arm in arms_of(self.config).values():
            kind = arm.thoughts
            if kind in files or arm.reinforced:
                continue
            if given := arm.trajectories or self.config.data.trajectories:
                files[kind] = Path(given)
                continue
            name = "train" if kind == NAMED else f"train_{kind}"
            path = files[kind] = self.folder / "trajectories" / f"{name}.jsonl"
            self._collect(
                games.train,
                path,
                settings.agent,
                settings.episodes_per_game,
                settings.slips,
                thoughts=kind,
            )
        return files

    def expert(self, games: GameSets) -> dict[str, Trajectory]:
        """Return the expert's trajectory of each game that is played, by game.

        Its states are those of the offline diagnostics. {} where there is no expert.
        """
        with distributed.in_turn("held out"):
            if not self._has_expert:
                return {}
            expert = self._held_out_trajectories(games)
            if distributed.first():
                bind_held_out(self.folder, sha256_of(self._held_out_file()))
        return expert

    def expert_before_training(self, games: GameSets) -> dict[str, Trajectory]:
        """Return the expert's trajectories as `expert` does, for what the tokenizer must write.

        They bind no setting of what is played, as held_out.jsonl does, which they become.
        """
        if not games.played:
            return {}
        path = self._held_out_file()
        if "expert" not in self._world.agents:
            given = expert_episodes(given_files(self.config), games.played)
            return {trajectory.game: trajectory for trajectory in given}
        if not path.exists():
            path = self._early_file(games)
            try:
                with distributed.in_turn("early"):
                    self._collect(games.played, path, "expert", 1, slips=0.0, needed=False)
            except UsageError as error:
                if collects(self.config) or distributed.several():
                    raise
                # Files are given, so training does not need what playing needs, such as Java.
                self.reporter.say(f"warning: not checked what the tokenizer can write: {error}")
                return {}
        episodes: Iterable[Trajectory] = read_trajectories(path) if path.stat().st_size else ()
        return {trajectory.game: trajectory for trajectory in episodes}

    def _early_file(self, games: GameSets) -> Path:
        about = [self.config.world, games.hash, self.config.seed, self.config.collect.max_steps]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
        return self.folder / "trajectories" / f"early-{key}.jsonl"

    @property
    def _has_expert(self) -> bool:
        return "expert" in self._world.agents or bool(given_files(self.config))

    def _held_out_file(self) -> Path:
        return self.folder / "trajectories" / "held_out.jsonl"

    def _held_out_trajectories(self, games: GameSets) -> dict[str, Trajectory]:
        """Return the expert's trajectory of each game that is played, by game."""
        path = self._held_out_file()
        if "expert" in self._world.agents:
            if (early := self._early_file(games)).exists() and not path.exists():
                early.rename(path)
            self._collect(games.played, path, "expert", 1, slips=0.0, needed=False)
        elif not path.exists():
            write_trajectories(path, expert_episodes(given_files(self.config), games.played))
        return {trajectory.game: trajectory for trajectory in read_trajectories(path)}

    def _collect(
        self,
        games: tuple[Game, ...],
        path: Path,
        agent: str,
        episodes: int,
        slips: float,
        needed: bool = True,
        thoughts: str = NAMED,
    ) -> None:
        if path.exists():
            return
        settings = self.config.collect
        collecting = Collecting(
            agent=agent,
            seed=self.config.seed,
            max_steps=settings.max_steps,
            only_won=agent == "expert",
            skill=tuple(settings.skill),
            news=settings.news,
            mistakes=slips,
            episodes_per_game=episodes,
            thoughts=thoughts,
        )
        title = f"Collecting trajectories: the {agent} plays {len(games)} games"
        with self.reporter.stage("collect", title) as stage:
            summary = collect(
                self._world,
                games,
                path,
                collecting,
                workers=self.config.workers,
                progress=lambda done, total: stage.update(done, total, "episodes"),
            )
        for line in summary.lines():
            self.reporter.say(f"  {line}")
        if needed and not summary.kept:
            path.unlink()  # so that a later run does not take it for finished
            raise DataError(
                f"{path}: none of the {summary.played} games gave an episode to keep; see why above"
            )
