"""`cotjax bench rl`: steps of GRPO an hour, and what they are made of.

Both sides play the same games by the same model in groups of the same size, and train on all groups
of a step in one update. Before they are timed, their greedy actions in the first step's games must
be equal, but for ties that rounding breaks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median

from rich.console import Console

from cotjax.assets import BASE_FOLDER
from cotjax.bench.comparison import (
    Figures,
    check_agreement,
    check_counts,
    compare,
    flat,
    print_table,
    ratios,
    say,
)
from cotjax.bench.jobs import TRL_ROWS, RLJob
from cotjax.bench.sides import Side, check_same_platform, devices_of, environment_of_sides
from cotjax.envs.base import Game
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError

_SPLIT = "train"
_GAMES = 6  # of each task type, of which the steps play some


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      model: folder of a model with its tokenizer; None: the shipped base. All sides compute in
        float32.
      template: name of the model's turn template.
      tasks, group: games a step, plays of each; `tasks` times `group` episodes are played at once.
      steps, new: most steps an episode, most tokens a CoT response.
      batch, row_length: rows of a micro-batch; tokens of a row, of cotjax.
      cpu_devices: devices that cotjax splits the CPU into; None: see `sides.devices_of`.
      peer: whether TRL's GRPOTrainer plays and trains too; rows: what it trains on, one of
        `jobs.TRL_ROWS`.
      rounds: one step of every side in each.
      seed: of the games and of what is drawn.
    """

    model: Path | None = None
    template: str = "chatml"
    tasks: int = 4
    group: int = 8
    steps: int = 12
    new: int = 64
    batch: int = 8
    row_length: int = 1024
    cpu_devices: int | None = None
    peer: bool = False
    rows: str = "steps"
    rounds: int = 3
    seed: int = 0

    def job(self, games: Sequence[Game], folder: Path) -> RLJob:
        """Return cotjax's job; `folder`: for weights and translated games."""
        names = (
            *("template", "tasks", "group", "steps", "new", "batch", "row_length", "rows"),
            "seed",
        )
        return RLJob(
            model=str(self.model or BASE_FOLDER),
            games=tuple(asdict(game) for game in games),
            folder=str(folder / "pddl"),
            slots=self.tasks * self.group,
            cpu_devices=devices_of(self.batch, self.cpu_devices),
            weights=str(folder / "weights") if self.peer else "",
            **{name: getattr(self, name) for name in names},
        )

    def __str__(self) -> str:
        games = f"{self.tasks} games x {self.group} plays a step, at most {self.steps} actions each"
        return f"{self.model or 'the shipped base'}: {games}, at temperature 1; float32"


def benchmark(settings: Settings, console: Console | None = None) -> Figures:
    """Time steps of GRPO; print a table, and return its figures by side.

    Sides are "cotjax" and "trl". Figures are "steps/h", "step_s" (median), of which "play" and
    "transfer" are shares (the latter of weights to the sampler), "reward" (mean of all episodes),
    "actions", "sampled" and "trained" (tokens) of a step; of TRL also "agree" (share of games with
    the same greedy actions) and those of `comparison.ratios`.

    Raises:
      UsageError: sizes that do not fit, no TRL, or a side that stopped.
      InternalError: greedy actions that differ in too many games.
    """
    console = console or Console(highlight=False)
    names = ("tasks", "group", "steps", "new", "batch", "row_length", "rounds")
    check_counts({name: getattr(settings, name) for name in names}, least={"group": 2})
    if settings.tasks * settings.group % settings.batch:
        raise UsageError(
            f"--batch is {settings.batch}; it must divide the {settings.tasks * settings.group} "
            "episodes of a step"
        )
    agree: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="cotjax-rl-") as name:
        world = load_world("alfworld")
        counts = dict.fromkeys(world.task_types, _GAMES)
        games = world.make_games(Path(name) / "games", {_SPLIT: counts}, settings.seed)
        ours = settings.job(games, Path(name))
        _translate(ours, console)

        def check(ours: Side, other: Side) -> None:
            if other is ours:
                return
            check_same_platform(ours, other)
            mine, theirs = ours.started["acted"], other.started["acted"]
            differ = check_agreement(list(mine), mine, theirs, other.name)
            agree[other.name] = 1 - len(differ) / len(mine)
            text = f"greedily {len(mine) - len(differ)} of {len(mine)} games are played alike"
            say(console, "; ".join([text, *differ]))

        def jobs() -> Iterator[RLJob]:
            for job in [ours, *([replace(ours, side="trl")] if settings.peer else [])]:
                say(console, f"{job.name} starts: it plays greedily, and steps until it is warm")
                yield job

        sides = compare(
            jobs(),
            Path(name),
            console,
            describe=lambda side: f"{side.where}; first step {side.started['first_s']:.1f} s",
            check=check,
            rounds=settings.rounds,
        )
    figures = {side.name: _figures(side) for side in sides}
    for side in sides[1:]:
        figures[side.name] |= {"agree": agree[side.name], **ratios(sides[0], side)}
    _print(console, figures, settings)
    return figures


def _translate(job: RLJob, console: Console) -> None:
    """Start every game once: its translation is kept, and the side that plays first pays for it."""
    games, slots = job.played(), len(os.sched_getaffinity(0))
    say(console, f"{len(games)} games are translated")
    pool = job.pool(slots)
    try:
        for start in range(0, len(games), slots):
            pool.reset(dict(enumerate(games[start : start + slots])))
    finally:
        pool.close()


def _figures(side: Side) -> dict[str, float]:
    steps = [step for each in side.rounds for step in each["steps"]]
    step_s = median(flat(side.seconds))
    whole = sum(step["seconds"] for step in steps)
    return {
        "steps/h": 3600 / step_s,
        "step_s": step_s,
        "play": sum(step["play_s"] for step in steps) / whole,
        "transfer": sum(step["transfer_s"] for step in steps) / whole,
        "reward": fmean(step["reward"] for step in steps),
        "actions": fmean(step["steps"] for step in steps),
        "sampled": fmean(step["sampled"] for step in steps),
        "trained": fmean(step["trained"] for step in steps),
    }


def _print(console: Console, figures: Figures, settings: Settings) -> None:
    say(console, str(settings))
    rows = [
        [
            name,
            f"{row['steps/h']:,.0f}",
            f"{row['step_s']:.2f} s",
            f"{100 * row['play']:.0f} %",
            f"{100 * (1 - row['play']):.0f} %",
            f"{row['reward']:.2f}",
            *(f"{row[column]:,.0f}" for column in ("actions", "sampled", "trained")),
        ]
        for name, row in figures.items()
    ]
    columns = ("side", "steps/h", "step", "play", "update", "reward", "actions", "drawn", "trained")
    print_table(console, columns, rows)
    ours = figures["cotjax"]
    for line in (
        "step: median; play, update: shares of it; drawn, trained: tokens a step",
        f"weights are where they play after {100 * ours['transfer']:.2f} % of a step",
        f"{settings.rounds} steps, in turn, after warm-up; environment of all sides: "
        f"{environment_of_sides()}",
    ):
        say(console, line)
    if "trl" in figures:
        row = figures["trl"]
        rounds = f"steps {row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        say(
            console,
            f"cotjax makes {row['ratio']:.2f} times as many steps as TRL ({rounds}), which trains "
            f"on {TRL_ROWS[settings.rows]}",
        )
