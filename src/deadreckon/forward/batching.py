"""How many rows go through a model at a time: a batch cut into rows, and a size that memory decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.calibration import Batch
from deadreckon.forward.memory import free_memory, memory_peak, memory_used

# Beyond it matrix units are full: 4,096 tokens a batch ran as fast as 16,384 (7B, H200), in less memory.
_FULL = 4096


@dataclass(frozen=True)
class Rows:
    """A batch as rows that can be run apart; a batch whose tensors do not agree on their number is one row."""

    batch: Batch
    count: int
    divisible: bool

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        """The rows of a batch: the first dimension of its tensors."""
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
        counts = {value.shape[0] if value.dim() else None for value in tensors}
        divisible = len(counts) == 1 and None not in counts
        return cls(batch, tensors[0].shape[0] if divisible else 1, divisible)

    def take(self, rows: Sequence[int]) -> Batch:
        """The batch with these rows alone."""
        if not self.divisible:
            return self.batch
        index = torch.tensor(rows)
        return {
            key: value[index.to(value.device)] if isinstance(value, Tensor) else value
            for key, value in self.batch.items()
        }

    def key(self) -> tuple[object, ...]:
        """What rows of equal length have in common: the shapes of a row's tensors."""
        return tuple(
            (key, value.shape[1 if self.divisible else 0 :])
            for key, value in sorted(self.batch.items())
            if isinstance(value, Tensor)
        )


class BatchSize:
    """Rows a forward pass: a fixed number, or one that doubles from 1 while memory allows, to what fills a device.

    Attributes:
        rows: how many to run next.
    """

    def __init__(self, fixed: int | None, device: torch.device, *, weights_on_disk: bool = False) -> None:
        """A size to start with.

        Args:
            fixed: number of rows; None decides by itself.
            device: where the model runs.
            weights_on_disk: weights are read anew for every batch, so batches grow as far as memory allows.
        """
        self.rows = 1 if fixed is None else fixed
        self._growing = fixed is None
        self._device = device
        self._full = float("inf") if weights_on_disk else _FULL
        self._before = memory_used(device) if self._growing else 0

    def ran(self, rows: int, tokens: int) -> None:
        """Learn from a batch that ran."""
        if not self._growing or rows < self.rows or 2 * tokens > self._full:
            return
        used = memory_peak(self._device) - self._before
        free = free_memory(self._device)
        self._growing = free is None or used < free  # where it is not known, running out of it will tell
        if self._growing:
            self.rows *= 2

    def failed(self, rows: int, what: str) -> None:
        """Go on with half as many rows after `rows` of them did not fit.

        Raises:
            UsageError: one row does not fit.
        """
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._growing = False
        if rows <= 1:
            free = free_memory(self._device)
            left = "" if free is None else f": {free / 1e9:.1f} GB are free on {self._device}"
            raise UsageError(
                f"one row ({what}) does not fit{left}; give "
                "shorter rows, a smaller dtype (--dtype bfloat16), or spread the model with "
                "device_map='auto' (--device-map auto)"
            )
        self.rows = rows // 2
