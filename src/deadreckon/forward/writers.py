"""What a block writes to the residual stream: the modules inside it whose outputs add up to what it hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.forward.anatomy import run
from deadreckon.forward.blocks import BlockStack, stream_tensor
from deadreckon.forward.precision import unit_roundoff

_DEPTHS = (1, 2, 3)  # how deep inside a block its writers may sit
_ROUNDINGS = 8  # additions that a block may round
_ALIKE = 2e-2  # relative difference up to which coefficients are one factor of the whole block
_LEFT_OUT = 1e-3  # contribution, relative to the output, below which a module writes nothing


@dataclass(frozen=True)
class Writer:
    """A module that writes: path, the module, and the factor with which its output enters the block's."""

    path: str
    module: nn.Module
    coefficient: float


@dataclass(frozen=True)
class Equation:
    """output = coefficient * input + sum of coefficient * writer's output.

    Attributes:
        coefficient: of the block's input.
        writers: in the order of their paths; empty where none were found.
        residual: share of the output's norm that is left over.
    """

    coefficient: float
    writers: tuple[Writer, ...]
    residual: float

    @property
    def scalar(self) -> float | None:
        """The factor of the whole output, where input and all writes share one that is not 1; else None."""
        same = all(abs(each.coefficient / self.coefficient - 1) <= _ALIKE for each in self.writers if self.coefficient)
        return self.coefficient if same and self.solved and abs(self.coefficient - 1) > _ALIKE else None

    @property
    def solved(self) -> bool:
        """Whether it accounts for the output."""
        return self.residual <= _ALIKE


def block_equation(model: nn.Module, batch: Mapping[str, Any], stack: BlockStack, index: int) -> Equation:
    """How a block's output is made of its input and of what modules inside it put out, by least squares over one row.

    Args:
        model: in evaluation mode.
        batch: keyword arguments of its forward, a row on its device.
        stack: the stream.
        index: of the block.

    Returns:
        The equation; `solved` says whether it holds.
    """
    given, made, outputs = _inside(model, batch, stack, index)
    best = Equation(1.0, (), 1.0)
    if given is None or made is None or given.shape != made.shape:
        return best
    path, block = stack.blocks[index]
    tolerance = _ROUNDINGS * unit_roundoff(made.dtype)
    target, start = made.flatten().double(), given.flatten().double()
    for depth in _DEPTHS:
        columns: dict[str, Tensor] = {}
        for name, output in outputs.items():
            column = output.flatten().to(target.device, torch.float64)
            known = [start, target, *columns.values()]
            if (
                name.count(".") < depth
                and len(column) == len(target)
                and not any(torch.equal(column, k) for k in known)
            ):
                columns[name] = column
        found = _fit(target, start, columns)
        writers = tuple(Writer(f"{path}.{n}", block.get_submodule(n), c) for n, c in found[1].items())
        if found[2] < best.residual:
            best = Equation(found[0], writers, found[2])
        if best.residual <= tolerance:
            break
    return best


def _fit(target: Tensor, start: Tensor, columns: Mapping[str, Tensor]) -> tuple[float, dict[str, float], float]:
    """Coefficient of the start, those of the columns that matter, and the relative residual."""
    names = list(columns)
    while True:
        matrix = torch.stack([start, *(columns[name] for name in names)], 1)
        scale = torch.linalg.vector_norm(matrix, dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        gram = (matrix / scale).T @ (matrix / scale)
        solution = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ ((matrix / scale).T @ target)
        size = torch.linalg.vector_norm(target)
        matters = (solution[1:].abs() > _LEFT_OUT * size).tolist()
        if all(matters):
            break
        names = [name for name, kept in zip(names, matters, strict=True) if kept]
    coefficients = (solution / scale).tolist()
    residual = float(torch.linalg.vector_norm(matrix @ (solution / scale) - target) / size) if size > 0 else 0.0
    return coefficients[0], dict(zip(names, coefficients[1:], strict=True)), residual


def _inside(
    model: nn.Module, batch: Mapping[str, Any], stack: BlockStack, index: int
) -> tuple[Tensor | None, Tensor | None, dict[str, Tensor]]:
    """Input and output of a block at its place, and the outputs of the modules inside it, by their path in it."""
    block = stack.blocks[index][1]
    # A block that is shared fires several times; which of these firings it is.
    firing = sum(module is block for _, module in stack.blocks[:index])
    ended = 0
    given: Tensor | None = None
    made: Tensor | None = None
    outputs: dict[str, Tensor] = {}

    def enters(_: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal given
        if ended == firing and (stream := stream_tensor([*args, kwargs], stack.hidden_size)) is not None:
            given = stream.clone()

    def leaves(_: nn.Module, _args: Any, output: Any) -> None:
        nonlocal made, ended
        if ended == firing and (stream := stream_tensor(output, stack.hidden_size)) is not None:
            made = stream.clone()
        ended += 1

    def keep(path: str) -> Any:
        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            if ended == firing and (stream := stream_tensor(output, stack.hidden_size)) is not None:
                outputs[path] = stream.clone()

        return hook

    handles = [block.register_forward_pre_hook(enters, with_kwargs=True), block.register_forward_hook(leaves)]
    handles += [
        module.register_forward_hook(keep(path))
        for path, module in block.named_modules()
        if path and path.count(".") < max(_DEPTHS)
    ]
    try:
        with torch.no_grad():
            run(model, dict(batch))
    finally:
        for handle in handles:
            handle.remove()
    return given, made, outputs
