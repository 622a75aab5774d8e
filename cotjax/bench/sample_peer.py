"""The other side of `cotjax bench sample`: transformers' generate on torch."""

from __future__ import annotations

from typing import Any

from cotjax.bench.facts import torch_device, torch_facts, torch_peak_bytes
from cotjax.bench.sample_worker import Job


class TransformersSide:
    """AutoModelForCausalLM.generate with scaled_dot_product_attention and the cache that the job names, all else as it comes."""

    def __init__(self, job: Job):
        self._device = torch_device()
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        model = AutoModelForCausalLM.from_pretrained(
            job.weights,
            attn_implementation="sdpa",
            dtype=getattr(torch, job.model["compute_dtype"]),
        )
        self._model = model.to(self._device).eval()
        self._ids = torch.from_numpy(job.ids()).long().to(self._device)
        self._cache = {"cache_implementation": "static"} if job.side == "static" else {}

    def generate(self, new: int) -> list[list[int]]:
        """`new` ids after each prompt."""
        with self._torch.inference_mode():
            whole = self._model.generate(
                self._ids,
                attention_mask=self._torch.ones_like(self._ids),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **self._cache,
            )
        return whole[:, self._ids.shape[1] :].tolist()

    def describe(self) -> dict[str, Any]:
        """What it runs on."""
        return torch_facts(self._device)

    def peak_bytes(self) -> int:
        """Most memory held so far."""
        return torch_peak_bytes(self._device)
