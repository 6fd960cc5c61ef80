"""Whether a model's weights fit where they are to go, told before any of them is allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.memory import free_memory
from deadreckon.forward.placement import as_device, where_of

_NARROWER = (torch.float32, torch.bfloat16)


def bytes_of(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of a model's parameters and buffers, tied ones once; models on the meta device have them too.

    Args:
        model: any module.
        dtype: count floating tensors as if they had this dtype.

    Returns:
        The sum.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * (dtype or t.dtype).itemsize if t.is_floating_point() else t.nbytes for t in tensors)


def check_room(model: nn.Module, device_map: Mapping[str, Any], name: str) -> None:
    """Refuse to build a model for which there is no room.

    Args:
        model: on the meta device, or one of the same size that exists already.
        device_map: module path -> device; the empty path is the whole model.
        name: how to name the model in the message.

    Raises:
        UsageError: a device would have to hold more than is free there, or some of the weights would go to disk.
    """
    needed: Counter[torch.device | None] = Counter()
    for path, tensor in {**dict(model.named_buffers()), **dict(model.named_parameters())}.items():
        needed[as_device(where_of(path, device_map))] += tensor.nbytes
    total = bytes_of(model)
    if spilled := needed.pop(None, 0):
        memory = free_memory(torch.device("cpu")) or 0
        advice = f"allow more of the {_readable(memory)} that are free" if total <= memory else _advice(model, total)
        raise UsageError(
            f"{name}: its weights need {_readable(total)}, of which the device_map or max_memory leaves "
            f"{_readable(spilled)} to the disk, where random weights are not drawn: {advice}"
        )
    for device, size in needed.items():
        free = free_memory(device) if device is not None else None
        if free is not None and size > free:
            raise UsageError(
                f"{name}: its weights need {_readable(size)} on {device}, where {_readable(free)} are free: "
                f"{_advice(model, total)}"
            )


def _advice(model: nn.Module, total: int) -> str:
    """What would fit here, or what it would take."""
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    each = [free_memory(device) or 0 for device in gpus]
    memory = free_memory(torch.device("cpu")) or 0
    widest = max((t.dtype.itemsize for t in model.parameters() if t.is_floating_point()), default=0)
    ways = []
    for dtype in _NARROWER:
        size = bytes_of(model, dtype)
        if dtype.itemsize < widest and size <= max([memory, *each]):
            ways.append(f"dtype={str(dtype).removeprefix('torch.')} (--dtype) needs {_readable(size)}")
    if len(gpus) > 1 and total <= sum(each):
        ways.append(f"device_map='auto' (--device-map) spreads it over the {len(gpus)} GPUs here")
    elif not ways and total <= memory + sum(each) and gpus:
        ways.append("device_map='auto' (--device-map) keeps in main memory what the GPUs do not hold, and is slower")
    if ways:
        return "; ".join(ways)
    largest = max([memory, *each])
    return f"choose a smaller model, or a machine with {total / max(largest, 1):.1f} times the memory, or more GPUs"


def _readable(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
        size /= 1000
    raise AssertionError  # unreachable: the loop ends at its last unit
