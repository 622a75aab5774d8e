"""The collectives of a compiled program: their bytes, and the mesh axis that they run over.

Read from the compiler's text (HLO). A collective in a loop counts once an iteration.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (?P<result>.+?) (?P<kind>{_KINDS})(?:-start)?\(")
# Between slices the host's network carries what the compiler writes as a transfer.
_TRANSFER = re.compile(r"= (?P<result>.+?) recv\(.*_xla_megascale_transfer_type=\"(?P<kind>\w+)\"")
BETWEEN_SLICES = "data (between slices)"
_WHILE = re.compile(r" while\(.*condition=%?(?P<condition>[\w.\-]+), body=%?(?P<body>[\w.\-]+)")
_CALL = re.compile(r"(?:to_apply|calls|body|condition|branch_computations)=\{?%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+\w*)\[([\d,]*)\]")
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"get-tuple-element\(.*\), index=(\d+)")
_DEFINED = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_BITS = re.compile(r"\d+")

_LISTED = re.compile(r"replica_groups=(\{\{[\d,{}]*\}\})")
_STRIDED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? ?\{([^}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?")
_PAIRS = re.compile(r"source_target_pairs=(\{\{[\d,{}]*\}\})")


@dataclass(frozen=True, order=True)
class Collective:
    """One kind of collective over one mesh axis (or several), with the bytes a device receives."""

    axis: str
    kind: str
    count: int
    bytes: int


def collectives(hlo: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Return a program's collectives, largest first.

    `mesh_shape`: axis -> devices, in the mesh's order. A loop of unknown length counts as one
    iteration.
    """
    bodies = _computations(hlo)
    turns = _turns(bodies, hlo)
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, str]] = set()
    for name, lines in bodies.items():
        for line in lines:
            if transfer := _TRANSFER.search(line):
                key = BETWEEN_SLICES, transfer["kind"].lower().replace("_", "-")
                counts[key] += turns.get(name, 1)
                sizes[key] += turns.get(name, 1) * _size(transfer["result"])
            match = _COLLECTIVE.search(line)
            if match is None:
                continue
            # A compiler that overlaps a collective with other work leaves a copy of it in every
            # piece of that work.
            channel = re.search(r"channel_id=(\d+)", line)
            if channel and (key := (match["kind"], channel[1])) in seen:
                continue
            elif channel:
                seen.add(key)
            axis = ", ".join(_axes(line, mesh_shape))
            if not axis:
                continue
            times = turns.get(name, 1)
            counts[axis, match["kind"]] += times
            sizes[axis, match["kind"]] += times * _size(match["result"])
    exchanged = [Collective(*key, counts[key], sizes[key]) for key in counts]
    return sorted(exchanged, key=lambda each: -each.bytes)


def _computations(hlo: str) -> dict[str, list[str]]:
    """Return name -> lines of every computation."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = bodies.setdefault(head[1], [])
        elif line.startswith(" "):
            lines.append(line)
    return bodies


def _turns(bodies: Mapping[str, list[str]], hlo: str) -> dict[str, int]:
    """Return how often each computation runs in one run of the program."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.MULTILINE)
    turns: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        turns[name] += times
        for line in bodies.get(name, ()):
            loop = _WHILE.search(line)
            if loop:
                visit(
                    loop["body"],
                    times * _trips(bodies.get(loop["condition"], []), bodies.get(loop["body"], [])),
                )
            else:
                for called in set(_CALL.findall(line)) & bodies.keys():
                    visit(called, times)

    if entry:
        visit(entry[1], 1)
    return dict(turns)


def _trips(condition: list[str], body: list[str]) -> int:
    """Return a loop's iterations: its counter's bound over the step that its body adds."""
    bounds = [int(bound) for line in condition for bound in _CONSTANT.findall(line)]
    counter = next((int(match[1]) for line in condition if (match := _ELEMENT.search(line))), None)
    if not bounds or counter is None:
        return 1
    lines = {match[1]: line for line in body if (match := _DEFINED.match(line))}
    root = next((line for line in body if line.lstrip().startswith("ROOT")), "")
    results = re.findall(r"%?([\w.\-]+)", root.rpartition(" tuple(")[2].partition(")")[0])
    added = (
        lines.get(results[counter], "").partition(" add(")[2].partition(")")[0]
        if counter < len(results)
        else ""
    )
    steps = [
        int(step)
        for name in re.findall(r"%?([\w.\-]+)", added)
        for step in _CONSTANT.findall(lines.get(name, ""))
    ]
    return -(-max(bounds) // (steps[0] if steps else 1))


def _size(result: str) -> int:
    """Return the bytes of a result's arrays."""
    return sum(
        _bytes(dtype) * prod(map(int, filter(None, shape.split(","))))
        for dtype, shape in _ARRAY.findall(result)
    )


def _bytes(dtype: str) -> int:
    bits = _BITS.search(dtype)
    return 1 if bits is None else max(1, int(bits[0]) // 8)


def _axes(line: str, mesh_shape: Mapping[str, int]) -> Iterator[str]:
    """Return the mesh axes along which the members of a group differ."""
    groups = _groups(line)
    if not groups:
        return
    places = np.array(np.unravel_index(np.concatenate(groups), tuple(mesh_shape.values())))
    starts = np.cumsum([0, *map(len, groups)])
    for axis, row in zip(mesh_shape, places, strict=True):
        if any((row[a:b] != row[a]).any() for a, b in pairwise(starts)):
            yield axis


def _groups(line: str) -> list[np.ndarray]:
    """Return the devices of every group, by their number in the mesh."""
    if listed := _LISTED.search(line) or _PAIRS.search(line):
        return [np.array(group.split(","), int) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if strided := _STRIDED.search(line):
        return list(_iota(strided[2], strided[3]).reshape(_ints(strided[1])))
    if named := _NAMED.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", named[1])}
        within = [name.strip(" '") for name in named[3].split(",")]
        order = np.arange(prod(sizes.values()))
        if named[2]:
            iota = _IOTA.match(named[2])
            order = _iota(iota[1], iota[2]) if iota else np.array(_ints(named[2]))
        axes = [list(sizes).index(name) for name in within]
        moved = np.moveaxis(order.reshape(tuple(sizes.values())), axes, range(-len(axes), 0))
        return list(moved.reshape(-1, prod(sizes[name] for name in within)))
    return []


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Return 0, 1, 2 ... in this shape, with its axes in this order."""
    counted = np.arange(prod(_ints(shape))).reshape(_ints(shape))
    return counted.transpose(_ints(order)) if order else counted


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
