"""One pass over a calibration: run the model, take the norm's input and output, leave masked positions out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.anatomy import NormSite, check_same_width, run
from deadreckon.forward.batching import BatchSize, Rows
from deadreckon.forward.calibration import Batch, Calibration, placed
from deadreckon.forward.capture import Captured, capture
from deadreckon.forward.distinct import DistinctIds, ids_of
from deadreckon.forward.evaluating import evaluating
from deadreckon.forward.memory import out_of_memory
from deadreckon.forward.nonfinite import where_nonfinite
from deadreckon.forward.placement import computing_device, input_device
from deadreckon.forward.share import WHOLE, Share
from deadreckon.forward.statistics import NormStatistics

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Collected:
    """The statistics of a pass, and the distinct token ids it saw (None where inputs are not ids)."""

    statistics: NormStatistics
    ids: frozenset[int] | None


def collect(
    model: nn.Module,
    site: NormSite,
    calibration: Calibration,
    *,
    tokens: int | None,
    keep_tokens: bool = False,
    batch_size: int | None = None,
    share: Share = WHOLE,
    progress: Progress | None = None,
) -> Collected:
    """Run `model` over the calibration and gather the statistics of the norm at `site`.

    Args:
        model: called with each batch's keyword arguments; left in the mode it was in.
        site: a norm inside it.
        calibration: where the batches come from.
        tokens: stop after this many unmasked tokens, those of other shares counted in; None takes every batch.
        keep_tokens: keep the tokens themselves, for solvers that need them.
        batch_size: rows a forward at most; None lets memory decide.
        share: which rows to run; all shares together see the tokens that one process would.
        progress: called with tokens done and wanted after every forward.

    Returns:
        What was collected.

    Raises:
        InputError: the norm's output is not finite, or it does not act on the last dimension.
        UsageError: one row does not fit memory, or a mask does not fit the norm's output.
    """
    device = input_device(model)
    statistics = NormStatistics(site.norm, computing_device(site.module, device), keep_tokens=keep_tokens)
    size = BatchSize(batch_size, device, weights_on_disk="disk" in getattr(model, "hf_device_map", {}).values())
    # Keys and values of past tokens are for generation; here they would only take memory.
    extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    budget, first = _Budget(tokens), 0
    seen = DistinctIds()
    with evaluating(model), capture(site.module, site.path) as captured:
        for number, batch in enumerate(calibration.batches()):
            rows = Rows.of(batch)
            if not rows.count:
                continue
            mask = _mask(model, site, batch, rows)
            allowed = budget.allowed(rows, mask)
            mine = share.of(first, rows.count)
            first += rows.count
            # How many tokens an unmasked row has is seen when one has run, if need be one of another share.
            queue = mine if mine or allowed is not None else [0]
            while queue:
                queue = [row for row in queue if allowed is None or allowed[row]]
                chosen = queue[: size.rows if allowed is not None else 1]
                if not chosen:
                    break
                part = {**extra, **placed(rows.take(chosen), device)}
                pair = _forward(model, site, part, captured)
                if pair is None:
                    size.failed(len(chosen), _shapes(part))
                    continue
                inputs, outputs = (_by_row(tensor, len(chosen), site) for tensor in pair)
                if allowed is None:
                    allowed = budget.learned(rows, outputs.shape[1])
                keep = _kept(mask, chosen, [allowed[row] if row in mine else 0 for row in chosen], outputs, site)
                taken = _select(outputs, keep)
                if not torch.isfinite(taken).all():
                    raise InputError(
                        f"batch {number}, {where_nonfinite(model, part, chosen, outputs, keep)}: the model diverged, "
                        f"or overflows in {str(taken.dtype).removeprefix('torch.')}; try another dtype"
                    )
                statistics.update(_select(inputs, keep), taken)
                ids = ids_of(part, outputs.shape[:2])
                seen.add(None if ids is None else _select(ids, keep))
                size.ran(len(chosen), outputs.shape[0] * outputs.shape[1])
                queue = queue[len(chosen) :]
                if progress:
                    progress(statistics.count, share.of_tokens(tokens))
            if budget.spent(allowed or []):
                break
    return Collected(statistics, seen.ids())


class _Budget:
    """How many tokens of which rows are wanted, counted over all shares alike."""

    def __init__(self, tokens: int | None) -> None:
        self._left = tokens
        self._lengths: dict[tuple[object, ...], int] = {}

    def allowed(self, rows: Rows, mask: Tensor | None) -> list[int] | None:
        """Tokens to take of each row: its unmasked ones, as far as wanted; None while the rows' length is unknown."""
        if mask is not None:
            return self._within(list(mask.sum(1).tolist()))
        length = self._lengths.get(rows.key())
        return None if length is None else self._within([length] * rows.count)

    def learned(self, rows: Rows, length: int) -> list[int]:
        """The same, after a row was seen to have `length` tokens."""
        self._lengths[rows.key()] = length
        return self._within([length] * rows.count)

    def _within(self, lengths: list[int]) -> list[int]:
        if self._left is None:
            return lengths
        taken, left = [], self._left
        for available in lengths:
            taken.append(min(available, left))
            left -= taken[-1]
        return taken

    def spent(self, taken: Sequence[int]) -> bool:
        """Book the tokens that were taken; whether no more are wanted."""
        if self._left is None:
            return False
        self._left -= sum(taken)
        return self._left <= 0


