"""`cotjax bench kernels`: the sampler's kernels on this device, against float32."""

from __future__ import annotations

import argparse


def add_kernels_bench(bench: argparse._SubParsersAction) -> None:
    """Add `kernels` to the subcommands of `bench`."""
    kernels = bench.add_parser(
        "kernels",
        help="the sampler's kernels on this device: their distance from float32",
        description="Read prompts and decode through the sampler's cache, by each kernel of this "
        "device, and compare hidden states with float32; fail where a kernel is wrong.",
    )
    kernels.add_argument(
        "--model",
        default="qwen3-4b",
        help="whose sizes four layers have: j1, a published model, a folder (default qwen3-4b)",
    )
    kernels.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default bfloat16"
    )
    kernels.set_defaults(run=_kernels)


def _kernels(arguments: argparse.Namespace) -> None:
    from cotjax.bench.kernels import check_kernels

    check_kernels(arguments.model, arguments.dtype)
