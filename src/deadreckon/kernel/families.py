r"""Families of exactly dead parameter directions: how many there are of each, and each of them explicitly.

A norm's output is y = gain * z + shift. What its readers y -> W y + b compute is fixed by W diag(gain), as a map
of the possible z, and by the constant W shift + b. Every change of (W, b, gain, shift) that leaves these two alone is
dead, whatever the rest of the model is:

* *kernel*: with v in the kernel of y's covariance and c = v.shift, the step (dW, db) = (a v^T, -c a); without a bias
  only where c = 0;
* *gain scaling*: gain_i and shift_i times s, column i of every reader divided by s;
* *shift*: shift + q with b - W q in every reader; a reader without a bias takes W + W p v^T, p = -q/(c + v.q), instead
  (the joint family), which needs c != 0.

A map whose output's mean over the coordinates goes unseen (mean-subtracting norms follow, or a softmax) takes
(dW, db) = (1 x^T, t 1); an embedding takes a constant in each row.

Source: the kernel step is Shirodkar and Narayanan's, arXiv:2606.19491; the other families are this project's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deadreckon.kernel.anatomy import Anatomy, NormSite, Reader, Writer
from deadreckon.kernel.norm import Float64Array, Norm
from deadreckon.kernel.subspace import DeadSubspace

Tensors = Callable[[str], Float64Array]
"""Any tensor of the model by name, as it is stored, in float64."""

Step = dict[str, Float64Array]
"""What to add to which tensor."""


@dataclass(frozen=True, eq=False)
class Family(ABC):
    """Dead directions of one kind at one place.

    Attributes:
        reason: the kind, a key of the census.
        tensor: the tensor that they are counted under.
        dimensions: how many there are, independent of each other and of every other family's.
    """

    reason: str
    tensor: str
    dimensions: int
    anatomy: Anatomy

    @abstractmethod
    def step(self, index: int, size: float, tensors: Tensors) -> Step:
        """A finite step that changes no output.

        Args:
            index: which direction, below `dimensions`.
            size: how far along it, positive.
            tensors: the model's tensors; only those that the family needs are asked for.

        Returns:
            What to add to which tensor, in the tensors' own shapes.
        """

    def direction(self, index: int, tensors: Tensors) -> Step:
        """The direction in which `step` sets off: its derivative at size 0. Most families are straight lines."""
        return self.step(index, 1.0, tensors)


@dataclass(frozen=True, eq=False)
class LiveNorm:
    """A norm's site with its parameters, and the kernel that these give it.

    Attributes:
        site: where it is.
        norm: its parameters.
        kernel: orthonormal basis, shape (d, k). Where the shift has a component in the kernel the first vector carries
            all of it.
        constant: what the first vector reads, v.shift; 0 without a shift.
    """

    site: NormSite
    norm: Norm
    kernel: Float64Array
    constant: float

    @classmethod
    def of(cls, site: NormSite, norm: Norm) -> LiveNorm:
        """Find the kernel of a norm.

        Args:
            site: where it is.
            norm: its parameters.

        Returns:
            Both with the kernel.
        """
        kernel = DeadSubspace.of(norm).kernel()
        shift = np.zeros(norm.hidden_size) if norm.shift is None else norm.shift
        constants = kernel.T @ shift
        size = float(np.linalg.norm(constants))
        if kernel.shape[1] < 2 or size == 0.0:
            return cls(site, norm, kernel, float(constants[0]) if constants.size == 1 else 0.0)
        # A reflection that takes the constants to the first axis: the other vectors then read zero.
        axis = constants / size
        axis[0] += 1.0 if axis[0] >= 0 else -1.0
        kernel = kernel - np.outer(kernel @ axis, axis) * (2 / (axis @ axis))
        return cls(site, norm, kernel, float(kernel[:, 0] @ shift))

    def of_reader(self, reader: Reader) -> Float64Array:
        """The kernel vectors along which a reader's weight (with its bias) is free, shape (d, k)."""
        return self.kernel[:, 1:] if reader.bias is None and self.constant != 0.0 else self.kernel

    @property
    def unbiased(self) -> list[Reader]:
        """The readers without a bias."""
        return [reader for reader in self.site.readers if reader.bias is None]


@dataclass(frozen=True, eq=False)
class ReaderKernel(Family):
    """A reader's weight along the kernel, with the bias that makes up for the constant."""

    live: LiveNorm
    reader: Reader

    def step(self, index: int, size: float, tensors: Tensors) -> Step:
        """Row `index // k` of the weight along kernel vector `index % k`."""
        vectors = self.live.of_reader(self.reader)
        row, column = divmod(index, vectors.shape[1])
        outputs = self.anatomy.outputs_of(self.reader)
        along = np.zeros(outputs)
        along[row] = size
        step = {self.reader.weight: _stored(np.outer(along, vectors[:, column]), self.reader)}
        if self.reader.bias is not None and self.live.norm.shift is not None:
            step[self.reader.bias] = -float(vectors[:, column] @ self.live.norm.shift) * along
        return step


