"""Block Krylov spaces of many symmetric matrices at once, and the Ritz pairs in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deadreckon.forward.cholesky import MANY
from deadreckon.forward.precision import UNIT_ROUNDOFF

_TOP_WIDTH = 4
_TOP_BLOCKS = 32
_TOP_LOOK = 8
_TOP_TOLERANCE = 5e-2
_ON_DEVICE = 32  # size up to which an accelerator's library solves a batch of eigenproblems in one launch
_TINY = torch.finfo(torch.float64).tiny


class Ritz(NamedTuple):
    """Ritz values (b, k), vectors (b, d, k) and residual norms (b, k)."""

    values: Tensor
    vectors: Tensor
    residual: Tensor


class Krylov:
    """An orthonormal basis that grows block by block, and the Ritz pairs of the matrices in its span.

    Attributes:
        matrices: symmetric, shape (b, d, d).
        width: vectors in a block.
        last: the newest block, shape (b, d, width).
    """

    def __init__(self, matrices: Tensor, block: Tensor, blocks: int) -> None:
        """A basis of one block.

        Args:
            matrices: symmetric, shape (b, d, d).
            block: what it starts from, shape (b, d, width).
            blocks: how many there is room for.
        """
        self.matrices = matrices
        batch, size, self.width = block.shape
        self._basis = matrices.new_empty(batch, size, min(size, blocks * self.width))
        self._image = torch.empty_like(self._basis)
        self._filled = self._imaged = 0
        self._append(_orthonormal(block))

    def _append(self, block: Tensor) -> None:
        self.last = block
        self._basis[..., self._filled : self._filled + self.width] = block
        self._filled += self.width

    @property
    def blocks(self) -> int:
        """How many blocks the basis has."""
        return self._filled // self.width

    @property
    def full(self) -> bool:
        """Whether there is no room for another block."""
        return self._filled + self.width > self._basis.shape[-1]

    def extend(self, block: Tensor) -> None:
        """Append what is new in `block`, shape (b, d, width)."""
        basis = self._basis[..., : self._filled]
        for _ in range(2):  # twice is enough (Kahan, Parlett), orthonormalised between: what is new may be tiny
            block = _orthonormal(torch.baddbmm(block, basis, basis.mT @ block, alpha=-1))
        self._append(block)

    def pairs(self, which: slice) -> Ritz:
        """The Ritz pairs that `which` takes from the ascending order."""
        new = slice(self._imaged, self._filled)
        self._image[..., new] = self.matrices @ self._basis[..., new]
        self._imaged = self._filled
        basis, image = self._basis[..., : self._filled], self._image[..., : self._filled]
        # A matrix of zeros leaves no direction to go on: it ends uncertified, the others of its batch do not notice.
        projected = (basis.mT @ image).nan_to_num()
        vectors = _small_eigenvectors((projected + projected.mT) / 2)[..., which]
        ritz, image = basis @ vectors, image @ vectors
        norms = torch.linalg.vector_norm(ritz, dim=-2, keepdim=True)
        ritz, image = ritz / norms, image / norms
        # The quotient of the very vector, whatever the basis lost: the bounds on its error are about that.
        values = (ritz * image).sum(-2)
        return Ritz(values, ritz, torch.linalg.vector_norm(image - ritz * values[:, None], dim=-2))


class Largest(NamedTuple):
    """A lower bound on each matrix's largest eigenvalue, and a distance within which there is one; shapes (b,)."""

    value: Tensor
    error: Tensor


def largest_eigenvalue(matrices: Tensor, *, blocks: int = _TOP_BLOCKS) -> Largest:
    """Largest eigenvalue of each matrix, shape (b, d, d), to a few hundredths; `blocks` bounds the work."""
    space = Krylov(matrices, first_block(matrices, _TOP_WIDTH), blocks)
    while True:
        space.extend(matrices @ space.last)
        if space.full or space.blocks % _TOP_LOOK == 0:
            ritz = space.pairs(slice(-1, None))
            value, error = ritz.values[:, 0], ritz.residual[:, 0]
            if space.full or bool((error <= _TOP_TOLERANCE * value).all()):
                return Largest(value, error)


def first_block(matrices: Tensor, width: int) -> Tensor:
    """Vectors to start from, the same in every run, shape (b, d, width)."""
    size = matrices.shape[-1]
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(size, min(width, size), generator=generator, dtype=matrices.dtype).to(matrices.device)
    return block.expand(matrices.shape[0], -1, -1)


def _small_eigenvectors(matrices: Tensor) -> Tensor:
    if matrices.is_cuda and len(matrices) >= MANY and matrices.shape[-1] <= _ON_DEVICE:
        vectors: Tensor = torch.linalg.eigh(matrices).eigenvectors
        return vectors
    # On the host: larger ones take less there than the accelerator's launches for them.
    return torch.from_numpy(np.linalg.eigh(matrices.cpu().numpy()).eigenvectors).to(matrices.device)


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns with the span of `block`, also where that is singular to rounding (Fukaya et al. 2020)."""
    if len(block) < MANY:
        single: Tensor = torch.linalg.qr(block).Q
        return single
    for shift in (block.shape[-2] * UNIT_ROUNDOFF, 0.0):
        block = block / torch.linalg.vector_norm(block, dim=-2, keepdim=True).clamp(min=_TINY)
        gram = block.mT @ block
        gram.diagonal(dim1=-2, dim2=-1).add_(shift)
        factor: Tensor = torch.linalg.cholesky_ex(gram).L
        block = torch.linalg.solve_triangular(factor, block.mT, upper=False).mT
    return block
