"""What a side of a comparison runs on and the memory that it holds, told from within its process. See sides.py for the other end."""

from __future__ import annotations

import resource
import sys
from typing import Any

from cotjax.errors import UsageError


def jax_facts() -> dict[str, Any]:
    """The devices that jax sees, and its version."""
    import jax

    devices = jax.devices()
    kind = {
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
    }
    return {**kind, "versions": f"jax {jax.__version__}"}


def jax_peak_bytes() -> int:
    """Most memory held so far: of a device where there is an accelerator, else of this process."""
    import jax

    statistics = [device.memory_stats() for device in jax.local_devices()]
    return (
        max(found["peak_bytes_in_use"] for found in statistics)
        if all(statistics)
        else peak_resident_bytes()
    )


def torch_device() -> Any:
    """The GPU where torch sees one, else the CPU. Raises UsageError without torch."""
    try:
        import torch
    except ImportError:
        raise UsageError(
            "--peer transformers needs torch, which is not installed: pip install torch"
        ) from None
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_facts(device: Any) -> dict[str, Any]:
    """The same as `jax_facts` of torch's one device."""
    import torch
    import transformers

    gpu = device.type == "cuda"
    found = {
        "platform": "gpu" if gpu else "cpu",
        "device_kind": torch.cuda.get_device_name() if gpu else "cpu",
        "devices": 1,
    }
    return {
        **found,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def torch_peak_bytes(device: Any) -> int:
    """Most memory held so far: of the device where it is an accelerator, else of this process."""
    import torch

    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
