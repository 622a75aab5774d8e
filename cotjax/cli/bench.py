"""`cotjax bench …`: commands that measure, and print the figures. As in `cotjax.cli.main`, heavy imports wait for the command."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotjax.errors import UsageError

BENCH_MODEL_HELP = "j1 (10M parameters), a published model such as qwen3-4b, or a Hugging Face folder; random weights (default j1)"


def add_bench(commands) -> None:
    """Add `bench` and its subcommands to the commands of the parser."""
    bench = commands.add_parser("bench", help="measure, and print the figures").add_subparsers(
        dest="what", required=True
    )
    env = bench.add_parser("env", help="the cached ALFWorld engine against the stock one")
    env.add_argument(
        "--games", required=True, type=Path, help="ALFWorld data folder (made or real)"
    )
    env.add_argument("--split", default="valid_seen", help="split to play (default valid_seen)")
    env.add_argument("--count", type=int, default=5, help="games (default 5)")
    env.add_argument("--steps", type=int, default=20, help="random steps a game (default 20)")
    env.set_defaults(run=_env)
    speed = bench.add_parser(
        "mask", help="the loss mask: tokens/s on one core, and its share of a train step"
    )
    speed.set_defaults(run=_mask)
    _add_data(bench)
    _add_faults(
        bench.add_parser(
            "faults", help="many episodes while environments are killed, hung and garbled at random"
        )
    )
    _add_train(
        bench.add_parser(
            "train", help="the train step: tokens/s and MFU, alone or beside transformers on torch"
        )
    )
    _add_sample(bench)
    _add_rollout(
        bench.add_parser(
            "rollout", help="rollouts: episodes a minute, alone or beside transformers on torch"
        )
    )


def _add_sample(bench: argparse._SubParsersAction) -> None:
    sample = bench.add_parser(
        "sample",
        help="generation: new tokens/s, alone or beside transformers on torch; how turns grow",
    )
    sample.add_argument("--model", default="j1", help=BENCH_MODEL_HELP)
    for name, default, text in (
        ("slots", 32, "prompts, decoded together"),
        ("prompt", 256, "tokens a prompt"),
        ("new", 64, "new tokens a prompt, greedy"),
        ("rounds", 5, "rounds, in which the sides take turns"),
    ):
        sample.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    sample.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of parameters and matmuls (default float32)",
    )
    sample.add_argument(
        "--cpu-devices",
        type=int,
        help="devices that cotjax splits a CPU into (default: one a core)",
    )
    sample.add_argument(
        "--peer",
        choices=("transformers",),
        help="run the same in transformers on torch, with either cache",
    )
    sample.add_argument(
        "--growth",
        action="store_true",
        help="instead: a turn's time against history and slots, of a tiny model",
    )
    sample.add_argument("--out", type=Path, help="with --growth: the figure to write, a PNG")
    sample.set_defaults(run=_sample)


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--model", default="j1", help=BENCH_MODEL_HELP)
    train.add_argument("--batch", type=int, default=16, help="rows a step (default 16)")
    train.add_argument("--length", type=int, default=512, help="tokens a row (default 512)")
    train.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of parameters and matmuls (default float32)",
    )
    train.add_argument(
        "--remat",
        choices=("none", "dots", "block"),
        default="block",
        help="computed again in the backward pass (default block)",
    )
    train.add_argument(
        "--scan", action="store_true", help="layers as one program that runs once a layer"
    )
    train.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="parts of a batch that follow one another (default 1)",
    )
    train.add_argument(
        "--peer-accumulate", type=int, default=1, help="the same, of the peer (default 1)"
    )
    train.add_argument("--steps", type=int, default=3, help="steps a round (default 3)")
    train.add_argument(
        "--rounds", type=int, default=4, help="rounds, in which the sides take turns (default 4)"
    )
    train.add_argument(
        "--data",
        type=int,
        default=-1,
        help="devices on the mesh's data axis (default -1: what is left)",
    )
    train.add_argument("--fsdp", type=int, default=1, help="devices on its fsdp axis (default 1)")
    train.add_argument(
        "--tensor", type=int, default=1, help="devices on its tensor axis (default 1)"
    )
    train.add_argument(
        "--cpu-devices",
        type=int,
        help="devices that cotjax splits a CPU into (default: one a core)",
    )
    train.add_argument(
        "--peer",
        choices=("transformers",),
        help="run the same in transformers on torch, and print the ratio",
    )
    train.add_argument(
        "--peer-mode",
        nargs="+",
        choices=("compile", "eager"),
        default=["compile"],
        help="how the peer runs, one or both (default compile)",
    )
    train.set_defaults(run=_train)


def _add_data(bench) -> None:
    """Add `data` to the subcommands of `bench`."""
    text = "the input pipeline: tokens/s, filling, and how many demo train steps it could feed"
    data = bench.add_parser("data", help=text, description=text[0].upper() + text[1:] + ".")
    data.add_argument(
        "--data",
        type=Path,
        help="JSONL of trajectories (default: made games, played by the expert)",
    )
    data.add_argument(
        "--tokenizer", type=Path, help="folder with tokenizer.json (default: the shipped base's)"
    )
    data.add_argument("--length", type=int, default=2048, help="tokens a row (default 2048)")
    data.add_argument("--batch", type=int, default=8, help="rows a batch (default 8)")
    data.add_argument(
        "--seconds", type=float, default=3.0, help="how long each figure is measured (default 3)"
    )
    data.set_defaults(run=_data)


def _add_faults(faults: argparse.ArgumentParser) -> None:
    faults.add_argument("--episodes", type=int, default=1000, help="episodes (default 1000)")
    faults.add_argument(
        "--rate",
        type=float,
        default=0.02,
        help="share of requests before which the environment is struck (default 0.02)",
    )
    faults.add_argument(
        "--retries",
        type=int,
        default=2,
        help="times that an episode's environment is replaced (default 2)",
    )
    faults.add_argument(
        "--slots",
        type=int,
        default=16,
        help="episodes at a time, each with its process (default 16)",
    )
    faults.add_argument(
        "--seed", type=int, default=0, help="of the games, the actions and the faults (default 0)"
    )
    faults.set_defaults(run=_faults)


def _add_rollout(rollout: argparse.ArgumentParser) -> None:
    rollout.description = (
        "Play games by CoT actions, with the prompt action decoded beside each: episodes a minute, the share of the environments' time "
        "that decoding hides, what the prompt actions cost. With --peer, the same in transformers, and the ratio."
    )
    rollout.add_argument(
        "--episodes", type=int, default=32, help="games, each played once a round (default 32)"
    )
    rollout.add_argument("--steps", type=int, default=30, help="most steps an episode (default 30)")
    rollout.add_argument(
        "--slots",
        type=int,
        default=32,
        help="episodes at a time, each with its process (default 32)",
    )
    rollout.add_argument(
        "--new", type=int, default=64, help="most new tokens a CoT response (default 64)"
    )
    rollout.add_argument(
        "--games",
        type=Path,
        help="ALFWorld data folder to draw games from (default: made ones, in a temporary folder)",
    )
    rollout.add_argument(
        "--split", default="valid_seen", help="split of --games (default valid_seen)"
    )
    rollout.add_argument(
        "--model",
        type=Path,
        help="folder of a model with its tokenizer (default: the shipped base)",
    )
    rollout.add_argument(
        "--template", default="chatml", help="turn template of --model (default chatml)"
    )
    rollout.add_argument(
        "--cpu-devices",
        type=int,
        help="devices that cotjax splits a CPU into (default: one a core)",
    )
    rollout.add_argument(
        "--peer",
        choices=("transformers",),
        help="play the same in transformers on torch, and print the ratio",
    )
    rollout.add_argument(
        "--rounds", type=int, default=3, help="rounds, in which the sides take turns (default 3)"
    )
    rollout.add_argument("--seed", type=int, default=0, help="of the games (default 0)")
    rollout.set_defaults(run=_rollout)


def _env(arguments: argparse.Namespace) -> None:
    from cotjax.bench.engine import benchmark

    benchmark(arguments.games, arguments.split, arguments.count, arguments.steps)


def _mask(arguments: argparse.Namespace) -> None:
    from cotjax.bench import mask as mask_speed

    mask_speed.benchmark()


def _train(arguments: argparse.Namespace) -> None:
    from cotjax.bench.train import benchmark

    benchmark(
        arguments.model,
        batch=arguments.batch,
        length=arguments.length,
        dtype=arguments.dtype,
        remat=arguments.remat,
        accumulate=arguments.accumulate,
        scan=arguments.scan,
        peer_accumulate=arguments.peer_accumulate,
        mesh=(arguments.data, arguments.fsdp, arguments.tensor),
        cpu_devices=arguments.cpu_devices,
        peers=tuple(dict.fromkeys(arguments.peer_mode)) if arguments.peer else (),
        steps=arguments.steps,
        rounds=arguments.rounds,
    )


def _sample(arguments: argparse.Namespace) -> None:
    from cotjax.bench import growth as sample_growth
    from cotjax.bench import sample as sample_speed

    if arguments.growth:
        sample_growth.growth(out=arguments.out)
    else:
        given = {
            name: getattr(arguments, name)
            for name in ("model", "slots", "prompt", "new", "dtype", "cpu_devices", "rounds")
        }
        sample_speed.benchmark(**given, peers=("dynamic", "static") if arguments.peer else ())


def _data(arguments: argparse.Namespace) -> None:
    import tensorflow_datasets as tfds

    from cotjax.bench.data import benchmark

    for name in ("length", "batch", "seconds"):
        if getattr(arguments, name) <= 0:
            raise UsageError(f"--{name} is {getattr(arguments, name)}; give more than 0")
    tfds.disable_progress_bar()
    benchmark(
        arguments.data,
        arguments.tokenizer,
        length=arguments.length,
        batch=arguments.batch,
        seconds=arguments.seconds,
    )


def _faults(arguments: argparse.Namespace) -> int:
    from cotjax.bench.faults import benchmark

    same = benchmark(
        arguments.episodes, arguments.rate, arguments.retries, arguments.slots, arguments.seed
    )
    return 0 if same else 1


def _rollout(arguments: argparse.Namespace) -> None:
    from cotjax.bench.rollout import benchmark

    benchmark(
        arguments.model,
        template=arguments.template,
        games=arguments.games,
        split=arguments.split,
        episodes=arguments.episodes,
        slots=arguments.slots,
        steps=arguments.steps,
        new=arguments.new,
        cpu_devices=arguments.cpu_devices,
        peer=arguments.peer is not None,
        rounds=arguments.rounds,
        seed=arguments.seed,
    )
