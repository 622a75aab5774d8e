"""How fast rollouts are: episodes a minute, and what the paired prompt action costs, alone or beside transformers on torch.

Every side is a process of its own (rollout_speed_worker) that plays all games once before anything is timed. Then they play them
again in turn, round by round, never two at a time: a machine that is slower for a minute is slower for both, and the ratio stays.
Before that they must agree: decoded greedily by the same model, an episode is the same actions on both sides, but for ties that
rounding breaks.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cotjax.assets import BASE_FOLDER
from cotjax.bench.rollout_worker import Job
from cotjax.bench.sides import Side, check_same_platform, devices_of, environment_of_sides
from cotjax.envs.alfworld.env import find_games
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.base import TASK_TYPES, Game
from cotjax.errors import CotjaxError, UsageError

AGREE = 0.9  # least share of episodes that two sides play with the same actions
_SPLIT = "valid_seen"  # of made games


def benchmark(
    model: Path | None = None,
    *,
    template: str = "chatml",
    games: Path | None = None,
    split: str = _SPLIT,
    episodes: int = 32,
    slots: int = 32,
    steps: int = 30,
    new: int = 64,
    cpu_devices: int | None = None,
    peer: bool = False,
    rounds: int = 3,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Time rollouts by CoT actions with the prompt action beside each, print a table, and return the figures by side.

    {"cotjax" | "transformers": {"rollout_s" (median), "episodes/min", "steps/s", "tokens/s" (new ones, of both actions), "hidden"
    (share of the environments' time in which something was decoded), "episodes", "steps", "won"}}; "cotjax" has "alone_s" (median
    of the same rollouts without prompt actions), "prompt_cost" (share of the rollout's time that they take, by round; the median),
    "programs" and "compile_s"; "transformers" has "agree" (share of episodes), "ratio", "ratio_low" and "ratio_high" (its seconds
    over cotjax's: of the medians, and the lowest and highest of the rounds).

    Args:
      model: folder of a model with its tokenizer; None is the shipped base. Both sides compute in float32.
      games, split: ALFWorld data to draw `episodes` games from; None makes as many, of all task types in turn.
      slots, steps, new: episodes at a time, steps an episode, new tokens a CoT response; of each, the most.
      cpu_devices: that cotjax splits a CPU into; None: one a core, as far as that divides the slots.
      rounds: each side plays all games in turn, so often.

    Raises:
      UsageError: what cannot be, too few games, no torch, a side that stopped; the message ends with what it said last.
      CotjaxError: sides whose actions differ in too many episodes.
    """
    console = console or Console(highlight=False)
    for name, value in {
        "episodes": episodes,
        "slots": slots,
        "steps": steps,
        "new": new,
        "rounds": rounds,
    }.items():
        if value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    with tempfile.TemporaryDirectory(prefix="cotjax-rollout-") as name:
        folder = Path(name)
        played = _games(folder, games, split, episodes, seed)
        fields = tuple(asdict(game) for game in played)
        job = Job(
            "cotjax",
            str(model or BASE_FOLDER),
            template,
            fields,
            str(folder / "pddl"),
            min(slots, episodes),
            steps,
            new,
            seed,
        )
        devices = devices_of(job.slots, cpu_devices)
        job = replace(job, cpu_devices=devices, weights=str(folder / "weights") if peer else "")
        sides: list[RolloutSide] = []
        try:
            for name in ("cotjax", "transformers") if peer else ("cotjax",):
                sides.append(RolloutSide(replace(job, side=name), folder))
                console.print(sides[-1].describe(), markup=False, soft_wrap=True)
            agreed = agreement(sides, [game.id for game in played], console)
            for number in range(1, rounds + 1):
                for side in sides:
                    side.take()
                said = ", ".join(f"{side.name} {side.seconds()[-1]:.2f} s" for side in sides)
                console.print(
                    f"round {number}: {said}; cotjax without prompt actions {sides[0].seconds('alone')[-1]:.2f} s",
                    markup=False,
                )
        finally:
            for side in sides:
                side.close()
    figures = _figures(sides, agreed)
    _print(
        console,
        figures,
        f"{model or 'the shipped base'}: {episodes} episodes in {job.slots} slots, at most {steps} steps",
        rounds,
    )
    return figures


def _games(folder: Path, root: Path | None, split: str, episodes: int, seed: int) -> list[Game]:
    if root is None:
        share = {
            task: episodes // len(TASK_TYPES) + (at < episodes % len(TASK_TYPES))
            for at, task in enumerate(TASK_TYPES)
        }
        return make_games(folder / "games", {_SPLIT: share}, seed)
    found = find_games(root, split)
    if len(found) < episodes:
        raise UsageError(
            f"--episodes {episodes}: {root} has {len(found)} games in split {split!r}; ask for fewer or make more"
        )
    return random.Random(f"bench rollout/{seed}").sample(found, episodes)


