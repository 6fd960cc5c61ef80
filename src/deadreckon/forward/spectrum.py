"""Eigenvalues of a covariance and what they say in single numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.moments import Moments

UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (ascending, shape (d,)) and orthonormal eigenvectors (columns, shape (d, d)) of a covariance.

    Attributes:
        floor: the error that the solver itself may have made in any eigenvalue; smaller ones carry no meaning.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    floor: float

    @property
    def mean(self) -> float:
        """Mean eigenvalue, tr(C)/d."""
        return float(self.eigenvalues.mean())

    def dead_count(self, tau: float) -> int:
        """Number of eigenvalues at or below tau times their mean."""
        return int((self.eigenvalues <= tau * self.mean).sum())

    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy and Vetterli 2007), between 1 and d."""
        # Singular values of the centred data; an eigenvalue that rounding made negative has none and adds nothing.
        sigma = self.eigenvalues[self.eigenvalues > 0].sqrt()
        if sigma.numel() == 0:
            return 0.0
        share = sigma / sigma.sum()
        return float(torch.exp(-torch.special.xlogy(share, share).sum()))

    def participation_ratio(self) -> float:
        """(sum lambda)^2 / sum lambda^2, between 1 and d; 0 without any variance."""
        total = self.eigenvalues.sum()
        return float(total.square() / self.eigenvalues.square().sum()) if total > 0 else 0.0

    def stable_rank(self) -> float:
        """sum lambda / lambda_max, between 1 and d; 0 without any variance."""
        largest = self.eigenvalues[-1]
        return float(self.eigenvalues.sum() / largest) if largest > 0 else 0.0


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


class Eigh(Eigensolver):
    """Dense symmetric eigensolve of the float64 covariance (LAPACK syevd); resolves about d * u * lambda_max."""

    def solve(self, moments: Moments, tokens: Tensor | None) -> Spectrum:
        """The spectrum of the accumulated covariance; `tokens` is not used."""
        eigenvalues, eigenvectors = torch.linalg.eigh(moments.covariance())
        return Spectrum(eigenvalues, eigenvectors, float(moments.mean.numel() * UNIT_ROUNDOFF * eigenvalues[-1].abs()))


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


_SOLVERS: dict[str, Eigensolver] = {"eigh": Eigh(), "svd": Svd()}


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
