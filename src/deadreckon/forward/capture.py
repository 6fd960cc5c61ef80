"""What went into a module and what came out, copied as it happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError


class Captured:
    """Input and output of a module's last firing.

    Both are copies: what runs after the module (an in-place addition, say) cannot change them.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def take(self) -> tuple[Tensor, Tensor]:
        """Input and output of the last firing since the previous `take`, released from here.

        Returns:
            Two tensors that share no memory with the model.

        Raises:
            UsageError: the module did not run.
        """
        if self._input is None or self._output is None:
            raise UsageError(f"{self.path} did not run in the forward pass: it is not on the path of these inputs")
        pair = self._input, self._output
        self.drop()
        return pair

    def drop(self) -> None:
        """Release what a pass that broke off left behind."""
        self._input = self._output = None


@contextmanager
def capture(module: nn.Module, path: str) -> Iterator[Captured]:
    """Record `module`'s tensor input and output while the context is open; the hooks leave with it.

    A module that fires several times in a pass (one norm shared by all layers) is recorded at its last firing.

    Args:
        module: what to record.
        path: how to name it in an error.

    Yields:
        The record, to `take` from after each pass.
    """
    captured = Captured(path)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        captured._input = tensor.detach().clone()

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else output[0]
        captured._output = tensor.detach().clone()

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        with torch.no_grad():
            yield captured
    finally:
        for handle in handles:
            handle.remove()
