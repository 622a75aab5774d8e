"""`cotjax bench rollout`: episodes a minute, and what the prompt action costs.

All sides play the same games greedily by the same model, so their actions must be equal, but for
ties that rounding breaks.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

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
from cotjax.bench.halves import check_halves, halves_figures, hidden, print_halves
from cotjax.bench.jobs import RolloutJob
from cotjax.bench.sides import Side, check_same_platform, devices_of, environment_of_sides
from cotjax.envs.base import Game
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError

# Of generated games.
_SPLIT = "valid_seen"
_SHARES = ("hidden", "busy")  # columns in per cent


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      model: folder of a model with its tokenizer; None: the shipped base. All sides compute in
        float32.
      template: name of the model's turn template.
      games, split: ALFWorld data from which `episodes` games are drawn; None: make as many, of all
        task types in turn.
      slots, steps, new: concurrent episodes, most steps an episode, most tokens a CoT response.
      cpu_devices: devices that cotjax splits the CPU into; None: see `sides.devices_of`.
      peer: whether transformers plays too.
      rounds: every side plays all games in each.
      seed: of the games.
      halves: whether cotjax also plays in two halves of the slots, and one kind of action alone.
      latency: seconds that each environment sleeps before each answer.
    """

    model: Path | None = None
    template: str = "chatml"
    games: Path | None = None
    split: str = _SPLIT
    episodes: int = 32
    slots: int = 32
    steps: int = 30
    new: int = 64
    cpu_devices: int | None = None
    peer: bool = False
    rounds: int = 3
    seed: int = 0
    halves: bool = False
    latency: float = 0.0

    def job(self, games: Sequence[Game], folder: Path) -> RolloutJob:
        """Return cotjax's job; `folder`: for weights and translated games."""
        slots = min(self.slots, self.episodes)
        return RolloutJob(
            model=str(self.model or BASE_FOLDER),
            template=self.template,
            games=tuple(asdict(game) for game in games),
            folder=str(folder / "pddl"),
            slots=slots,
            steps=self.steps,
            new=self.new,
            seed=self.seed,
            cpu_devices=devices_of(slots, self.cpu_devices),
            weights=str(folder / "weights") if self.peer else "",
            halves=self.halves,
            latency=self.latency,
        )

    def __str__(self) -> str:
        slots = f"{self.episodes} episodes in {min(self.slots, self.episodes)} slots"
        return f"{self.model or 'the shipped base'}: {slots}, at most {self.steps} steps"


def benchmark(settings: Settings, console: Console | None = None) -> Figures:
    """Time rollouts by CoT actions with paired prompt actions; print a table, return its figures.

    Sides are "cotjax" and "transformers". Figures are "rollout_s" (median), "episodes/min",
    "steps/s", "tokens/s" (new ones, of both actions), "hidden" (share of environment time in which
    something was decoded), "busy" (share of the rollout that the sampler takes), "episodes",
    "steps" and "won". Of cotjax also "alone_s" (median without
    prompt actions), "prompt_cost" (the share of the rollout that they take; the median round's),
    "programs", "compile_s", and with `halves` those of `halves.halves_figures`; of transformers
    "agree" (share of episodes) and those of `comparison.ratios`.

    Raises:
      UsageError: sizes that do not fit, too few games, no torch, or a side that stopped.
      InternalError: actions that differ in too many episodes.
    """
    console = console or Console(highlight=False)
    names = ("episodes", "slots", "steps", "new", "rounds")
    check_counts({name: getattr(settings, name) for name in names})
    agree: dict[str, float] = {}
    if settings.latency < 0 or (settings.halves and min(settings.slots, settings.episodes) < 2):
        raise UsageError("--latency must be 0 or more, and --halves needs two slots and episodes")
    with tempfile.TemporaryDirectory(prefix="cotjax-rollout-") as name:
        games = _games(Path(name), settings)
        ours = settings.job(games, Path(name))

        def check(ours: Side, other: Side) -> None:
            agree[other.name] = agreement(ours, other, [game.id for game in games], console)

        def after_round(number: int, sides: Sequence[Side]) -> None:
            say(console, f"  cotjax without prompt actions {_alone_s(sides[0])[-1]:.3g} s")

        sides = compare(
            [ours, *([replace(ours, side="transformers")] if settings.peer else [])],
            Path(name),
            console,
            describe=_describe,
            check=check,
            rounds=settings.rounds,
            after_round=after_round,
        )
    figures = _figures(sides, agree)
    _print(console, figures, settings)
    return figures