class RolloutSide(Side):
    """A process that plays; see rollout_speed_worker. Started, it is warm."""

    worker = "cotjax.bench.rollout_worker"

    def __init__(self, job: Job, folder: Path):
        self.rounds: list[dict[str, Any]] = []
        super().__init__(job.side, job, folder)

    def take(self) -> None:
        """Let it play a round, and note what that took."""
        self.rounds.append(self.ask("round"))

    def describe(self) -> str:
        """What it runs on, and how it started."""
        found = self.started
        compiled = (
            f", of which {found['compile_s']:.1f} s for compiling {found['programs']} programs"
            if "programs" in found
            else ""
        )
        return f"{self.where}; warm-up {found['warm_up_s']:.1f} s{compiled}"

    def seconds(self, kind: str = "both") -> list[float]:
        """What each round took."""
        return [each[kind]["seconds"] for each in self.rounds]


def agreement(sides: Sequence[RolloutSide], games: Sequence[str], console: Console) -> float:
    """Share of episodes that the other side plays with cotjax's actions, 1 where there is none."""
    ours = sides[0].started["both"]["acted"]
    check_agreement(
        games, ours, sides[0].started["alone"]["acted"], "cotjax without prompt actions"
    )
    shares = [1.0]
    for other in sides[1:]:
        check_same_platform(sides[0], other)
        differ = check_agreement(games, ours, other.started["both"]["acted"], other.name)
        shares.append(1.0 - len(differ) / len(games))
        said = f"{len(games) - len(differ)} of {len(games)} episodes have the same actions on both sides"
        console.print("; ".join([said, *differ]), markup=False, soft_wrap=True)
    return shares[-1]


def check_agreement(
    games: Sequence[str], ours: Mapping[str, list], theirs: Mapping[str, list], other: str
) -> list[str]:
    """Where the episodes differ, a sentence for each that does. Raises CotjaxError when they are more than a few."""
    differ = []
    for game in games:
        mine, their = ([*actions.get(game, []), None] for actions in (ours, theirs))
        if mine != their:
            step = next(
                step
                for step, pair in enumerate(zip(mine, their, strict=False))
                if pair[0] != pair[1]
            )
            differ.append(f"{game}, step {step + 1}: {mine[step]!r} here, {their[step]!r} there")
    if len(games) - len(differ) < AGREE * len(games):
        raise CotjaxError(
            f"cotjax and {other} do not play alike: {len(differ)} of {len(games)} episodes differ, more than rounding explains; "
            f"the first is {differ[0]}"
        )
    return differ


def _figures(sides: Sequence[RolloutSide], agreed: float) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for side in sides:
        took = median(side.seconds())
        rounds = [each["both"] for each in side.rounds]
        episodes, steps = len(rounds[-1]["acted"]), sum(map(len, rounds[-1]["acted"].values()))
        hidden = 1 - sum(each["waited_s"] for each in rounds) / sum(
            each["environment_s"] for each in rounds
        )
        row = {
            "rollout_s": took,
            "episodes/min": 60 * episodes / took,
            "steps/s": steps / took,
            "hidden": hidden,
        }
        row |= {
            "tokens/s": rounds[-1]["new_tokens"] / took,
            "episodes": episodes,
            "steps": steps,
            "won": rounds[-1]["won"],
        }
        if side is sides[0]:
            alone = side.seconds("alone")
            row["alone_s"] = median(alone)
            row["prompt_cost"] = median(
                1 - mine / both for mine, both in zip(alone, side.seconds(), strict=True)
            )
            row |= {name: side.rounds[-1][name] for name in ("programs", "compile_s")}
        else:
            by_round = [
                theirs / mine
                for theirs, mine in zip(side.seconds(), sides[0].seconds(), strict=True)
            ]
            ratio = took / figures[sides[0].name]["rollout_s"]
            row |= {
                "agree": agreed,
                "ratio": ratio,
                "ratio_low": min(by_round),
                "ratio_high": max(by_round),
            }
        figures[side.name] = row
    return figures


def _print(console: Console, figures: dict[str, dict[str, float]], title: str, rounds: int) -> None:
    ours = figures["cotjax"]
    console.print(
        f"{title}; {ours['steps']} steps, {ours['won']} won; float32, greedy",
        markup=False,
        soft_wrap=True,
    )
    table = Table()
    table.add_column("side")
    for column in ("episodes/min", "steps/s", "tokens/s", "rollout", "hidden"):
        table.add_column(column, justify="right")
    for name, row in figures.items():
        speeds = (f"{row[column]:,.1f}" for column in ("episodes/min", "steps/s"))
        table.add_row(
            name,
            *speeds,
            f"{row['tokens/s']:,.0f}",
            f"{row['rollout_s']:.2f} s",
            f"{100 * row['hidden']:.0f} %",
        )
    console.print(table)
    for line in (
        "tokens/s: new ones, of both actions; rollout: median; hidden: share of the environments' time in which something was decoded",
        f"{rounds} rounds, in turn, after a warm-up; environment of all sides: {environment_of_sides()}",
        f"prompt actions take {100 * ours['prompt_cost']:.0f} % of cotjax's rollout; without them it takes {ours['alone_s']:.2f} s",
        f"{ours['programs']} programs compiled so far, in {ours['compile_s']:.1f} s that are not counted",
    ):
        console.print(line, markup=False, soft_wrap=True)
    if "transformers" in figures:
        row = figures["transformers"]
        said = f"cotjax plays {row['ratio']:.2f} times as fast as transformers (rounds {row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        console.print(
            f"{said}; {100 * row['agree']:.0f} % of the episodes are the same",
            markup=False,
            soft_wrap=True,
        )
