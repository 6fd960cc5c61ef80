"""Second moments of the residual stream after the embeddings and after every block, and the ends of their spectra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.bottom import bottom, largest_eigenvalue
from deadreckon.forward.moments import Moments
from deadreckon.forward.precision import AT_FLOOR, UNIT_ROUNDOFF, at_floor, storage_floor

# Bytes that the matrices of one batched solve may take, with the copies that it makes of them.
_WORKSPACE = 16 * 2**30
_COPIES = 5
_SMALLEST = 64  # below this a whole solve costs less


def block_list(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a model with their paths, in order: its longest list of modules that is not part of another.

    Args:
        model: any module.

    Returns:
        Path and module of every block.

    Raises:
        UsageError: the model has no list of modules.
    """
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    outer = {p: m for p, m in lists.items() if not any(p.startswith(f"{other}.") for other in lists)}
    if not outer:
        raise UsageError(f"{type(model).__name__} has no list of blocks: its residual stream cannot be followed")
    path, blocks = max(outer.items(), key=lambda item: len(item[1]))
    return [(f"{path}.{name}".lstrip("."), block) for name, block in blocks.named_children()]


class StreamMoments:
    """Moments of the stream at every node: index -1 is what enters the first block, index l what leaves block l.

    Each tensor is consumed as it appears, on the device where it is: what runs later cannot change it, and no
    activation is kept.

    Attributes:
        nodes: index -> moments.
        dtypes: index -> dtype of the stream there.
        keep: which positions of the running batch count, shape (rows, tokens); None for all.
    """

    def __init__(self, blocks: Sequence[tuple[str, nn.Module]]) -> None:
        self._blocks = blocks
        self.nodes: dict[int, Moments] = {}
        self.dtypes: dict[int, torch.dtype] = {}
        self.keep: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect while the context is open; the hooks leave with it."""

        def enters(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._add(-1, next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

        def leaves(index: int) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                self._add(index, output if isinstance(output, Tensor) else output[0])

            return hook

        handles = [self._blocks[0][1].register_forward_pre_hook(enters, with_kwargs=True)]
        handles += [block.register_forward_hook(leaves(index)) for index, (_, block) in enumerate(self._blocks)]
        try:
            with torch.no_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, index: int, stream: Tensor) -> None:
        kept = stream.flatten(0, -2) if self.keep is None else stream[self.keep.to(stream.device)]
        if index not in self.nodes:
            self.nodes[index] = Moments(stream.shape[-1], stream.device, centred=False)
            self.dtypes[index] = stream.dtype
        self.nodes[index].update(kept)


@dataclass(frozen=True)
class NodeSpectrum:
    """The ends of the stream's singular values at one node, each divided by sqrt(N).

    Attributes:
        index: of the block; -1 for what enters the first.
        sigma_min: smallest.
        sigma_min_error: bound on its distance from an exact one, before rounding of the Gram, where none was missed.
        sigma_floor: what rounding of the stored stream and of the Gram may make of a singular value of zero.
        sigma_geomean: geometric mean of those above the floor.
        sigma_max: largest, from below, to a few hundredths.
        direction: right-singular vector of the smallest, shape (d,).
        whole: whether the whole spectrum was solved for, because no certificate was had for its bottom alone.
    """

    index: int
    sigma_min: float
    sigma_min_error: float
    sigma_floor: float
    sigma_geomean: float
    sigma_max: float
    direction: Tensor
    whole: bool


def node_spectra(nodes: Mapping[int, Moments], dtypes: Mapping[int, torch.dtype]) -> list[NodeSpectrum]:
    """The spectrum's ends at every node, many nodes in one batched solve.

    Args:
        nodes: index -> moments, of any sizes on any devices.
        dtypes: index -> dtype in which the stream is stored there.

    Returns:
        One entry a node, by index.
    """
    found: list[NodeSpectrum] = []
    groups: dict[tuple[int, torch.device], list[int]] = {}
    for index, moments in sorted(nodes.items()):
        groups.setdefault((moments.size, moments.device), []).append(index)
    for (size, device), indices in groups.items():
        # On the host nothing is won by solving many at once, and memory is lost.
        together = max(1, _WORKSPACE // (8 * size**2 * _COPIES)) if device.type == "cuda" else 1
        for start in range(0, len(indices), together):
            part = indices[start : start + together]
            grams = torch.stack([nodes[index].gram().div_(nodes[index].count) for index in part])
            found += _solved(part, grams, [dtypes[index] for index in part])
    return sorted(found, key=lambda node: node.index)


def _solved(indices: Sequence[int], grams: Tensor, dtypes: Sequence[torch.dtype]) -> list[NodeSpectrum]:
    size = grams.shape[-1]
    nodes = []
    for index, gram, dtype, end in zip(indices, grams, dtypes, _ends(grams), strict=True):
        # A logarithm of what may be rounding alone tells nothing: with a value at the floor, all are looked at.
        whole = end is None or at_floor(end.value, _floor(gram, dtype, end) ** 2)
        if end is None or whole:
            eigenvalues, vectors = torch.linalg.eigh(gram)
            end = _End(float(eigenvalues[0]), 0.0, vectors[:, 0], float(eigenvalues[-1]), math.nan)
            above = eigenvalues[eigenvalues > AT_FLOOR * _floor(gram, dtype, end) ** 2]
            geomean = float(above.log().mean().exp().sqrt()) if len(above) else 0.0
        else:
            geomean = math.exp(end.log_det / (2 * size))
        value, error, direction, top, _ = end
        floor = _floor(gram, dtype, end)
        sigma = math.sqrt(max(value, 0.0))
        nodes.append(
            NodeSpectrum(
                index=index,
                sigma_min=sigma,
                sigma_min_error=min(math.sqrt(error), error / sigma) if sigma > 0 else math.sqrt(error),
                sigma_floor=floor,
                sigma_geomean=geomean,
                sigma_max=math.sqrt(max(top, 0.0)),
                direction=direction,
                whole=whole,
            )
        )
    return nodes


class _End(NamedTuple):
    """The smallest eigenvalue of a Gram, the bound on its error, its eigenvector, the largest, and log det."""

    value: float
    error: float
    direction: Tensor
    top: float
    log_det: float


def _ends(grams: Tensor) -> list[_End | None]:
    """What is found without whole solves, None where that has no certificate."""
    if grams.shape[-1] < _SMALLEST:
        return [None] * len(grams)
    largest = largest_eigenvalue(grams, blocks=8).value
    ends = bottom(grams, 1, scale=largest)
    sure = ends.certified & ~ends.log_det.isnan()
    columns = (ends.eigenvalues[:, 0], ends.error[:, 0], largest, ends.log_det, sure)
    return [
        _End(value, error, direction, top, log_det) if certain else None
        for (value, error, top, log_det, certain), direction in zip(
            zip(*(column.tolist() for column in columns), strict=True), ends.eigenvectors[..., 0], strict=True
        )
    ]


def _floor(gram: Tensor, dtype: torch.dtype, end: _End) -> float:
    """What a singular value of zero may have become."""
    return storage_floor(dtype, gram.diagonal(), end.direction) + math.sqrt(
        UNIT_ROUNDOFF * max(end.top, 0.0) * len(gram)
    )
