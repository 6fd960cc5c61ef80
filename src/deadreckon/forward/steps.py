"""Steps of a reader's weight along a norm's kernel: with what makes up for the constant, without it, and at random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deadreckon.forward.sites import Site, weight_of


@dataclass(frozen=True)
class Outer:
    """The rank-one matrix left right^T, float64."""

    left: Tensor
    right: Tensor

    def respond(self, y: Tensor) -> Tensor:
        """The matrix times every token, float64."""
        return (y.double() @ self.right.to(y.device))[..., None] * self.left.to(y.device)

    def added(self, weight: Tensor) -> Tensor:
        """A weight of shape (out, d) plus the matrix, in the weight's dtype."""
        return weight.addr(self.left.to(weight), self.right.to(weight))

    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.left.norm() * self.right.norm())

    def times(self, factor: float) -> Outer:
        """A multiple of it."""
        return Outer(self.left * factor, self.right)


@dataclass(frozen=True)
class Full:
    """A multiple of a matrix of shape (out, d), whose products are formed in its own dtype."""

    entries: Tensor
    factor: float = 1.0

    def respond(self, y: Tensor) -> Tensor:
        """The matrix times every token."""
        return (y.to(self.entries) @ self.entries.T).mul_(self.factor)

    def added(self, weight: Tensor) -> Tensor:
        """A weight of shape (out, d) plus the matrix, in the weight's dtype."""
        return weight + self.factor * self.entries.to(weight)

    def norm(self) -> float:
        """Frobenius norm."""
        return frobenius_norm(self.entries) * self.factor

    def times(self, factor: float) -> Full:
        """A multiple of it."""
        return Full(self.entries, self.factor * factor)


@dataclass(frozen=True)
class Step:
    """A step of some parameters at once.

    Attributes:
        weights: reader's path -> change of its weight as (out, d).
        biases: reader's path -> change of its bias.
        shift: change of the norm's shift, or None.
    """

    weights: Mapping[str, Outer | Full] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    shift: Tensor | None = None

    def norm(self) -> float:
        """Frobenius norm over all tensors."""
        vectors = [*self.biases.values(), *([] if self.shift is None else [self.shift])]
        return math.hypot(*(w.norm() for w in self.weights.values()), *(float(v.norm()) for v in vectors))

    def times(self, factor: float) -> Step:
        """A multiple of it."""
        weights = {path: weight.times(factor) for path, weight in self.weights.items()}
        biases = {path: bias * factor for path, bias in self.biases.items()}
        return Step(weights, biases, None if self.shift is None else self.shift * factor)


class SiteSteps:
    """The steps that are compared at one site, each of Frobenius norm 1.

    Attributes:
        exact: along the kernel, with the bias or shift that takes the constant away; None where there is no such.
        naive: the same weights alone.
        constant: what `naive` adds to the readers' outputs if it is all constant: c times its left vectors.
    """

    def __init__(self, site: Site, model: nn.Module, seed: int) -> None:
        """Draw them.

        Args:
            site: where.
            model: the model.
            seed: of the draws.
        """
        self.site, self.model = site, model
        self.device = weight_of(model, site.moved[0]).device
        self.seed = seed
        self.generator = torch.Generator(self.device).manual_seed(seed)
        vector = torch.from_numpy(site.vector).to(self.device)
        exact = self._joint(vector) if site.remedy == "shift" else self._plain(vector)
        self.exact = None if site.remedy == "none" else _unit(exact)
        self.naive = _unit(Step(exact.weights))
        lefts = {path: weight.left for path, weight in self.naive.weights.items() if isinstance(weight, Outer)}
        self.constant = Step({}, {path: site.constant * left for path, left in lefts.items()})

    def random(self, number: int) -> Step:
        """The Gaussian direction of that number, of norm 1, in the tensors that the exact step moves."""
        self.generator.manual_seed(1_000_003 * self.seed + number + 1)
        like = self.exact or self.naive
        weights = {p: Full(self._normal(*self._shape(p), dtype=self._dtype(p))) for p in like.weights}
        biases = {p: self._normal(len(b)).double() for p, b in like.biases.items()}
        shift = None if like.shift is None else self._normal(len(like.shift)).double()
        return _unit(Step(weights, biases, shift))

    def _plain(self, vector: Tensor) -> Step:
        (reader,) = self.site.moved
        left = self._normal(self._shape(reader.path)[0]).double()
        biases = {reader.path: -self.site.constant * left} if self.site.remedy == "bias" else {}
        return Step({reader.path: Outer(left, vector)}, biases)

    def _joint(self, vector: Tensor) -> Step:
        # Orthogonal to the kernel vector, where the family is a straight line: c + w.shift does not change along it.
        shift = self._normal(len(vector)).double()
        shift -= (shift @ vector) * vector
        weights = {m.path: Outer(-self._apply(m.path, shift) / self.site.constant, vector) for m in self.site.moved}
        return Step(weights, {m.path: -self._apply(m.path, shift) for m in self.site.others}, shift)

    def _apply(self, path: str, shift: Tensor) -> Tensor:
        weight = self._weight(path)
        return torch.mv(weight.double(), shift.to(weight.device)).to(self.device)

    def _weight(self, path: str) -> Tensor:
        reader = next(m for m in (*self.site.moved, *self.site.others) if m.path == path)
        weight = weight_of(self.model, reader).detach()
        return weight.T if reader.input_first else weight

    def _shape(self, path: str) -> tuple[int, int]:
        out, width = self._weight(path).shape
        return out, width

    def _dtype(self, path: str) -> torch.dtype:
        return self._weight(path).dtype

    def _normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device, dtype=dtype)


def frobenius_norm(tensor: Tensor) -> float:
    """Root of the sum of squares, accumulated in float32 at least."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return float(torch.linalg.vector_norm(tensor, dtype=wide))


def _unit(step: Step) -> Step:
    return step.times(1 / step.norm())
