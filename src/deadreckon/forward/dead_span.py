r"""The orthogonal projection off the span of all dead directions, without forming a direction.

Most families live in one map each and overlap in closed form. A reader's kernel directions are the (a v^T, -c a), so
they come off its weight and bias row by row; what a writer adds to its outputs' mean comes off column by column, and
the two commute. Only what a norm shares with its readers is a system of equations. There the gain scalings are taken
with as much of the shift freedom and the kernel as makes them

.. math:: \Delta\gamma = \gamma \odot t, \quad \Delta\beta = P\beta \odot t, \quad \Delta W = -W\,\mathrm{diag}(t)\,P,

with P the projection off the kernel: the same span, but every entry shrinks with its gain, so a gain of 1e-30 is no
loss of digits. With S the sum of the readers' :math:`W^\top W` (weighted in S'), the Gram matrix of all that is left
after the kernels is

.. math:: \begin{pmatrix} \mathrm{diag}(\gamma^2 + (P\beta)^2) + S \odot P & \mathrm{diag}(P\beta) \\
    \mathrm{diag}(P\beta) & I + S' \end{pmatrix}:

2 d unknowns a norm, solved by Cholesky and refined until the result is orthogonal to every direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.anatomy import Reader
from deadreckon.kernel.families import Family, GainScaling, LiveNorm, ReaderKernel, RowMeans, ShiftFreedom, UnseenMean
from deadreckon.kernel.norm import Float64Array
from deadreckon.kernel.subspace import DeadSubspace

_ROUNDS = 6  # one is the solution, a second takes out its rounding; more only where gains span many decades
_EPSILON = torch.finfo(torch.float64).eps


def project_off(
    families: Iterable[Family], tensors: Callable[[str], Tensor], params: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is left of a step without its component in the span of the families, as an orthogonal projection.

    Args:
        families: all dead families of a model of which `params` has every tensor that they move.
        tensors: any parameter of the model by name, at which the directions are taken.
        params: the step by tensor, each in its parameter's shape. It is not changed.

    Returns:
        The step by tensor, on the devices and in the dtypes of `params`; what no family moves is passed on.

    Raises:
        InputError: a weight is not finite, or float64 does not resolve the directions of a norm.
        UsageError: two norms share a tensor.
    """
    span = _Span.of(families)
    rest = dict(params)
    done: set[str] = set()
    for norm in span.norms.values():
        place = _place(params[norm.moved[0]])
        names = norm.moved
        if done & set(names):
            raise UsageError(f"{norm.live.site.name} shares {sorted(done & set(names))[0]} with another norm")
        done |= set(names)
        step = {name: params[name].detach().to(place, torch.float64) for name in names}
        weights = {r.weight: tensors(r.weight).detach().to(place, torch.float64) for r in norm.live.site.readers}
        rest |= _like(_System(norm, span, weights, place).complement(step), params)
    for name in (*span.kernels, *span.means):
        if name not in done:
            kernel = span.kernels.get(name)
            names = [name] if kernel is None or kernel.reader.bias is None else [name, kernel.reader.bias]
            done |= set(names)
            step = {n: params[n].detach().to(_place(params[name]), torch.float64) for n in names}
            rest |= _like(span.complement(step), params)
    return rest


def _place(tensor: Tensor) -> torch.device:
    """Where to compute: beside the tensor, unless that device has no float64."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device


def _like(step: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(params[name].device, params[name].dtype) for name, value in step.items()}


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A reader's kernel directions: (a v^T, -c a) for every column v and its constant c."""

    reader: Reader
    vectors: Float64Array
    constants: Float64Array


@dataclass(eq=False)
class _Norm:
    """A norm with what of it moves together with its readers."""

    live: LiveNorm
    scales: bool = False
    shifts: bool = False
    along_mean: bool = False

    @property
    def moved(self) -> list[str]:
        """Every tensor that moves, or whose own families overlap with what does."""
        site = self.live.site
        names = [name for name, moves in ((site.gain, self.scales), (site.shift, True)) if name is not None and moves]
        for reader in site.readers:
            names += [reader.weight] if reader.free else []
            names += [reader.bias] if reader.bias is not None else []
        return names


