"""What the processes of one `cotjax rl` give each other: weights, and the episodes they played.

A step's groups are divided: each process plays its own on its own devices, and all train on all of
them together. Episodes go through files in the run's folder, which every process sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from cotjax.envs.base import Play
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params, param_shardings
from cotjax.model.sharding import make_mesh
from cotjax.rollout.record import Episode
from cotjax.runtime import distributed
from cotjax.runtime.files import write_atomic


def on_own_devices(config: ModelConfig, params: Params, playing: Mesh) -> Params:
    """Return parameters that lie on the devices of all processes as copies on each one's own.

    They go from device to device. `playing`: the mesh of this process's devices; those of the
    others have the same shape.
    """
    if not distributed.several():
        return params
    everywhere = jax.device_put(params, param_shardings(config, _meshes_of_all(playing)))

    def own(x: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
        pieces = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, pieces)

    return jax.tree.map(own, everywhere, param_shardings(config, playing))


def _meshes_of_all(playing: Mesh) -> Mesh:
    """Return the playing meshes of all processes as one, joined on its first axis, data."""
    meshes = [
        make_mesh(
            **dict(playing.shape),
            devices=[device for device in jax.devices() if device.process_index == process],
        ).devices
        for process in range(distributed.count())
    ]
    return Mesh(np.concatenate(meshes), playing.axis_names, axis_types=playing.axis_types)


def of_all(folder: Path, plays: Iterable[Play], own: Mapping[Play, Episode]) -> dict[Play, Episode]:
    """Return the episodes of all processes, which all call this. `own`: this process's.

    Args:
      folder: for files that are there during the call.
      plays: those of all processes.
    """
    if not distributed.several():
        return dict(own)
    lines = "".join(json.dumps(each.model_dump()) + "\n" for each in own.values())
    parts = [folder / f".part-{process}.jsonl" for process in range(distributed.count())]
    mine = distributed.own_process()
    write_atomic(parts[mine], lines)
    distributed.barrier("parts written")
    by_name = {(play.game.id, play.sample): play for play in plays}
    episodes = dict(own)
    for part in (*parts[:mine], *parts[mine + 1 :]):
        for line in part.read_text().splitlines():
            episode = Episode.model_validate_json(line)
            episodes[by_name[episode.game.id, episode.sample]] = episode
    distributed.barrier("parts read")
    parts[mine].unlink()
    return episodes