@dataclass(frozen=True, eq=False)
class GainScaling(Family):
    """One gain and its shift times s = 1 + size, the readers' columns divided by s."""

    live: LiveNorm

    def step(self, index: int, size: float, tensors: Tensors) -> Step:
        """Gain and shift times 1 + size."""
        return self._scaled(index, size, 1 / (1 + size) - 1, tensors)

    def direction(self, index: int, tensors: Tensors) -> Step:
        """The derivative at s = 1."""
        return self._scaled(index, 1.0, -1.0, tensors)

    def _scaled(self, index: int, up: float, down: float, tensors: Tensors) -> Step:
        site, norm = self.live.site, self.live.norm
        coordinate = int(np.flatnonzero(norm.gain)[index])
        unit = np.zeros(norm.hidden_size)
        unit[coordinate] = 1.0
        step = {str(site.gain): up * norm.gain * unit}
        if site.shift is not None and norm.shift is not None:
            step[site.shift] = up * norm.shift * unit
        for reader in site.readers:
            weight = _plain(tensors(reader.weight), reader)
            step[reader.weight] = _stored(down * weight * unit, reader)
        return step


@dataclass(frozen=True, eq=False)
class ShiftFreedom(Family):
    """The shift moved, and every reader's constant moved back: by its bias, or without one along the kernel.

    With ``along_mean`` there is one direction only, the same amount in every coordinate.
    """

    live: LiveNorm
    along_mean: bool

    def step(self, index: int, size: float, tensors: Tensors) -> Step:
        """The shift moved by size, away from where the constant would vanish."""
        return self._moved(index, size, tensors, tangent=False)

    def direction(self, index: int, tensors: Tensors) -> Step:
        """The derivative at size 0."""
        return self._moved(index, 1.0, tensors, tangent=True)

    def _moved(self, index: int, size: float, tensors: Tensors, *, tangent: bool) -> Step:
        site, width, constant = self.live.site, self.live.norm.hidden_size, self.live.constant
        move = np.full(width, size) if self.along_mean else np.zeros(width)
        move[index] = size
        step = {str(site.shift): move}
        first = self.live.kernel[:, 0] if self.live.unbiased else np.zeros(width)
        if constant * float(first @ move) < 0 and not tangent:
            move *= -1.0  # away from where the constant would vanish
        constant = constant if tangent else constant + float(first @ move)
        for reader in site.readers:
            moved = _plain(tensors(reader.weight), reader) @ move
            if reader.bias is not None:
                step[reader.bias] = -moved
            else:
                step[reader.weight] = _stored(np.outer(-moved / constant, first), reader)
        return step


@dataclass(frozen=True, eq=False)
class UnseenMean(Family):
    """A writer's output mean: the same row added to all of a weight's rows, or a constant to the bias.

    ``inputs`` are the columns that count; those that a kernel family has already are left out.
    """

    writer: Writer
    inputs: Sequence[int]

    def step(self, index: int, size: float, tensors: Tensors) -> Step:
        """The same row added to every row; the bias comes last."""
        shape = self.anatomy.tensors[self.writer.weight]
        if self.writer.bias is not None and index == self.dimensions - 1:
            return {self.writer.bias: np.full(self.anatomy.tensors[self.writer.bias], size)}
        if self.writer.freedom == "entries":
            return {self.writer.weight: np.full(shape, size)}
        row = np.zeros(self.anatomy.inputs_of(self.writer))
        row[self.inputs[index]] = size
        whole = np.tile(row, (self.anatomy.outputs_of(self.writer), 1))
        return {self.writer.weight: whole.T if self.writer.input_first else whole.reshape(shape)}


@dataclass(frozen=True, eq=False)
class RowMeans(Family):
    """A constant in one row of a table of embeddings."""

    def step(self, index: int, size: float, tensors: Tensors) -> Step:
        """Row `index` moved by size in every entry."""
        shape = self.anatomy.tensors[self.tensor]
        rows = np.zeros((self.dimensions, shape[-1]))
        rows[index] = size
        return {self.tensor: rows.reshape(shape)}


def _plain(stored: Float64Array, reader: Reader) -> Float64Array:
    """A weight as (out, in)."""
    return stored.T if reader.input_first else stored


def _stored(plain: Float64Array, reader: Reader) -> Float64Array:
    """A weight as it is stored."""
    return plain.T if reader.input_first else plain
