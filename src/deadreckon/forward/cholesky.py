"""Cholesky factors of many symmetric positive definite matrices at once, and what they solve and prove.

On an accelerator the library's own factorisation of one large matrix keeps few of its units busy, and its batched form
is made for small ones. Many large matrices advance together here, panel by panel, in batched products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MANY = 4  # from so many matrices on, batched products beat the library's one matrix at a time on an accelerator
_PANEL = 128
_SOLVING_PANEL = 512  # of the inverted diagonal blocks: longer ones take fewer launches a solve
_BASE = 64  # size up to which the library's batched triangular solves are used


class Factor(NamedTuple):
    """Lower triangular factors of a batch, shape (b, d, d), and the inverses of their diagonal blocks.

    Attributes:
        lower: the factors.
        inverses: of consecutive diagonal blocks of one size (the last may be smaller), each (b, p, p).
    """

    lower: Tensor
    inverses: list[Tensor]

    @classmethod
    def of(cls, lower: Tensor) -> Factor:
        """Of triangular matrices; their diagonal blocks are large where few matrices share the launches."""
        size = lower.shape[-1]
        panel = _SOLVING_PANEL if len(lower) >= MANY else size
        equal, batch = size // panel, len(lower)
        blocks = [lower[:, k * panel : (k + 1) * panel, k * panel : (k + 1) * panel] for k in range(equal)]
        inverses = list(torch.split(_triangular_inverse(torch.cat(blocks)), batch)) if blocks else []
        if size % panel:
            inverses.append(_triangular_inverse(lower[:, equal * panel :, equal * panel :]))
        return cls(lower, inverses)

    def solve(self, block: Tensor) -> Tensor:
        """The inverse of the factored matrices applied to a block, shape (b, d, p)."""
        block = block.clone()
        width = self.inverses[0].shape[-1]
        spans = [slice(start, start + width) for start in range(0, block.shape[-2], width)]
        for here, inverse in zip(spans, self.inverses, strict=True):
            block[:, here] = inverse @ (block[:, here] - self.lower[:, here, : here.start] @ block[:, : here.start])
        for here, inverse in reversed(list(zip(spans, self.inverses, strict=True))):
            rest = self.lower[:, here.stop :, here].mT @ block[:, here.stop :]
            block[:, here] = inverse.mT @ (block[:, here] - rest)
        return block


def cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of a batch.

    Args:
        matrices: symmetric, shape (b, d, d).

    Returns:
        The factors, and whether each failed because its matrix is not positive definite to rounding, shape (b,), bool;
        a failed factor holds nothing of use.
    """
    if matrices.is_cuda and len(matrices) >= MANY:
        return _by_panels(matrices)
    # One by one: handed a batch, the library takes a routine for small matrices.
    found = [torch.linalg.cholesky_ex(matrix) for matrix in matrices]
    return torch.stack([each.L for each in found]), torch.stack([each.info for each in found]) != 0


def log_determinant(lower: Tensor) -> Tensor:
    """Logarithm of the determinant of the matrices whose factors these are, shape (b,)."""
    return 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def positive_definite(matrices: Tensor, shift: Tensor) -> Tensor:
    """Whether each matrix plus a multiple of the identity is positive definite to rounding.

    By Sylvester's law of inertia: without a shift below -lambda_min there is no factor.

    Args:
        matrices: symmetric, shape (b, d, d).
        shift: shape (b,).

    Returns:
        Shape (b,), bool.
    """
    return ~cholesky(moved(matrices, shift))[1]


def moved(matrices: Tensor, shift: Tensor) -> Tensor:
    """The matrices plus a multiple of the identity each, a copy."""
    copy = matrices.clone()
    copy.diagonal(dim1=-2, dim2=-1).add_(shift[:, None])
    return copy


def _by_panels(matrices: Tensor) -> tuple[Tensor, Tensor]:
    size = matrices.shape[-1]
    lower = torch.zeros_like(matrices)
    failed = torch.zeros(len(matrices), dtype=torch.bool, device=matrices.device)
    for start in range(0, size, _PANEL):
        here = slice(start, min(start + _PANEL, size))
        left = lower[:, start:, :start]
        width = here.stop - start
        panel = torch.baddbmm(matrices[:, start:, here], left, left[:, :width].mT, alpha=-1)
        diagonal, info = torch.linalg.cholesky_ex(panel[:, :width])
        lower[:, here, here] = diagonal
        lower[:, here.stop :, here] = panel[:, width:] @ _triangular_inverse(diagonal).mT
        failed |= info != 0
    return lower, failed


def _triangular_inverse(lower: Tensor) -> Tensor:
    """Inverses of lower triangular matrices, shape (b, d, d), by halves so that most of the work is matrix products."""
    size, batch = lower.shape[-1], len(lower)
    if size <= _BASE or size % 2:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device).expand_as(lower)
        base: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
        return base
    half = size // 2
    both = _triangular_inverse(torch.cat([lower[:, :half, :half], lower[:, half:, half:]]))
    first, second = both[:batch], both[batch:]
    inverse = torch.zeros_like(lower)
    inverse[:, :half, :half], inverse[:, half:, half:] = first, second
    inverse[:, half:, :half] = -second @ (lower[:, half:, :half] @ first)
    return inverse
