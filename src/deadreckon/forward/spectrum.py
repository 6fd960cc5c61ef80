"""Eigenvalues of a covariance and what they say in single numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.bottom import bottom
from deadreckon.forward.krylov import largest_eigenvalue
from deadreckon.forward.moments import Moments
from deadreckon.forward.precision import UNIT_ROUNDOFF, gram_floor


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a covariance, ascending, with orthonormal eigenvectors: all d of them, or the k smallest.

    Attributes:
        eigenvalues: shape (d,) or (k,).
        eigenvectors: columns, shape (d, d) or (d, k).
        floor: the error that the solver itself may have made in any eigenvalue; smaller ones carry no meaning.
        rest: where only the bottom was solved for, what is known of the whole spectrum.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    floor: float
    rest: Rest | None = None

    @property
    def size(self) -> int:
        """d."""
        return self.eigenvectors.shape[0]

    @property
    def mean(self) -> float:
        """Mean eigenvalue, tr(C)/d."""
        return float(self.eigenvalues.mean()) if self.rest is None else self.rest.trace / self.size

    @property
    def largest(self) -> float:
        """lambda_max."""
        return float(self.eigenvalues[-1]) if self.rest is None else self.rest.largest

    def dead_count(self, tau: float) -> int:
        """Number of eigenvalues at or below tau times their mean.

        Args:
            tau: tolerance.

        Returns:
            The count.

        Raises:
            UsageError: only the bottom was solved for, and it ends below that.
        """
        dead = int((self.eigenvalues <= tau * self.mean).sum())
        if self.rest is not None and dead == len(self.eigenvalues):
            raise UsageError(
                f"more than {dead - 1} directions are dead at {tau:g}: solve for the whole spectrum (eigh)"
            )
        return dead

    def effective_rank(self) -> float | None:
        """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); None without all of them."""
        if self.rest is not None:
            return None
        # Singular values of the centred data; an eigenvalue that rounding made negative has none and adds nothing.
        sigma = self.eigenvalues[self.eigenvalues > 0].sqrt()
        if sigma.numel() == 0:
            return 0.0
        share = sigma / sigma.sum()
        return float(torch.exp(-torch.special.xlogy(share, share).sum()))

    def participation_ratio(self) -> float:
        """(sum lambda)^2 / sum lambda^2, between 1 and d; 0 without any variance."""
        total = self.mean * self.size
        squares = float(self.eigenvalues.square().sum()) if self.rest is None else self.rest.squares
        return total**2 / squares if total > 0 else 0.0

    def stable_rank(self) -> float:
        """sum lambda / lambda_max, between 1 and d; 0 without any variance."""
        return self.mean * self.size / self.largest if self.largest > 0 else 0.0


@dataclass(frozen=True)
class Rest:
    """Trace, sum of squares (squared Frobenius norm) and largest value of a spectrum whose bottom alone was solved."""

    trace: float
    squares: float
    largest: float


class Eigensolver(ABC):
    """Turns the moments of a stream of vectors into a spectrum. Derive from it and register it to add one.

    Attributes:
        needs_tokens: whether `solve` is given the vectors themselves (all in memory) beside their moments.
    """

    needs_tokens = False

    @abstractmethod
    def solve(self, moments: Moments, tokens: Tensor | None) -> Spectrum:
        """The spectrum of the covariance.

        Args:
            moments: of the N vectors.
            tokens: the vectors, shape (N, d), where `needs_tokens`.
        """

    def solve_all(self, moments: Sequence[Moments], tokens: Sequence[Tensor | None]) -> list[Spectrum]:
        """The spectra of several covariances of one size; override it where they can share work."""
        return [self.solve(one, kept) for one, kept in zip(moments, tokens, strict=True)]


class Eigh(Eigensolver):
    """Dense symmetric eigensolve of the float64 covariance (LAPACK syevd); resolves about d * u * lambda_max."""

    def solve(self, moments: Moments, tokens: Tensor | None) -> Spectrum:
        """The spectrum of the accumulated covariance; `tokens` is not used."""
        return _whole(moments.covariance())


class BottomEnd(Eigensolver):
    """The smallest eigenpairs alone, certified (`deadreckon.forward.bottom`), and what needs no others.

    Exact below a hundredth of the mean, where directions may count as dead, and proven to be all there are there; the
    values above are upper bounds. Where that proof fails, it is `Eigh` after all.
    """

    count = 8
    reach = 1e-2
    _smallest = 256  # below this a whole solve costs less

    def solve(self, moments: Moments, tokens: Tensor | None) -> Spectrum:
        """The bottom of the accumulated covariance; `tokens` is not used."""
        return self.solve_all([moments], [tokens])[0]

    def solve_all(self, moments: Sequence[Moments], tokens: Sequence[Tensor | None]) -> list[Spectrum]:
        """The same for several covariances of one size, which share the launches; `tokens` is not used."""
        covariances = torch.stack([one.covariance() for one in moments])
        size = covariances.shape[-1]
        if size < self._smallest:
            return [_whole(covariance) for covariance in covariances]
        trace = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
        ceiling = self.reach * trace / size
        largest = largest_eigenvalue(covariances, blocks=8).value
        found = bottom(covariances, self.count, scale=largest, ceiling=ceiling, complete=True)
        proven = found.certified & (found.eigenvalues[:, -1] > ceiling)
        if found.complete is not None:
            proven &= found.complete
        squares = torch.linalg.vector_norm(covariances, dim=(-2, -1)).square()
        numbers = zip(proven.tolist(), trace.tolist(), squares.tolist(), largest.tolist(), strict=True)
        return [
            Spectrum(found.eigenvalues[k], found.eigenvectors[k], gram_floor(top, size), Rest(total, square, top))
            if right
            else _whole(covariances[k])
            for k, (right, total, square, top) in enumerate(numbers)
        ]


class Svd(Eigensolver):
    """Singular values of the centred vectors themselves, in float64: the oracle, at N * d memory.

    Resolves singular values to about u * sigma_max, so eigenvalues to its square: far below what a covariance can.
    """

    needs_tokens = True

    def solve(self, moments: Moments, tokens: Tensor | None) -> Spectrum:
        """The spectrum from the vectors.

        Args:
            moments: their moments, for the mean.
            tokens: the vectors, shape (N, d).

        Returns:
            The spectrum.

        Raises:
            UsageError: the vectors were not kept.
        """
        if tokens is None:
            raise UsageError("the svd solver needs the tokens themselves, not only their moments")
        centred = (tokens.to(torch.float64) - moments.mean) / (moments.count - 1) ** 0.5
        _, sigma, rows = torch.linalg.svd(centred, full_matrices=False)
        floor = (UNIT_ROUNDOFF * max(tokens.shape) * float(sigma[0])) ** 2
        return Spectrum(sigma.flip(0).square(), rows.flip(0).T, floor)


def _whole(covariance: Tensor) -> Spectrum:
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return Spectrum(eigenvalues, eigenvectors, gram_floor(float(eigenvalues[-1]), len(eigenvalues)))


_SOLVERS: dict[str, Eigensolver] = {"bottom": BottomEnd(), "eigh": Eigh(), "svd": Svd()}


def register_eigensolver(name: str, solver: Eigensolver) -> None:
    """Make `solver` known by `name` to ``measure(solver=...)`` and ``--solver``."""
    _SOLVERS[name] = solver


def eigensolver(name: str) -> Eigensolver:
    """The registered eigensolver of that name.

    Args:
        name: as registered.

    Returns:
        The solver.

    Raises:
        UsageError: no such solver.
    """
    try:
        return _SOLVERS[name]
    except KeyError:
        raise UsageError(f"unknown eigensolver {name!r}: choose one of {', '.join(sorted(_SOLVERS))}") from None
