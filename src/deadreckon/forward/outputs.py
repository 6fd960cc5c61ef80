"""What a model puts out over the tokens that count: run from its beginning, or from its last norm on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.anatomy import last_hidden_state, run
from deadreckon.forward.batching import Rows
from deadreckon.forward.calibration import Calibration, placed
from deadreckon.forward.capture import capture
from deadreckon.forward.memory import out_of_memory
from deadreckon.forward.passes import main_mask
from deadreckon.forward.placement import input_device

Outputs = Callable[[], Tensor]
"""Runs a model, or the end of one: logits or hidden states of the tokens that count, shape (n, k)."""

_TOGETHER = 2048  # tokens a forward


def outputs_of(output: Any) -> tuple[Tensor, str]:
    """What a model puts out, and under which metric it is compared.

    Args:
        output: whatever its forward returned.

    Returns:
        Logits and ``softmax``, or the last hidden state and ``gaussian``.

    Raises:
        UsageError: it puts out neither.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if isinstance(logits, Tensor):
        return logits, "softmax"
    hidden = last_hidden_state(output)
    if hidden is None:
        raise UsageError("the model puts out neither logits nor a last hidden state")
    return hidden, "gaussian"


@dataclass(frozen=True)
class Portion:
    """Inputs of one forward.

    Attributes:
        inputs: keyword arguments on the model's device.
        keep: which of the output's tokens count, shape (rows, tokens); None for all.
        count: how many count.
        metric: of the outputs.
        norm_inputs: what a norm was given at these tokens, shape (count, d), where one was watched.
    """

    inputs: Mapping[str, Any]
    keep: Tensor | None
    count: int
    metric: str
    norm_inputs: Tensor | None

    def through(self, model: nn.Module) -> Outputs:
        """The whole model, on these inputs."""

        def outputs() -> Tensor:
            return _kept(outputs_of(model(**self.inputs))[0], self.keep)

        return outputs

    def shortened(self, tokens: int) -> Portion:
        """One row that counts, of text its first tokens where these do."""
        rows, keep = Rows.of(self.inputs), self.keep
        row = 0 if keep is None or not rows.divisible else int(keep.reshape(rows.count, -1).any(1).nonzero()[0])
        inputs = dict(rows.take([row]))
        if keep is not None and rows.divisible:
            keep = keep[row : row + 1]
        if (_text_length(inputs) or 0) > tokens and (keep is None or bool(keep[:, :tokens].any())):
            inputs = _cut(inputs, tokens)
            keep = None if keep is None else keep[:, :tokens]
        return replace(self, inputs=inputs, keep=keep, norm_inputs=None)


def portions(
    model: nn.Module,
    calibration: Calibration,
    tokens: int,
    *,
    batch_size: int | None = None,
    norm: str | None = None,
) -> Iterator[Portion]:
    """Run a model over the first tokens of a calibration that are not masked.

    Args:
        model: in evaluation mode.
        calibration: its inputs.
        tokens: how many outputs to take at most.
        batch_size: rows a forward; None for about as many as fill a device.
        norm: path of a norm whose inputs are to be kept; it fires once, on the tokens of the output.

    Yields:
        What was run.

    Raises:
        UsageError: there is no memory for a portion, or nothing was given.
        InputError: the outputs are not finite.
    """
    device, left = input_device(model), tokens
    extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    for batch in calibration.batches():
        rows = Rows.of(batch)
        length = _text_length(batch)
        together = batch_size or max(1, _TOGETHER // (length or _TOGETHER // 8))
        for start in range(0, rows.count, together):
            if left <= 0:
                return
            needed = _rows_for(left, length, main_mask(model, batch), start)
            part = dict(rows.take(range(start, min(start + min(together, needed or together), rows.count))))
            mask = main_mask(model, part)
            if length and left < length and (mask is None or bool(mask.all())):
                part = _cut(part, left)
            portion = _ran(model, {**extra, **placed(part, device)}, left, norm)
            left -= portion.count
            if portion.count:
                yield portion
    if left == tokens:
        raise UsageError("no token was given that counts: there is nothing to run on")


def _ran(model: nn.Module, inputs: Mapping[str, Any], left: int, norm: str | None) -> Portion:
    watching = nullcontext() if norm is None else capture(model.get_submodule(norm), norm)
    with torch.no_grad(), watching as captured:
        try:
            outputs, metric = outputs_of(run(model, inputs))
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise UsageError(
                "there is no memory for a forward pass: ask for fewer rows at a time (--batch-size), fewer tokens, or "
                "a narrower dtype (--dtype bfloat16)"
            ) from error
        keep = _counted(model, inputs, outputs, left)
        taken = _kept(outputs, keep)
        if not torch.isfinite(taken.sum(-1)).all():
            raise InputError(
                f"{type(model).__name__}: its outputs are not finite: it diverged, or overflows in "
                f"{str(outputs.dtype).removeprefix('torch.')}; try another dtype (--dtype)"
            )
        norm_inputs = None if captured is None else _kept(captured.take()[0], keep)
    return Portion(inputs, keep, len(taken), metric, norm_inputs)


def _counted(model: nn.Module, inputs: Mapping[str, Any], outputs: Tensor, left: int) -> Tensor | None:
    """Which tokens of the outputs count: unmasked ones, the first `left` of them."""
    mask = main_mask(model, inputs)
    if mask is None or mask.shape != outputs.shape[:-1]:
        mask = torch.ones(outputs.shape[:-1], dtype=torch.bool, device=outputs.device)
    keep = mask.to(outputs.device) & (mask.flatten().cumsum(0).reshape(mask.shape).to(outputs.device) <= left)
    return None if bool(keep.all()) else keep


def _kept(outputs: Tensor, keep: Tensor | None) -> Tensor:
    return outputs.reshape(-1, outputs.shape[-1]) if keep is None else outputs[keep.to(outputs.device)]


def _rows_for(left: int, length: int | None, mask: Tensor | None, start: int) -> int | None:
    """How many rows of text hold as many tokens as are left to take; None where that is not known."""
    if mask is None:
        return None if length is None else -(-left // length)
    enough = (mask[start:].sum(-1).cumsum(0) >= left).nonzero()
    return int(enough[0]) + 1 if len(enough) else None


def _cut(inputs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The first tokens of a text."""
    return {k: v[:, :tokens] if isinstance(v, Tensor) and v.dim() == 2 else v for k, v in inputs.items()}


def _text_length(batch: Mapping[str, Any]) -> int | None:
    """Tokens a row, where all that a batch holds are ids and masks of one shape."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    shapes = {value.shape for value in tensors}
    is_text = len(shapes) == 1 and tensors[0].dim() == 2 and not any(value.is_floating_point() for value in tensors)
    return int(tensors[0].shape[1]) if is_text else None
