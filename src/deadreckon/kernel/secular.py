r"""Eigenpairs of G P G, the covariance that a centred norm's gain alone predicts, without a dense eigensolve.

With G = diag(gain), g = |gain| and P = I - 11^T/n, the matrix is diagonal plus rank one, and its spectrum is that of P
G^2 P with one zero for the direction that P removes. The other eigenvalues are the critical points of the polynomial
with roots g_i^2,

.. math:: \sum_i \frac{1}{g_i^2 - \mu} = 0,

which is the secular equation (Golub 1973) rid of its weights: every pole counts by its multiplicity alone, so no root
hugs a pole and every root is well conditioned. An eigenvector is gain_i / (g_i^2 - mu). Equal gains are one pole; what
is left of their coordinate space is an eigenspace at the pole itself (deflation). Each root is found as a distance
from its nearest pole, so the differences that make the vectors are accurate and the vectors come out orthogonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deadreckon.kernel.norm import Float64Array

# Relative to the largest gain. Below it squares and their differences leave float64's normal range, so such
# gains are one pole at zero: their predicted variance is under 1e-277 of the largest, which no tolerance tells from 0.
_INVISIBLE = 2.0**-460
_MAX_ITERATIONS = 200
_CHUNK = 2**21  # entries of one roots x poles work array


@dataclass(frozen=True, eq=False)
class CentredSpectrum:
    """The bottom of the spectrum of G P G for one group of centred coordinates.

    Attributes:
        eigenvalues: ascending, shape (k,), in units of the largest gain squared.
        scale: the largest gain's magnitude: multiply eigenvalues by its square (which may overflow) for G P G itself.
    """

    eigenvalues: Float64Array
    scale: float
    _gain: Float64Array
    _poles: _Poles
    _roots: _Roots
    _labels: NDArray[np.int64]

    def vectors(self, which: NDArray[np.int64]) -> Float64Array:
        """Orthonormal eigenvectors of the eigenvalues numbered in `which`, shape (n, len(which))."""
        labels = self._labels[which]
        columns = np.empty((self._gain.size, labels.size))
        for column in np.flatnonzero(labels >= _KERNEL):
            label = int(labels[column])
            columns[:, column] = reciprocal_direction(self._gain) if label == _KERNEL else self._root_vector(label)
        for label in np.unique(labels[labels < _KERNEL]):
            where = np.flatnonzero(labels == label)
            columns[:, where] = self._deflated_vectors(-int(label) - 2, where.size)
        return columns

    def _root_vector(self, root: int) -> Float64Array:
        difference = self._poles.differences(self._roots.origin[root]) - self._roots.offset[root]
        # gain/(g^2 - mu) may overflow where g is tiny against its gap: scale by the smallest difference first.
        vector = self._gain / self.scale * (np.abs(difference).min() / difference)[self._poles.member]
        return np.asarray(vector / np.linalg.norm(vector))

    def _deflated_vectors(self, pole: int, count: int) -> Float64Array:
        members = np.flatnonzero(self._poles.member == pole)
        local = self._gain[members]
        if not local.all():  # zero gains: every coordinate vector is an eigenvector
            columns = np.zeros((self._gain.size, count))
            columns[members[:count], np.arange(count)] = 1.0
            return columns
        # Householder: a reflection that takes e_1 to the cluster's own direction; its other columns span the rest.
        direction = reciprocal_direction(local)
        direction = direction if direction[0] <= 0 else -direction
        mirror = -direction
        mirror[0] += 1.0
        columns = np.zeros((self._gain.size, count))
        wanted = np.arange(1, count + 1)
        columns[members[wanted], np.arange(count)] = 1.0
        columns[members] -= np.outer(mirror, mirror[wanted] / mirror[0])
        return columns


_KERNEL = -1  # label of the exact kernel; roots are labelled 0.. and the pole p's deflated copies -(p + 2)


@dataclass(frozen=True, eq=False)
class _Poles:
    """Distinct gain magnitudes, ascending, with the coordinates that share each."""

    magnitude: Float64Array
    multiplicity: NDArray[np.int64]
    member: NDArray[np.int64]

    def differences(self, origin: int) -> Float64Array:
        """g_j^2 - g_origin^2 to full relative accuracy."""
        here = self.magnitude[origin]
        difference: Float64Array = (self.magnitude - here) * (self.magnitude + here)
        return difference


@dataclass(frozen=True, eq=False)
class _Roots:
    """Roots as signed distances from their nearest pole."""

    origin: NDArray[np.int64]
    offset: Float64Array


def reciprocal_direction(gain: Float64Array) -> Float64Array:
    """gain^-1 / |gain^-1| for gains without a zero, safe for any magnitudes.

    Args:
        gain: shape (n,), no entry zero.

    Returns:
        A unit vector, shape (n,). Entries are ratios to the smallest gain, so none can overflow.
    """
    ratio = np.abs(gain).min() / gain
    direction: Float64Array = ratio / np.linalg.norm(ratio)
    return direction


def centred_spectrum(gain: Float64Array, bottom: int) -> CentredSpectrum:
    """The bottom eigenpairs of G P G for one group.

    Args:
        gain: effective gains of the group, shape (n,), finite.
        bottom: how many eigenvalues, counted from the smallest; at most n.

    Returns:
        The eigenvalues, with the means to form their vectors.
    """
    bottom = min(bottom, gain.size)
    largest = float(np.abs(gain).max())
    # A power of two keeps equal gains equal and every ratio exact.
    unit = np.exp2(np.floor(np.log2(largest))) if largest > 0 else 1.0
    scaled = gain / unit
    visible = np.where(np.abs(scaled) < _INVISIBLE, 0.0, np.abs(scaled))
    magnitude, member, multiplicity = np.unique(visible, return_inverse=True, return_counts=True)
    poles = _Poles(magnitude, multiplicity, member)

    # In ascending order: [kernel] or zeros, then for each pole its deflated copies and the root above it.
    labels: list[NDArray[np.int64]] = []
    values: list[Float64Array] = []
    has_zero_gain = not gain.all()
    if not has_zero_gain:
        labels.append(np.array([_KERNEL]))
        values.append(np.zeros(1))
    count = len(labels)
    roots_wanted = 0
    copies: list[int] = []
    for pole in range(magnitude.size):
        # With an exact zero among them, the pole at zero keeps a whole coordinate space: P takes nothing from it.
        copy = int(multiplicity[pole]) - (0 if pole == 0 and has_zero_gain else 1)
        copies.append(copy)
        count += copy
        if count >= bottom:
            break
        if pole + 1 < magnitude.size:
            roots_wanted += 1
            count += 1
    roots = _solve(poles, roots_wanted)
    root_values = magnitude[roots.origin] ** 2 + roots.offset
    for pole, copy in enumerate(copies):
        labels.append(np.full(copy, -(pole + 2)))
        values.append(np.full(copy, magnitude[pole] ** 2))
        if pole < roots_wanted:
            labels.append(np.array([pole]))
            values.append(root_values[pole : pole + 1])
    return CentredSpectrum(
        eigenvalues=np.concatenate(values)[:bottom],
        scale=float(unit),
        _gain=gain,
        _poles=poles,
        _roots=roots,
        _labels=np.concatenate(labels)[:bottom],
    )


def _solve(poles: _Poles, count: int) -> _Roots:
    """The first `count` roots of sum m_j/(g_j^2 - mu); root k lies between poles k and k + 1."""
    origin = np.empty(count, dtype=np.int64)
    offset = np.empty(count)
    step = max(1, _CHUNK // poles.magnitude.size)
    for start in range(0, count, step):
        stop = min(start + step, count)
        origin[start:stop], offset[start:stop] = _solve_chunk(poles, np.arange(start, stop))
    return _Roots(origin, offset)


def _solve_chunk(poles: _Poles, left: NDArray[np.int64]) -> tuple[NDArray[np.int64], Float64Array]:
    magnitude = poles.magnitude
    gap = (magnitude[left + 1] - magnitude[left]) * (magnitude[left + 1] + magnitude[left])
    weight = poles.multiplicity.astype(np.float64)

    def distances(origin: NDArray[np.int64]) -> Float64Array:
        here = magnitude[origin][:, None]
        return np.asarray((magnitude - here) * (magnitude + here) / gap[:, None])

    # In units of the gap. The sign at the middle says which pole is nearer; the function rises through the interval.
    nearer_right = (weight / (distances(left) - 0.5)).sum(1) < 0
    origin = left + nearer_right
    delta = distances(origin)
    low = np.where(nearer_right, -0.5, 0.0)
    high = np.where(nearer_right, 0.0, 0.5)
    s = (low + high) / 2
    other = np.where(nearer_right, -1.0, 1.0)  # the far pole of the interval, seen from the origin
    for _ in range(_MAX_ITERATIONS):
        term = 1.0 / (delta - s[:, None])
        value = term @ weight
        slope = (term * term) @ weight
        low = np.where(value < 0, s, low)
        high = np.where(value > 0, s, high)
        # Newton on value * s * (other - s), which has no poles at the interval's ends.
        factor = s * (other - s)
        product_slope = slope * factor + value * (other - 2 * s)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = s - value * factor / product_slope
        inside = (newton > low) & (newton < high)
        following = np.where(value == 0, s, np.where(inside, newton, (low + high) / 2))
        moved = np.abs(following - s)
        s = following
        if np.all(moved <= 2 * np.finfo(np.float64).eps * np.abs(s)):
            break
    return origin, s * gap
