"""Check and convert the arrays that users give: of numpy, jax or torch, or plain lists."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from cotjax.masking.roles import MaskError, Role

Array = Any  # numpy.ndarray, jax.Array or torch.Tensor


def is_torch(array: Any) -> bool:
    """Return whether this is a torch tensor, without importing torch."""
    return "torch" in sys.modules and isinstance(array, sys.modules["torch"].Tensor)


def namespace(array: Any) -> Any:
    """Return the module whose functions take this array: `torch`, `jax.numpy` or `numpy`."""
    if is_torch(array):
        return sys.modules["torch"]
    return array.__array_namespace__() if hasattr(array, "__array_namespace__") else np


def alike(array: Any, like: Array, what: str) -> Array:
    """Return `array` as an array of the library (and, of torch, on the device) of `like`.

    Raises:
      MaskError: `array` is a torch tensor and `like` is not.
    """
    if is_torch(like):
        return sys.modules["torch"].as_tensor(array, device=like.device)
    if is_torch(array):
        raise MaskError(
            f"{what} is a torch tensor, the losses are not; give all of them from one library"
        )
    return np.asarray(array) if isinstance(array, list | tuple) else array


def check_same_shape(what: str, array: Array, other: Array) -> None:
    """Raise MaskError unless an array has the shape of `other`, the losses or their inputs."""
    if np.shape(array) != np.shape(other):
        raise MaskError(
            f"{what} have shape {tuple(np.shape(array))}, the losses {tuple(np.shape(other))}"
        )


def detached(array: Array) -> Array:
    """Return an array through which no gradient flows."""
    if is_torch(array):
        return array.detach()
    jax = sys.modules.get("jax")
    return jax.lax.stop_gradient(array) if jax and isinstance(array, jax.Array) else array


def from_tensors(function: Callable) -> Callable:
    """Let a function of numpy arrays take torch tensors and return one, on the device of the first.

    Roles, ids and weights carry no gradient, so numpy can compute for torch.
    """

    @wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        tensors = [value for value in (*arguments, *options.values()) if is_torch(value)]
        if not tensors:
            return function(*arguments, **options)
        result = function(
            *map(to_numpy, arguments), **{name: to_numpy(value) for name, value in options.items()}
        )
        return sys.modules["torch"].from_numpy(np.ascontiguousarray(result)).to(tensors[0].device)

    return wrapped


def to_numpy(value: Any) -> Any:
    """Return a torch tensor as a numpy array, and anything else as it is.

    Raises:
      MaskError: the tensor requires a gradient, which would be lost.
    """
    if not is_torch(value):
        return value
    if value.requires_grad:
        raise MaskError("a mask carries no gradient: give tensor.detach()")
    return (value.float() if value.is_floating_point() else value).cpu().numpy()


def integers(
    values: Any, what: str, dtype: type, least: int | None = None, most: int | None = None
) -> np.ndarray:
    """Return integers as a numpy array of `dtype`.

    Raises:
      MaskError: they are not integers, are ragged, or one is outside `least`..`most` (None: the
        range of `dtype`). The message names `what`.
    """
    limits = np.iinfo(dtype)
    least, most = limits.min if least is None else least, limits.max if most is None else most
    try:
        array = np.asarray(to_numpy(values))
    except (ValueError, TypeError, OverflowError) as error:
        raise MaskError(f"{what} must be integers in rows of one length ({error})") from None
    if not array.size:
        return array.astype(dtype)
    if array.dtype.kind not in "iu":
        raise MaskError(
            f"{what} must be integers, not "
            f"{array.dtype if array.dtype != object else type(array.flat[0]).__name__}"
        )
    low, high = int(array.min()), int(array.max())
    if low < least or high > most:
        raise MaskError(f"{what} must be in {least}..{most}, these go from {low} to {high}")
    return array.astype(dtype)


def checked_roles(values: Any, what: str = "roles") -> np.ndarray:
    """Return roles as int8 [..., T].

    Raises:
      MaskError: they are not integers of `Role`, or have no axis.
    """
    try:
        roles = integers(values, what, np.int8, 0, len(Role) - 1)
    except MaskError as error:
        raise MaskError(f"{error}; see cotjax.masking.Role") from None
    if roles.ndim == 0:
        raise MaskError(f"{what} must have an axis of tokens, [..., T]")
    return roles
