"""What a layer alone answers to random tokens, fitted as a norm.

Each output coordinate is fitted as ``gain_j z_j(x) + shift_j``, z the tokens normalised with and without subtraction of
their mean; exactly one of the two can fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deadreckon.kernel.norm import LAYERNORM, RMSNORM, Float64Array, NormKind

# Relative residual up to which an output counts as "this kind of norm". Many layers cast to float32 inside (6e-8 a
# rounding, a few roundings, and a mean subtraction that costs one digit), and the wrong kind is off by 0.1 and more.
TOLERANCE = 1e-5
SCALE = 30.0  # of the fitted tokens: eps <= 1e-2 then moves the output by less than TOLERANCE

_TOKENS = 8
_SMALL = tuple(10.0 ** (-k / 2) for k in range(2, 17))  # rms of the tokens that resolve eps in 1e-16 ... 1e-1


@dataclass(frozen=True)
class Response:
    """A norm of this kind, with these parameters, answers as the layer did."""

    kind: NormKind
    groups: int
    eps: float
    gain: Float64Array
    shift: Float64Array


@torch.no_grad()
def respond(module: nn.Module, width: int) -> Response | None:
    """Fit the layer's answer to random tokens; None where no kind of norm fits."""
    generator = torch.Generator().manual_seed(width)
    base = torch.randn(_TOKENS, width, generator=generator, dtype=torch.float64, device="cpu")
    means = torch.randn(_TOKENS, 1, generator=generator, dtype=torch.float64, device="cpu")
    tokens = SCALE * (base + 3 * means)
    moved = tokens[:1].clone()
    moved[0, 0] += 10 * SCALE
    tiny = base[:1] / base[0].square().mean().sqrt() * torch.tensor(_SMALL, dtype=torch.float64, device="cpu")[:, None]
    # By NumPy: for so few numbers torch would first wake its threads, which takes longer than all the rest.
    x = torch.from_numpy(np.concatenate([tokens.numpy(), moved.numpy(), tiny.numpy()]))
    if _run(module, x[:1]) is None:  # one token first: some layers for images make far more than they are given
        return None
    y = _run(module, x)
    if y is None:
        return None
    y_tokens, y_moved, y_tiny = np.split(y.numpy(), [_TOKENS, _TOKENS + 1])
    if not np.isfinite(y_tokens).all():
        return None
    groups = _groups(y_tokens[0], y_moved[0])
    if groups is None:
        return None
    for kind in (LAYERNORM, RMSNORM):
        z = _normalise(tokens.numpy(), kind.centred, groups)
        gain, shift = _fit(z, y_tokens)
        if np.linalg.norm(y_tokens - (gain * z + shift)) <= TOLERANCE * np.linalg.norm(y_tokens - shift):
            first = slice(width // groups)  # each group has a mean square of its own
            small = _normalise(tiny.numpy(), kind.centred, groups)[:, first]
            eps = _eps(small, (y_tiny - shift)[:, first], gain[first], kind.centred, tiny.numpy()[:, first])
            return Response(kind, groups, eps, gain, shift)
    return None


def _fit(z: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Slope and intercept of each coordinate of y over z, both (tokens, d)."""
    z_mean, y_mean = z.mean(0), y.mean(0)
    spread = ((z - z_mean) ** 2).sum(0)
    gain = ((z - z_mean) * (y - y_mean)).sum(0) / np.where(spread > 0, spread, np.inf)
    return gain, y_mean - gain * z_mean


def _normalise(x: Float64Array, centred: bool, groups: int) -> Float64Array:
    """Centred or not, divided by the root mean square of each group."""
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    if centred:
        grouped = grouped - grouped.mean(-1, keepdims=True)
    result: Float64Array = (grouped / np.sqrt((grouped**2).mean(-1, keepdims=True))).reshape(x.shape)
    return result


def _eps(z: Float64Array, y: Float64Array, gain: Float64Array, centred: bool, x: Float64Array) -> float:
    """The eps that explains how far small tokens are shrunk: shrinkage² = m / (m + eps), m their mean square."""
    model = gain * z
    shrinkage = (y * model).sum(1) / (model**2).sum(1)
    seen = x - x.mean(1, keepdims=True) if centred else x
    mean_square = (seen**2).mean(1)
    with np.errstate(all="ignore"):
        estimates = mean_square * (1 / shrinkage**2 - 1)
    usable = np.isfinite(estimates) & (shrinkage > 0.05) & (shrinkage < 0.999)
    if not usable.any():
        return 0.0
    best = np.argmin(np.where(usable, np.abs(shrinkage - 0.7), np.inf))  # half the denominator is eps: best conditioned
    return float(f"{estimates[best]:.3g}")


def _groups(y: Float64Array, moved: Float64Array) -> int | None:
    """How many groups are normalised separately: coordinate 0 of the input moves its own group only."""
    touched = np.abs(y - moved) > 1e-9 * np.abs(y).max()
    size = int(touched.sum())
    if size < 2 or y.size % size or not touched[:size].all():
        return None
    return y.size // size


def _run(module: nn.Module, x: Tensor) -> Tensor | None:
    """One forward over tokens (n, d), as a batch of one; None where the layer does not map them to (n, d)."""
    try:
        y = module(x.unsqueeze(0).clone())
    except Exception:  # any failure of a foreign forward means the same: not a plain norm
        return None
    y = y[0] if isinstance(y, tuple) and y else y  # some hand on what a quantised twin would need
    if not isinstance(y, Tensor) or y.shape != (1, *x.shape):
        return None
    return y[0].detach().to(torch.float64)
