r"""What a norm's kind leaves behind in the weights that write to the residual stream.

Where every reader of the stream subtracts its mean, no loss sees what a writer W (d x m, output side d) adds along
1 = (1, ..., 1): the gradient there is zero, so training builds the rest of W and leaves that part behind, and weight
decay shrinks it. The statistic is the share of W's energy along 1, relative to that of an average direction,

.. math:: R = |1^\top W|^2 / |W|_F^2, \qquad E[R] = 1

for a direction that W does not know. For a direction u uniform on the sphere, R = d u'Gu/tr G with G = WW' has
variance :math:`\frac{2d}{d+2}(1/\mathrm{PR} - 1/d)` exactly, PR = (tr G)^2/tr G^2. It is a weighted sum of chi-squares;
its distribution is taken as the gamma with that mean and variance (Satterthwaite), its tails by Wilson and Hilferty's
cube root. Layers share their directions, so their p-values are not independent: twice the median p is a valid level
whatever the dependence (Rueger).

R near 1 is also what random initialisation gives, whatever the norm. A matrix of independent entries has rows of equal
energy and columns of equal energy, up to chance, and what training adds only adds: the *initial share*, the energy that
independent entries can still have, is at most what the weakest rows (and columns) have. An untrained or hardly trained
LayerNorm model has R near its initial share, so R near 1 speaks for an RMSNorm only where that share is well below R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deadreckon.kernel.norm import Float64Array, median

LAYERNORM_BELOW = 0.5
"""Largest R of a LayerNorm: half-way, by ratio, between trained LayerNorms (0.07-0.24) and an RMSNorm (0.97)."""
RMSNORM_WITHIN = (0.8, 1.25)
"""R of an RMSNorm: single matrices of a trained one lie at 0.89-1.08."""
LEVEL = 1e-3
"""Largest p-value at which the other kind counts as ruled out."""

_LOW_QUANTILE, _LOW_NORMAL = 0.05, -1.645  # the weakest rows, and where they stand in a normal distribution


@dataclass(frozen=True)
class Fingerprint:
    """The share of writers' energy along 1, of one matrix or of several.

    Attributes:
        statistic: R, dimensionless; the median of several matrices.
        deviation: standard deviation of R for an unrelated direction.
        p_unrelated: probability of an R so small for an unrelated direction.
        initial_share: upper estimate of the share of energy that initialisation left.
        p_left_behind: probability of an R so large where only what initialisation left lies along 1.
        matrices: number of matrices.
    """

    statistic: float
    deviation: float
    p_unrelated: float
    initial_share: float
    p_left_behind: float
    matrices: int = 1

    @property
    def says(self) -> str:
        """layernorm | rmsnorm | undetermined: a kind only where the other is ruled out."""
        if self.statistic <= LAYERNORM_BELOW and self.p_unrelated <= LEVEL:
            return "layernorm"
        low, high = RMSNORM_WITHIN
        if low <= self.statistic <= high and self.p_unrelated > LEVEL and self.p_left_behind <= LEVEL:
            return "rmsnorm"
        return "undetermined"


def mean_share(writer: Float64Array) -> float:
    """R = |1'W|^2/|W|^2, dimensionless: 1 for an unrelated direction, 0 where every column has mean zero.

    Args:
        writer: columns that are added to the stream, shape (d, m).

    Returns:
        R; 1 for a matrix of zeros, which says nothing.
    """
    energy = float(np.einsum("ij,ij->", writer, writer))
    return float(np.sum(writer.sum(axis=0) ** 2)) / energy if energy > 0.0 else 1.0


def fingerprint(writer: Float64Array) -> Fingerprint:
    """The fingerprint of one matrix.

    Args:
        writer: a writer or a sample of its columns, shape (d, m), finite; multiplied by what scales its output.

    Returns:
        R with its null distribution.
    """
    width = writer.shape[0]
    largest = float(np.abs(writer).max(initial=0.0))
    scaled = writer / largest if largest > 0.0 else writer  # so that no fourth power overflows
    variance = 2 * width / (width + 2) * max(_inverse_participation(scaled) - 1 / width, 1e-12)
    share, initial = mean_share(scaled), _initial_share(scaled)
    return Fingerprint(
        statistic=share,
        deviation=math.sqrt(variance),
        p_unrelated=gamma_tail(share, variance),
        initial_share=initial,
        p_left_behind=1.0 - gamma_tail(share / max(initial, 1e-12), variance),
    )


def combine(parts: Sequence[Fingerprint]) -> Fingerprint:
    """One fingerprint of the matrices of several layers.

    Args:
        parts: at least one.

    Returns:
        Medians; the p-values are twice the median, which holds whatever the layers share.
    """

    def middle(name: str) -> float:
        return median(np.array([getattr(part, name) for part in parts]))

    factor = 1.0 if len(parts) == 1 else 2.0
    return Fingerprint(
        statistic=middle("statistic"),
        deviation=middle("deviation"),
        p_unrelated=min(1.0, factor * middle("p_unrelated")),
        initial_share=middle("initial_share"),
        p_left_behind=min(1.0, factor * middle("p_left_behind")),
        matrices=len(parts),
    )


def gamma_tail(value: float, variance: float) -> float:
    """P(X <= value) for a gamma variable of mean 1, by Wilson and Hilferty's cube root.

    Args:
        value: where, 0 or more.
        variance: of X.

    Returns:
        The probability.
    """
    ninth = variance / 9.0
    return 0.5 * math.erfc(-(value ** (1 / 3) - (1 - ninth)) / math.sqrt(2 * ninth))


def _inverse_participation(writer: Float64Array) -> float:
    """tr G^2/(tr G)^2 of the smaller Gram matrix, in single precision: the figure needs three digits."""
    single = writer.astype(np.float32)
    gram = single @ single.T if writer.shape[0] <= writer.shape[1] else single.T @ single
    trace = float(np.trace(gram, dtype=np.float64))
    return float(np.einsum("ij,ij->", gram, gram, dtype=np.float64)) / trace**2 if trace > 0.0 else 1.0


def _initial_share(writer: Float64Array) -> float:
    """The smaller of two upper estimates: energy of weak rows and of weak columns over what chance would leave them."""
    squares = writer * writer
    mean = float(squares.mean())
    if mean == 0.0:
        return 1.0
    # Heavy tails make independent rows uneven as well: their own kurtosis says by how much.
    excess = float((squares * squares).mean()) / mean**2 - 1.0
    shares = []
    for axis in (0, 1):
        energies = np.sort(squares.mean(axis=axis)) / mean
        weak = float(energies[int(_LOW_QUANTILE * energies.size)])
        by_chance = 1.0 + _LOW_NORMAL * math.sqrt(excess / squares.shape[axis])
        shares.append(weak / by_chance if by_chance > 0.2 else 1.0)  # too few or too heavy to tell
    return min(1.0, *shares)
