"""The inputs of a forward pass: batches of a model's own keyword arguments, whatever its modality.

A calibration is anything that can be iterated more than once and yields keyword arguments; the measurement takes as
many as it needs. Twins get the same batches as the model they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError

Batch = Mapping[str, Any]

_BEGINNING = 32
_MOST_NUMBERS = 2**26  # in a batch: 64 images of 518 x 518, one clip of 64 frames


@dataclass(frozen=True)
class Calibration:
    """A stream of batches with its description.

    Attributes:
        describe: what the inputs are, for the record.
        batches: makes a fresh iterator over keyword arguments of the model's forward.
        skipped: names of inputs that were left out because they cannot be read.
    """

    describe: str
    batches: Callable[[], Iterator[Batch]]
    skipped: tuple[str, ...] = ()


def placed(batch: Batch, device: torch.device) -> dict[str, Any]:
    """A batch's keyword arguments with tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def first_row(batch: Batch) -> Batch:
    """The first sequence (of text, its beginning) or image of a batch; all of it where its tensors disagree."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    if len({value.shape[:1] for value in tensors.values()}) != 1 or any(not value.dim() for value in tensors.values()):
        return batch
    first = next(iter(tensors.values()))
    text = len({value.shape for value in tensors.values()}) == 1 and first.dim() == 2 and not first.is_floating_point()
    part = (slice(1), slice(_BEGINNING)) if text else slice(1)
    return {**batch, **{key: value[part] for key, value in tensors.items()}}


def given(batches: Iterable[Batch]) -> Calibration:
    """The user's own batches; those that were used are kept, so that every pass and every twin sees the same ones."""
    held: list[Batch] = []
    source = iter(batches)

    def replay() -> Iterator[Batch]:
        yield from held
        for batch in source:
            if not isinstance(batch, Mapping):
                raise UsageError(f"a batch is a {type(batch).__name__}: give mappings of the model's keyword inputs")
            held.append(batch)
            yield batch

    return Calibration("batches given by the caller", replay)


def batched(rows: Iterable[Mapping[str, Tensor]], batch_size: int, model: nn.Module) -> Iterator[Batch]:
    """Batches of consecutive rows of equal shapes, floating inputs in the model's dtype.

    Args:
        rows: batches of one, whose tensors begin with a dimension of 1. A row in which some tensor does not (patches of
            an image in one long list) stays alone: it could not be cut off again.
        batch_size: rows a batch at most; fewer where they are large.
        model: what they are for.

    Yields:
        Keyword arguments.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    held: list[Mapping[str, Tensor]] = []
    for row in rows:
        if held and (_shapes(row) != _shapes(held[0]) or len(held) >= min(batch_size, _most(held[0]))):
            yield _joined(held, dtype)
            held = []
        held.append(row)
    if held:
        yield _joined(held, dtype)


def _shapes(row: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in row.items()}


def _most(row: Mapping[str, Tensor]) -> int:
    alone = any(value.shape[0] != 1 for value in row.values())
    return 1 if alone else max(1, _MOST_NUMBERS // sum(value.numel() for value in row.values()))


def _joined(rows: list[Mapping[str, Tensor]], dtype: torch.dtype) -> Batch:
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in joined.items()}
