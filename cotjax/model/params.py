"""Parameters as nested dicts: declared, initialised, sharded, split into trained and frozen.

A weight is declared once: shape, dtype, logical axes, scale of its initial values. The abstract
tree, the shardings and the initialiser follow, and no array is made before its sharding is known.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding

from cotjax.errors import DataError
from cotjax.model.config import ModelConfig
from cotjax.model.layers import Transformer
from cotjax.model.linear import LORA_FACTORS
from cotjax.model.sharding import sharding

Params = dict[str, Any]
Path = tuple[str, ...]


@dataclass(frozen=True)
class Weight:
    """The declaration of one parameter."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str, ...]  # logical axes, one a dimension; sharding.RULES places them
    std: (
        float | None
    )  # of its normal initial values; None: a norm's scale, which starts at one; 0: starts at zero


@lru_cache(maxsize=64)
def _graph(config: ModelConfig, fused: bool) -> tuple[Any, Any, dict[Path, Weight]]:
    """Return the module's graph, its state's tree, and its declarations in the tree's order."""
    graph, state = nnx.split(Transformer(config, fused))
    weights: dict[Path, Weight] = {}
    for path, leaf in nnx.to_flat_state(state):
        shape, metadata = leaf.get_value(), leaf.get_metadata()
        weights[tuple(map(str, path))] = Weight(
            shape.shape, shape.dtype, metadata["out_sharding"], metadata["std"]
        )
    return graph, jax.tree.structure(state), weights


def declared(config: ModelConfig, fused: bool = False) -> Mapping[Path, Weight]:
    """Return every parameter's declaration by its path, such as ("model", "norm", "weight").

    `fused`: those of the sampler's parameters (model/fused.py), here and below.
    """
    return _graph(config, fused)[2]


def nest(by_path: Mapping[Path, Any]) -> Params:
    """Return a flat dict of paths as the nested dict that `params` is."""
    return unflatten_dict(dict(by_path))


def leaf(params: Params, path: Path) -> Any:
    """Return the parameter at a path. Raises DataError, naming it, when it is missing."""
    node: Any = params
    for name in path:
        if not isinstance(node, Mapping) or name not in node:
            raise DataError(
                f"params: there is no {'.'.join(path)}; these are not the weights of this config"
            )
        node = node[name]
    return node


def bind(config: ModelConfig, params: Params) -> Transformer:
    """Return the module with these parameters, fused ones or not. Call it only inside a traced
    function.
    """
    graph, structure, weights = _graph(config, are_fused(params))
    return nnx.merge(graph, jax.tree.unflatten(structure, [leaf(params, path) for path in weights]))


def are_fused(params: Params) -> bool:
    """Return whether these parameters are those of a fused model (model/fused.py)."""
    node: Any = params
    for name in ("model", "layers", "0", "self_attn"):
        node = node.get(name, {})
    return "qkv_proj" in node


def param_shardings(config: ModelConfig, mesh: Mesh, fused: bool = False) -> Params:
    """Return the sharding of every parameter, in the tree of `init_params`."""
    return nest(
        {
            path: sharding(mesh, weight.shape, weight.axes, name=".".join(path))
            for path, weight in declared(config, fused).items()
        }
    )


def abstract_params(config: ModelConfig, mesh: Mesh | None = None, fused: bool = False) -> Params:
    """Return each parameter's shape and dtype, and its sharding where a mesh is given."""
    abstract = nest(
        {
            path: jax.ShapeDtypeStruct(weight.shape, weight.dtype)
            for path, weight in declared(config, fused).items()
        }
    )
    if mesh is None:
        return abstract
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        abstract,
        param_shardings(config, mesh, fused),
    )


def init_params(
    config: ModelConfig,
    key: jax.Array,
    mesh: Mesh | None = None,
    only: Collection[Path] | None = None,
) -> Params:
    """Return initial parameters, made in their shards: the same values on any mesh.

    `key`: a jax.random key. Each parameter's own key comes from its path, so adding one changes no
    other. `only`: the paths to make (None: all).
    """

    places = None if mesh is None else param_shardings(config, mesh)

    def make(path: Path, weight: Weight) -> jax.Array:
        initial = _initialiser(weight, None if places is None else leaf(places, path))
        return initial(key, np.uint32(zlib.crc32(".".join(path).encode())))

    return nest(
        {
            path: make(path, weight)
            for path, weight in declared(config).items()
            if only is None or path in only
        }
    )


@lru_cache(maxsize=256)
def _initialiser(
    weight: Weight, where: NamedSharding | None
) -> Callable[[jax.Array, np.uint32], jax.Array]:
    """Return a function that draws a weight in its shards, from the common key and its number.

    Layers share it. One program for all parameters would take a minute to compile, because every
    draw is unrolled.
    """

    def initial(key: jax.Array, number: jax.Array) -> jax.Array:
        if weight.std is None:
            return jnp.ones(weight.shape, weight.dtype)
        own = jax.random.fold_in(key, number)
        return (jax.random.normal(own, weight.shape, jnp.float32) * weight.std).astype(weight.dtype)

    return jax.jit(initial, out_shardings=where)


def trainable_paths(config: ModelConfig) -> frozenset[Path]:
    """Return the paths that training changes: the adapters' where there are any, else all."""
    paths = declared(config)
    return frozenset(
        paths if config.lora is None else (path for path in paths if path[-1] in LORA_FACTORS)
    )


def split_params(config: ModelConfig, params: Params) -> tuple[Params, Params]:
    """Return (trained, frozen): two nested dicts that share the leaves of `params`."""
    trained = trainable_paths(config)
    parts: tuple[dict[Path, Any], dict[Path, Any]] = {}, {}
    for path in declared(config):
        parts[path not in trained][path] = leaf(params, path)
    return nest(parts[0]), nest(parts[1])


def join_params(config: ModelConfig, trained: Params, frozen: Params) -> Params:
    """Return the params that `split_params` split."""
    paths = trainable_paths(config)
    return nest(
        {path: leaf(trained if path in paths else frozen, path) for path in declared(config)}
    )
