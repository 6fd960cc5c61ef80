"""Second moments of the residual stream after the embeddings and after every block, and the ends of their spectra."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.blocks import BlockStack, tapped
from deadreckon.forward.bottom import bottom
from deadreckon.forward.krylov import largest_eigenvalue
from deadreckon.forward.memory import free_memory
from deadreckon.forward.moments import Moments
from deadreckon.forward.precision import AT_FLOOR, UNIT_ROUNDOFF, storage_floor
from deadreckon.forward.smallest import smallest_eigenvalue

# Bytes that the matrices of one batched solve may take, with the copies that it makes of them.
_WORKSPACE = 24 * 2**30
_COPIES = 4
# Relative bounds on the smallest eigenvalue; the close one takes four factorisations instead of two, which small
# matrices and the host, where the forward pass takes far longer, can afford.
_CLOSE, _WIDE = 1e-3, 3e-2
_NARROW = 2048
_SMALL = 64  # size below which a whole solve costs less


class StreamMoments:
    """Moments of a residual stream at its nodes: index -1 is what enters the first block, index l what leaves block l.

    Each tensor is consumed as it appears, on the device where it is: what runs later cannot change it, and no
    activation is kept.

    Attributes:
        nodes: index -> moments.
        dtypes: index -> dtype of the stream there.
        keep: which positions of the running batch count, shape (rows, tokens); None for all.
    """

    def __init__(self, stack: BlockStack, *, only: Collection[int] | None = None, centred: bool = False) -> None:
        """Nothing collected yet.

        Args:
            stack: the stream.
            only: indices of the nodes to collect; None for all.
            centred: also keep what the covariance needs.
        """
        self.stack = stack
        self._only = only
        self._centred = centred
        self.nodes: dict[int, Moments] = {}
        self.dtypes: dict[int, torch.dtype] = {}
        self.keep: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect while the context is open."""
        with torch.no_grad(), tapped(self.stack, self._add):
            yield

    def _add(self, index: int, stream: Tensor) -> None:
        if self._only is not None and index not in self._only:
            return
        if index not in self.nodes:
            self.nodes[index] = Moments(stream.shape[-1], stream.device, centred=self._centred)
            self.dtypes[index] = stream.dtype
        self.nodes[index].update(kept(stream, self.keep))


def kept(stream: Tensor, keep: Tensor | None) -> Tensor:
    """The kept positions of a stream (..., d) as rows (n, d).

    Args:
        stream: any leading dimensions.
        keep: bool, as many entries as the stream has positions; None for all. Where a position has several vectors,
            they lie side by side.

    Returns:
        The rows.

    Raises:
        UsageError: the numbers of positions differ.
    """
    rows = stream.reshape(-1, stream.shape[-1])
    if keep is None:
        return rows
    if len(rows) % keep.numel():
        raise UsageError(f"a mask of {keep.numel()} positions does not fit a stream of {len(rows)}: give one that does")
    together = rows.reshape(keep.numel(), -1, rows.shape[-1])
    return together[keep.flatten().to(stream.device)].flatten(0, 1)


@dataclass(frozen=True)
class NodeSpectrum:
    """The ends of the stream's singular values at one node, each divided by sqrt(N).

    Attributes:
        index: of the block; -1 for what enters the first.
        sigma_min: smallest, from above.
        sigma_min_error: by how much less it may be, before rounding of the Gram.
        sigma_floor: what rounding of the stored stream and of the Gram may make of a singular value of zero.
        sigma_geomean: geometric mean of those above the floor.
        sigma_max: largest, from below, to a few hundredths.
        directions: right-singular vectors of the smallest, shape (k, d).
        bottom: their singular values, ascending, shape (k,).
        whole: whether the whole spectrum was solved for, because its bottom alone was not proven.
    """

    index: int
    sigma_min: float
    sigma_min_error: float
    sigma_floor: float
    sigma_geomean: float
    sigma_max: float
    directions: Tensor
    bottom: Tensor
    whole: bool

    @property
    def direction(self) -> Tensor:
        """Right-singular vector of the smallest, shape (d,)."""
        return self.directions[0]


