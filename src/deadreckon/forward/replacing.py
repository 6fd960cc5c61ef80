"""Other outputs in place of what modules make, for a while: the model itself is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Replace = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(module, what it was given, what it made) -> what is to be used instead."""


@contextmanager
def replaced(model: nn.Module, by_path: Mapping[str, Replace]) -> Iterator[None]:
    """Replace what modules make while the context is open; the hooks leave with it.

    Args:
        model: holds the modules.
        by_path: a function for each module.

    Yields:
        Nothing.
    """

    def hook_of(replace: Replace) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, kwargs: Any, made: Tensor) -> Tensor:
            given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return replace(module, given, made)

        return hook

    with ExitStack() as stack:
        for path, replace in by_path.items():
            handle = model.get_submodule(path).register_forward_hook(hook_of(replace), with_kwargs=True)
            stack.callback(handle.remove)
        yield
