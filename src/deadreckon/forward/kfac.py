"""The Kronecker factor of a norm's readers along its dead direction: with the bias in the factor, and without."""

from __future__ import annotations

import torch

from deadreckon.forward.precision import UNIT_ROUNDOFF
from deadreckon.forward.statistics import NormStatistics
from deadreckon.results.measurement import KFac


def kfac_view(statistics: NormStatistics) -> KFac:
    """Rayleigh quotients of the input-side factor A of K-FAC along a norm's dead direction.

    With the bias as a weight on a constant input, A = E[(y,1)(y,1)^T], and along (w, -c) with c = w.shift it reads
    (lambda_w + (E[w.y] - c)^2)/(1 + c^2): zero but for rounding. Without, E[y y^T] reads lambda_w + c^2 along w.

    Args:
        statistics: of the norm over a pass.

    Returns:
        The quotients beside A's spectrum.
    """
    moments, count = statistics.native, statistics.count
    size, device = moments.size, moments.device
    factor = torch.empty(size + 1, size + 1, dtype=torch.float64, device=device)
    factor[:size, :size] = moments.gram() / count
    factor[:size, size] = factor[size, :size] = moments.mean
    factor[size, size] = 1.0
    values, vectors = torch.linalg.eigh(factor)
    direction = statistics.tested[:, 0]
    constant = float(direction @ statistics.reference.shift)
    # From projected tokens without the shift: the factor itself resolves no less than its floor.
    variance = float(statistics.projected.covariance()[0, 0]) * (count - 1) / count
    off = float(statistics.projected.mean[0])
    tested = torch.cat([direction, direction.new_tensor([-constant])])
    tested /= torch.linalg.vector_norm(tested)
    homogeneous = (variance + off**2) / (1 + constant**2)
    return KFac(
        constant=constant,
        homogeneous_quotient=homogeneous,
        bias_free_quotient=variance + (off + constant) ** 2,
        eigenvalue_min=float(values[0]),
        eigenvalue_2=float(values[1]),
        eigenvalue_mean=float(values.mean()),
        eigenvalue_max=float(values[-1]),
        floor=(size + 1) * UNIT_ROUNDOFF * float(values[-1]),
        alignment=abs(float(tested @ vectors[:, 0])),
    )
