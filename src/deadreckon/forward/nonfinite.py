"""Where NaN or infinity first appeared in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.forward.anatomy import run
from deadreckon.forward.calibration import Batch


def where_nonfinite(model: nn.Module, batch: Batch, rows: Sequence[int], outputs: Tensor, keep: Tensor | None) -> str:
    """The row and token of the first bad value among the kept ones, and the module that first put one out.

    Args:
        model: runs the batch once more, watched.
        batch: the inputs that led to it.
        rows: numbers of its rows.
        outputs: where the bad values were found, shape (rows, tokens, d).
        keep: which tokens count, shape (rows, tokens); None for all.

    Returns:
        A clause for an error message.
    """
    bad = ~torch.isfinite(outputs).all(-1)
    bad = bad if keep is None else bad & keep
    row, token = bad.nonzero()[0].tolist()
    path, origin = _origin(model, batch, row, bad.shape)
    return f"row {rows[row]}, token {token if origin is None else origin}: NaN or infinity, first put out by {path}"


def _origin(model: nn.Module, batch: Batch, row: int, shape: torch.Size) -> tuple[str, int | None]:
    """The first module that puts out a bad value in a row, and the token it stands at where outputs are by token."""
    # At the end it stands elsewhere too: attention spreads it over the row, also to tokens that may not look there,
    # because zero times infinity is NaN.
    found: list[tuple[str, int | None]] = []

    def watch(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) else None
            if found or not isinstance(tensor, Tensor):
                return
            bad = ~torch.isfinite(tensor[row] if tensor.shape[:1] == shape[:1] else tensor)
            if bad.any():
                by_token = tensor.dim() > 2 and tensor.shape[:2] == shape
                found.append((path, int(bad.flatten(1).any(1).nonzero()[0]) if by_token else None))

        return hook

    handles = [module.register_forward_hook(watch(path)) for path, module in model.named_modules() if path]
    try:
        with torch.no_grad():
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else (type(model).__name__, None)
