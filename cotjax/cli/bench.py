"""`cotjax bench ...`: measurements.

As in `cotjax.cli.main`, heavy imports wait for the command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cotjax.cli.bench_device import add_device_benches
from cotjax.cli.bench_policy import add_policy_bench
from cotjax.cli.bench_report import add_report_bench
from cotjax.cli.games import add_source, world_of
from cotjax.errors import UsageError

BENCH_MODEL_HELP = (
    "j1 (10M parameters), a published model such as qwen3-4b, or a Hugging Face folder; "
    "random weights (default j1)"
)
_Option = tuple[str, int, str]


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add `bench` and its subcommands to the commands of the parser."""
    parser = commands.add_parser("bench", help="measure, and print the figures")
    bench = parser.add_subparsers(dest="what", required=True)
    _add_env(bench.add_parser("env", help="the cached ALFWorld engine compared with the stock one"))
    mask = bench.add_parser("mask", help="the loss mask: tokens/s on one core, share of a step")
    mask.set_defaults(run=_mask)
    add_report_bench(bench)
    add_policy_bench(bench)
    add_device_benches(bench)
    _add_data(bench)
    _add_faults(
        bench.add_parser("faults", help="episodes while environments are killed, hung and garbled")
    )
    _add_worlds(
        bench.add_parser(
            "worlds", help="a world's environments under its expert: wins, speed, memory"
        )
    )
    _add_train(
        bench.add_parser(
            "train",
            help="the train step: tokens/s and MFU, alone or compared with transformers on torch",
        )
    )
    _add_sample(
        bench.add_parser(
            "sample",
            help="generation: new tokens/s, alone or compared with transformers; how turns grow",
        )
    )
    _add_rollout(
        bench.add_parser(
            "rollout",
            help="rollouts: episodes a minute, alone or compared with transformers on torch",
        )
    )


def _add_integers(parser: argparse.ArgumentParser, *options: _Option) -> None:
    for name, default, text in options:
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )


def _add_sides(parser: argparse.ArgumentParser, peer: str) -> None:
    """Add the options of all comparisons; `peer`: the help of --peer."""
    parser.add_argument(
        "--cpu-devices",
        type=int,
        help="devices that cotjax splits a CPU into (default: one a core)",
    )
    parser.add_argument("--peer", choices=("transformers",), help=peer)


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of parameters and matmuls (default float32)",
    )


def _add_env(env: argparse.ArgumentParser) -> None:
    env.add_argument(
        "--games", required=True, type=Path, help="ALFWorld data folder (generated or real)"
    )
    env.add_argument("--split", default="valid_seen", help="split to play (default valid_seen)")
    _add_integers(env, ("count", 5, "games"), ("steps", 20, "random steps a game"))
    env.set_defaults(run=_env)


