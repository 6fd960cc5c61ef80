"""The largest magnitude in each column of a stored matrix, read by slices of rows: an embedding may be gigabytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deadreckon.checkpoint.bounded import read_range
from deadreckon.checkpoint.elements import VECTOR_LIMIT, decode
from deadreckon.checkpoint.format import Checkpoint, TensorEntry
from deadreckon.errors import InputError
from deadreckon.kernel.norm import Float64Array, check_parameter

SLICE_BYTES = 1 << 22
"""Bytes read at once, of which a second copy of the same size is made: a whole read stays within a small process."""

# IEEE magnitudes are ordered as their bits are, sign left out, with infinity and NaN at the top. So the largest is
# found among integers, exactly and without widening anything.
_BITS = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}


def columns_readable(entry: TensorEntry) -> bool:
    """Whether the matrix is of a float type whose entries are numbers by themselves, and lies row by row."""
    return entry.dtype in _BITS and entry.step == 1


def column_maxima(checkpoint: Checkpoint, name: str, *, normalised: bool = False) -> Float64Array:
    """The largest magnitude in each column of a matrix, shape (d,).

    Args:
        checkpoint: an opened checkpoint; what is read counts as its bytes.
        name: a matrix of shape (rows, d), of a plain float type of 16 bits or more.
        normalised: of the rows divided by their root mean square (a row of zeros stays one).

    Returns:
        The maxima in float64.

    Raises:
        InputError: not such a matrix, or an entry is NaN or infinite.
        UnreachableError: the file cannot be read.
    """
    entry = checkpoint.tensors[name]
    where = f"{entry.path}: tensor {name!r}"
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise InputError(f"{where} has shape {entry.shape}; an embedding is a matrix of one row a token")
    if not columns_readable(entry):
        raise InputError(f"{where} is stored as {entry.dtype}: the plain numbers are not in this file")
    rows, width = entry.shape
    row_bytes = (entry.stop - entry.start) // rows
    if width > VECTOR_LIMIT:
        raise InputError(f"{where} has rows of {width} entries: no stream is so wide (at most {VECTOR_LIMIT} are read)")
    step = max(1, SLICE_BYTES // (16 * width if normalised else row_bytes))
    found = np.zeros(width) if normalised else np.zeros(width, _BITS[entry.dtype])
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = read_range(entry.path, entry.start + first * row_bytes, count * row_bytes, f"tensor {name!r}")
        checkpoint.bytes_read += len(raw)
        reduce = _normalised_maxima if normalised else _largest_bits
        np.maximum(found, reduce(entry.dtype, raw, width), out=found)
    maxima = found if normalised else decode(entry.dtype, found.tobytes())
    return check_parameter(maxima, f"{where}, largest magnitudes of its columns")


def _largest_bits(dtype: str, raw: bytes, width: int) -> NDArray[np.unsignedinteger]:
    bits: NDArray[np.unsignedinteger] = np.frombuffer(raw, _BITS[dtype]).reshape(-1, width)
    magnitude = np.array((1 << (8 * bits.itemsize - 1)) - 1, dtype=bits.dtype)
    return (bits & magnitude).max(axis=0)  # type: ignore[no-any-return]


def _normalised_maxima(dtype: str, raw: bytes, width: int) -> Float64Array:
    values = np.abs(decode(dtype, raw)).reshape(-1, width)
    with np.errstate(invalid="ignore"):  # infinity by infinity is the NaN that the caller reports
        largest = values.max(axis=1, keepdims=True)
        values /= np.where(largest == 0, 1.0, largest)  # first, so that no square overflows
        squares = np.einsum("ij,ij->i", values, values)[:, None]
        maxima: Float64Array = (values / np.sqrt(np.where(squares == 0, 1.0, squares / width))).max(axis=0)
    return maxima