def _games(folder: Path, settings: Settings) -> list[Game]:
    world = load_world("alfworld")
    types = world.task_types
    episodes, root = settings.episodes, settings.games
    if root is None:
        share, rest = divmod(episodes, len(types))
        counts = {task: share + (index < rest) for index, task in enumerate(types)}
        return world.make_games(folder / "games", {_SPLIT: counts}, settings.seed)
    games = world.games(root, settings.split)
    if len(games) < episodes:
        raise UsageError(
            f"--episodes {episodes}: {root} has {len(games)} games in split {settings.split!r}; "
            "ask for fewer or make more"
        )
    return random.Random(f"bench rollout/{settings.seed}").sample(games, episodes)


def _describe(side: Side) -> str:
    facts = side.started
    compiled = ""
    if "programs" in facts:
        programs = f"{facts['programs']} programs"
        compiled = f", of which {facts['compile_s']:.1f} s for compiling {programs}"
    return f"{side.where}; warm-up {facts['first_s']:.1f} s{compiled}"


def _alone_s(ours: Side) -> list[float]:
    """Return cotjax's seconds without prompt actions, by round."""
    return [each["alone"]["seconds"] for each in ours.rounds]


def agreement(ours: Side, other: Side, games: Sequence[str], console: Console) -> float:
    """Return the share of episodes in which the other side's actions are cotjax's.

    With cotjax itself on both sides, its rollouts with and without prompt actions are compared.
    """
    actions = ours.started["both"]["acted"]
    if other is ours:
        if "prompt" in ours.started:
            check_halves(ours, games)
        alone = ours.started["alone"]["acted"]
        check_agreement(games, actions, alone, "cotjax without prompt actions")
        return 1.0
    check_same_platform(ours, other)
    differ = check_agreement(games, actions, other.started["both"]["acted"], other.name)
    same = len(games) - len(differ)
    text = f"{same} of {len(games)} episodes have the same actions on both sides"
    say(console, "; ".join([text, *differ]))
    return same / len(games)


def _figures(sides: Sequence[Side], agree: Mapping[str, float]) -> Figures:
    figures: Figures = {}
    ours = sides[0]
    for side in sides:
        rollout_s = median(flat(side.seconds))
        rounds = [each["both"] for each in side.rounds]
        acted = rounds[-1]["acted"]
        steps = sum(map(len, acted.values()))
        row = {
            "rollout_s": rollout_s,
            "episodes/min": 60 * len(acted) / rollout_s,
            "steps/s": steps / rollout_s,
            "hidden": hidden(rounds),
            "busy": median(each["sampler_s"] / each["seconds"] for each in rounds),
            "tokens/s": rounds[-1]["new_tokens"] / rollout_s,
            "episodes": len(acted),
            "steps": steps,
            "won": rounds[-1]["won"],
        }
        if side is ours:
            alone = _alone_s(side)
            pairs = zip(alone, flat(side.seconds), strict=True)
            row["alone_s"] = median(alone)
            row["prompt_cost"] = median(1 - alone_s / both_s for alone_s, both_s in pairs)
            row |= {name: side.rounds[-1][name] for name in ("programs", "compile_s")}
            if "prompt" in side.started:
                row |= halves_figures(side)
        else:
            row |= {"agree": agree[side.name], **ratios(ours, side)}
        figures[side.name] = row
    return figures


def _print(console: Console, figures: Figures, settings: Settings) -> None:
    ours = figures["cotjax"]
    say(console, f"{settings}; {ours['steps']} steps, {ours['won']} won; float32, greedy")
    rows = []
    for name, row in figures.items():
        speeds = (f"{row[column]:,.1f}" for column in ("episodes/min", "steps/s"))
        times = (f"{row['rollout_s']:.2f} s", *(f"{100 * row[n]:.0f} %" for n in _SHARES))
        rows.append([name, *speeds, f"{row['tokens/s']:,.0f}", *times])
    columns = ("side", "episodes/min", "steps/s", "tokens/s", "rollout", *_SHARES)
    print_table(console, columns, rows)
    for line in (
        "tokens/s: new ones, of both actions; rollout: median; hidden: share of the environments' "
        "time in which something was decoded; busy: share of the rollout that the sampler takes",
        f"{settings.rounds} rounds, in turn, after a warm-up; environment of all sides: "
        f"{environment_of_sides()}",
        f"prompt actions take {100 * ours['prompt_cost']:.0f} % of cotjax's rollout; without them "
        f"it takes {ours['alone_s']:.2f} s",
        f"{ours['programs']} programs compiled so far, in {ours['compile_s']:.1f} s that are not "
        "counted",
    ):
        say(console, line)
    if settings.halves:
        print_halves(console, ours, settings.latency)
    if "transformers" in figures:
        row = figures["transformers"]
        rounds = f"rounds {row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        say(
            console,
            f"cotjax plays {row['ratio']:.2f} times as fast as transformers ({rounds}); "
            f"{100 * row['agree']:.0f} % of the episodes are the same",
        )
