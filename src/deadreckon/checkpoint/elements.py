"""Element types of stored tensors, and vectors of them in float64.

Only types whose entries are numbers by themselves are decoded. An integer, or an 8-bit float with a scale beside it,
is half of a quantised tensor: the numbers the model uses are not in it.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from deadreckon.checkpoint.bounded import read_range
from deadreckon.checkpoint.format import TensorEntry
from deadreckon.errors import InputError
from deadreckon.kernel.norm import check_parameter

VECTOR_LIMIT = 1 << 22
"""Longest vector read, entries: a hundred times the widest model, and 32 MB in float64."""

_SPAN_LIMIT = 8 * VECTOR_LIMIT

_NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_FLOAT8 = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
PLAIN_TYPES = frozenset({*_NATIVE, "BF16", *_FLOAT8})
"""Names of the element types that `decode` knows."""


def decode(dtype: str, raw: bytes) -> NDArray[np.float64]:
    """Stored numbers in float64; every type is exactly representable there.

    Args:
        dtype: one of `PLAIN_TYPES`.
        raw: the entries, little-endian.

    Returns:
        The entries, shape (n,). NaN and infinity are kept.

    Raises:
        InputError: a type that holds no plain numbers.
    """
    # A signalling NaN warns when it is widened; it is still a NaN afterwards, and whoever asked will say where.
    with np.errstate(invalid="ignore"):
        if dtype in _NATIVE:
            return np.frombuffer(raw, _NATIVE[dtype]).astype(np.float64)
        if dtype == "BF16":  # the upper half of a float32
            return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if dtype in _FLOAT8:
            import ml_dtypes

            return np.frombuffer(raw, getattr(ml_dtypes, _FLOAT8[dtype])).astype(np.float64)
    raise InputError(f"elements of type {dtype} are not plain numbers")


def read_vector(entry: TensorEntry, names: Container[str] = ()) -> NDArray[np.float64]:
    """One stored vector in float64, its bytes read now.

    Args:
        entry: where it lies.
        names: the names of all tensors beside it, in which a quantisation scale would show.

    Returns:
        The entries, shape (d,), d >= 1, all finite.

    Raises:
        InputError: not a vector, too long, quantised, or an entry is NaN or infinite.
        UnreachableError: the file cannot be read.
    """
    where = f"{entry.path}: tensor {entry.name!r}"
    if len(entry.shape) != 1 or entry.shape[0] < 1:
        raise InputError(f"{where} has shape {_shown(entry.shape)}; a norm's parameter is a non-empty vector")
    if entry.shape[0] > VECTOR_LIMIT:
        raise InputError(f"{where} has {entry.shape[0]} entries: no norm is so wide (at most {VECTOR_LIMIT} are read)")
    if entry.dtype not in PLAIN_TYPES:
        raise InputError(
            f"{where} is stored as {entry.dtype}, an integer or quantised type: the plain numbers are not in this "
            "file; use a checkpoint that keeps its norms in a float type"
        )
    if entry.dtype in _FLOAT8 and (scale := _scale_beside(entry.name, names)):
        raise InputError(
            f"{where} is stored as {entry.dtype} with its scale in {scale!r}: the plain numbers are not in this file; "
            "use a checkpoint that keeps its norms in a float type"
        )
    length = entry.stop - entry.start
    if length > _SPAN_LIMIT:
        raise InputError(f"{where} is spread over {length} bytes of the file (at most {_SPAN_LIMIT} are read)")
    values = decode(entry.dtype, read_range(entry.path, entry.start, length, f"tensor {entry.name!r}"))
    if entry.step != 1:  # a view: of a column, or (0) of one number
        values = values[:: entry.step] if entry.step else np.repeat(values, entry.shape[0])
    return check_parameter(values, where)


def _scale_beside(name: str, names: Container[str]) -> str | None:
    module = name.rpartition(".")[0]
    candidates = (f"{name}_scale", f"{name}_scale_inv", f"{module}.weight_scale", f"{module}.scale")
    return next((candidate for candidate in candidates if candidate in names), None)


def _shown(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} axes"