def _forward(model: nn.Module, site: NormSite, part: Batch, captured: Captured) -> tuple[Tensor, Tensor] | None:
    """Input and output of the norm in one forward pass; None where there was no memory for it."""
    try:
        run(model, part)
    except Exception as error:
        if not out_of_memory(error):
            raise
        captured.drop()
        return None
    inputs, outputs = captured.take()
    check_same_width(site, outputs)
    return inputs, outputs


def _by_row(tensor: Tensor, rows: int, site: NormSite) -> Tensor:
    """A captured tensor as (rows, tokens of a row, d)."""
    if tensor[..., 0].numel() % rows:
        raise UsageError(f"{site.path} ran on {tuple(tensor.shape)} for {rows} rows: give one row a batch")
    return tensor.reshape(rows, -1, tensor.shape[-1])


def _kept(
    mask: Tensor | None, chosen: Sequence[int], allowed: Sequence[int], outputs: Tensor, site: NormSite
) -> Tensor | None:
    """Which positions to take, shape (rows, tokens of a row); None for all of them."""
    rows, length = outputs.shape[:2]
    if mask is None:
        if all(wanted == length for wanted in allowed):
            return None
        real = torch.ones(rows, length, dtype=torch.bool, device=outputs.device)
    else:
        real = mask[list(chosen)].to(outputs.device)
        if real.shape != (rows, length):
            raise UsageError(
                f"the attention mask has {mask.shape[1]} entries a row and {site.path} ran on {length} tokens a row: "
                "give batches whose mask has one entry a token"
            )
    wanted = torch.tensor(allowed, device=outputs.device)
    return real & (real.cumsum(1) <= wanted[:, None])


def _select(tensor: Tensor, keep: Tensor | None) -> Tensor:
    """The kept positions of a tensor (rows, tokens, ...), flattened."""
    return tensor.flatten(0, 1) if keep is None else tensor[keep]


def _mask(model: nn.Module, site: NormSite, batch: Batch, rows: Rows) -> Tensor | None:
    """Which positions hold real tokens, shape (rows, tokens of a row), where the batch says so."""
    decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False) and not _in_encoder(model, site)
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    return mask.bool().reshape(rows.count, -1) if isinstance(mask, Tensor) else None


def _in_encoder(model: nn.Module, site: NormSite) -> bool:
    get_encoder = getattr(model, "get_encoder", None)
    return get_encoder is not None and any(module is site.module for module in get_encoder().modules())


def _shapes(batch: Batch) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items() if isinstance(value, Tensor))
