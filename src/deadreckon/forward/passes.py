"""Forward passes over the same tokens, as often as a job needs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.anatomy import run
from deadreckon.forward.batching import Rows
from deadreckon.forward.blocks import BlockStack
from deadreckon.forward.calibration import Batch, Calibration, placed
from deadreckon.forward.memory import free_memory, out_of_memory
from deadreckon.forward.placement import input_device

_LENGTHS = ("decoder_input_ids", "input_ids")  # inputs of one entry a token
_FULL = 4096  # tokens a forward that fill an accelerator

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Part:
    """What one forward pass runs on.

    Attributes:
        number: of the batch it is cut from.
        inputs: keyword arguments, on the model's device.
        rows: which rows of the batch these are.
        main: the stream whose tokens are counted.
        length: positions of a row in it.
        keep: which of them count, shape (rows, length), where some do not; None for all.
        count: how many count.
    """

    number: int
    inputs: Mapping[str, Any]
    rows: list[int]
    main: BlockStack
    length: int
    keep: Tensor | None
    count: int


class Passes:
    """Runs a model over the first N unmasked tokens of a calibration, the same ones in every pass.

    Attributes:
        done: how many passes ran to their end.
        tokens: N of the main stream, known after the first of them.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Calibration,
        main: BlockStack,
        *,
        tokens: int | None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Nothing has run yet.

        Args:
            model: in evaluation mode.
            calibration: its inputs.
            main: the stream whose tokens are counted.
            tokens: N; None for all there are.
            batch_size: rows a forward at most; None for as many as fill a device, fewer where memory is short.
            progress: called with tokens done and wanted after every forward.
        """
        self.model, self.calibration, self.main = model, calibration, main
        self.wanted, self.done, self.tokens = tokens, 0, 0
        first: Mapping[str, Any] = next(iter(calibration.batches()), {})
        self._counted = next(
            (n for n in _LENGTHS if isinstance(first.get(n), Tensor) and first[n].shape[1:] == (main.tokens,)), None
        )
        self._rows = batch_size or max(1, _FULL // main.tokens)
        self._progress = progress
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        # Keys and values of past tokens are for generation; here they would only take memory.
        self._extra = {"use_cache": False} if takes_cache else {}

    def run(self, watch: Callable[[], AbstractContextManager[Callable[[Part], None]]]) -> None:
        """One pass; where memory runs out, it starts anew with half as many rows at a time.

        Args:
            watch: opens what watches the pass, with nothing collected yet, and gives what is to be told each part
                before it runs.

        Raises:
            UsageError: one row does not fit memory.
        """
        while True:
            try:
                with torch.no_grad(), watch() as prepare:
                    seen = 0
                    for part in self.parts():
                        prepare(part)
                        run(self.model, part.inputs)
                        seen += part.count
                        if self._progress:
                            self._progress(seen, self.wanted)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                self._smaller()
                continue
            self.tokens, self.done = seen, self.done + 1
            return

    def parts(self) -> Iterator[Part]:
        """What the forwards of one pass run on."""
        device = input_device(self.model)
        left = self.wanted
        for number, batch in enumerate(self.calibration.batches()):
            rows = Rows.of(batch)
            length = self._length(batch)
            mask = main_mask(self.model, batch)
            mask = mask if mask is not None and mask.shape[-1] == length else None
            lengths = [length] * rows.count if mask is None else mask.sum(-1).tolist()
            for start in range(0, rows.count, self._rows):
                chosen = list(range(start, min(start + self._rows, rows.count)))
                wanted = []
                for row in chosen:
                    wanted.append(lengths[row] if left is None else min(lengths[row], left))
                    left = None if left is None else left - wanted[-1]
                keep = None if mask is None else mask[chosen]
                if wanted != [lengths[row] for row in chosen]:
                    real = torch.ones(len(chosen), length, dtype=torch.bool) if keep is None else keep
                    keep = real & (real.cumsum(1) <= torch.tensor(wanted, device=real.device)[:, None])
                if not sum(wanted):
                    return
                inputs = {**self._extra, **placed(rows.take(chosen), device)}
                yield Part(number, inputs, chosen, self.main, length, keep, sum(wanted))
                if left == 0:
                    return

    def _length(self, batch: Batch) -> int:
        """Positions that a row has in the main stream: those of the input that has as many in the row first seen."""
        return self.main.tokens if self._counted is None else int(batch[self._counted].shape[-1])

    def _smaller(self) -> None:
        device = input_device(self.model)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if self._rows <= 1:
            free = free_memory(device)
            left = "" if free is None else f": {free / 1e9:.1f} GB are free on {device}"
            raise UsageError(
                f"one row does not fit{left}; give shorter rows, fewer Grams at a time (--memory), a smaller dtype "
                "(--dtype bfloat16), or spread the model with device_map='auto' (--device-map auto)"
            )
        self._rows //= 2


def main_mask(model: nn.Module, batch: Batch) -> Tensor | None:
    """Which positions of the main stream hold real tokens, shape (rows, tokens), where the batch says so."""
    decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
