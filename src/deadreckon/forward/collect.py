"""One pass over a calibration: run the model, take the norm's input and output, leave masked positions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.anatomy import NormSite, check_same_width, device_of, evaluating, run
from deadreckon.forward.calibration import Calibration, placed
from deadreckon.forward.capture import capture
from deadreckon.forward.statistics import NormStatistics

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Collected:
    """The statistics of a pass, and how many distinct token ids it saw (None where inputs are not ids)."""

    statistics: NormStatistics
    distinct_inputs: int | None


def collect(
    model: nn.Module,
    site: NormSite,
    calibration: Calibration,
    *,
    tokens: int | None,
    keep_tokens: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Run `model` over the calibration and gather the statistics of the norm at `site`.

    Args:
        model: called with each batch's keyword arguments; left in the mode it was in.
        site: a norm inside it.
        calibration: where the batches come from.
        tokens: stop after this many unmasked tokens; None takes every batch.
        keep_tokens: keep the tokens themselves, for solvers that need them.
        progress: called with tokens done and wanted after every batch.

    Returns:
        What was collected.

    Raises:
        InputError: the norm's output is not finite, or it does not act on the last dimension.
    """
    device = device_of(model)
    statistics = NormStatistics(site.norm, device, keep_tokens=keep_tokens)
    seen: set[int] = set()
    ids_known = True
    with evaluating(model), capture(site.module, site.path) as captured:
        for batch in calibration.batches():
            moved = placed(batch, device)
            run(model, moved)
            inputs, outputs = captured.take()
            check_same_width(site, outputs)
            mask = _mask(model, site, moved, outputs.shape[:-1])
            room = None if tokens is None else tokens - statistics.native.count
            taken = outputs[mask][:room]
            if not torch.isfinite(taken).all():
                raise InputError(
                    f"{site.path} put out NaN or infinity: the model diverged, or overflows in "
                    f"{str(taken.dtype).removeprefix('torch.')}; try another dtype"
                )
            statistics.update(inputs[mask][:room], taken)
            ids = _ids(moved, mask)
            ids_known = ids_known and ids is not None
            if ids is not None:
                seen.update(torch.unique(ids[mask][:room]).tolist())
            if progress:
                progress(statistics.native.count, tokens)
            if tokens is not None and statistics.native.count >= tokens:
                break
    return Collected(statistics, len(seen) if ids_known and seen else None)


def _mask(model: nn.Module, site: NormSite, batch: Mapping[str, Any], shape: torch.Size) -> Tensor:
    """Which positions of the norm's output hold real tokens, shape `shape`, bool."""
    decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False) and not _in_encoder(model, site)
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device_of(model))
    if mask.shape != shape:
        raise UsageError(
            f"the attention mask has shape {tuple(mask.shape)} and {site.path} ran on {tuple(shape)} tokens: "
            "give batches whose mask has one entry a token"
        )
    real: Tensor = mask.bool()
    return real


def _in_encoder(model: nn.Module, site: NormSite) -> bool:
    get_encoder = getattr(model, "get_encoder", None)
    return get_encoder is not None and any(module is site.module for module in get_encoder().modules())


def _ids(batch: Mapping[str, Any], mask: Tensor) -> Tensor | None:
    """The token ids that line up with the mask."""
    for name in ("decoder_input_ids", "input_ids"):
        ids = batch.get(name)
        if isinstance(ids, Tensor) and ids.shape == mask.shape:
            return ids
    return None
