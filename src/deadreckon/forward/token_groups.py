"""Modality and position of every token that a pass counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deadreckon.forward.blocks import BlockStack
from deadreckon.forward.modality import MODALITIES, modality
from deadreckon.forward.passes import Part

_BINS = 16  # ranges that positions are grouped in: a page of them, and each a few positions in short sequences


class TokenGroups:
    """Collects what every token of a stream is, part by part."""

    def __init__(self, config: Any, stack: BlockStack) -> None:
        """Nothing collected yet.

        Args:
            config: the model's, which names its placeholders.
            stack: the stream; only the one of the language model holds what the ids stand for.
        """
        self._config = config if stack.role in {"final", "decoder"} else None
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._labels: list[Tensor] = []
        self._positions: list[Tensor] = []

    def begin(self, part: Part, mask: Tensor | None) -> None:
        """Note what the next forward runs on, and which positions of the stream count in it."""
        self._mask = mask
        self._labelled = None if self._config is None else modality(part.inputs, self._config)
        self._rows = len(part.rows)

    def saw(self, stream: Tensor) -> None:
        """Note the positions that the stream has in it."""
        count = stream[..., 0].numel()
        length = count // self._rows if count % self._rows == 0 else count
        keep = torch.ones(count, dtype=torch.bool) if self._mask is None else self._mask.flatten().cpu()
        labels = None if self._labelled is None else self._labelled.flatten().cpu()
        fits = labels is not None and labels.numel() == count
        self._positions.append((torch.arange(count) % length)[keep])
        self._labels.append(labels[keep] if labels is not None and fits else torch.full((int(keep.sum()),), -1))

    def groups(self) -> dict[str, Tensor]:
        """Which tokens are in what: modalities where there are several, and ranges of positions.

        Returns:
            Name -> bool of shape (N,), in the order of the tokens.
        """
        labels, positions = torch.cat(self._labels), torch.cat(self._positions)
        found = {MODALITIES[k]: labels == k for k in torch.unique(labels).tolist() if k >= 0}
        found = found if len(found) > 1 else {}
        length = int(positions.max()) + 1
        width = -(-length // _BINS)
        for start in range(0, length, width):
            stop = min(start + width, length)
            name = f"positions {start}-{stop - 1}" if stop - start > 1 else f"position {start}"
            found[name] = (positions >= start) & (positions < stop)
        return found
