"""The smallest eigenvalue of many symmetric positive definite matrices at once, between proven bounds.

A few blocks of a Krylov space of the inverse come within a few hundredths of it from above, however dense the bottom of
the spectrum is; that nothing lies below is then proven by one more factorisation, of the matrix moved down by a little
less. That costs two Cholesky factorisations a matrix; residuals small enough to say the same cost many more solves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deadreckon.forward.cholesky import Factor, cholesky, log_determinant, moved, positive_definite
from deadreckon.forward.krylov import Krylov, Ritz, first_block
from deadreckon.forward.precision import AT_FLOOR, UNIT_ROUNDOFF

_WIDTH = 2
_BLOCKS = 12  # comes within 1e-2 (at worst 3e-2) at the edge of a bulk, far closer where the smallest stands apart
_WIDTHS = (3e-2, 1e-1)  # relative distances below the value at which to try the proof


@dataclass(frozen=True)
class Smallest:
    """The smallest eigenvalue of each of b matrices of size d.

    Attributes:
        value: from above, shape (b,).
        error: by how much less it may be, shape (b,).
        vector: the unit vector whose Rayleigh quotient `value` is, shape (b, d).
        log_det: logarithm of the determinant, shape (b,).
        proven: whether `error` is proven and the matrix is not singular to rounding, shape (b,), bool.
    """

    value: Tensor
    error: Tensor
    vector: Tensor
    log_det: Tensor
    proven: Tensor


def smallest_eigenvalue(matrices: Tensor, *, largest: Tensor, tolerance: float = 3e-2) -> Smallest:
    """The smallest eigenvalue of each matrix.

    Args:
        matrices: symmetric positive definite, shape (b, d, d), float64.
        largest: about the largest eigenvalue of each, shape (b,): it sets the size of rounding.
        tolerance: relative width of the bounds; below 3e-2 it costs two more factorisations.

    Returns:
        The values; where not proven (the matrix is singular to rounding, or the search fell short) the caller solves
        for the whole spectrum. Where the search is a little off, bounds are wider than the tolerance, up to 1e-1.
    """
    floor = matrices.shape[-1] * UNIT_ROUNDOFF * largest
    lower, failed = cholesky(matrices)
    log_det = log_determinant(lower)
    ritz = _search(matrices, lower, first_block(matrices, _WIDTH))
    value = ritz.values[:, 0]
    del lower  # as large as the matrices
    # At the floor even the sign is rounding: a proof would be one of nothing.
    hopeful = ~failed & (value > AT_FLOOR * floor)
    error, proven = torch.full_like(value, torch.inf), torch.zeros_like(failed)
    for width in _WIDTHS:
        which = (hopeful & ~proven).nonzero()[:, 0]
        if not len(which):
            break
        some = matrices if len(which) == len(matrices) else matrices[which]
        proven[which] = positive_definite(some, (width - 1) * value[which])
        error[which] = width * value[which] + floor[which]
    if tolerance < _WIDTHS[0] and bool(proven.all()):
        # Seen from a shift so close below it, the smallest stands apart from its neighbours.
        ritz = _search(matrices, cholesky(moved(matrices, -(value - error)))[0], ritz.vectors)
        finer = ritz.values[:, 0]
        if bool(positive_definite(matrices, (tolerance - 1) * finer).all()):
            value, error = finer, tolerance * finer + floor
    return Smallest(value, error, ritz.vectors[..., 0], log_det, proven)


def _search(matrices: Tensor, lower: Tensor, block: Tensor) -> Ritz:
    """The smallest Ritz pairs in a Krylov space of the inverse of what was factored."""
    factor = Factor.of(lower)
    space = Krylov(matrices, block, _BLOCKS)
    while not space.full:
        space.extend(factor.solve(space.last))
    return space.pairs(slice(_WIDTH))
