"""How much memory a device or the host has and uses, and how running out of it shows."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def memory_used(device: torch.device) -> int:
    """Bytes that this process uses on a device or the host; on a device the peak starts anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)


def memory_peak(device: torch.device) -> int:
    """Most bytes used on a device since `memory_used`; on the host, what is used now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_used(device)
