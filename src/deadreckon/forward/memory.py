"""How much memory a device or the host has and uses, and how running out of it shows."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where that is not known.

    Args:
        device: of this machine.

    Returns:
        For a GPU also what torch holds there without using it; for the CPU what can be had without swapping.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:  # it comes with accelerate, which only device maps need
        return None
    return int(psutil.virtual_memory().available)


def memory_used(device: torch.device) -> int:
    """Bytes that this process uses on a device or the host; on a device the peak starts anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return _resident()


def memory_peak(device: torch.device) -> int:
    """Most bytes used on a device since `memory_used`; on the host, what is used now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident()


def _resident() -> int:
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)
