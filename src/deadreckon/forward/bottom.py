"""The bottom end of symmetric positive semidefinite matrices without their whole spectrum, each pair certified.

Cholesky factors cost a fiftieth of an eigensolve. Their inverse turns the bottom of the spectrum into the top, where a
block Krylov space finds it in a few matrix products; all matrices of a batch advance together. A matrix that is
singular to rounding, our normal case, is factored with a shift at the size of that rounding: the shift only steers the
search. What is reported are Rayleigh-Ritz values of the matrix itself, nothing is damped.

Certificates: each pair's residual |Cv - theta v| bounds the distance of theta from an eigenvalue (Weyl); the square of
the residual over the gap to the neighbours found is sharper, where none between them was missed. A Cholesky factor of
the matrix with the found pairs lifted shows by Sylvester's law of inertia that nothing below them was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deadreckon.forward.precision import AT_FLOOR, UNIT_ROUNDOFF

_WIDTH = 8  # vectors in a Krylov block, if not more are wanted; a solve for them costs little more than for one
_EXTRA = 4  # vectors beside the wanted ones
_BLOCKS = 8  # before a restart
_LOOK = (3, 4)  # blocks after which to look before the basis is full, from the first shift and from a nearer one
_TURNS = 8
_SEEN = 0.6  # residual relative to the value at which a shift close to it is taken
_TOP_BLOCKS = 32
_TOP_TOLERANCE = 5e-2
_MANY = 4  # from so many matrices on, factoring them together beats the library's one at a time on an accelerator
_CLOSE = 0.05  # a shift's relative distance below the eigenvalue that it is to separate
_TRIES = 4
_PANEL = 256
_LEAF = 128
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Bottom:
    """The k smallest eigenpairs of each of b matrices of size d.

    Attributes:
        eigenvalues: ascending, shape (b, k).
        eigenvectors: columns, shape (b, d, k).
        error: bound on the distance of each eigenvalue from an exact one, shape (b, k), where none was missed.
        log_det: shape (b,); NaN where the matrix is singular to rounding.
        certified: whether every error is within the tolerance, shape (b,), bool.
        complete: whether no other eigenvalue lies below these (or the ceiling), shape (b,); None if it was not asked.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    error: Tensor
    log_det: Tensor
    certified: Tensor
    complete: Tensor | None


def bottom(
    matrices: Tensor,
    count: int,
    *,
    scale: Tensor | None = None,
    tolerance: float = 1e-3,
    ceiling: Tensor | None = None,
    complete: bool = False,
) -> Bottom:
    """The `count` smallest eigenpairs of each matrix, and its log determinant.

    Args:
        matrices: symmetric positive semidefinite, shape (b, d, d), float64.
        count: k, at least 1 and below d/8, d at least 16; for a small fraction of d this pays.
        scale: about the largest eigenvalue of each, shape (b,), where it is known already.
        tolerance: relative error at which an eigenvalue is certified; one at the rounding of the matrix is certified
            by an absolute error of that size, a few d * u * lambda_max.
        ceiling: values above it, shape (b,), need no certificate: they are upper bounds, and cost most of the work.
        complete: also prove that no eigenvalue below the largest certified one, or below the ceiling, was missed, at
            the cost of another factorisation.

    Returns:
        The pairs. Uncertified ones are still the best found: the caller falls back to a full solve.
    """
    scale = largest_eigenvalue(matrices, blocks=_LOOK[0]).value if scale is None else scale
    floor = matrices.shape[-1] * UNIT_ROUNDOFF * scale
    factor, log_det = _first_factor(matrices, floor)
    block = _first_block(matrices, max(_WIDTH, count + _EXTRA))
    for turn in range(_TURNS):
        space = _Krylov(matrices, block, _BLOCKS)
        while not space.full:
            space.extend(factor.solve(space.last))
            if space.full or space.blocks == _LOOK[turn > 0]:
                ritz = space.pairs(slice(0, space.width))
                values, vectors, error = (
                    ritz.values[:, :count],
                    ritz.vectors[..., :count],
                    _eigenvalue_error(ritz, count),
                )
                done = error <= torch.maximum(tolerance * values, AT_FLOOR * floor[:, None])
                if ceiling is not None:
                    done |= values - error > ceiling[:, None]
                if bool(done.all()):
                    break
        if bool(done.all()) or turn == _TURNS - 1:
            break
        # From a shift that is far from the wanted pairs, what they are is seen first; then one close to them pays.
        if bool((done | (ritz.residual[:, :count] < _SEEN * values)).all()):
            factor = _closer_factor(matrices, ritz, done, floor, factor)
        block = ritz.vectors
    proof = _nothing_below(matrices, values, vectors, floor, ceiling) if complete else None
    # The factorisation may succeed on the rounding of a zero; its logarithm would count as one of a number.
    log_det = torch.where(values[:, 0] > AT_FLOOR * floor, log_det, torch.nan)
    return Bottom(values, vectors, error, log_det, done.all(-1), proof)


