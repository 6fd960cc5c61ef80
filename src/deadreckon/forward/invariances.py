"""What a layer's output does when its input is shifted, scaled, negated or permuted, and what it is confined to.

Each figure is a deviation relative to the spread of the output, so that 1 means "not at all": the rms over tokens and
coordinates of the difference that the invariance says is zero. Tokens are Gaussian of unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deadreckon.forward.lone_kernel import AT_FLOOR, centre
from deadreckon.forward.lone_layer import LoneLayer
from deadreckon.kernel.norm import Float64Array

# Deviations from an invariance that the constant under a norm's root explains: eps <= 1e-3 beside a unit variance.
TO_EPS = 1e-3

_SHIFT, _SCALE = 3.0, 2.0
# Size of tokens that look for a quadric: eps <= 1e-3 moves it by less than the tolerance, and tanh is not yet a sign.
_LARGE = 10.0
_ON_QUADRIC = 1e-5
_VARIES = 1e-6  # spread beside the mean from which on a coordinate's square has digits enough
_WIDEST = 1024  # coordinates up to which a quadric is looked for


@dataclass(frozen=True)
class Behaviour:
    """How a layer's output follows its input.

    Attributes:
        deviations: what is tested -> deviation from it, relative.
        noise: relative rounding error of the output, by which to judge the deviations.
        elementwise: whether every output coordinate depends on its own input coordinate alone.
        mixes_tokens: whether a token's output depends on other tokens.
        quadrics: independent constraints sum q_i y_i^2 + r_i y_i = const on the output, those of the linear kernel not
            among them; None where d is too large to look.
    """

    deviations: dict[str, float]
    noise: float
    elementwise: bool
    mixes_tokens: bool
    quadrics: int | None

    def holds(self, name: str) -> str:
        """exact | to_eps | no: whether the deviation is rounding, or as small as an eps explains.

        Args:
            name: a key of `deviations`.

        Returns:
            The word.
        """
        deviation = self.deviations[name]
        rounding = AT_FLOOR * (1 + _SHIFT) * self.noise  # the changed tokens are larger by up to that
        return "exact" if deviation <= rounding else "to_eps" if deviation <= TO_EPS else "no"


def behaviour(layer: LoneLayer, noise: float, seed: int) -> Behaviour:
    """Run a layer on changed tokens and compare.

    Args:
        layer: with the parameters that are meant.
        noise: relative rounding error of its output.
        seed: of the tokens.

    Returns:
        The behaviour.
    """
    size = layer.hidden_size
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((layer.tokens(64), size))
    y = layer.run(x)
    spread = float(np.sqrt(np.mean(centre(y)[1] ** 2))) or 1.0

    def off(difference: Float64Array) -> float:
        return float(np.sqrt(np.mean(difference**2))) / spread

    shifted, scaled, negated = layer.run(x + _SHIFT), layer.run(_SCALE * x), layer.run(-x)
    order = draw.permutation(size)
    offset = (y + negated).mean(0)
    deviations = {
        "shift_invariant": off(shifted - y),
        "shift_equivariant": off(shifted - y - _SHIFT),
        "scale_invariant": off(scaled - y),
        "scale_equivariant": off(scaled - _SCALE * y) / _SCALE,
        "even": off(negated - y),
        "odd": off(y + negated - offset),  # up to a constant: a shift parameter
        "permutation_equivariant": off(layer.run(np.ascontiguousarray(x[:, order])) - y[:, order]),
    }
    poked, one = x.copy(), x.copy()
    poked[:, 0] += 1.0
    one[0] += draw.standard_normal(size)
    tolerance = AT_FLOOR * noise * spread
    return Behaviour(
        deviations=deviations,
        noise=noise,
        elementwise=bool(np.abs(layer.run(poked) - y)[:, 1:].max() <= tolerance),
        mixes_tokens=bool(np.abs(layer.run(one) - y)[1:].max() > tolerance),
        quadrics=_quadrics(layer, draw),
    )


def _quadrics(layer: LoneLayer, draw: np.random.Generator) -> int | None:
    """Nullity of squares and values together, less that of the values alone."""
    size = layer.hidden_size
    if size > _WIDEST:
        return None
    y = layer.run(_LARGE * draw.standard_normal((layer.tokens(5 * size + 64), size)))
    mean, y = centre(y)
    spread = y.std(0)
    varies = spread > _VARIES * np.abs(mean)
    if not varies.any():
        return 0
    y = y[:, varies] / spread[varies]
    return _nullity(np.concatenate([y, y**2], axis=1)) - _nullity(y)


def _nullity(features: Float64Array) -> int:
    features = centre(features)[1]
    sizes = np.linalg.norm(features, axis=0)
    features = features[:, sizes > 0] / sizes[sizes > 0]
    return int((np.linalg.svd(features, compute_uv=False) <= _ON_QUADRIC).sum())
