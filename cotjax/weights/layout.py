"""How a parameter's values are laid out in a Hugging Face checkpoint.

Checkpoint names are our parameter paths joined by dots. torch stores Linear weights [out, in] where
ours are [in, out], so they are transposed; and it flattens heads into one axis.
"""

from __future__ import annotations

from math import prod

import numpy as np

from cotjax.model.params import Weight

Cut = tuple[slice, ...]  # a part of an array, one slice a dimension

_TRANSPOSED = (
    "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight",
    "gate_proj.weight", "up_proj.weight", "down_proj.weight",
)  # fmt: skip
# Our input axes of a projection that has more than one.
_INPUT_AXES = {"o_proj.weight": 2}


def stored_shape(name: str, weight: Weight) -> tuple[int, ...]:
    """Return the shape that a tensor has in a checkpoint."""
    shape, sizes = [], weight.shape
    for axes in _joined(name, weight):
        shape.append(prod(sizes[:axes]))
        sizes = sizes[axes:]
    return tuple(reversed(shape)) if _transposed(name) else tuple(shape)


def stored_cut(name: str, weight: Weight, cut: Cut) -> Cut:
    """Return where this part of a parameter is in the checkpoint's tensor."""
    stored, at = [], 0
    for axes in _joined(name, weight):
        first, *rest = range(at, at + axes)
        full = all((cut[axis].start, cut[axis].stop) == (0, weight.shape[axis]) for axis in rest)
        assert full, f"{name}: of joined axes only the first may be cut (sharding.RULES)"
        step = prod(weight.shape[axis] for axis in rest)
        stored.append(slice(cut[first].start * step, cut[first].stop * step))
        at += axes
    return tuple(reversed(stored)) if _transposed(name) else tuple(stored)


def as_declared(name: str, values: np.ndarray, shape: list[int]) -> np.ndarray:
    """Return a checkpoint's values in our layout and this shape."""
    return (values.T if _transposed(name) else values).reshape(shape)


def as_stored(name: str, weight: Weight, values: np.ndarray) -> np.ndarray:
    """Return a parameter's values in a checkpoint's layout."""
    shape = stored_shape(name, weight)
    values = values.reshape(shape[::-1]).T if _transposed(name) else values.reshape(shape)
    return np.ascontiguousarray(values)


def _transposed(name: str) -> bool:
    return name.endswith(_TRANSPOSED)


def _joined(name: str, weight: Weight) -> tuple[int, ...]:
    """Return how many of our axes each axis of the checkpoint joins, in our order."""
    if _transposed(name):
        inputs = next((axes for end, axes in _INPUT_AXES.items() if name.endswith(end)), 1)
        return inputs, len(weight.shape) - inputs
    return (1, 1) if weight.axes[0] == "vocab" else (len(weight.shape),)