class Largest(NamedTuple):
    """A lower bound on each matrix's largest eigenvalue, and a distance within which there is one; shapes (b,)."""

    value: Tensor
    error: Tensor


def largest_eigenvalue(matrices: Tensor, *, blocks: int = _TOP_BLOCKS) -> Largest:
    """Largest eigenvalue of each matrix, shape (b, d, d), to a few hundredths; `blocks` bounds the work."""
    space = _Krylov(matrices, _first_block(matrices, _WIDTH), blocks)
    while True:
        space.extend(matrices @ space.last)
        if space.full or space.blocks % _BLOCKS == 0:
            ritz = space.pairs(slice(-1, None))
            value, error = ritz.values[:, 0], ritz.residual[:, 0]
            if space.full or bool((error <= _TOP_TOLERANCE * value).all()):
                return Largest(value, error)


class _Ritz(NamedTuple):
    """Ritz values, vectors and residual norms."""

    values: Tensor
    vectors: Tensor
    residual: Tensor


class _Krylov:
    """An orthonormal basis that grows block by block, and the Ritz pairs of the matrices in its span."""

    def __init__(self, matrices: Tensor, block: Tensor, blocks: int) -> None:
        self.matrices = matrices
        batch, size, self.width = block.shape
        room = min(size, blocks * self.width)
        self._basis, self._image = (matrices.new_empty(batch, size, room) for _ in range(2))
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
        """Append what is new in `block`, shape (b, d, p)."""
        basis = self._basis[..., : self._filled]
        for _ in range(2):  # twice is enough (Kahan, Parlett), orthonormalised between: what is new may be tiny
            block = _orthonormal(block - basis @ (basis.mT @ block))
        self._append(block)

    def pairs(self, which: slice) -> _Ritz:
        """The Ritz pairs that `which` takes from the ascending order."""
        new = slice(self._imaged, self._filled)
        self._image[..., new] = self.matrices @ self._basis[..., new]
        self._imaged = self._filled
        basis, image = self._basis[..., : self._filled], self._image[..., : self._filled]
        # A matrix of zeros leaves no direction to go on: it ends uncertified, the others of its batch do not notice.
        projected = (basis.mT @ image).nan_to_num()
        # On the host: so small an eigenproblem takes less there than an accelerator's launches for it.
        small = np.linalg.eigh(((projected + projected.mT) / 2).cpu().numpy()).eigenvectors[..., which]
        vectors = torch.from_numpy(small).to(basis.device)
        ritz, image = basis @ vectors, image @ vectors
        norms = torch.linalg.vector_norm(ritz, dim=-2, keepdim=True)
        ritz, image = ritz / norms, image / norms
        # The quotient of the very vector, whatever the basis lost: the bounds on its error are about that.
        values = (ritz * image).sum(-2)
        return _Ritz(values, ritz, torch.linalg.vector_norm(image - ritz * values[:, None], dim=-2))