@dataclass(eq=False)
class _Span:
    """The families by what they do: kernels by weight, means as tensor -> dimension (None: all), coupled norms."""

    kernels: dict[str, _Kernel] = field(default_factory=dict)
    means: dict[str, int | None] = field(default_factory=dict)
    norms: dict[str, _Norm] = field(default_factory=dict)

    @classmethod
    def of(cls, families: Iterable[Family]) -> _Span:
        span = cls()
        for family in families:
            match family:
                case ReaderKernel(live=live, reader=reader):
                    vectors = live.of_reader(reader)
                    constants = np.zeros(vectors.shape[1])
                    if reader.bias is not None:
                        constants[0] = live.constant
                    span.kernels[reader.weight] = _Kernel(reader, vectors, constants)
                case GainScaling(live=live):
                    span.norms.setdefault(live.site.name, _Norm(live)).scales = True
                case ShiftFreedom(live=live, along_mean=along_mean):
                    norm = span.norms.setdefault(live.site.name, _Norm(live))
                    norm.shifts, norm.along_mean = True, along_mean
                case UnseenMean(writer=writer):
                    if writer.freedom != "none":
                        rows = -1 if writer.input_first else 0
                        span.means[writer.weight] = rows if writer.freedom == "rows" else None
                    if writer.bias is not None:
                        span.means[writer.bias] = None
                case RowMeans(tensor=tensor):
                    span.means[tensor] = -1
        span._check()
        return span

    def _check(self) -> None:
        """Kernels and means of one map commute where the mean of a bias is free with that of its weight."""
        for name, kernel in self.kernels.items():
            bias = kernel.reader.bias
            rows = -1 if kernel.reader.input_first else 0
            halved = bool(kernel.constants.any()) and (bias in self.means) != (name in self.means)
            if halved or self.means.get(name, rows) != rows:
                raise UsageError(f"{name} reads a norm and its outputs' mean is free in part: no projection is known")

    def complement(self, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left without the families of single maps."""
        rest = dict(step)
        for name in step:
            if name in self.kernels:
                kernel = self.kernels[name]
                weight = _flip(rest[name], kernel.reader)
                vectors, constants = (torch.from_numpy(a).to(weight) for a in (kernel.vectors, kernel.constants))
                along = weight @ vectors
                if kernel.reader.bias is not None:
                    bias = rest[kernel.reader.bias]
                    along = (along - bias[:, None] * constants) / (1 + constants**2)
                    rest[kernel.reader.bias] = bias + along @ constants
                rest[name] = _flip(weight - along @ vectors.T, kernel.reader)
        for name in step:
            if name in self.means:
                dim = self.means[name]
                rest[name] = rest[name] - (rest[name].mean() if dim is None else rest[name].mean(dim, keepdim=True))
        return rest


class _System:
    """The gain scalings and shifts of one norm, beside the families of its readers."""

    def __init__(self, norm: _Norm, span: _Span, weights: Mapping[str, Tensor], place: torch.device) -> None:
        live = norm.live
        self.norm, self.span, self.site = norm, span, live.site
        self.weights = {r.weight: _flip(weights[r.weight], r) for r in live.site.readers}
        basis = DeadSubspace.of(live.norm).kernel()
        # Off the kernel. Its columns have disjoint supports, so 1 - v_i^2 is a sum that cancels nothing.
        off = -basis @ basis.T
        np.fill_diagonal(off, np.where(basis.any(1), np.where(basis != 0, _others(basis**2), 0.0).sum(1), 1.0))
        shift = np.zeros(live.norm.hidden_size) if live.site.shift is None else live.norm.shift
        self.gain, self.shift, self.off, self.kernel, self.first = (
            torch.from_numpy(a).to(place)
            for a in (live.norm.gain, off @ shift, off, basis, live.kernel[:, :1].sum(1))  # type: ignore[operator]
        )
        self.exactly = bool((self.kernel**2 > 0.5).any())
        self.scales = torch.from_numpy(live.norm.gain != 0.0).to(place) if norm.scales else self.gain[:0].bool()

    def complement(self, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left of a step without all of its dead component."""
        rest = self.span.complement(step)
        gram = self._gram()
        scale = (gram if gram.dim() == 1 else gram.diagonal()).sqrt()
        if not bool(scale.isfinite().all()):
            raise InputError(f"{self.site.name}: the weights that read it are not finite")
        factor = None
        if gram.dim() == 2:
            factor, failed = torch.linalg.cholesky_ex(gram / scale / scale[:, None])
            if bool(failed):
                raise self._unresolved()
        size = torch.stack([value.norm() for value in step.values()]).norm()
        # A product of two vectors of n entries is wrong by about sqrt(n) roundings of their sizes' product.
        bound = 8 * sum(value.numel() for value in step.values()) ** 0.5 * _EPSILON * size
        for _ in range(_ROUNDS):
            products = self._products(rest) / scale
            if bool((products.abs() <= bound).all()):
                return rest
            solved = products if factor is None else torch.cholesky_solve(products[:, None], factor)[:, 0]
            moves = self._moves(solved / scale)
            rest = self.span.complement({name: value - moves.get(name, 0.0) for name, value in rest.items()})
        raise self._unresolved()

    def _unresolved(self) -> InputError:
        return InputError(
            f"{self.site.name}: float64 does not resolve the dead directions of this norm and its readers: its gains, "
            "the part of its shift along its kernel, or the readers' weights differ by too many orders of magnitude"
        )

    def _off_kernel(self, matrix: Tensor) -> Tensor:
        """Each row off the kernel; where one gain is far below all others, in the way that keeps its digits."""
        return matrix @ self.off if self.exactly else matrix - (matrix @ self.kernel) @ self.kernel.T

    def _along(self, values: Tensor) -> Tensor:
        """The shift that the unknowns stand for."""
        return values.expand(self.gain.numel()) if self.norm.along_mean else values

    def _moves(self, unknowns: Tensor) -> dict[str, Tensor]:
        """The step that a combination of all directions makes."""
        scaled = torch.zeros_like(self.gain)
        scaled[: self.scales.numel()][self.scales] = unknowns[: int(self.scales.sum())]
        shifted = self._along(unknowns[int(self.scales.sum()) :]) if self.norm.shifts else None
        moves = {str(self.site.shift): scaled * self.shift + (0 if shifted is None else shifted)}
        moves[str(self.site.gain)] = scaled * self.gain
        for reader in self.site.readers:
            weight = self.weights[reader.weight]
            moved = -self._off_kernel(weight * scaled) if self.norm.scales else torch.zeros((), dtype=weight.dtype)
            if shifted is not None and reader.bias is not None:
                moves[reader.bias] = -weight @ shifted
            elif shifted is not None:
                moved = moved - torch.outer(weight @ shifted, self.first / self.norm.live.constant)
            moves[reader.weight] = _flip(moved, reader) if moved.dim() else moved.to(weight.device)
        return moves

    def _products(self, step: Mapping[str, Tensor]) -> Tensor:
        """The product of a step with every direction."""
        of_shift = step[self.site.shift] if self.site.shift is not None else torch.zeros_like(self.gain)
        scaled = step[str(self.site.gain)] * self.gain + of_shift * self.shift if self.norm.scales else self.gain
        shifted = of_shift
        for reader in self.site.readers:
            weight = self.weights[reader.weight]
            if self.norm.scales:
                scaled = scaled - (weight * self._off_kernel(_flip(step[reader.weight], reader))).sum(0)
            if self.norm.shifts and reader.bias is not None:
                shifted = shifted - weight.T @ step[reader.bias]
            elif self.norm.shifts:
                rows = _flip(step[reader.weight], reader) @ self.first / self.norm.live.constant
                shifted = shifted - weight.T @ rows
        parts = [scaled[self.scales]] if self.norm.scales else []
        parts += [shifted.sum(0, keepdim=True) if self.norm.along_mean else shifted] if self.norm.shifts else []
        return torch.cat(parts)

    def _gram(self) -> Tensor:
        """Products of the directions with each other, off the families of single maps; a vector if it is diagonal."""
        constant = self.norm.live.constant
        diagonal = self.norm.scales and not self.norm.shifts and not self.kernel.shape[1]
        if diagonal:
            columns = torch.stack([self._seen(r.weight, r.weight).square().sum(0) for r in self.site.readers])
            return (self.gain**2 + self.shift**2 + columns.sum(0))[self.scales]
        scaling = torch.diag(self.gain**2 + self.shift**2)
        shifting = torch.eye(self.gain.numel()).to(self.gain)
        if self.norm.along_mean:
            shifting = shifting.sum(0, keepdim=True).T
            shifting = shifting.T @ shifting
        for reader in self.site.readers:
            product = None
            if self.norm.scales:
                seen = self._seen(reader.weight, reader.weight)
                product = seen.T @ seen
                scaling += product * self.off
            if self.norm.shifts:
                through = reader.weight if reader.bias is None else reader.bias
                weighted = 1 / constant**2 if reader.bias is None else 1 / (1 + constant**2 * reader.free)
                if product is None or (through in self.span.means) != (reader.weight in self.span.means):
                    seen = self._seen(reader.weight, through)
                    seen = seen.sum(1, keepdim=True) if self.norm.along_mean else seen
                    product = seen.T @ seen
                shifting += weighted * product
        if not self.norm.scales:
            return shifting
        scaling = scaling[self.scales][:, self.scales]
        if not self.norm.shifts:
            return scaling
        across = torch.diag(self.shift)[self.scales]
        return torch.cat([torch.cat([scaling, across], 1), torch.cat([across.T, shifting], 1)])

    def _seen(self, weight: str, through: str) -> Tensor:
        """A weight without the mean over its outputs, where the tensor through which it acts has that free."""
        matrix = self.weights[weight]
        return matrix - matrix.mean(0) if through in self.span.means else matrix


def _others(squares: Float64Array) -> Float64Array:
    """For each entry of a column the sum of the column's other entries, shape (d, k)."""
    none = np.zeros((1, squares.shape[1]))
    before = np.concatenate([none, np.cumsum(squares[:-1], axis=0)])
    after = np.concatenate([np.cumsum(squares[:0:-1], axis=0)[::-1], none])
    total: Float64Array = before + after
    return total


def _flip(weight: Tensor, reader: Reader) -> Tensor:
    """A weight between how it is stored and (out, in): the same either way."""
    return weight.T if reader.input_first else weight
