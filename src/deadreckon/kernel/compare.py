"""Two norms side by side: angles between what is dead in them, and the gains that died or came alive."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deadreckon.kernel.norm import Float64Array, Norm, median
from deadreckon.kernel.subspace import DeadSubspace


def largest_angle(first: Float64Array, second: Float64Array) -> float:
    """The largest principal angle between two subspaces, radians, by its sine: small angles keep their digits.

    Args:
        first: orthonormal columns, shape (d, k).
        second: orthonormal columns, shape (d, l).

    Returns:
        The angle; pi/2 where k and l differ, 0 where both are 0.
    """
    if first.shape[1] != second.shape[1]:
        return math.pi / 2
    if first.shape[1] == 0:
        return 0.0
    cosines = first.T @ second
    sine = float(np.linalg.norm(second - first @ cosines, 2))
    return math.atan2(min(sine, 1.0), float(np.linalg.svd(cosines, compute_uv=False)[-1]))


def dead_gains(norm: Norm, tau: float) -> NDArray[np.bool_]:
    """Which gains are dead: their square is at most tau times the mean predicted eigenvalue.

    Args:
        norm: a norm.
        tau: tolerance.

    Returns:
        A mask, shape (d,).
    """
    largest = float(np.abs(norm.gain).max())
    if largest == 0.0:
        return np.ones(norm.hidden_size, dtype=bool)
    dead: NDArray[np.bool_] = (norm.gain / largest) ** 2 <= tau * DeadSubspace.of(norm).mean_variance()
    return dead


def gain_change(first: Norm, second: Norm) -> tuple[float, int]:
    """The largest change of a gain, relative to the first norm's median magnitude, and its coordinate.

    Args:
        first: a norm.
        second: one of the same size.

    Returns:
        The change (absolute where all of the first's gains are 0), and where.
    """
    magnitudes, changes = np.abs(first.gain), np.abs(second.gain - first.gain)
    unit = median(magnitudes) or float(magnitudes.max()) or 1.0
    where = int(np.argmax(changes))
    return float(changes[where]) / unit, where