def _first_block(matrices: Tensor, width: int) -> Tensor:
    size = matrices.shape[-1]
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(size, min(width, size), generator=generator, dtype=matrices.dtype).to(matrices.device)
    return block.expand(matrices.shape[0], -1, -1)


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns with the span of `block`, also where that is singular to rounding (Fukaya et al. 2020)."""
    if len(block) < _MANY:
        single: Tensor = torch.linalg.qr(block).Q
        return single
    for shift in (block.shape[-2] * UNIT_ROUNDOFF, 0.0):
        block = block / torch.linalg.vector_norm(block, dim=-2, keepdim=True).clamp(min=_TINY)
        gram = block.mT @ block
        gram.diagonal(dim1=-2, dim2=-1).add_(shift)
        factor: Tensor = torch.linalg.cholesky_ex(gram).L
        block = torch.linalg.solve_triangular(factor, block.mT, upper=False).mT
    return block


class _Factor(NamedTuple):
    """Lower Cholesky factors and their diagonal blocks' inverses."""

    lower: Tensor
    inverses: list[Tensor]

    @classmethod
    def of(cls, lower: Tensor) -> _Factor:
        """With the inverses of blocks that are large where few matrices share the launches."""
        size = lower.shape[-1]
        panel = 2 * _PANEL if len(lower) >= _MANY else size
        blocks = [slice(start, min(start + panel, size)) for start in range(0, size, panel)]
        return cls(lower, [_triangular_inverse(lower[:, here, here]) for here in blocks])

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


def _first_factor(matrices: Tensor, floor: Tensor) -> tuple[_Factor, Tensor]:
    """Factors of the matrices, shifted up where they are singular to rounding, and log det of those that are not."""
    lower, singular = _cholesky(matrices)
    pivots = lower.diagonal(dim1=-2, dim2=-1)
    log_det = torch.where(singular, torch.nan, 2 * pivots.log().sum(-1))
    # Pivots of the size of rounding make an inverse that is noise in every direction, not in theirs alone.
    shift = 4 * floor
    singular |= pivots.amin(-1).square() < shift
    for _ in range(_TRIES):
        which = singular.nonzero()[:, 0]
        if not len(which):
            break
        lower[which], singular[which] = _cholesky(_moved(matrices[which], shift[which]))
        shift = 16 * shift
    return _Factor.of(lower), log_det


def _closer_factor(matrices: Tensor, ritz: _Ritz, done: Tensor, floor: Tensor, otherwise: _Factor) -> _Factor:
    """Factors of the matrices with the pairs that are done lifted out of the way, shifted close below the next one."""
    # Close to a shift eigenvalues stand apart: the edge of a bulk takes dozens of blocks from 0, a few from nearby.
    count = done.shape[-1]
    first = (~done).to(torch.int8).argmax(-1, keepdim=True)  # 0 where all are done: of no consequence
    value, residual = (part.gather(1, first)[:, 0] for part in (ritz.values, ritz.residual))
    height = 2 * ritz.values[:, count - 1].abs() + 16 * floor
    vectors = ritz.vectors[..., :count]
    lifted = matrices + (vectors * (done * height[:, None])[:, None]) @ vectors.mT
    distance = torch.maximum(_CLOSE * value.abs(), residual / 2) + 4 * floor
    lower, failed = _cholesky(_moved(lifted, distance - value))
    for _ in range(_TRIES):
        which = failed.nonzero()[:, 0]
        if not len(which):
            break
        distance = 3 * distance
        lower[which], failed[which] = _cholesky(_moved(lifted[which], (distance - value)[which]))
    lower[failed] = otherwise.lower[failed]
    return _Factor.of(lower)


def _moved(matrices: Tensor, shift: Tensor) -> Tensor:
    """The matrices plus a multiple of the identity each, a copy."""
    moved = matrices.clone()
    moved.diagonal(dim1=-2, dim2=-1).add_(shift[:, None])
    return moved


