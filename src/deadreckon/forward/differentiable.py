"""Forward-mode derivatives through a model: fused attention and grouped products of experts have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_PLAIN = "eager"
_SWITCHES = {"_attn_implementation_internal": {_PLAIN, "sdpa"}, "_experts_implementation_internal": {_PLAIN}}


@contextmanager
def forward_mode(model: nn.Module) -> Iterator[None]:
    """Attention and experts in operations that have forward-mode derivatives, for the time of the context.

    Args:
        model: its configs' choice of implementation is set, and set back as it was.

    Yields:
        Nothing.
    """
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    before: list[tuple[Any, str, Any]] = []
    try:
        for config in configs.values():
            for switch, plain in _SWITCHES.items():
                value = getattr(config, switch, None)
                if value is not None and value not in plain:
                    before.append((config, switch, value))
                    setattr(config, switch, _PLAIN)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for config, switch, value in before:
            setattr(config, switch, value)
