r"""The linear kernel of a layer's output, measured: directions along which no input makes it vary.

The layer is run on tokens of several distributions. A direction w belongs to the kernel when w.y is constant over the
tokens of each of them, so a kernel that only one distribution has (a stream whose mean was subtracted before) is told
from the layer's own. What counts is the null space of the stacked outputs Y, each centred and scaled: from the
singular values of Y by way of QR, not from its Gram, which would lose half of the digits. Columns are scaled to equal
size first, so that gains of any size leave the result alone (if Y D v = 0 then w = D v).

The floor is measured too, along each direction: third differences of the output along a line of inputs,

.. math:: \Delta^3 y = y(x + 3h) - 3 y(x + 2h) + 3 y(x + h) - y(x),

cancel what is smooth in y to third order in the step and leave its rounding errors times sqrt(1 + 9 + 9 + 1): after
Hamming's difference tables, as in Moré and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33 (2011). A
layer that computes in float32 inside is seen to have a floor of float32's size, whatever its dtypes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deadreckon.forward.lone_layer import LoneLayer
from deadreckon.kernel.norm import Float64Array

# A standard deviation up to this many floors is rounding: the two are estimates of one size from different errors.
AT_FLOOR = 10.0
# And from this many on it is not. Between the two nothing is said.
CLEAR = 1000.0

# Steps have to span some ulps of the format that the layer computes in, and their cube has to lie below its roundoff.
_STEP = 2.0**-20  # for float64 and float32
_COARSE_STEP = 2.0**-6  # for float16 and bfloat16
_COARSE = 1e-6  # relative rounding error from which on the format may be one of these
_UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class Outputs:
    """A layer's outputs on tokens of one distribution.

    Attributes:
        mean: of the outputs, shape (d,).
        centred: outputs less their mean, over sqrt(n) and over the rms of all their entries, shape (n, d).
        noise: rounding errors, in the same units, shape (n, d).
        scale: that rms.
    """

    mean: Float64Array
    centred: Float64Array
    noise: Float64Array
    scale: float


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Directions without variance.

    Attributes:
        basis: orthonormal columns, as sparse as elimination makes them, shape (d, k).
        undetermined: number of directions that are neither at the floor nor clear of it.
        largest_dead: largest standard deviation that counts as zero, relative to a typical one; None without a kernel.
        dead_floor: the largest floor along directions that count as zero.
        smallest_live: smallest one that does not; None where all are zero.
        live_floor: the floor along that direction.
    """

    basis: Float64Array
    undetermined: int
    largest_dead: float | None
    dead_floor: float | None
    smallest_live: float | None
    live_floor: float | None

    @property
    def dim(self) -> int | None:
        """Its dimension; None where that is undetermined."""
        return None if self.undetermined else self.basis.shape[1]

    @cached_property
    def gap(self) -> float | None:
        """The smallest live standard deviation over its floor or the largest dead one; None where nothing lives."""
        if self.smallest_live is None or self.live_floor is None:
            return None
        return self.smallest_live / max(self.live_floor, self.largest_dead or 0.0)


def draw_tokens(count: int, hidden_size: int, seed: int) -> dict[str, Float64Array]:
    """Tokens of several distributions, each with a covariance of full rank but for the one that says otherwise.

    Args:
        count: tokens n of each.
        hidden_size: coordinates d.
        seed: of all of them.

    Returns:
        Name -> tokens, shape (n, d).
    """
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> Float64Array:
        return draw.standard_normal(shape)

    shape = (count, hidden_size)
    scales = draw.permutation(10.0 ** np.linspace(-1, 1, hidden_size))
    centred = normal(*shape)
    return {
        "gaussian": normal(*shape),
        "heavy_tailed": draw.standard_t(3, shape),
        "shifted": normal(*shape) + 30 * normal(count, 1) + 10 * normal(1, hidden_size),
        "anisotropic": normal(*shape) * scales,
        "centred": centred - centred.mean(1, keepdims=True),  # rank d - 1: RMSNorm has a kernel here, of the input
    }


def run_all(layer: LoneLayer, tokens: Mapping[str, Float64Array], seed: int) -> dict[str, Outputs]:
    """Outputs and rounding errors of a layer.

    Args:
        layer: to be run, with the parameters that it has now.
        tokens: of several distributions.
        seed: of the lines along which rounding errors are sampled.

    Returns:
        Distribution -> outputs.
    """
    draw = np.random.default_rng(seed)
    return {name: _outputs(layer, x, draw) for name, x in tokens.items()}


def _outputs(layer: LoneLayer, x: Float64Array, draw: np.random.Generator) -> Outputs:
    # Steps as large as the finer of a token's and a coordinate's spread, so that third derivatives stay small.
    line = np.minimum(_spread(x, 0), _spread(x, 1)) * draw.standard_normal(x.shape)
    y = layer.run(x)
    mean, centred = centre(y)
    scale = _rms(centred) or 1.0
    noise = _third_difference(layer, x, _STEP * line, y)
    if _rms(noise) > _COARSE * scale:
        # Steps too short for the format mostly change nothing: longer ones show far more, unless it is float32.
        coarse = _third_difference(layer, x, _COARSE_STEP * line, y)
        noise = coarse if _rms(coarse) > AT_FLOOR * _rms(noise) else noise
    unit = scale * np.sqrt(len(y))
    return Outputs(mean, centred / unit, noise / unit, scale)


