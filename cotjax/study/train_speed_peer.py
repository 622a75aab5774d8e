"""The other side of `cotjax bench train`: transformers' model on torch, with torch's attention and AdamW."""

from __future__ import annotations

from typing import Any

from cotjax.errors import UsageError
from cotjax.study.train_speed_worker import B1, B2, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Job, peak_resident_bytes


class TransformersSide:
    """AutoModelForCausalLM with scaled_dot_product_attention, under torch.compile where the job says so, and fused AdamW."""

    def __init__(self, job: Job):
        try:
            import torch
        except ImportError:
            raise UsageError("--peer transformers needs torch, which is not installed: pip install torch") from None
        from transformers import AutoModelForCausalLM

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForCausalLM.from_pretrained(
            job.weights, attn_implementation="sdpa", dtype=getattr(torch, job.model["param_dtype"])
        )
        model = model.to(self._device).train()
        model.config.use_cache = False
        # The step of cotjax spares vectors (norm scales, biases) too.
        decayed = [param for param in model.parameters() if param.ndim > 1]
        spared = [param for param in model.parameters() if param.ndim == 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": spared, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(B1, B2), eps=EPSILON, fused=True)
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
        import torch
        import transformers

        kind = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
        found = {"platform": "gpu" if self._device.type == "cuda" else "cpu", "device_kind": kind, "devices": 1}
        return {**found, "versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}

    def peak_bytes(self) -> int:
        """Most memory held so far: of the device where there is an accelerator, else of this process."""
        import torch

        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else peak_resident_bytes()