def _add_sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument("--model", default="j1", help=BENCH_MODEL_HELP)
    _add_integers(
        sample,
        ("slots", 32, "prompts, decoded together"),
        ("prompt", 256, "tokens a prompt"),
        ("new", 64, "new tokens a prompt, greedy"),
        ("rounds", 5, "rounds, in which the sides take turns"),
    )
    _add_dtype(sample)
    _add_sides(sample, "run the same in transformers on torch, with either cache")
    sample.add_argument(
        "--peer-cache",
        nargs="+",
        choices=("dynamic", "static"),
        default=["dynamic", "static"],
        help="the cache of transformers' generate, one or both (default both)",
    )
    sample.add_argument(
        "--growth",
        action="store_true",
        help="instead: a turn's time by history and slots, of a tiny model",
    )
    sample.add_argument("--out", type=Path, help="with --growth: the figure to write, a PNG")
    sample.set_defaults(run=_sample)


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--model", default="j1", help=BENCH_MODEL_HELP)
    _add_integers(train, ("batch", 16, "rows a step"), ("length", 512, "tokens a row"))
    _add_dtype(train)
    train.add_argument(
        "--remat",
        choices=("auto", "none", "dots", "mlp", "block"),
        default="block",
        help="what the backward pass computes again; auto: the least that fits (default block)",
    )
    train.add_argument(
        "--attention",
        choices=("auto", "xla", "splash", "pallas", "cudnn"),
        default="auto",
        help="attention kernel (default auto: the fastest on the device)",
    )
    train.add_argument(
        "--rows",
        choices=("plain", "packed", "trees"),
        default="plain",
        help="what a row holds: one example, four, or four with branches (default plain)",
    )
    train.add_argument(
        "--profile", action="store_true", help="also print where a step's time goes, by scope"
    )
    train.add_argument(
        "--scan", action="store_true", help="layers as one program that runs once a layer"
    )
    _add_integers(
        train,
        ("accumulate", 1, "micro-batches a step"),
        ("peer-accumulate", 1, "micro-batches a step of the baseline"),
        ("steps", 3, "steps a round"),
        ("rounds", 4, "rounds, in which the sides take turns"),
        ("data", -1, "devices on the mesh's data axis; -1: the rest"),
        ("fsdp", 1, "devices on its fsdp axis"),
        ("tensor", 1, "devices on its tensor axis"),
        ("lora-rank", 0, "rank of LoRA adapters, which alone are trained; 0: all weights"),
    )
    _add_sides(train, "run the same in transformers on torch, and print the ratio")
    train.add_argument(
        "--peer-mode",
        nargs="+",
        choices=("compile", "eager"),
        default=["compile"],
        help="how transformers runs, one or both (default compile)",
    )
    train.set_defaults(run=_train)


def _add_data(bench: argparse._SubParsersAction) -> None:
    text = "the input pipeline: tokens/s, filling, and how many demo train steps it could feed"
    data = bench.add_parser("data", help=text, description=text[0].upper() + text[1:] + ".")
    data.add_argument(
        "--data",
        type=Path,
        help="JSONL of trajectories (default: generated games, played by the expert)",
    )
    data.add_argument(
        "--tokenizer", type=Path, help="folder with tokenizer.json (default: the shipped base's)"
    )
    _add_integers(data, ("length", 2048, "tokens a row"), ("batch", 8, "rows a batch"))
    data.add_argument(
        "--seconds", type=float, default=3.0, help="how long each figure is measured (default 3)"
    )
    data.set_defaults(run=_data)


def _add_faults(faults: argparse.ArgumentParser) -> None:
    _add_integers(
        faults,
        ("episodes", 1000, "episodes"),
        ("retries", 2, "restarts of an episode's environment"),
        ("slots", 16, "concurrent episodes, each with its own process"),
        ("seed", 0, "of the games, the actions and the faults"),
    )
    faults.add_argument(
        "--rate",
        type=float,
        default=0.02,
        help="share of requests before which a fault is injected (default 0.02)",
    )
    faults.set_defaults(run=_faults)


