"""The numbers in ggml's simpler quantised blocks: 32 entries that share a scale, and in some a minimum.

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deadreckon.errors import InputError

BLOCK = 32
"""Entries of a block."""

BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""Types that are decoded, with the bytes of one block."""


def decode_blocks(dtype: str, raw: bytes) -> NDArray[np.float64]:
    """The entries of whole blocks in float64, shape (32 * blocks,).

    Args:
        dtype: one of `BLOCK_BYTES`.
        raw: the blocks.

    Returns:
        The numbers that the model computes with; NaN and infinity in a scale are kept.

    Raises:
        InputError: a type that is not decoded.
    """
    if dtype not in BLOCK_BYTES:
        raise InputError(f"blocks of type {dtype} are not decoded here; {', '.join(BLOCK_BYTES)} are")
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCK_BYTES[dtype])
    scales = blocks[:, :2].copy().view("<f2").astype(np.float64)
    if dtype == "Q8_0":
        return (scales * blocks[:, 2:].view(np.int8)).ravel()
    has_minimum = dtype == "Q4_1"
    packed = blocks[:, 4 if has_minimum else 2 :]
    numbers = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float64)  # low halves come first
    start = blocks[:, 2:4].copy().view("<f2").astype(np.float64) if has_minimum else -8.0 * scales
    return (scales * numbers + start).ravel()
