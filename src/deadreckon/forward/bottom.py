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

import torch
from torch import Tensor

from deadreckon.forward.cholesky import Factor, cholesky, log_determinant, moved, positive_definite
from deadreckon.forward.krylov import Krylov, Ritz, first_block, largest_eigenvalue
from deadreckon.forward.precision import AT_FLOOR, UNIT_ROUNDOFF

_WIDTH = 8  # vectors in a Krylov block, if not more are wanted; a solve for them costs little more than for one
_EXTRA = 4  # vectors beside the wanted ones
_BLOCKS = 10  # before a restart
_LOOK = (3, 5)  # blocks after which to look before the basis is full, from the first shift and from a nearer one
_TURNS = 8
_SEEN = 0.6  # residual relative to the value at which a shift close to it is taken
_CLOSE = 0.02  # a shift's relative distance below the eigenvalue that it is to separate
_TRIES = 4


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
    block = first_block(matrices, max(_WIDTH, count + _EXTRA))
    for turn in range(_TURNS):
        space = Krylov(matrices, block, _BLOCKS)
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


def _first_factor(matrices: Tensor, floor: Tensor) -> tuple[Factor, Tensor]:
    """Factors of the matrices, shifted up where they are singular to rounding, and log det of those that are not."""
    lower, singular = cholesky(matrices)
    log_det = torch.where(singular, torch.nan, log_determinant(lower))
    # Pivots of the size of rounding make an inverse that is noise in every direction, not in theirs alone.
    shift = 4 * floor
    # (A library may also leave NaN in a factor that it does not call failed.)
    singular |= ~(lower.diagonal(dim1=-2, dim2=-1).amin(-1).square() >= shift)
    for _ in range(_TRIES):
        which = singular.nonzero()[:, 0]
        if not len(which):
            break
        lower[which], singular[which] = cholesky(moved(matrices[which], shift[which]))
        shift = 16 * shift
    return Factor.of(lower), log_det


def _closer_factor(matrices: Tensor, ritz: Ritz, done: Tensor, floor: Tensor, otherwise: Factor) -> Factor:
    """Factors of the matrices with the pairs that are done lifted out of the way, shifted close below the next one."""
    # Close to a shift eigenvalues stand apart: the edge of a bulk takes dozens of blocks from 0, a few from nearby.
    count = done.shape[-1]
    first = (~done).to(torch.int8).argmax(-1, keepdim=True)  # 0 where all are done: of no consequence
    value, residual = (part.gather(1, first)[:, 0] for part in (ritz.values, ritz.residual))
    height = 2 * ritz.values[:, count - 1].abs() + 16 * floor
    vectors = ritz.vectors[..., :count]
    lifted = matrices + (vectors * (done * height[:, None])[:, None]) @ vectors.mT
    distance = torch.maximum(_CLOSE * value.abs(), residual / 2) + 4 * floor
    lower, failed = cholesky(moved(lifted, distance - value))
    for _ in range(_TRIES):
        which = failed.nonzero()[:, 0]
        if not len(which):
            break
        distance = 3 * distance
        lower[which], failed[which] = cholesky(moved(lifted[which], (distance - value)[which]))
    lower[failed] = otherwise.lower[failed]
    return Factor.of(lower)


def _eigenvalue_error(ritz: Ritz, count: int) -> Tensor:
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
    return positive_definite(matrices + lift @ vectors.mT, -bound)
