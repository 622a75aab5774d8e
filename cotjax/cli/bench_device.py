"""`cotjax bench kernels` and `cotjax bench forms`: what is right, and fastest, on this device."""

from __future__ import annotations

import argparse


def add_device_benches(bench: argparse._SubParsersAction) -> None:
    """Add `kernels` and `forms` to the subcommands of `bench`."""
    kernels = bench.add_parser(
        "kernels",
        help="the sampler's kernels on this device: their distance from float32",
        description="Read prompts and decode through the sampler's cache, by each kernel of this "
        "device, and compare hidden states with float32; fail where a kernel is wrong.",
    )
    _add_model(kernels, "whose sizes four layers have")
    kernels.set_defaults(run=_kernels)
    forms = bench.add_parser(
        "forms",
        help="forms of the train step on this device: scan, remat, attention, XLA's options",
        description="Compile the train step of a few layers in several forms, side by side in one "
        "process, and time each.",
    )
    _add_model(forms, "whose sizes the layers have")
    for name, default, text in (
        ("layers", 8, "layers"),
        ("batch", 8, "rows a step"),
        ("length", 4096, "tokens a row"),
        ("seconds", 120, "after which no further form is timed"),
    ):
        forms.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    forms.set_defaults(run=_forms)


def _add_model(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--model",
        default="qwen3-4b",
        help=f"{what}: j1, a published model, a folder (default qwen3-4b)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="of parameters and matmuls (default bfloat16)",
    )


def _kernels(arguments: argparse.Namespace) -> None:
    from cotjax.bench.kernels import check_kernels

    check_kernels(arguments.model, arguments.dtype)


def _forms(arguments: argparse.Namespace) -> None:
    from cotjax.bench.forms import Settings, compare_forms

    names = ("model", "dtype", "layers", "batch", "length", "seconds")
    compare_forms(Settings(**{name: getattr(arguments, name) for name in names}))
