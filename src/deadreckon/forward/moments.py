"""Mean and second moments of a stream of vectors, in float64 and in memory that does not grow with their number.

One accumulator serves the centred scatter of a norm's output and the uncentred Gram of a residual stream. Batches are
centred on their own mean before they are multiplied and then merged pairwise (Chan, Golub and LeVeque 1983), so a mean
that dwarfs the spread costs no digits, which subtracting N * mean * mean^T from a sum of products would. The Gram
follows from the scatter by adding that term, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deadreckon.errors import UsageError

# Rows converted to float64 at a time: bounds the workspace whatever the batch, and is enough to fill an accelerator.
CHUNK = 4096
_SMALLEST_TILE = 256


@dataclass(frozen=True)
class Centred:
    """Vectors about their own mean, in float64: what one update of `Moments` adds."""

    count: int
    mean: Tensor
    rest: Tensor

    @classmethod
    def of(cls, vectors: Tensor, *, overwrite: bool = False, centre: bool = True) -> Centred:
        """Vectors of shape (n, d), any real dtype, in float64 about their mean; a copy unless `overwrite`."""
        rest = vectors.to(torch.float64, copy=not overwrite)
        mean = rest.new_zeros(rest.shape[1])
        if centre and len(rest):
            mean = rest.mean(0)
            rest -= mean
        return cls(len(rest), mean, rest)


class Moments:
    """Running count, mean and second moments of vectors in R^d.

    Attributes:
        count: number of vectors seen, N.
        mean: their mean, shape (d,), float64.
        upper: scatter about the mean, shape (d, d), float64, of which only the upper triangle counts.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu", *, centred: bool = True) -> None:
        """An empty accumulator.

        Args:
            size: d.
            device: where it accumulates; vectors are brought there.
            centred: False keeps second moments about the origin alone, for the Gram, which is all that it gives then;
                it saves two passes over the vectors.
        """
        self.count = 0
        self.centred = centred
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.upper = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._half_written = False

    @property
    def size(self) -> int:
        """d."""
        return self.mean.numel()

    @property
    def device(self) -> torch.device:
        """Where it accumulates."""
        return self.mean.device

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Add a batch of vectors, shape (n, d), any real dtype and device; they are not changed."""
        for chunk in torch.split(vectors, CHUNK):
            self.add(Centred.of(chunk.to(self.device), centre=self.centred))

    def add(self, batch: Centred) -> None:
        """Add vectors that are centred already. Needs no memory, so it either happens or raises before it begins."""
        if batch.count == 0:
            return
        with _Writing(self):
            add_gram(self.upper, batch.rest)
            self._shift(batch.count, batch.mean)

    def _shift(self, count: int, mean: Tensor) -> None:
        """Account for the distance between this mean and that of `count` more vectors, and move it."""
        total = self.count + count
        if self.centred:
            step = mean - self.mean
            self.upper.addr_(step, step, alpha=self.count * count / total)
            self.mean += step * (count / total)
        self.count = total

    def merge(self, other: Moments) -> None:
        """Add everything that `other` has seen.

        Args:
            other: moments of vectors of the same size.

        Raises:
            UsageError: the sizes differ, or one of them is not centred, or an update of `other` broke off half-way.
        """
        if other.size != self.size or other.centred != self.centred:
            raise UsageError(f"moments in {other.size} and {self.size} dimensions, or about another point, do not add")
        if other.count == 0:
            return
        other.check_whole()
        with _Writing(self):
            self.upper += other.upper.to(self.device)
            self._shift(other.count, other.mean.to(self.device))

    @property
    def sums(self) -> Tensor:
        """What adds up over accumulators about one mean."""
        return self.upper

    def move_to(self, mean: Tensor) -> None:
        """Refer the scatter to another mean, in preparation of adding others about that one."""
        self.check_whole()
        step = self.mean - mean
        self.upper.addr_(step, step, alpha=self.count)
        self.mean = mean

    def covariance(self) -> Tensor:
        """The centred covariance, scatter/(N - 1), shape (d, d).

        Returns:
            A new tensor.

        Raises:
            UsageError: fewer than two vectors were seen, or they were not centred.
        """
        if not self.centred:
            raise UsageError("second moments about the origin have no covariance: keep them centred")
        if self.count < 2:
            raise UsageError(f"{self.count} vectors have no covariance: at least two are needed")
        return self.scatter() / (self.count - 1)

    def scatter(self) -> Tensor:
        """Sum of (y - mean)(y - mean)^T, shape (d, d), a new tensor; of y y^T where the vectors were not centred.

        Returns:
            The scatter.

        Raises:
            UsageError: an update broke off half-way.
        """
        self.check_whole()
        return mirror_(self.upper.clone())

    def check_whole(self) -> None:
        """Make sure that what it holds is what it has seen.

        Raises:
            UsageError: an update broke off half-way.
        """
        if self._half_written:
            raise UsageError("these moments broke off in the middle of an update: start the measurement again")

    def gram(self) -> Tensor:
        """Sum of y y^T, shape (d, d), a new tensor."""
        scatter = self.scatter()
        return scatter.addr_(self.mean, self.mean, alpha=self.count) if self.centred else scatter

    def mean_gram(self, *, out: Tensor) -> None:
        """Write the mean of y y^T into `out`, shape (d, d), taking no memory besides."""
        self.check_whole()
        torch.mul(self.upper, 1 / self.count, out=out)
        mirror_(out)
        if self.centred:
            out.addr_(self.mean, self.mean)

    def state(self) -> dict[str, Tensor]:
        """Everything it holds, as tensors on the CPU, for `from_state`."""
        return {
            "count": torch.tensor(self.count),
            "centred": torch.tensor(self.centred),
            "mean": self.mean.cpu(),
            "scatter": self.scatter().cpu(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Moments:
        """The accumulator that `state` was taken from, on `device`."""
        moments = cls(state["mean"].numel(), device, centred=bool(state["centred"]))
        moments.count = int(state["count"])
        moments.mean = state["mean"].to(device, copy=True)
        moments.upper = state["scatter"].to(device, copy=True)
        return moments


class Variances:
    """Running mean and variance of each coordinate, in float64.

    Attributes:
        count: number of vectors seen.
        mean: their mean, shape (d,).
        squares: sum of squares about it, shape (d,).
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean, self.squares = (torch.zeros(size, dtype=torch.float64, device=device) for _ in range(2))

    def add(self, batch: Centred) -> None:
        """Add vectors that are centred already."""
        squares = torch.linalg.vector_norm(batch.rest, dim=0).square_()
        self._merge(batch.count, batch.mean, squares)

    def merge(self, other: Variances) -> None:
        """Add everything that `other` has seen."""
        self._merge(other.count, other.mean.to(self.mean.device), other.squares.to(self.mean.device))

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        if total == 0:
            return
        step = mean - self.mean
        self.squares += squares + step.square() * (self.count * count / total)
        self.mean += step * (count / total)
        self.count = total

    @property
    def sums(self) -> Tensor:
        """What adds up over accumulators about one mean."""
        return self.squares

    def move_to(self, mean: Tensor) -> None:
        """Refer the squares to another mean, in preparation of adding others about that one."""
        self.squares += self.count * (self.mean - mean).square()
        self.mean = mean

    def variance(self) -> Tensor:
        """Variance of each coordinate, shape (d,)."""
        variance: Tensor = self.squares / (self.count - 1)
        return variance

    def state(self) -> dict[str, Tensor]:
        """Everything it holds, as tensors on the CPU, for `from_state`."""
        return {"count": torch.tensor(self.count), "mean": self.mean.cpu(), "squares": self.squares.cpu()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Variances:
        """The accumulator that `state` was taken from, on `device`."""
        found = cls(state["mean"].numel(), device)
        found.count = int(state["count"])
        found.mean, found.squares = (state[name].to(device, copy=True) for name in ("mean", "squares"))
        return found


class _Writing:
    """Marks moments as half written until the block ends well: memory that runs out inside spoils them."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def __enter__(self) -> None:
        self.before, self.moments._half_written = self.moments._half_written, True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An update that ends well does not mend an earlier one that did not.
        self.moments._half_written = self.before or kind is not None


def mirror_(upper: Tensor) -> Tensor:
    """Copy the upper triangle of a square matrix onto its lower one, in place."""
    size = upper.shape[-1]
    tile = _tile(size)
    # Tile by tile: whole triangles would be read and written several times over.
    for start in range(0, size, tile):
        here, beyond = slice(start, start + tile), slice(start + tile, None)
        corner = upper[here, here].triu()
        upper[here, here] = corner + corner.triu(1).T
        upper[beyond, here] = upper[here, beyond].T
    return upper


def _tile(size: int) -> int:
    return max(_SMALLEST_TILE, -(-size // 8))


def add_gram(upper: Tensor, vectors: Tensor) -> None:
    """Add the Gram of `vectors`, shape (n, d), to the upper triangle of `upper`: about half of a full product."""
    size = vectors.shape[1]
    tile = _tile(size)
    for start in range(0, size, tile):
        rows = slice(start, start + tile)
        upper[rows, start:].addmm_(vectors[:, rows].T, vectors[:, start:])
