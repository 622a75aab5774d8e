"""Parameters as an Orbax tree: every process reads and writes its own shards."""

from __future__ import annotations

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath

from cotjax.errors import DataError
from cotjax.model.params import Params

# Arrays on their way between host and files at any one time; more than the largest single one (5 GB
# in a 70B model).
_HOST_GB = 8


def save_tree(folder: Path, params: Params) -> None:
    """Write the tree into a new folder. On several processes every one must call it."""
    with ocp.StandardCheckpointer(save_concurrent_gb=_HOST_GB) as checkpointer:
        checkpointer.save(folder.resolve(), params)


def restore_tree(folder: Path, like: Params) -> Params:
    """Read the tree into the shapes, dtypes and places of `like`. Raises DataError."""
    folder = folder.resolve()
    try:
        check_shapes(folder, like)
        with ocp.StandardCheckpointer(restore_concurrent_gb=_HOST_GB) as checkpointer:
            return checkpointer.restore(folder, like)
    except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{folder}: cannot be restored ({reason}); convert the model again"
        ) from error


def check_shapes(folder: Path, params: Params) -> None:
    """Raise DataError unless the tree saved in `folder` has the names and shapes of `params`."""
    saved, wanted = (
        _shapes(ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree),
        _shapes(params),
    )
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise DataError(
                f"{folder}: a checkpoint of another model: {name} is {saved.get(name, 'missing')} "
                "there, "
                f"{wanted.get(name, 'missing')} in this model"
            )


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """Return dotted name -> shape."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
