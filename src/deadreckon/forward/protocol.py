"""The protocol check: is the module that ran the norm that was read, and does it have its kernel?"""

from __future__ import annotations

import math

import torch

from deadreckon.forward.statistics import NormStatistics
from deadreckon.results.measurement import Protocol

# A norm's forward rounds a handful of times (mean, variance, scale, gain, shift): a right one was seen at about one
# unit.
_ROUNDINGS = 8
# Far above the squared rounding of float64 along the kernel (about 1e-32 here), far below that of float32 (1e-14).
_KERNEL_TOLERANCE = 1e-24


def protocol(statistics: NormStatistics) -> Protocol:
    """Whether the module that ran is the norm that was read, and has its kernel."""
    tolerance = norm_tolerance(statistics.dtype)
    error, signal = float(statistics.residual), float(statistics.signal)
    residual = math.sqrt(error / signal) if signal > 0 else math.sqrt(error)
    variance = None
    if statistics.subspace.kernel_dim:
        variances = statistics.projected_exact.covariance().diagonal()
        unit_of_variance = rounding_unit(statistics)
        variance = float(torch.where(variances > 0, variances / unit_of_variance, torch.zeros_like(variances)).max())
    why = []
    if not residual <= tolerance:
        why.append(
            f"the module's output differs from the norm that was read by {residual:.1e} (rounding explains "
            f"{tolerance:.1e}): wrong module, kind, gain or gain offset, or dropout is on"
        )
    if variance is not None and not variance <= _KERNEL_TOLERANCE:
        why.append(
            f"the predicted kernel carries variance {variance:.1e} in float64 (rounding explains "
            f"{_KERNEL_TOLERANCE:.0e}): it is not exact on these inputs"
        )
    return Protocol(
        status="failed" if why else "ok",
        norm_residual=residual,
        norm_tolerance=tolerance,
        kernel_variance=variance,
        kernel_tolerance=_KERNEL_TOLERANCE,
        why="; ".join(why),
    )


def norm_tolerance(dtype: torch.dtype) -> float:
    """Relative deviation from the norm in float64 that rounding to `dtype` explains; many norms round to float32."""
    return _ROUNDINGS * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) / 2


def rounding_unit(statistics: NormStatistics) -> torch.Tensor:
    """Variance along each tested direction in which relative rounding of size u counts u^2, shape (k,)."""
    # Along a direction w of a group, w.y = sum(z)/|gain^-1|: the number of its coordinates over |gain^-1|^2. Along a
    # zero gain, w.y = gain * z: the mean variance.
    columns = statistics.tested.T
    support = columns != 0
    sizes = support.sum(1).to(torch.float64)
    gain = statistics.reference.gain.expand_as(columns).abs()
    reach = torch.where(support, gain * columns.abs(), torch.zeros_like(gain)).amax(1)  # 1/|gain^-1|, or 0
    mean = statistics.exact.covariance().diagonal().mean()
    return torch.where(reach > 0, reach.square() * sizes, mean)
