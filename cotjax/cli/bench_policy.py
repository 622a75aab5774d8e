"""`cotjax bench policy` and `cotjax bench rl`: what reinforcement learning costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotjax.errors import UsageError


def add_policy_bench(bench: argparse._SubParsersAction) -> None:
    """Add `policy` and `rl` to the subcommands of `bench`."""
    _add_rl(bench)
    policy = bench.add_parser(
        "policy",
        help="reinforcement learning: tokens as trees and as one row a step; its step against SFT",
        description="Count the tokens of episodes as trees and as one row a step, and time the "
        "policy's train step against the supervised one of the same rows.",
    )
    policy.add_argument(
        "--rollouts",
        type=Path,
        help="rollouts/step-N.npz of `cotjax rl` (default: experts play made household games)",
    )
    policy.add_argument(
        "--model",
        type=Path,
        help="folder of a model with its tokenizer; random weights (default: the shipped base)",
    )
    policy.add_argument(
        "--template", default="chatml", help="turn template of --model (default chatml)"
    )
    for name, default, text in (
        ("length", 2048, "tokens a row"),
        ("batch", 8, "rows a step"),
        ("rounds", 5, "rounds, in which the programs take turns"),
    ):
        policy.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    policy.set_defaults(run=_policy)


def _add_rl(bench: argparse._SubParsersAction) -> None:
    rl = bench.add_parser(
        "rl",
        help="steps of GRPO an hour, alone or compared with TRL's GRPOTrainer",
        description="Time steps of GRPO in made household games: play, advantages, one update.",
    )
    rl.add_argument(
        "--model", type=Path, help="folder of a model with its tokenizer (default: the shipped one)"
    )
    rl.add_argument(
        "--template", default="chatml", help="turn template of --model (default chatml)"
    )
    for name, default, text in (
        ("tasks", 4, "games a step"),
        ("group", 8, "plays of each game; all episodes of a step are played at once"),
        ("steps", 12, "most actions an episode"),
        ("new", 64, "most tokens a response"),
        ("batch", 8, "rows of a micro-batch"),
        ("row-length", 1024, "tokens of a row, of cotjax"),
        ("rounds", 3, "steps that are timed, in which the sides take turns"),
        ("seed", 0, "seed of the games and of what is drawn"),
    ):
        rl.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    rl.add_argument(
        "--cpu-devices",
        type=int,
        help="devices that cotjax splits a CPU into (default: one a core)",
    )
    rl.add_argument("--peer", choices=("trl",), help="do the same with TRL's GRPOTrainer")
    rl.add_argument(
        "--peer-rows",
        choices=("steps", "episodes"),
        default="steps",
        help="what TRL trains on: a row for each step, which is cotjax's loss, or one text an "
        "episode, whose steps stand behind thoughts that they were not drawn after (default steps)",
    )
    rl.set_defaults(run=_rl)


def _policy(arguments: argparse.Namespace) -> None:
    from cotjax.bench.policy import benchmark

    for name in ("length", "batch", "rounds"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    benchmark(
        arguments.rollouts,
        model=arguments.model,
        template=arguments.template,
        length=arguments.length,
        batch=arguments.batch,
        rounds=arguments.rounds,
    )


def _rl(arguments: argparse.Namespace) -> None:
    from cotjax.bench.rl import Settings, benchmark

    names = (
        *("model", "template", "tasks", "group", "steps", "new", "batch", "row_length"),
        *("rounds", "seed", "cpu_devices"),
    )
    given = {name: getattr(arguments, name) for name in names}
    benchmark(Settings(**given, peer=arguments.peer is not None, rows=arguments.peer_rows))