def _cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors and whether each failed, shape (b,)."""
    if len(matrices) < _MANY or not matrices.is_cuda:
        lower, info = torch.linalg.cholesky_ex(matrices)
        return lower, info != 0
    size = matrices.shape[-1]
    lower = torch.zeros_like(matrices)
    failed = torch.zeros(len(matrices), dtype=torch.bool, device=matrices.device)
    for start in range(0, size, _PANEL):
        here = slice(start, min(start + _PANEL, size))
        left = lower[:, start:, :start]
        panel = matrices[:, start:, here] - left @ left[:, : here.stop - start].mT
        lower[:, here, here], inverse, bad = _small_cholesky(panel[:, : here.stop - start])
        lower[:, here.stop :, here] = panel[:, here.stop - start :] @ inverse.mT
        failed |= bad
    return lower, failed


def _small_cholesky(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor, its inverse, and whether it failed, by halves down to where batched library calls are fast."""
    size = matrices.shape[-1]
    if size <= _LEAF:
        lower, info = torch.linalg.cholesky_ex(matrices)
        return lower, _triangular_inverse(lower), info != 0
    half = size // 2
    lower, inverse = torch.zeros_like(matrices), torch.zeros_like(matrices)
    lower[:, :half, :half], first, failed = _small_cholesky(matrices[:, :half, :half])
    cross = matrices[:, half:, :half] @ first.mT
    lower[:, half:, half:], second, worse = _small_cholesky(matrices[:, half:, half:] - cross @ cross.mT)
    lower[:, half:, :half] = cross
    inverse[:, :half, :half], inverse[:, half:, half:] = first, second
    inverse[:, half:, :half] = -second @ (cross @ first)
    return lower, inverse, failed | worse


def _triangular_inverse(lower: Tensor) -> Tensor:
    """Inverses of lower triangular matrices, shape (b, d, d), by halves so that most of the work is matrix products."""
    size, batch = lower.shape[-1], len(lower)
    if size <= _LEAF or size % 2:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device).expand_as(lower)
        leaf: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
        return leaf
    half = size // 2
    both = _triangular_inverse(torch.cat([lower[:, :half, :half], lower[:, half:, half:]]))
    first, second = both[:batch], both[batch:]
    inverse = torch.zeros_like(lower)
    inverse[:, :half, :half], inverse[:, half:, half:] = first, second
    inverse[:, half:, :half] = -second @ (lower[:, half:, :half] @ first)
    return inverse


def _eigenvalue_error(ritz: _Ritz, count: int) -> Tensor:
    """Bound on |theta - lambda| of the first `count` pairs: the residual, or its square over the gap if smaller."""
    if ritz.values.shape[-1] <= count:
        return ritz.residual[:, :count]
    steps = ritz.values[:, : count + 1].diff(dim=-1)
    below = torch.cat([torch.full_like(steps[:, :1], torch.inf), steps[:, :-1]], -1)
    gap = torch.minimum(below, steps - ritz.residual[:, 1 : count + 1]).clamp(min=0)
    residual = ritz.residual[:, :count]
    error: Tensor = torch.where(gap > residual, torch.minimum(residual, residual.square() / gap), residual)
    return error


def _nothing_below(matrices: Tensor, values: Tensor, vectors: Tensor, floor: Tensor, ceiling: Tensor | None) -> Tensor:
    """Whether no eigenvalue but those of `values` lies below the ceiling, or the largest of them to a thousandth."""
    top = values[:, -1]
    bound = top - torch.maximum(1e-3 * top.abs(), 8 * floor) if ceiling is None else ceiling
    # Lifted to where they cannot be below it, what is left is positive definite or there are others.
    lift = vectors * (2 * bound.abs() + 16 * floor)[:, None, None] * (values <= bound[:, None] * 2)[:, None]
    failed: Tensor = _cholesky(_moved(matrices + lift @ vectors.mT, -bound))[1]
    return ~failed
