"""Mean and covariance of a stream of vectors, in float64 and in memory that does not grow with their number.

Batches are centred on their own mean before they are multiplied and then merged pairwise (Chan, Golub and LeVeque
1983), so a mean that dwarfs the spread costs no digits, which subtracting N * mean * mean^T from a sum of products
would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deadreckon.errors import UsageError


class Moments:
    """Running count, mean and scatter of vectors in R^d.

    Attributes:
        count: number of vectors seen, N.
        mean: their mean, shape (d,), float64.
        scatter: sum of (y - mean)(y - mean)^T, shape (d, d), float64.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(size, size, dtype=torch.float64, device=device)

    def update(self, vectors: Tensor) -> None:
        """Add a batch of vectors, shape (n, d), any real dtype."""
        if vectors.shape[0] == 0:
            return
        batch = vectors.to(self.mean.device, torch.float64)
        mean = batch.mean(0)
        centred = batch - mean
        self._merge(batch.shape[0], mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add everything that `other` has seen."""
        self._merge(other.count, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if total == 0:
            return
        step = mean - self.mean
        self.scatter += scatter
        self.scatter += torch.outer(step, step) * (self.count * count / total)
        self.mean += step * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """The centred covariance scatter/(N - 1), shape (d, d).

        Returns:
            A new tensor.

        Raises:
            UsageError: fewer than two vectors were seen.
        """
        if self.count < 2:
            raise UsageError(f"{self.count} vectors have no covariance: at least two are needed")
        return self.scatter / (self.count - 1)
