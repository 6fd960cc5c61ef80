"""How one tensor follows from another: equal, a copy in another order, some of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def relation(made: Tensor | None, hidden: Tensor) -> str | None:
    """How a hidden state follows from what a module made.

    Args:
        made: what the module made.
        hidden: the hidden state.

    Returns:
        "" when equal, a note when tokens were dropped or reordered, None when it does not follow.
    """
    if made is None or made.dim() == 0 or not made.is_floating_point():
        return None
    if same(made, hidden):
        return ""
    if made.numel() == hidden.numel() and torch.equal(made.flatten(), hidden.flatten()):
        return "the hidden state is a reshaped copy of the norm's output"
    if alike(made, hidden):
        return "the hidden state is a rearranged copy of the norm's output"
    width = made.shape[-1]
    if hidden.dim() and hidden.shape[-1] == width and hidden.numel() < made.numel():
        rows, kept = made.reshape(-1, width), hidden.reshape(-1, width)
        if bool((kept[:, None] == rows[None]).all(-1).any(-1).all()):
            return "the hidden state keeps only some of the tokens that the norm sees"
    return None


def same(a: Tensor | None, b: Any) -> bool:
    """Whether two values are equal tensors.

    Args:
        a: one.
        b: the other, of any type.

    Returns:
        Bit for bit.
    """
    return isinstance(b, Tensor) and a is not None and a.shape == b.shape and torch.equal(a, b)


def alike(a: Tensor | None, b: Any) -> bool:
    """Whether two tensors hold the same numbers, in whatever order.

    Args:
        a: one.
        b: the other, of any type.

    Returns:
        Whether they do.
    """
    if same(a, b):
        return True
    if a is None or not isinstance(b, Tensor) or a.numel() != b.numel() or not b.is_floating_point():
        return False
    return a.numel() > 1 and torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def tensors(values: Any) -> Iterator[Tensor]:
    """The floating-point tensors among some values.

    Args:
        values: an iterable of anything; mappings and sequences in it are searched too.

    Yields:
        Tensors.
    """
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, Mapping):
            yield from tensors(value.values())
        elif isinstance(value, tuple | list):
            yield from tensors(value)
