"""`cotjax bench rollout`. As in `cotjax.cli`, heavy imports wait for the command."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_bench_rollout(rollout: argparse.ArgumentParser) -> None:
    rollout.description = (
        "Play games by CoT actions, with the prompt action decoded beside each: episodes a minute, the share of the environments' time "
        "that decoding hides, what the prompt actions cost. With --peer, the same in transformers, and the ratio."
    )
    rollout.add_argument("--episodes", type=int, default=32, help="games, each played once a round (default 32)")
    rollout.add_argument("--steps", type=int, default=30, help="most steps an episode (default 30)")
    rollout.add_argument("--slots", type=int, default=32, help="episodes at a time, each with its process (default 32)")
    rollout.add_argument("--new", type=int, default=64, help="most new tokens a CoT response (default 64)")
    rollout.add_argument("--games", type=Path, help="ALFWorld data folder to draw games from (default: made ones, in a temporary folder)")
    rollout.add_argument("--split", default="valid_seen", help="split of --games (default valid_seen)")
    rollout.add_argument("--model", type=Path, help="folder of a model with its tokenizer (default: the shipped base)")
    rollout.add_argument("--template", default="chatml", help="turn template of --model (default chatml)")
    rollout.add_argument("--peer", choices=("transformers",), help="play the same in transformers on torch, and print the ratio")
    rollout.add_argument("--rounds", type=int, default=3, help="rounds, in which the sides take turns (default 3)")
    rollout.add_argument("--seed", type=int, default=0, help="of the games (default 0)")
    rollout.set_defaults(run=_bench_rollout)


def _bench_rollout(arguments: argparse.Namespace) -> None:
    from cotjax.study.rollout_speed import benchmark

    benchmark(
        arguments.model,
        template=arguments.template,
        games=arguments.games,
        split=arguments.split,
        episodes=arguments.episodes,
        slots=arguments.slots,
        steps=arguments.steps,
        new=arguments.new,
        peer=arguments.peer is not None,
        rounds=arguments.rounds,
        seed=arguments.seed,
    )
