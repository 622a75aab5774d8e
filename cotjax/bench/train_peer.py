"""The other side of `cotjax bench train`: transformers' model on torch, with torch's attention and AdamW."""

from __future__ import annotations

from typing import Any

from cotjax.bench.facts import torch_device, torch_facts, torch_peak_bytes
from cotjax.bench.train_worker import B1, B2, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Job


class TransformersSide:
    """AutoModelForCausalLM with scaled_dot_product_attention, under torch.compile where the job says so, and fused AdamW."""

    def __init__(self, job: Job):
        self._device = torch_device()
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            job.weights, attn_implementation="sdpa", dtype=getattr(torch, job.model["param_dtype"])
        )
        model = model.to(self._device).train()
        model.config.use_cache = False
        # The step of cotjax spares vectors (norm scales, biases) too.
        decayed = [param for param in model.parameters() if param.ndim > 1]
        spared = [param for param in model.parameters() if param.ndim == 1]
        groups = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": spared, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=LEARNING_RATE, betas=(B1, B2), eps=EPSILON, fused=True
        )
        self._model = torch.compile(model) if job.side == "compile" else model
        ids = torch.from_numpy(job.ids()).long().to(self._device)
        self._parts = [ids[start :: job.accumulate] for start in range(job.accumulate)]

    def step(self) -> float:
        """One update; returns, when the device has finished it, its loss in nats."""
        total = 0.0
        for ids in self._parts:
            loss = self._model(input_ids=ids, labels=ids).loss / len(self._parts)
            loss.backward()
            total += loss.detach()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        return float(total)

    def describe(self) -> dict[str, Any]:
        """What it runs on."""
        return torch_facts(self._device)

    def peak_bytes(self) -> int:
        """Most memory held so far."""
        return torch_peak_bytes(self._device)
