"""The census: how many parameter dimensions of a model are exactly dead, counted from shapes, ties and norms.

Every family is counted so that all together are independent; where two meet in one weight (a head that reads a norm
and feeds a softmax) what they share is counted with the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from deadreckon.errors import UsageError
from deadreckon.kernel.anatomy import Anatomy, Writer
from deadreckon.kernel.families import (
    Family,
    GainScaling,
    LiveNorm,
    ReaderKernel,
    RowMeans,
    ShiftFreedom,
    Step,
    Tensors,
    UnseenMean,
)
from deadreckon.kernel.norm import Float64Array, Norm

REASONS = (
    "reader_with_bias",
    "reader_without_beta",
    "joint_weight_beta",
    "gain_scaling",
    "shift_absorption",
    "writer_mean",
    "embedding_mean",
    "zero_gains",
    "softmax_shift",
)
"""The kinds of families, as `DeadParameters.by_reason` names them."""

KERNEL_REASONS = ("reader_with_bias", "reader_without_beta", "joint_weight_beta")
"""What the kernel of LayerNorm alone accounts for."""


@dataclass(frozen=True)
class DeadParameters:
    """A model's families of exactly dead parameter directions.

    Attributes:
        parameters: P.
        families: all families, each with at least one dimension.
    """

    parameters: int
    families: tuple[Family, ...]

    @property
    def dimensions(self) -> int:
        """How many parameter dimensions are exactly dead."""
        return sum(family.dimensions for family in self.families)

    @property
    def by_reason(self) -> dict[str, int]:
        """Dead dimensions by reason, every reason in it."""
        return {r: sum(f.dimensions for f in self.families if f.reason == r) for r in REASONS}

    @property
    def by_tensor(self) -> dict[str, int]:
        """Dead dimensions by the tensor they are counted under, most first."""
        counts: dict[str, int] = {}
        for family in self.families:
            counts[family.tensor] = counts.get(family.tensor, 0) + family.dimensions
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def step(self, reason: str, index: int, size: float, tensors: Tensors) -> Step:
        """A finite step along one dead direction.

        Args:
            reason: one of `REASONS`.
            index: which direction of that reason, from 0.
            size: how far, positive.
            tensors: any tensor by name.

        Returns:
            What to add to which tensor.
        """
        family, place = self.locate(reason, index)
        return family.step(place, size, tensors)

    def direction(self, reason: str, index: int, tensors: Tensors) -> Step:
        """One dead direction: the derivative of `step` at size 0.

        Args:
            reason: one of `REASONS`.
            index: which direction of that reason, from 0.
            tensors: any tensor by name.

        Returns:
            Direction by tensor.
        """
        family, place = self.locate(reason, index)
        return family.direction(place, tensors)

    def locate(self, reason: str, index: int) -> tuple[Family, int]:
        """The family that has a direction, and its place there.

        Args:
            reason: one of `REASONS`.
            index: which direction of that reason, from 0.

        Returns:
            Family and place.

        Raises:
            UsageError: no such reason, or it has no direction of that index.
        """
        if reason not in REASONS:
            raise UsageError(f"no family {reason!r}: choose one of {', '.join(REASONS)}")
        place = index
        for family in self.families:
            if family.reason == reason and 0 <= place < family.dimensions:
                return family, place
            place -= family.dimensions if family.reason == reason else 0
        count = self.by_reason[reason]
        there = f"there are {count}, counted from 0" if count else "this model has none of that family"
        raise UsageError(f"{reason}:{index} does not exist: {there}")


def dead_parameters(anatomy: Anatomy, norms: Mapping[str, Norm]) -> DeadParameters:
    """The exactly dead parameter dimensions of a model.

    Args:
        anatomy: its norms, readers and writers.
        norms: the parameters of every norm of the anatomy, by name.

    Returns:
        The families and their counts.
    """
    lives = [LiveNorm.of(site, norms[site.name]) for site in anatomy.norms]
    families = [family for live in lives for family in _of_norm(anatomy, live)]
    families += [_of_writer(anatomy, writer, lives) for writer in anatomy.writers]
    families += [RowMeans("embedding_mean", name, prod(anatomy.tensors[name][:-1]), anatomy) for name in anatomy.tables]
    return DeadParameters(anatomy.parameters, tuple(family for family in families if family.dimensions))


def _of_norm(anatomy: Anatomy, live: LiveNorm) -> Iterator[Family]:
    site, zeros = live.site, live.norm.hidden_size - int(np.count_nonzero(live.norm.gain))
    for reader in site.readers:
        if reader.free:
            reason = "zero_gains" if zeros else "reader_without_beta" if reader.bias is None else "reader_with_bias"
            count = anatomy.outputs_of(reader) * live.of_reader(reader).shape[1]
            yield ReaderKernel(reason, reader.weight, count, anatomy, live, reader)
    if site.closed and site.gain is not None and site.readers and all(reader.free for reader in site.readers):
        # A zero gain does not scale; its column is dead by itself.
        yield GainScaling("gain_scaling", site.gain, live.norm.hidden_size - zeros, anatomy, live)
    if site.shift is not None and site.readers and (site.closed or site.mean_closed) and _absorbs(live):
        reason = "joint_weight_beta" if live.unbiased else "shift_absorption"
        count = live.norm.hidden_size if site.closed else 1
        yield ShiftFreedom(reason, site.shift, count, anatomy, live, not site.closed)


def _absorbs(live: LiveNorm) -> bool:
    """Whether every reader can make up for a moved shift."""
    return all(reader.free and live.constant != 0.0 for reader in live.unbiased)


def _of_writer(anatomy: Anatomy, writer: Writer, lives: list[LiveNorm]) -> UnseenMean:
    reason = "softmax_shift" if writer.softmax else "writer_mean"
    bias = writer.bias is not None
    if writer.freedom != "rows":
        tensor = writer.weight if writer.freedom == "entries" else str(writer.bias)
        return UnseenMean(reason, tensor, (writer.freedom == "entries") + bias, anatomy, writer, ())
    taken: set[int] = set()
    for live in lives:
        for reader in live.site.readers:
            if reader.weight == writer.weight and reader.free:
                taken |= set(_pivots(live.of_reader(reader)))
    every = range(anatomy.inputs_of(writer))
    inputs = tuple(i for i in every if i not in taken) if taken else every
    return UnseenMean(reason, writer.weight, len(inputs) + bias, anatomy, writer, inputs)


def _pivots(vectors: Float64Array) -> list[int]:
    """Coordinates that the independent columns of (d, k) can stand in for, by elimination with pivoting."""
    rest, pivots = vectors.copy(), []
    for column in range(rest.shape[1]):
        pivot = int(np.argmax(np.abs(rest[:, column])))
        pivots.append(pivot)
        factors = rest[pivot, column + 1 :] / rest[pivot, column]
        rest[:, column + 1 :] -= np.outer(rest[:, column], factors)
        rest[pivot, column + 1 :] = 0.0
    return pivots
