"""A sample of a stored matrix that has every coordinate of one axis, read as bytes lie: never more than is needed."""

from __future__ import annotations

import numpy as np

from deadreckon.checkpoint.bounded import read_range
from deadreckon.checkpoint.elements import decode
from deadreckon.checkpoint.format import Checkpoint, TensorEntry
from deadreckon.checkpoint.ggml_blocks import BLOCK, BLOCK_BYTES, decode_blocks
from deadreckon.checkpoint.places import RemotePath
from deadreckon.kernel.norm import Float64Array

SAMPLE_ENTRIES = 1 << 20
"""Entries read of one matrix at most: 8 MB in float64."""

_PLAIN_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_REMOTE_BYTES = 1 << 22  # of a matrix elsewhere, of which strided parts would be a request each


def sample(checkpoint: Checkpoint, entry: TensorEntry, axis: int, entries: int = SAMPLE_ENTRIES) -> Float64Array | None:
    """Some vectors along one axis of a matrix.

    Along the faster axis these are neighbouring rows, one range of bytes; along the slower one the same columns of
    every row, unless all of it is small.

    Args:
        checkpoint: an opened checkpoint; what is read counts as its bytes.
        entry: a matrix of plain floats, or of simple quantised blocks.
        axis: the axis whose every coordinate is wanted, of size d.
        entries: at most about so many.

    Returns:
        The vectors as columns, shape (d, k), float64; None where the type is not decoded here, an entry is not finite,
        or the bytes lie elsewhere and too far apart.

    Raises:
        InputError: the file ends too early.
        UnreachableError: it cannot be read.
    """
    is_block = entry.dtype in BLOCK_BYTES
    if len(entry.shape) != 2 or 0 in entry.shape or not (is_block or entry.dtype in _PLAIN_BYTES) or entry.step != 1:
        return None  # or a transposed view, whose rows do not lie one after the other
    rows, width = entry.shape
    row_bytes = (entry.stop - entry.start) // rows
    count = min(entry.shape[1 - axis], max(BLOCK, entries // entry.shape[axis] // BLOCK * BLOCK))
    if axis == 1:
        first = (rows - count) // 2
        raw = _read(checkpoint, entry, first * row_bytes, count * row_bytes)
        values = _numbers(entry.dtype, raw).reshape(count, width).T
    elif count == width or isinstance(entry.path, RemotePath):
        if isinstance(entry.path, RemotePath) and rows * row_bytes > _REMOTE_BYTES:
            return None
        values = _numbers(entry.dtype, _read(checkpoint, entry, 0, rows * row_bytes)).reshape(rows, width)
    else:
        first = (width - count) // 2 // BLOCK * BLOCK
        unit, size = (BLOCK, BLOCK_BYTES[entry.dtype]) if is_block else (1, _PLAIN_BYTES[entry.dtype])
        offset, length = first // unit * size, count // unit * size
        raw = b"".join(_read(checkpoint, entry, row * row_bytes + offset, length) for row in range(rows))
        values = _numbers(entry.dtype, raw).reshape(rows, count)
    return values if np.isfinite(values).all() else None


def _read(checkpoint: Checkpoint, entry: TensorEntry, offset: int, length: int) -> bytes:
    raw = read_range(entry.path, entry.start + offset, length, f"tensor {entry.name!r}")
    checkpoint.bytes_read += length
    return raw


def _numbers(dtype: str, raw: bytes) -> Float64Array:
    return decode_blocks(dtype, raw) if dtype in BLOCK_BYTES else decode(dtype, raw)
