"""GGUF files -> Hugging Face folders. llama.cpp's q and k rows are put back into their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path as FilePath

import numpy as np

from cotjax.errors import DataError
from cotjax.model.config import ModelConfig
from cotjax.model.params import Path, declared, nest
from cotjax.weights.gguf_config import ARCHITECTURES, ROPE_FACTORS, config_of
from cotjax.weights.gguf_file import GGUF, GGUFTensor, read_gguf
from cotjax.weights.gguf_tokenizer import special_ids, write_tokenizer
from cotjax.weights.huggingface import MAX_SHARD_BYTES, save_hf
from cotjax.weights.layout import as_declared, stored_shape
from cotjax.weights.stored import some

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Tensors that are not parameters: factors of positions, which the config has.
_NOT_PARAMETERS = {ROPE_FACTORS}


@dataclass(frozen=True)
class _Lazy:
    """A parameter that is read when it is written; of an array, what `save_hf` asks for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return prod(self.shape)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.read()


def convert_gguf(
    file: FilePath, folder: FilePath, dtype: str = "float32", max_shard_bytes: int = MAX_SHARD_BYTES
) -> tuple[ModelConfig, GGUF]:
    """Write the model of a GGUF file into a folder, as transformers would: weights and tokenizer.

    One tensor is dequantised at a time, and one part of `max_shard_bytes` is held. `dtype`: of the
    written parameters; float32 keeps every value. The other parts of a split file are found next
    to it.

    Raises DataError when the file is not whole, or holds a model, a tensor or a tokenizer that
    this package does not compute.
    """
    gguf = read_gguf(file)
    config = config_of(gguf, dtype)
    tensors = _tensors_by_name(gguf, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(gguf, folder)
    params = {}
    for path, weight in declared(config).items():
        name = ".".join(path)
        params[path] = _Lazy(
            weight.shape, np.dtype(weight.dtype), _reader(gguf, config, path, tensors[name])
        )
    save_hf(folder, config, nest(params), max_shard_bytes, special_ids(gguf))
    return config, gguf


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a checkpoint's tensor.

    Example: model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight.
    """
    module, _, kind = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{kind}"
    _, _, layer, inside = module.split(".", 3)
    return f"blk.{layer}.{_IN_A_LAYER[inside]}.{kind}"


def _tensors_by_name(gguf: GGUF, config: ModelConfig) -> dict[str, GGUFTensor]:
    """Return the file's tensors by our names. Raises DataError unless they are the model's."""
    names = {".".join(path): weight for path, weight in declared(config).items()}
    theirs = {name: gguf_name(name) for name in names}
    missing = sorted(set(theirs.values()) - gguf.tensors.keys())
    unknown = sorted(gguf.tensors.keys() - set(theirs.values()) - _NOT_PARAMETERS)
    shapes = [
        f"{theirs[name]} has shape {gguf.tensors[theirs[name]].shape}; its sizes ask for "
        f"{stored_shape(name, weight)}"
        for name, weight in names.items()
        if theirs[name] in gguf.tensors
        and gguf.tensors[theirs[name]].shape != stored_shape(name, weight)
    ]
    wrong = [f"missing tensors: {some(missing)}"] if missing else []
    wrong += [f"unknown tensors: {some(unknown)}"] if unknown else []
    wrong += [f"wrong shapes: {some(shapes)}"] if shapes else []
    if wrong:
        raise DataError(f"{gguf.file}: {'; '.join(wrong)}; it is not a whole {gguf.architecture}")
    count = len(gguf.metadata.get("tokenizer.ggml.tokens") or ())
    if count > config.vocab_size:
        raise DataError(
            f"{gguf.file}: {count} tokens, but the embedding has {config.vocab_size} rows"
        )
    return {name: gguf.tensors[theirs[name]] for name in names}


def _reader(
    gguf: GGUF, config: ModelConfig, path: Path, tensor: GGUFTensor
) -> Callable[[], np.ndarray]:
    """Return a function that returns a parameter's values in our layout."""
    name, weight = ".".join(path), declared(config)[path]
    turned = ARCHITECTURES[gguf.architecture].permuted and path[-2] in ("q_proj", "k_proj")

    def read() -> np.ndarray:
        values = tensor.values()
        if turned:
            values = unpermuted(values, config.head_size)
        # The cast before the transpose: afterwards it would make a copy in another order.
        return as_declared(name, values.astype(weight.dtype, copy=False), list(weight.shape))

    return read


def unpermuted(values: np.ndarray, head_size: int) -> np.ndarray:
    """Return a projection's rows in Hugging Face's order.

    llama.cpp stores the rows of each head as pairs that turn together: 0, H/2, 1, H/2 + 1, …
    Example of one head of 6: rows [0, 3, 1, 4, 2, 5] become [0, 1, 2, 3, 4, 5].
    """
    pairs = values.reshape(-1, head_size // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
