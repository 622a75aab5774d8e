"""TPU slices by name, as devices to compile for on any machine; libtpu holds the compiler."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from cotjax.errors import UsageError


@dataclass(frozen=True)
class Chip:
    """One chip of a generation."""

    memory: float  # bytes of high-bandwidth memory
    accelerator_type: str  # what the TPU runtime calls a slice of it, before the number of chips


CHIPS = {
    "v4": Chip(32 * 2**30, "v4"),
    "v5e": Chip(16 * 2**30, "v5litepod"),
    "v5p": Chip(95 * 2**30, "v5p"),
    "v6e": Chip(32 * 2**30, "v6e"),
    "tpu7x": Chip(192 * 2**30, "tpu7x"),
}
"""Generation -> chip, after Google Cloud's TPU documentation."""

_HOST = (2, 2, 1)  # chips of a host by axis, unless it is told otherwise
_NAME = re.compile(r"(?P<generation>\w+):(?P<shape>\d+(x\d+){1,2})")


@dataclass(frozen=True)
class Topology:
    """`slices` slices of one shape, such as v5e:16x16. Raises UsageError for an unknown name."""

    name: str
    slices: int = 1

    def __post_init__(self) -> None:
        match = _NAME.fullmatch(self.name)
        if match is None or match["generation"] not in CHIPS:
            raise UsageError(
                f"topology {self.name!r}: give a generation ({', '.join(CHIPS)}) and a shape, "
                "such as v5e:8x8 or v5p:4x4x4"
            )
        if self.slices < 1:
            raise UsageError(f"slices is {self.slices}; it must be 1 or more")

    @property
    def chip(self) -> Chip:
        """One of its chips."""
        return CHIPS[self.name.partition(":")[0]]

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @property
    def chips_of_a_host(self) -> tuple[int, ...]:
        """A host's chips by axis: a slice may be smaller than a host, down to one chip."""
        shape = [int(size) for size in self.name.partition(":")[2].split("x")]
        return tuple(map(min, [*shape, 1][:3], _HOST))

    def devices(self) -> list[jax.Device]:
        """Return its devices, in the compiler's order. They run nothing.

        Call `use_compiler_alone` first. Raises UsageError without libtpu, or when the compiler has
        no such slice.
        """
        from jax.experimental import topologies

        if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
            raise UsageError("the TPU compiler is not installed here: pip install 'cotjax[plan]'")
        several: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        if (host := self.chips_of_a_host) != _HOST:
            several["chips_per_host_bounds"] = list(map(str, host))
        try:
            return list(
                topologies.get_topology_desc(
                    platform="tpu", topology_name=self.name, **several
                ).devices
            )
        except Exception as error:  # the runtime's own kinds differ between versions of jax
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"topology {self}: {reason}") from None


def use_compiler_alone() -> None:
    """Make jax compute on the CPU and use libtpu only as a compiler.

    Call it before jax is first used.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault(
        "TPU_SKIP_MDS_QUERY", "1"
    )  # do not ask the cloud's metadata server what machine this is
    os.environ.setdefault(
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
    )  # no device is taken, so that several may compile at a time
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{CHIPS['v5e'].accelerator_type}-16")
