"""What every module of a model was given and made in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.forward.likeness import tensors
from deadreckon.forward.probe import NormProbe


@dataclass(frozen=True)
class Call:
    """One call of one module: copies of its first tensor argument and first output."""

    path: str
    given: Tensor | None
    made: Tensor | None


def redraw(model: nn.Module, probes: Mapping[str, NormProbe], seed: int = 1) -> None:
    """Give every norm of `model` unique random effective gains in [0.5, 1.5] and shifts in [-0.1, 0.1], in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, probe in probes.items():
            module = model.get_submodule(path)
            for name, low, width in (
                (probe.gain_name, 0.5 - (probe.gain_offset or 0), 1.0),
                (probe.shift_name, -0.1, 0.2),
            ):
                if name is not None:
                    tensor = (
                        module.get_parameter(name) if name in dict(module.named_parameters()) else getattr(module, name)
                    )
                    tensor.copy_(low + width * torch.rand(tensor.shape, generator=generator))


def watch(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Any, list[Call]]:
    """Run `model` and copy what every module was given and made.

    Args:
        model: any module, small enough that all its activations fit in memory.
        inputs: its keyword inputs.

    Returns:
        The model's output, and the calls in the order in which they ended.
    """
    calls: list[Call] = []
    handles = []
    for path, module in model.named_modules():

        def hook(_: nn.Module, args: Any, kwargs: Any, made: Any, path: str = path) -> None:
            given = next(tensors([*args, kwargs.get("hidden_states"), *kwargs.values()]), None)
            calls.append(Call(path, _copy(given), _copy(next(tensors([made]), None))))

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, calls


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
