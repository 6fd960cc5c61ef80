"""What bounds a loaded model's residual stream: the same parts as from its files, by the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.checkpoint.stream_table import stream_of_config
from deadreckon.checkpoint.streams import gather_stream
from deadreckon.errors import InputError
from deadreckon.forward.placement import at_hand
from deadreckon.kernel.norm import Float64Array, check_parameter
from deadreckon.kernel.stream_bound import NoBound, StreamParts

_SLICE = 1 << 22  # entries of an embedding looked at together


def stream_of_module(model: nn.Module) -> StreamParts | NoBound:
    """What bounds the residual stream of a transformers model, read from its parameters and buffers as they are now.

    Args:
        model: a transformers model, with or without head. Nothing in it is changed.

    Returns:
        The parts, or why there is no such bound.

    Raises:
        InputError: the model lacks a tensor that its architecture has, or one is not finite.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return NoBound(f"{type(model).__name__} has no config that names its architecture")
    stream = stream_of_config({**config.to_dict(), "model_type": getattr(config, "model_type", None)})
    return stream if isinstance(stream, NoBound) else gather_stream(_ModuleTensors(model), stream)


class _ModuleTensors:
    """The parameters and buffers of a module by their full names, those that are shared under each of them."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.where = model, type(model).__name__
        self.names = {
            *(name for name, _ in model.named_parameters(remove_duplicate=False)),
            *(name for name, _ in model.named_buffers(remove_duplicate=False)),
        }

    def vector(self, name: str) -> Float64Array:
        """One vector in float64, all finite."""
        owner, leaf = self._owner(name)
        with at_hand(owner):
            values = self._floating(name, getattr(owner, leaf)).detach().to("cpu", torch.float64).numpy()
        return check_parameter(values, f"{self.where}: {name}")

    def column_maxima(self, name: str, *, normalised: bool) -> Float64Array | str:
        """Largest magnitude in each column of a matrix, or why it has none."""
        owner, leaf = self._owner(name)
        with at_hand(owner), torch.no_grad():
            matrix: Tensor = getattr(owner, leaf)
            if not matrix.is_floating_point() or matrix.element_size() == 1 or matrix.dim() != 2:
                return f"{name} is held as {matrix.dtype} of shape {tuple(matrix.shape)}"
            self._floating(name, matrix)
            found = torch.zeros(matrix.shape[1], dtype=torch.float64)
            for rows in torch.split(matrix, max(1, _SLICE // matrix.shape[1])):
                magnitudes = _of_unit_scale(rows.to("cpu", torch.float64)) if normalised else rows
                found = torch.maximum(found, magnitudes.abs().amax(0).to("cpu", torch.float64))
        return check_parameter(found.numpy(), f"{self.where}: {name}, largest magnitudes of its columns")

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def _floating(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.is_meta or not tensor.is_floating_point():
            what = "has no numbers (device meta)" if tensor.is_meta else f"is held as {tensor.dtype}"
            raise InputError(f"{self.where}: {name} {what}: load the model with its weights in a float type")
        return tensor


def _of_unit_scale(rows: Tensor) -> Tensor:
    """The rows by their root mean square; rows of zeros as they are."""
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest == 0, 1.0, largest)  # first, so that no square overflows
    scale = rows.square().mean(1, keepdim=True).sqrt()
    return rows / torch.where(scale == 0, 1.0, scale)