def _third_difference(layer: LoneLayer, x: Float64Array, step: Float64Array, y: Float64Array) -> Float64Array:
    first, second, third = (layer.run(x + k * step) for k in (1, 2, 3))
    difference: Float64Array = (third - 3 * second + 3 * first - y) / np.sqrt(20.0)
    return difference


def centre(y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Mean over tokens and what is left; of a coordinate that is the same for all tokens exactly nothing is."""
    from_first = y - y[0]
    rest = from_first.mean(0)
    return y[0] + rest, from_first - rest


def _rms(values: Float64Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _spread(x: Float64Array, axis: int) -> Float64Array:
    spread: Float64Array = np.median(np.abs(x - np.median(x, axis, keepdims=True)), axis, keepdims=True)
    return spread


def null_space(outputs: Sequence[Outputs]) -> NullSpace:
    """Directions in which the outputs of all these distributions are constant.

    Args:
        outputs: of one or more distributions.

    Returns:
        The common null space.
    """
    share = 1 / np.sqrt(len(outputs))
    size = share * np.sqrt(sum((o.centred**2).sum(0) for o in outputs))
    noise = share * np.sqrt(sum((o.noise**2).sum(0) for o in outputs))
    stored = share * _UNIT * np.sqrt(sum((o.mean / o.scale) ** 2 for o in outputs))
    constant = size <= AT_FLOOR * np.maximum(noise, stored)
    axes, live = np.flatnonzero(constant), np.flatnonzero(~constant)
    dead = [float(size[axes].max())] if axes.size else []
    if not live.size:
        return NullSpace(np.eye(size.size), 0, max(dead), float(np.maximum(noise, stored).max()), None, None)
    scaled = size[live]
    factors = [np.linalg.qr(o.centred[:, live] / scaled, mode="r") for o in outputs]
    _, sigma, vt = np.linalg.svd(np.concatenate(factors) * share, full_matrices=False)
    errors = share * np.sqrt(sum(((o.noise[:, live] / scaled @ vt.T) ** 2).sum(0) for o in outputs))
    typical = float(np.sqrt(np.mean((noise[live] / scaled) ** 2)))
    floors = np.maximum(errors, max(typical, _UNIT * float(sigma[0])))
    at_floor, clear = sigma <= AT_FLOOR * floors, sigma >= CLEAR * floors
    dead += sigma[at_floor].tolist()
    dead_floors = [*np.maximum(noise, stored)[axes].tolist(), *floors[at_floor].tolist()]
    others = np.flatnonzero(~at_floor)
    kernel = np.zeros((size.size, axes.size + int(at_floor.sum())))
    kernel[axes, np.arange(axes.size)] = 1.0
    kernel[live, axes.size :] = vt[at_floor].T * (scaled.min() / scaled)[:, None]
    return NullSpace(
        basis=_sparse_basis(kernel),
        undetermined=int((~at_floor & ~clear).sum()),
        largest_dead=max(dead) if dead else None,
        dead_floor=max(dead_floors) if dead else None,
        smallest_live=float(sigma[others[-1]]) if others.size else None,
        live_floor=float(floors[others[-1]]) if others.size else None,
    )


def same_space(one: Float64Array, other: Float64Array, tolerance: float) -> bool:
    """Whether two orthonormal bases, columns, span the same space, up to this sine of their largest principal angle."""
    if one.shape != other.shape:
        return False
    return one.size == 0 or float(np.linalg.norm(other - one @ (one.T @ other), 2)) <= tolerance


def _sparse_basis(columns: Float64Array) -> Float64Array:
    """Orthonormal columns of the same span; elimination first, which parts what lies on different coordinates."""
    # An SVD mixes directions of one singular value at will. After Gaussian elimination with complete pivoting a group
    # of coordinates with a kernel direction of its own is one column.
    reduced: Float64Array = columns / np.linalg.norm(columns, axis=0)
    if columns.shape[1] < 2:
        return reduced
    reduced = np.linalg.qr(reduced)[0]
    done: list[int] = []
    pivots: list[int] = []
    for _ in range(columns.shape[1]):
        magnitudes = np.abs(reduced)
        magnitudes[:, done] = 0.0
        row, column = np.unravel_index(int(magnitudes.argmax()), magnitudes.shape)
        reduced[:, column] /= reduced[row, column]
        factors = reduced[row].copy()
        factors[column] = 0.0
        reduced -= np.outer(reduced[:, column], factors)
        done.append(int(column))
        pivots.append(int(row))
    reduced[np.abs(reduced) < 4 * columns.shape[1] * _UNIT] = 0.0
    q = np.linalg.qr(reduced[:, np.array(done)[np.argsort(pivots)]])[0]
    result: Float64Array = q * np.sign(q[np.abs(q).argmax(0), np.arange(q.shape[1])])
    return result
