"""An induction head that is placed instead of trained (Olsson et al., 2022; `train/recall.py`).

It finds the last place of the current token and says what followed there, with two layers:

    layer 0   each head attends to the token before, and writes it beside the token itself
    layer 1   the query is the token, the key the token before a place, the value the place's token

    text      a  7  b  2  a            the last `a` attends to 7, before which there was an `a`
    before    -  a  7  b  2

Embeddings begin in the first I = kv_heads * head_size axes of the residual stream, and layer 0
writes into the next I. Nothing stays so: it is a start, as in mimetic initialisation (Trockman and
Kolter, 2023), and all weights are trained. The other layers are random, and quieter than usual.
Letters are those of model/decoder.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.model.rope import frequencies

_EMBEDDING = 0.3  # standard deviation; the usual 0.02 would be lost beside what layers write
_CONSTANT = (
    2.0  # in axis 0, of that: what all tokens share, so that a head can go by position alone
)
_QUIET = 0.2  # factor on what random layers write
_LAST_NORM = 0.5  # scale before the logits, which such embeddings would make too large
_SHARP = 8.0  # factor on attention's scores
_FASTEST = 3  # pairs of axes that tell neighbours apart; more would also see those two places away
_SLOW = 0.02  # radians a token, at most, of the pairs that compare tokens, wherever these stand
_GAIN = 3.0  # of the copied token, against the token itself


def place_induction_head(config: ModelConfig, params: Params, key: jax.Array) -> Params:
    """Return initial parameters with the embeddings and the attention of layers 0 and 1 replaced.

    Raises UsageError, naming the field, where a model has no room for it.
    """
    _check(config)
    D, N, K, H = config.width, config.heads, config.kv_heads, config.head_size
    group, own = N // K, K * H
    for_embeddings, for_pairs = jax.random.split(key)
    embeddings = np.array(jax.random.normal(for_embeddings, (config.vocab_size, D))) * _EMBEDDING
    embeddings[:, own:] = 0.0
    embeddings[:, 0] = _CONSTANT * _EMBEDDING
    fast, slow = _pairs(config)
    angles = frequencies(config)[fast[: len(fast) // 2]]

    # Layer 0. Turned by one position, the query is the key: they agree at a distance of one.
    q_DNH, k_DKH = np.zeros((D, N, H)), np.zeros((D, K, H))
    q_DNH[0][:, fast] = np.concatenate([np.cos(angles), -np.sin(angles)])
    k_DKH[0][:, fast[: len(angles)]] = 1.0
    before = q_DNH, k_DKH, *_copied(config, to=own, gain=1.0)

    # Layer 1. The same random directions for the token and for the token before.
    q_DNH, k_DKH = np.zeros((D, N, H)), np.zeros((D, K, H))
    shape = (own, K, len(slow))
    random = np.array(jax.random.normal(for_pairs, shape)) / np.sqrt(own)
    random[0] = 0.0
    k_DKH[own : 2 * own, :, slow] = random
    q_DNH[:own, :, slow] = np.repeat(random, group, axis=1)
    match = q_DNH, k_DKH, *_copied(config, to=0, gain=_GAIN)

    layers = {name: _quiet(layer) for name, layer in params["model"]["layers"].items()}
    for name, placed in (("0", before), ("1", match)):
        layers[name] = layers[name] | {"self_attn": _attention(config, *placed)}
    made = {
        "embed_tokens": {"weight": embeddings},
        "layers": layers,
        "norm": {"weight": np.full(D, _LAST_NORM)},
    }
    made = params | {"model": params["model"] | made}
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), made, params)


def _check(config: ModelConfig) -> None:
    own = config.kv_heads * config.head_size
    for wrong, field, why in (
        (config.layers < 2, "layers", "it takes two"),
        (2 * own > config.width, "width", f"it takes {2 * own}, 2 * kv_heads * head_size"),
        (config.head_size < 16, "head_size", "it takes 16"),
        (not config.qk_norm, "qk_norm", "it needs normed queries and keys"),
        (config.qkv_bias, "qkv_bias", "it has none"),
        (config.lora is not None, "lora_rank", "adapters come later"),
        (not config.tied_embeddings, "tied_embeddings", "it needs them"),
    ):
        if wrong:
            value = getattr(config, field, None)
            raise UsageError(
                f"model.induction: model.{field} is {value}, and {why}; change it, or set "
                "model.induction to False"
            )


def _pairs(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return a head's axes that turn fastest, and those that hardly turn: pairs (i, i + H/2)."""
    half = config.head_size // 2
    slow = np.flatnonzero(frequencies(config) <= _SLOW)
    fast = np.arange(_FASTEST)
    return np.concatenate([fast, fast + half]), np.concatenate([slow, slow + half])


def _copied(config: ModelConfig, to: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Return v [D, K, H], o [N, H, D] that add an attended token's axes to those from `to` on."""
    D, N, K, H = config.width, config.heads, config.kv_heads, config.head_size
    v_DKH, o_NHD = np.zeros((D, K, H)), np.zeros((N, H, D))
    for axis in range(1, K * H):
        head, place = divmod(axis, H)
        v_DKH[axis, head, place] = 1.0
        queries = slice(head * (N // K), (head + 1) * (N // K))
        o_NHD[queries, place, to + axis] = gain * _EMBEDDING / (N // K)
    return v_DKH, o_NHD


def _attention(
    config: ModelConfig, q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray
) -> Params:
    sharp = {"weight": np.full(config.head_size, np.sqrt(_SHARP))}
    weights = {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": o}
    return {name: {"weight": weight} for name, weight in weights.items()} | {
        "q_norm": sharp,
        "k_norm": sharp,
    }


def _quiet(layer: Params) -> Params:
    """Return a layer that writes less."""
    attention, mlp = layer["self_attn"], layer["mlp"]
    return layer | {
        "self_attn": attention | {"o_proj": {"weight": attention["o_proj"]["weight"] * _QUIET}},
        "mlp": mlp | {"down_proj": {"weight": mlp["down_proj"]["weight"] * _QUIET}},
    }
