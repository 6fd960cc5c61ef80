"""Which token ids a pass saw: with fewer of them than dimensions, a stream without positions cannot have full rank."""

from __future__ import annotations

import torch
from torch import Tensor

from deadreckon.forward.calibration import Batch


class DistinctIds:
    """The distinct token ids of a pass; None as soon as some inputs have none."""

    _HELD = 2**20  # looked through together: one by one, an accelerator would be waited for after every batch

    def __init__(self) -> None:
        self._held: list[Tensor] | None = []

    def add(self, ids: Tensor | None) -> None:
        """Add those of a batch; None where it has none."""
        if ids is None or self._held is None:
            self._held = None
            return
        self._held.append(ids)
        if sum(part.numel() for part in self._held) > self._HELD:
            self._held = [torch.unique(torch.cat(self._held))]

    def ids(self) -> frozenset[int] | None:
        """All that were added."""
        if self._held is None:
            return None
        return frozenset(torch.cat(self._held).tolist()) if self._held else frozenset()


def ids_of(batch: Batch, shape: torch.Size) -> Tensor | None:
    """The token ids of a batch that line up with positions of that shape; None where there are none."""
    mixed = any(isinstance(value, Tensor) and value.is_floating_point() for value in batch.values())
    for name in ("decoder_input_ids", *(() if mixed else ("input_ids",))):  # a placeholder's id says nothing
        ids = batch.get(name)
        if isinstance(ids, Tensor) and ids.numel() == shape.numel():
            return ids.reshape(shape)
    return None