def _add_worlds(worlds: argparse.ArgumentParser) -> None:
    worlds.description = (
        "Play episodes of a world's scripted expert in many environments: how many it wins, steps "
        "a second and memory near the start and at the end, and processes left behind. Search QA "
        "adds its solver with two retrievers, a guess, and searches."
    )
    worlds.add_argument("--world", default="alfworld", help="as config.world; also without --world")
    worlds.add_argument("world", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_source(worlds)
    _add_integers(
        worlds,
        ("episodes", 1000, "episodes; the games are played one after another, and again"),
        ("steps", 30, "most steps an episode"),
        ("seed", 0, "of made games and of the expert"),
        ("per-type", 0, "games of each task type; 0: all there are, or 3 made ones"),
    )
    worlds.add_argument(
        "--environments",
        "--slots",
        dest="slots",
        type=int,
        default=64,
        help="environments at once, each in a process of its own but where a world's processes "
        "take much memory (default 64)",
    )
    worlds.add_argument(
        "--task-type", action="append", default=[], help="only this task type; repeat for several"
    )
    worlds.add_argument("--games", default="", help="folder of games (default: the world's own)")
    worlds.add_argument("--split", default="", help="split (default: the one played)")
    worlds.set_defaults(run=_worlds)


def _add_rollout(rollout: argparse.ArgumentParser) -> None:
    rollout.description = (
        "Play games by CoT actions, with the prompt action decoded at every state: episodes a "
        "minute, the share of environment time that decoding hides, the cost of the prompt "
        "actions. With --peer, the same in transformers, and the ratio."
    )
    _add_integers(
        rollout,
        ("episodes", 32, "games, each played once a round"),
        ("steps", 30, "most steps an episode"),
        ("slots", 32, "concurrent episodes, each with its own process"),
        ("new", 64, "most new tokens a CoT response"),
        ("rounds", 3, "rounds, in which the sides take turns"),
        ("seed", 0, "of the games"),
    )
    rollout.add_argument(
        "--games",
        type=Path,
        help="ALFWorld data folder to draw games from (default: generated, temporary ones)",
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
        "--halves",
        action="store_true",
        help="also play one kind of action alone, in one batch and in two halves of the slots",
    )
    rollout.add_argument(
        "--latency",
        type=float,
        default=0.0,
        help="seconds that each environment sleeps before each answer (default 0)",
    )
    _add_sides(rollout, "play the same in transformers on torch, and print the ratio")
    rollout.set_defaults(run=_rollout)


def _env(arguments: argparse.Namespace) -> None:
    from cotjax.bench.engine import benchmark

    benchmark(arguments.games, arguments.split, arguments.count, arguments.steps)


def _mask(arguments: argparse.Namespace) -> None:
    from cotjax.bench.mask import benchmark

    benchmark()


def _train(arguments: argparse.Namespace) -> None:
    from cotjax.bench.train import Settings, benchmark

    names = (
        *("model", "batch", "length", "dtype", "remat", "attention", "rows", "profile", "scan"),
        *("accumulate", "peer_accumulate", "cpu_devices", "lora_rank", "steps", "rounds"),
    )
    settings = Settings(
        **{name: getattr(arguments, name) for name in names},
        mesh=(arguments.data, arguments.fsdp, arguments.tensor),
        peers=tuple(dict.fromkeys(arguments.peer_mode)) if arguments.peer else (),
    )
    benchmark(settings)


def _sample(arguments: argparse.Namespace) -> None:
    from cotjax.bench import growth, sample

    if arguments.growth:
        growth.growth(out=arguments.out)
        return
    settings = sample.Settings(
        arguments.model,
        slots=arguments.slots,
        prompt=arguments.prompt,
        new=arguments.new,
        dtype=arguments.dtype,
        cpu_devices=arguments.cpu_devices,
        peers=tuple(dict.fromkeys(arguments.peer_cache)) if arguments.peer else (),
        rounds=arguments.rounds,
    )
    sample.benchmark(settings)


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


def _worlds(arguments: argparse.Namespace) -> None:
    from cotjax.bench.worlds import benchmark

    benchmark(
        world_of(arguments),
        arguments.games,
        arguments.split,
        episodes=arguments.episodes,
        slots=arguments.slots,
        max_steps=arguments.steps,
        seed=arguments.seed,
        per_type=arguments.per_type,
        task_types=arguments.task_type,
    )


def _faults(arguments: argparse.Namespace) -> int:
    from cotjax.bench.faults import benchmark

    same = benchmark(
        arguments.episodes, arguments.rate, arguments.retries, arguments.slots, arguments.seed
    )
    return 0 if same else 1


def _rollout(arguments: argparse.Namespace) -> None:
    from cotjax.bench.rollout import Settings, benchmark

    settings = Settings(
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
        halves=arguments.halves,
        latency=arguments.latency,
    )
    benchmark(settings)
