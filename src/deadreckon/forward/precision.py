"""What floating point leaves of small numbers: the floors below which a value is rounding and means nothing."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2
# A value within this factor of its floor is that floor: the standard deviations differ by less than their own size.
AT_FLOOR = 4.0
# Mean of (ulp(x)/x)^2 in units of (2u)^2 where the significand's logarithm is uniform, 3/(8 ln 2).
_ULP_SQUARED = 0.541


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to `dtype`, u."""
    return torch.finfo(dtype).eps / 2


def gram_floor(largest: float, size: int) -> float:
    """Error that float64 accumulation and a backward-stable solver may make in any eigenvalue, d * u * lambda_max."""
    return size * UNIT_ROUNDOFF * abs(largest)


def storage_floor(dtype: torch.dtype, squares: Tensor, direction: Tensor) -> Tensor:
    """Singular value that rounding the vectors to `dtype` gives a direction in which they do not vary.

    A value x stored with unit roundoff u carries an error of ulp(x)/sqrt(12); errors of different coordinates are
    independent, so those of Xu add in squares. A lower bound where a residual stream rounds at every block.

    Args:
        dtype: of the stored vectors.
        squares: sum over the vectors of each coordinate squared, shape (d,) (the Gram's diagonal).
        direction: unit vector, shape (d,).

    Returns:
        The floor of sigma, in the units of sigma(X), a number on their device.
    """
    ulp = _ULP_SQUARED * (2 * unit_roundoff(dtype)) ** 2
    floor: Tensor = ((squares * direction.square()).sum() * ulp / 12).sqrt()
    return floor


def at_floor(value: float, floor: float) -> bool:
    """Whether a variance is no more than its floor explains."""
    return value <= AT_FLOOR * floor
