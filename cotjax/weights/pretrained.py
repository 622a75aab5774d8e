"""The Flax decoder, read from a model's folder and written to one."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Self

import jax
from jax.sharding import Mesh

from cotjax.model import decoder
from cotjax.model.sharding import make_mesh
from cotjax.weights.convert import load_params, read_config
from cotjax.weights.huggingface import save_hf


class Decoder(decoder.Decoder):
    """model.decoder.Decoder with `from_pretrained` and `save_pretrained`."""

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], mesh: Mesh | None = None, **overrides: Any
    ) -> Self:
        """Return the model of a Hugging Face, Orbax or PEFT folder (merged into its base).

        `mesh`: each parameter goes straight to its devices; None takes the first device.
        `overrides`: fields of ModelConfig such as `compute_dtype`.

        Raises UsageError or DataError for a folder that holds no model this decoder computes.
        """
        folder = Path(folder)
        mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1]) if mesh is None else mesh
        params = load_params(folder, mesh, **overrides)
        return cls.from_params(read_config(folder, **overrides), params)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write config.json and safetensors, which transformers reads (huggingface.save_hf)."""
        save_hf(folder, self.config, self.params)