def node_spectra(
    nodes: Mapping[int, Moments], dtypes: Mapping[int, torch.dtype], *, count: int = 1
) -> list[NodeSpectrum]:
    """The spectrum's ends at every node, many nodes in one batched solve.

    Args:
        nodes: index -> moments, of any sizes on any devices.
        dtypes: index -> dtype in which the stream is stored there.
        count: how many of the smallest to find, with their directions.

    Returns:
        One entry a node, by index.
    """
    found: list[NodeSpectrum] = []
    groups: dict[tuple[int, torch.device], list[int]] = {}
    for index, moments in sorted(nodes.items()):
        groups.setdefault((moments.size, moments.device), []).append(index)
    for (size, device), indices in groups.items():
        together = _together(size, device)
        for start in range(0, len(indices), together):
            part = indices[start : start + together]
            grams = torch.empty(len(part), size, size, dtype=torch.float64, device=device)
            for gram, index in zip(grams, part, strict=True):
                nodes[index].mean_gram(out=gram)
            found += _solved(part, grams, [dtypes[index] for index in part], count)
    return sorted(found, key=lambda node: node.index)


def _together(size: int, device: torch.device) -> int:
    """How many Grams to solve at once."""
    if device.type != "cuda":
        return 1  # on the host nothing is won by solving many at once, and memory is lost
    free = free_memory(device) or 0
    return max(1, min(_WORKSPACE, free // 2) // (8 * size**2 * _COPIES))


def _solved(indices: Sequence[int], grams: Tensor, dtypes: Sequence[torch.dtype], count: int) -> list[NodeSpectrum]:
    size = grams.shape[-1]
    if size < _SMALL:
        return [_whole(index, gram, dtype, count) for index, gram, dtype in zip(indices, grams, dtypes, strict=True)]
    squares = grams.diagonal(dim1=-2, dim2=-1)
    largest = largest_eigenvalue(grams, blocks=8).value
    close = len(grams) == 1 or size <= _NARROW
    ends = smallest_eigenvalue(grams, largest=largest, tolerance=_CLOSE if close else _WIDE)
    storage = [storage_floor(dtype, each, u) for dtype, each, u in zip(dtypes, squares, ends.vector, strict=True)]
    floors = torch.stack(storage) + (UNIT_ROUNDOFF * largest * size).sqrt()
    # A logarithm of what may be rounding alone tells nothing: with a value at the floor, all are looked at.
    proven = ends.proven & (ends.value > AT_FLOOR * floors.square())
    columns = (proven, ends.value, ends.error, ends.log_det, largest, floors)
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    return [
        NodeSpectrum(
            index=index,
            sigma_min=math.sqrt(value),
            sigma_min_error=math.sqrt(value) - math.sqrt(max(value - error, 0.0)),
            sigma_floor=floor,
            sigma_geomean=math.exp(log_det / (2 * size)),
            sigma_max=math.sqrt(top),
            **_bottom(gram, value, direction, count),
            whole=False,
        )
        if sure
        else _whole(index, gram, dtype, count)
        for index, gram, dtype, direction, (sure, value, error, log_det, top, floor) in zip(
            indices, grams, dtypes, ends.vector, numbers, strict=True
        )
    ]


def _bottom(gram: Tensor, value: float, direction: Tensor, count: int) -> dict[str, Tensor]:
    """The smallest singular values and their directions."""
    if count == 1:
        return {"directions": direction[None], "bottom": gram.new_tensor([value]).sqrt()}
    if 8 * count < len(gram):
        found = bottom(gram[None], count)
        if bool(found.certified):
            return {"directions": found.eigenvectors[0].T, "bottom": found.eigenvalues[0].clamp(min=0).sqrt()}
    eigenvalues, vectors = torch.linalg.eigh(gram)
    return {"directions": vectors[:, :count].T, "bottom": eigenvalues[:count].clamp(min=0).sqrt()}


def _whole(index: int, gram: Tensor, dtype: torch.dtype, count: int) -> NodeSpectrum:
    """From all eigenvalues."""
    size = len(gram)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    value, top = (max(float(eigenvalues[k]), 0.0) for k in (0, -1))
    floor = float(storage_floor(dtype, gram.diagonal(), vectors[:, 0])) + math.sqrt(UNIT_ROUNDOFF * top * size)
    above = eigenvalues[eigenvalues > AT_FLOOR * floor**2]
    return NodeSpectrum(
        index=index,
        sigma_min=math.sqrt(value),
        sigma_min_error=0.0,
        sigma_floor=floor,
        sigma_geomean=float(above.log().mean().exp().sqrt()) if len(above) else 0.0,
        sigma_max=math.sqrt(top),
        directions=vectors[:, :count].T,
        bottom=eigenvalues[:count].clamp(min=0).sqrt(),
        whole=True,
    )
