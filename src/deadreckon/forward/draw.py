"""Random weights, drawn by a model's own initialiser in the place where they will be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.placement import as_device, where_of


def outline(model_type: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """A model with shapes and no numbers; it takes no memory.

    Args:
        model_type: a transformers model class.
        config: its config.
        dtype: of the parameters.

    Returns:
        The model on the meta device.

    Raises:
        UsageError: the config makes no model.
    """
    with _seeded(0, []), _default_dtype(dtype), torch.device("meta"):
        try:
            model: nn.Module = model_type(config)
        except Exception as error:  # whatever another project's constructor makes of a config
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(f"{model_type.__name__} cannot be built from this config: {reason}") from error
    return model.eval()


def draw(model_type: Any, config: Any, *, seed: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A model with random weights on one device.

    Args:
        model_type: a transformers model class.
        config: its config.
        seed: of the draw; the weights also depend on the type of the device.
        dtype: of the parameters.
        device: where it is built.

    Returns:
        The model, in eval mode.
    """
    with _seeded(seed, [device]), _default_dtype(dtype), device:
        model: nn.Module = model_type(config)
    return model.eval()


def draw_apart(model: nn.Module, device_map: Mapping[str, Any], *, seed: int, dtype: torch.dtype) -> nn.Module:
    """Give an outline random weights, each on the device that the map names for it.

    No device ever holds more than its own part. The weights follow the same distributions as those of `draw`; they
    are other draws, because the order of drawing differs and every GPU has a generator of its own.

    Args:
        model: made by `outline`, or the part of such a model that is wanted; it is filled in place.
        device_map: module path -> device, without ``disk``.
        seed: of the draw; the same seed and map give the same weights.
        dtype: of the parameters, the outline's.

    Returns:
        The same model, its inputs and states moved between devices as it runs.

    Raises:
        UsageError: the model has no initialiser that works apart from its construction.
    """
    from accelerate import dispatch_model

    initialise = getattr(model, "initialize_weights", None)
    if initialise is None:
        raise UsageError(f"{type(model).__name__} cannot draw its weights after it is built: choose one device for it")
    _allocate(model, device_map)
    devices = dict.fromkeys(device for where in device_map.values() if (device := as_device(where)) is not None)
    with _seeded(seed, list(devices)), _default_dtype(dtype):
        initialise()
    undrawn = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if _is_marked(tensor)]
    if undrawn:
        raise UsageError(
            f"{type(model).__name__}: its initialiser leaves {undrawn[0]} undrawn (one of {len(undrawn)}), so a "
            "device_map cannot spread it: choose one device for it"
        )
    skip = list(getattr(model, "_skip_keys_device_placement", None) or ())
    dispatched: nn.Module = dispatch_model(model, device_map=dict(device_map), skip_keys=skip)
    return dispatched.eval()


def _allocate(model: nn.Module, device_map: Mapping[str, Any]) -> None:
    """Replace what is on the meta device by marked memory in its place; tied tensors stay tied."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old tensor is kept: ids are unique among living objects only
    for path, module in model.named_modules():
        for slot in (module._parameters, module._buffers):
            for name, tensor in slot.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    device = as_device(where_of(f"{path}.{name}".lstrip("."), device_map))
                    new = _marked(tensor, device) if tensor.is_meta else tensor.detach().to(device)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = tensor, new
                slot[name] = made[id(tensor)][1]


def _marked(like: Tensor, device: torch.device | None) -> Tensor:
    """Memory filled with a value that no initialiser writes, to tell afterwards that all of it was written."""
    if like.dtype == torch.bool:
        return torch.full(like.shape, _NEITHER, dtype=torch.uint8, device=device).view(torch.bool)
    mark = torch.nan if like.is_floating_point() or like.is_complex() else torch.iinfo(like.dtype).min
    return torch.full(like.shape, mark, dtype=like.dtype, device=device)


def _is_marked(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return False
    tensor = tensor.detach()
    if tensor.dtype == torch.bool:
        return int(tensor.view(torch.uint8).max()) == _NEITHER
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.sum().isnan())  # a sum needs no second tensor of that size
    return tensor.dtype.is_signed and int(tensor.min()) == torch.iinfo(tensor.dtype).min


_NEITHER = 255  # as a byte, neither False nor True


@contextmanager
def _seeded(seed: int, devices: Sequence[torch.device]) -> Iterator[None]:
    """Seeded generators of the CPU and of those GPUs, which are as they were afterwards."""
    gpus = [device for device in devices if device.type == "cuda"]
    others = any(device.type not in {"cpu", "cuda"} for device in devices)
    with torch.random.fork_rng(devices=gpus):
        (torch.manual_seed if others else torch.default_generator.manual_seed)(seed)
        for rank, gpu in enumerate(gpus):
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(_stream(seed, rank))
        yield


def _stream(seed: int, rank: int) -> int:
    # With one seed for all, blocks on different GPUs would get the very same weights.
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> 1) if rank else seed


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
