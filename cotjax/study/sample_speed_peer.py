"""The other side of `cotjax bench sample`: transformers' generate on torch."""

from __future__ import annotations

from typing import Any

from cotjax.errors import UsageError
from cotjax.study.sample_speed_worker import Job, peak_resident_bytes


class TransformersSide:
    """AutoModelForCausalLM.generate with scaled_dot_product_attention and the cache that the job names, all else as it comes."""

    def __init__(self, job: Job):
        try:
            import torch
        except ImportError:
            raise UsageError("--peer transformers needs torch, which is not installed: pip install torch") from None
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForCausalLM.from_pretrained(
            job.weights, attn_implementation="sdpa", dtype=getattr(torch, job.model["compute_dtype"])
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
        import transformers

        gpu = self._device.type == "cuda"
        found = {"platform": "gpu" if gpu else "cpu", "device_kind": self._torch.cuda.get_device_name() if gpu else "cpu", "devices": 1}
        return {**found, "versions": f"torch {self._torch.__version__}, transformers {transformers.__version__}"}

    def peak_bytes(self) -> int:
        """Most memory held so far: of the device where there is an accelerator, else of this process."""
        return self._torch.cuda.max_memory_allocated() if self._device.type == "cuda" else peak_resident_bytes()
