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
    return f"row {rows[row]}, token {token}: NaN or infinity, first put out by {_first_module(model, batch)}"


def _first_module(model: nn.Module, batch: Batch) -> str:
    found: list[str] = []

    def watch(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            # -inf is what masks are made of; only what a module computed from finite values is looked for.
            tensor = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) else None
            if not found and isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
                found.append(path)

        return hook

    handles = [module.register_forward_hook(watch(path)) for path, module in model.named_modules() if path]
    try:
        with torch.no_grad():
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else type(model).__name__
