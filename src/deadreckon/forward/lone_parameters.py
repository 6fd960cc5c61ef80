"""How a layer's kernel depends on its parameters: redraw them, all and one by one, and see whether it moves.

A kernel that is there for every draw, zeros included, is the layer's own; one that is there for the given values only
(gains that are zero) is theirs. Where diag(p) times the kernel is one fixed space for two draws of a vector p, the
kernel is p^-1 times that space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deadreckon.errors import InputError
from deadreckon.forward.lone_kernel import NullSpace, draw_tokens, null_space, run_all, same_space
from deadreckon.forward.lone_layer import LoneLayer
from deadreckon.kernel.norm import Float64Array

# Sine of the angle up to which two kernels are one: redrawn gains turn them by tenths, rounding in float32 by 1e-6.
SAME = 1e-3
_ONE_BY_ONE = 8  # parameters that are redrawn by themselves; layers with more are no norms


@dataclass(frozen=True, eq=False)
class Dependence:
    """What became of the kernel when the parameters were redrawn.

    Attributes:
        dims: draw -> dimension; None where that was undetermined.
        inherent_dim: the smallest of them and of the given parameters' dimension; None where one is undetermined.
        depends_on: parameters that move the kernel when they alone are redrawn.
        inverse_of: the parameter p with kernel p^-1 times a fixed space.
        offset: what is added to the parameter first (0 or 1).
        groups: the fixed space is that of sums over so many equal contiguous groups of coordinates; None: another one.
        whole: whether the kernel is everything: the layer's output does not depend on its input.
        failed: draws that the layer could not be run with.
    """

    dims: dict[str, int | None]
    inherent_dim: int | None
    depends_on: list[str]
    inverse_of: str | None
    offset: int
    groups: int | None
    whole: bool
    failed: list[str]


def kernel_dependence(layer: LoneLayer, given: NullSpace, seed: int) -> Dependence:
    """Redraw a layer's parameters and compare kernels.

    Args:
        layer: its parameters are as given again afterwards.
        given: the null space with these.
        seed: of draws and tokens.

    Returns:
        What became of the kernel.
    """
    size = layer.hidden_size
    tokens = draw_tokens(layer.tokens(2 * size + 64), size, seed)
    generator = torch.Generator().manual_seed(seed)
    first, second = ({name: _redrawn(p, generator) for name, p in layer.parameters.items()} for _ in range(2))
    draws = {"redrawn": first, "redrawn again": second} if first else {}
    for name, value in first.items():
        if value.numel() == size:
            draws[f"zeros in {name}"] = {**first, name: _with_zeros(value)}
    found: dict[str, NullSpace] = {}
    failed: list[str] = []

    def kernel(values: Mapping[str, Tensor], label: str) -> NullSpace | None:
        try:
            with layer.holding(values):
                return null_space(list(run_all(layer, tokens, seed + 1).values()))
        except InputError as error:  # values that this layer was not made for
            failed.append(f"{label}: {error}")
            return None

    for label, values in draws.items():
        if (space := kernel(values, label)) is not None:
            found[label] = space
    base = found.get("redrawn", given)
    moving = []
    if base.dim:
        for name in list(first)[:_ONE_BY_ONE]:
            space = kernel({**first, name: second[name]}, f"{name} redrawn")
            if space is not None and not same_space(base.basis, space.basis, SAME):
                moving.append(name)
    dims = [given.dim, *(space.dim for space in found.values())]
    known = [dim for dim in dims if dim is not None]
    inverse_of, offset, fixed = _inverse(base, found.get("redrawn again", base), first, second, moving)
    return Dependence(
        dims={label: space.dim for label, space in found.items()},
        inherent_dim=min(known) if len(known) == len(dims) or 0 in known else None,
        depends_on=moving,
        inverse_of=inverse_of,
        offset=offset,
        groups=_groups(fixed) if fixed is not None and base.dim else None,
        whole=base.dim == size,
        failed=failed,
    )


def _redrawn(value: Tensor, generator: torch.Generator) -> Tensor:
    """Another value of a parameter: vectors between 0.5 and 1.5, matrices with columns of norm about 1."""
    if value.dim() > 1 and min(value.shape) > 1:
        matrix = torch.randn(value.shape, generator=generator, dtype=value.dtype, device="cpu")
        return matrix.div(math.sqrt(value.shape[-1]))
    return 0.5 + torch.rand(value.shape, generator=generator, dtype=value.dtype, device="cpu")


def _with_zeros(value: Tensor) -> Tensor:
    zeroed = value.clone()
    zeroed.view(-1)[::3] = 0.0
    return zeroed


def _inverse(
    one: NullSpace, other: NullSpace, first: Mapping[str, Tensor], second: Mapping[str, Tensor], moving: list[str]
) -> tuple[str | None, int, Float64Array | None]:
    """The parameter whose inverse the kernel is, its offset, and the fixed space that it multiplies."""
    if not moving:
        return None, 0, one.basis
    for name in moving:
        for offset in (0, 1):
            if first[name].numel() == one.basis.shape[0]:
                a = _times(one.basis, first[name] + offset)
                b = _times(other.basis, second[name] + offset)
                if same_space(a, b, SAME):
                    return name, offset, a
    return None, 0, None


def _times(basis: Float64Array, diagonal: Tensor) -> Float64Array:
    q: Float64Array = np.linalg.qr(basis * diagonal.reshape(-1, 1).numpy())[0]
    return q


def _groups(fixed: Float64Array) -> int | None:
    size, count = fixed.shape
    if not count or size % count:
        return None
    sums = np.kron(np.eye(count), np.ones((size // count, 1))) / np.sqrt(size // count)
    return count if same_space(sums, fixed, SAME) else None
