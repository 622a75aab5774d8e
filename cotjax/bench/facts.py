"""What a side runs on and how much memory it has used, measured in its own process."""

from __future__ import annotations

import resource
import sys
from typing import Any

from cotjax.errors import UsageError


def jax_facts() -> dict[str, Any]:
    """Return jax's "platform", "device_kind", "devices" (their number) and "versions"."""
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "versions": f"jax {jax.__version__}",
    }


def jax_peak_bytes() -> int:
    """Return the most memory held so far: of a device on an accelerator, else of this process."""
    import jax

    statistics = [device.memory_stats() for device in jax.local_devices()]
    if not all(statistics):
        return peak_resident_bytes()
    return max(each["peak_bytes_in_use"] for each in statistics)


def torch_device() -> Any:
    """Return the GPU where torch sees one, else the CPU. Raises UsageError without torch."""
    try:
        import torch
    except ImportError:
        raise UsageError(
            "--peer transformers needs torch, which is not installed: pip install torch"
        ) from None
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_facts(device: Any) -> dict[str, Any]:
    """Return the facts of `jax_facts` for torch's one device."""
    import torch
    import transformers

    gpu = device.type == "cuda"
    return {
        "platform": "gpu" if gpu else "cpu",
        "device_kind": torch.cuda.get_device_name() if gpu else "cpu",
        "devices": 1,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def torch_peak_bytes(device: Any) -> int:
    """Return the most memory held so far: of the device on a GPU, else of this process."""
    import torch

    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
