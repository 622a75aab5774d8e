"""The programs of a sampler, as jax lowers them: make, grow and fill a key-value cache, decode from
it.

They are lowered for shapes and shardings alone, so a plan can compile them for devices that are not
attached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from cotjax.model import cache as kv
from cotjax.model.cache_layouts import layout_of
from cotjax.model.config import ModelConfig
from cotjax.model.fused import fuses
from cotjax.model.params import Params, abstract_params
from cotjax.model.platform import forms_of, platform_of
from cotjax.model.sharding import batch_sharding, spec
from cotjax.model.token_kernels import reads_by_cudnn
from cotjax.sample.buckets import READ_AT_ONCE, read_buckets
from cotjax.sample.decoding import FORCED_MOST, decode
from cotjax.sample.sampling import Sampling, Scalars


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of one sampler. Lower them with the mesh set around.

    `capacity` is always that of the cache a program takes: tokens of a slot's prompt.

    `new`: tokens that a decode may draw. `stop_ZV`: what ends one (vocabulary.stop_table). `pad_id`
    fills unused positions.
    """

    config: ModelConfig
    mesh: Mesh
    slots: int
    new: int
    stop_ZV: np.ndarray
    pad_id: int

    @property
    def by_slot(self) -> NamedSharding:
        """The sharding of arrays of shape [slots, ...]."""
        return batch_sharding(self.mesh)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device holds a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def fused(self) -> bool:
        """Whether parameters are those of model/fused.py."""
        return fuses(self.config, self.mesh)

    @cached_property
    def reads(self) -> list[int]:
        """The numbers of tokens that each slot may read in one pass."""
        platform = platform_of(self.mesh)
        # Elsewhere the scores of a larger pass would be its largest array.
        many = reads_by_cudnn(self.config, platform)
        at_once = forms_of(platform).read_at_once if many else READ_AT_ONCE
        return read_buckets(self.slots, at_once)

    @cached_property
    def cache(self) -> kv.KVCache:
        """The shardings of a cache."""
        return kv.cache_shardings(self.config, self.mesh, self.slots, self.new)

    def empty(self, capacity: int) -> Lowered:
        """() -> an empty cache of this capacity."""
        return jax.jit(partial(self._empty, capacity), out_shardings=self.cache).lower()

    def grow(self, larger: int, capacity: int) -> Lowered:
        """(cache) -> the same with the capacity `larger`."""
        return jax.jit(lambda cache: kv.resized(cache, larger), out_shardings=self.cache).lower(
            self.abstract_cache(capacity)
        )

    def prefill(self, tokens: int, capacity: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, counts_B) -> (cache, hidden_BD), with T = `tokens`."""
        jitted = jax.jit(
            partial(kv.prefill, self.config),
            donate_argnums=1,
            out_shardings=(self.cache, self.by_slot),
        )
        return jitted.lower(
            *self._state(capacity), self._rows(jnp.int32, tokens), self._rows(jnp.int32)
        )

    def score(self, tokens: int, capacity: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, counts_B) -> (cache, hidden_BD, logprobs_BT).

        `prefill` that also returns the log-probability of every id.
        """
        places = self.cache, self.by_slot, self.by_slot
        jitted = jax.jit(partial(kv.score, self.config), donate_argnums=1, out_shardings=places)
        return jitted.lower(
            *self._state(capacity), self._rows(jnp.int32, tokens), self._rows(jnp.int32)
        )

    def score_tree(self, tokens: int, capacity: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, depths_BT, ends_BT, parents_BE, targets_BE) ->
        logprobs_BE, with T = `tokens` and E = 2 T (cache.score_tree).
        """
        jitted = jax.jit(partial(kv.score_tree, self.config), out_shardings=self.by_slot)
        of_tokens = [self._rows(jnp.int32, tokens)] * 3
        of_targets = [self._rows(jnp.int32, 2 * tokens)] * 2
        return jitted.lower(*self._state(capacity), *of_tokens, *of_targets)

    def tail(self, tokens: int, capacity: int) -> Lowered:
        """(cache, start_B) -> keys and values of T = `tokens` tokens a slot (cache.tail)."""
        jitted = jax.jit(partial(kv.tail, most=tokens), out_shardings=self._tail_places)
        return jitted.lower(self.abstract_cache(capacity), self._rows(jnp.int32))

    def restore(self, tokens: int, capacity: int) -> Lowered:
        """(cache, tail, start_B, counts_B) -> the cache with the tail written back."""
        config, axes = (
            self.config,
            (self.slots, self.config.kv_heads, tokens, self.config.head_size),
        )
        kept = jax.tree.map(
            lambda where: jax.ShapeDtypeStruct(axes, config.compute_as, sharding=where),
            self._tail_places,
        )
        jitted = jax.jit(kv.restored, donate_argnums=0, out_shardings=self.cache)
        return jitted.lower(
            self.abstract_cache(capacity), kept, self._rows(jnp.int32), self._rows(jnp.int32)
        )

    def decode(self, read: int, capacity: int, states: int | None = None) -> Lowered:
        """(params, cache, hidden_BD, limits_B, seeds_B2, scalars, stop_ZV, tokens_V, prefix_BP)
        -> (cache, ids_BM, logprobs_BM, counts_B, ended_B), with M = `new` and P = FORCED_MOST.

        `tokens_V`: bool, which ids are tokens. `ended_B`: AT_LIMIT, AT_STOP, NONE_LEFT or
        NOT_FINITE. `read`: 0, or S of a last argument read_BS: all ids that each slot has read,
        prompt and prefix, padded with vocab_size. Only programs with it look back
        (Sampling.looks_back). `states`: height Z of another stop table than `self.stop_ZV`.
        """
        places = self.cache, *(self.by_slot,) * 4
        jitted = jax.jit(
            partial(decode, self.config, most=self.new, pad_id=self.pad_id),
            donate_argnums=1,
            out_shardings=places,
        )
        scalars = Sampling().scalars()
        V = self.config.vocab_size
        stop_ZV = np.empty((states or len(self.stop_ZV), V), self.stop_ZV.dtype)
        copies = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated)
            for x in (*scalars, stop_ZV, np.ones(V, bool))
        ]
        read_BS = [self._rows(jnp.int32, read)] if read else []
        slots = self._rows(jnp.int32), self._rows(jnp.uint32, 2)
        return jitted.lower(
            *self._state(capacity),
            *slots,
            Scalars(*copies[:-2]),
            *copies[-2:],
            self._rows(jnp.int32, FORCED_MOST),
            *read_BS,
        )

    @property
    def _tail_places(self) -> Any:
        places = (NamedSharding(self.mesh, spec(kv.TAIL_AXES)),) * self.config.layers
        return places, places

    def _empty(self, capacity: int) -> kv.KVCache:
        layout = layout_of(self.config, self.mesh)
        return kv.empty(self.config, self.slots, capacity, self.new, layout)

    def _rows(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.slots, *shape), dtype, sharding=self.by_slot)

    def abstract_params(self) -> Params:
        """Return the parameters' shapes and shardings, in the compute dtype."""
        compute = self.config.compute_as
        shapes = abstract_params(self.config, self.mesh, self.fused)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, compute, sharding=x.sharding), shapes
        )

    def abstract_cache(self, capacity: int) -> kv.KVCache:
        """Return a cache's shapes and shardings."""
        shapes = jax.eval_shape(partial(self._empty, capacity))
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.cache,
        )

    def _state(self, capacity: int) -> tuple[Any, ...]:
        """Return parameters, cache and hidden states, as prefill and decode take them."""
        return (
            self.abstract_params(),
            self.abstract_cache(capacity),
            self._rows(self.config.compute_as, self.config.width),
        )
