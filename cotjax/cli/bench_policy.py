"""`cotjax bench policy`: trees against rows, and the cost of the policy's loss."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotjax.errors import UsageError


def add_policy_bench(bench: argparse._SubParsersAction) -> None:
    """Add `policy` to the subcommands of `bench`."""
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
