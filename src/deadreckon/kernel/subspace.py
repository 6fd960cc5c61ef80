r"""The dead subspace of a norm's output, from its gain alone.

For every distribution of inputs, a norm that subtracts the mean leaves one direction of its output without variance:
with y = gain * z + shift and sum(z) = 0, the vector w = gain^-1/|gain^-1| gives w.y = w.shift, a constant. Gains that
are exactly zero kill their own coordinates instead. That is the *kernel*: exact, and independent of the input.

Gains that are merely tiny kill directions for every practical purpose. If the normalised vector is isotropic (in the
complement of 1 where the mean is subtracted), the covariance is proportional to

.. math:: A = \mathrm{diag}(\gamma^2) - \gamma\gamma^\top/d \quad\text{(centred)}, \qquad A = \mathrm{diag}(\gamma^2)
\quad\text{(not)},

and for any input the k-th smallest eigenvalue of the covariance is at most d times the k-th smallest squared gain. The
*predicted dead subspace* at tolerance tau is spanned by the eigenvectors of A with eigenvalue <= tau * tr(A)/d.

Source: Shirodkar and Narayanan, arXiv:2606.19491, for the kernel; Riechers, arXiv:2405.04134, for the ellipsoid whose
axes are A's eigenvectors. The predicted dead subspace is this project's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deadreckon.errors import UsageError
from deadreckon.kernel.norm import Float64Array, Norm, NormKind, check_parameter, norm_kind
from deadreckon.kernel.secular import CentredSpectrum, centred_spectrum, reciprocal_direction

DEFAULT_TAU = 1e-6


@dataclass(frozen=True, eq=False)
class DeadSubspace:
    """What a gain vector says about the dead directions of its norm's output.

    Attributes:
        gain: effective gains, shape (d,), float64.
        kind: the norm's kind.
        groups: number of contiguous groups that are normalised separately.
    """

    gain: Float64Array
    kind: NormKind
    groups: int = 1

    @classmethod
    def from_gain(cls, gain: ArrayLike, kind: str | NormKind = "layernorm", groups: int = 1) -> DeadSubspace:
        """The dead subspace of a norm with these effective gains.

        Args:
            gain: effective gains, shape (d,).
            kind: the norm's kind, e.g. ``"layernorm"`` or ``"rmsnorm"``.
            groups: number of equal, contiguous groups.

        Returns:
            The dead subspace; nothing of size d x d is formed.
        """
        values = check_parameter(gain, "gain")
        return cls.of(Norm("gain", norm_kind(kind), values, groups=groups))

    @classmethod
    def of(cls, norm: Norm) -> DeadSubspace:
        """The dead subspace of `norm`."""
        return cls(norm.gain, norm.kind, norm.groups)

    @property
    def hidden_size(self) -> int:
        """Number of coordinates d."""
        return int(self.gain.size)

    @cached_property
    def zero_gains(self) -> NDArray[np.int64]:
        """Coordinates whose gain is exactly zero, ascending."""
        return np.flatnonzero(self.gain == 0.0)

    @cached_property
    def _group_gains(self) -> Float64Array:
        return self.gain.reshape(self.groups, -1)

    @cached_property
    def _whole_groups(self) -> NDArray[np.int64]:
        """Centred groups without a zero gain: each has one direction gain^-1 of its own."""
        if not self.kind.centred:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self._group_gains.all(axis=1))

    @property
    def kernel_dim(self) -> int:
        """Dimension of the exact kernel of the centred covariance, the same for every input distribution."""
        return int(self.zero_gains.size + self._whole_groups.size)

    @property
    def candidate(self) -> Float64Array | None:
        """gain^-1/|gain^-1|, shape (d,): the direction that a centred norm would kill. None when a gain is zero."""
        return None if self.zero_gains.size else reciprocal_direction(self.gain)

    @property
    def direction(self) -> Float64Array | None:
        """The dead direction, shape (d,), where the kernel is exactly one direction; otherwise None."""
        return self.kernel()[:, 0] if self.kernel_dim == 1 else None

    def kernel(self) -> Float64Array:
        """Orthonormal basis of the exact kernel, shape (d, kernel_dim): zero gains first, then one column a group."""
        basis = np.zeros((self.hidden_size, self.kernel_dim))
        zeros = self.zero_gains.size
        basis[self.zero_gains, np.arange(zeros)] = 1.0
        width = self._group_gains.shape[1]
        for column, group in enumerate(self._whole_groups, start=zeros):
            basis[group * width : (group + 1) * width, column] = reciprocal_direction(self._group_gains[group])
        return basis

    def tested_directions(self) -> Float64Array:
        """What a measurement tests, orthonormal columns, shape (d, k): the kernel, or without one the `candidate`."""
        candidate = self.candidate
        return self.kernel() if self.kernel_dim or candidate is None else candidate[:, None]

    def mean_variance(self) -> float:
        """tr(A)/d: the mean predicted eigenvalue, in units of the largest gain squared (which cannot overflow)."""
        largest = np.abs(self.gain).max()
        if largest == 0.0:
            return 0.0
        share = 1.0 - self.groups / self.hidden_size if self.kind.centred else 1.0
        return float(np.mean((self.gain / largest) ** 2) * share)

    def predicted_eigenvalues(self, bottom: int) -> Float64Array:
        """The smallest eigenvalues of A relative to their mean tr(A)/d, ascending, shape (min(bottom, d),).

        Args:
            bottom: how many.

        Returns:
            Dimensionless eigenvalues; all zero where every gain is zero.

        Raises:
            UsageError: `bottom` is not positive.
        """
        if bottom < 1:
            raise UsageError(f"asked for {bottom} eigenvalues: ask for at least 1")
        return self._bottom(bottom)[0]

    def dead_count(self, tau: float = DEFAULT_TAU) -> int:
        """Predicted number of dead directions: eigenvalues of A at or below tau * tr(A)/d.

        Args:
            tau: tolerance relative to the mean eigenvalue, in (0, 1).

        Returns:
            The count, at least `kernel_dim`.

        Raises:
            UsageError: `tau` is not between 0 and 1.
        """
        if not 0.0 < tau < 1.0:
            raise UsageError(f"tau is {tau}: it is a fraction of the mean eigenvalue, between 0 and 1")
        mean = self.mean_variance()
        if mean == 0.0:
            return self.hidden_size
        squares, threshold = (self._group_gains / np.abs(self.gain).max()) ** 2, tau * mean
        count = int(np.count_nonzero(squares <= threshold))
        if self.kind.centred:
            # Interlacing leaves one eigenvalue a group open, the root next to the threshold. The secular function rises
            # through it, so the root lies at or below the threshold if the function is not negative there.
            with np.errstate(divide="ignore"):
                secular = (1.0 / (squares - threshold)).sum(axis=1)
            secular[(squares == threshold).any(axis=1)] = -np.inf
            count += int(np.count_nonzero(secular >= 0.0))
        return count

    def dead_basis(self, tau: float = DEFAULT_TAU) -> Float64Array:
        """Orthonormal basis of the predicted dead subspace, shape (d, dead_count), by ascending eigenvalue.

        Args:
            tau: tolerance relative to the mean eigenvalue, in (0, 1).

        Returns:
            The basis; it contains the exact kernel.
        """
        return self._bottom(self.dead_count(tau), vectors=True)[1]

    def _bottom(self, count: int, *, vectors: bool = False) -> tuple[Float64Array, Float64Array]:
        """The `count` smallest eigenvalues relative to the mean, and their vectors if asked for."""
        largest = np.abs(self.gain).max()
        mean = self.mean_variance()
        if not self.kind.centred or largest == 0.0 or mean == 0.0:
            # Diagonal A (or A = 0, as with a single coordinate a group): coordinates are eigenvectors.
            relative = (self.gain / largest) ** 2 / mean if mean > 0.0 else np.zeros(self.hidden_size)
            order = np.argsort(relative, kind="stable")[:count]
            basis = np.zeros((self.hidden_size, order.size if vectors else 0))
            if vectors:
                basis[order, np.arange(order.size)] = 1.0
            return relative[order], basis
        spectra = [centred_spectrum(gains, count) for gains in self._group_gains]
        values = np.concatenate([self._relative(s, float(largest), mean) for s in spectra])
        # Stable, so that the exact kernel stays ahead of eigenvalues that round to zero.
        order = np.argsort(values, kind="stable")[:count]
        basis = np.zeros((self.hidden_size, order.size if vectors else 0))
        if vectors:
            width, start = self._group_gains.shape[1], 0
            for group, spectrum in enumerate(spectra):
                size = spectrum.eigenvalues.size
                kept = np.flatnonzero((order >= start) & (order < start + size))
                if kept.size:
                    local = spectrum.vectors(order[kept] - start)
                    basis[group * width : (group + 1) * width, kept] = local
                start += size
        return values[order], basis

    @staticmethod
    def _relative(spectrum: CentredSpectrum, largest: float, mean: float) -> Float64Array:
        return spectrum.eigenvalues * (spectrum.scale / largest) ** 2 / mean
