"""How far the coordinates of a residual stream can reach, whatever the input, from the gains of the norms that write.

A block whose every write passes a norm maps the stream h to ``s * (h + sum_k a * y_k)`` with s the block's scalar, a
the multiplier of its writes and y_k the outputs of its norms. A norm's output is bounded coordinate by coordinate by
its gain, so by induction over the blocks the stream is bounded too; where the bound is zero, the coordinate is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.norm import Float64Array, Norm, check_parameter, median

_FLOAT32 = 2.0**-24


@dataclass(frozen=True, eq=False)
class StreamParts:
    """What bounds a residual stream, gathered from a checkpoint or a module.

    Attributes:
        architecture: the row of the table of streams that says how the parts make up the stream.
        writes: bound of all that each block adds to the stream, shape (blocks, d).
        scalars: what each block multiplies the stream by after its writes, shape (blocks,), or None where it does not.
        embedding: bound of the stream before the first block, shape (d,), or None where it could not be had.
        embedding_scale: what the embedding's entries are multiplied by; it is part of `embedding` already.
        why_no_embedding: what stood in the way of `embedding`.
        norms: names of the norms that write, ``*`` for a block's index.
        writes_per_block: number of those norms in a block.
        text_only: whether other inputs than token ids may take the place of the embedding.
    """

    architecture: str
    writes: Float64Array
    scalars: Float64Array | None
    embedding: Float64Array | None
    embedding_scale: float
    norms: tuple[str, ...]
    why_no_embedding: str | None = None
    text_only: bool = False

    def bound(self) -> Float64Array:
        """Bound before and after every block, shape (blocks + 1, d): of the writes alone without an embedding."""
        start = np.zeros(self.writes.shape[1]) if self.embedding is None else self.embedding
        return stream_bound(start, self.writes, self.scalars)

    def rounding(self, unit_roundoff: float) -> float:
        """By how much a computed stream may exceed `bound`, as a factor, see `rounding_factor`."""
        blocks, width = self.writes.shape
        return rounding_factor(blocks, len(self.norms), width, unit_roundoff)


@dataclass(frozen=True)
class NoBound:
    """The answer where a stream has no bound of this kind, and why."""

    why: str


def write_bound(norm: Norm) -> Float64Array:
    """The largest magnitude that each coordinate of a norm's output can have, for any input, shape (d,).

    Over a group of n coordinates, ``z = x / rms(x)`` has sum of squares n (less with eps), so no entry exceeds sqrt(n).
    With the mean subtracted the entries also sum to zero: then one entry t forces the others to a sum of squares of at
    least t^2/(n-1), and none exceeds sqrt(n-1). A coordinate axis as input reaches both bounds at eps = 0.

    Args:
        norm: the norm, with its effective gain.

    Returns:
        ``sqrt(n) |gain| + |shift|``, with n - 1 for n where the mean is subtracted.

    Raises:
        UsageError: the norm does not divide by a root mean square, so that nothing bounds its output.
    """
    if not norm.kind.normalised:
        raise UsageError(f"{norm.name}: a {norm.kind.name} does not normalise, so its gain bounds nothing")
    size = norm.hidden_size // norm.groups
    reach = math.sqrt(size - 1 if norm.kind.centred else size)
    shift = 0.0 if norm.shift is None else np.abs(norm.shift)
    bound: Float64Array = reach * np.abs(norm.gain) + shift
    return bound


def stream_bound(embedding: ArrayLike, writes: ArrayLike, scalars: ArrayLike | None = None) -> Float64Array:
    """Bound of every coordinate of a residual stream, before and after every block, shape (blocks + 1, d).

    Row 0 is the embedding's bound; after block l it is ``|scalar_l| (row_l + writes_l)``. Unrolled, the last row is the
    sum over blocks of ``S_l writes_l`` plus ``S_0 embedding``, with S_l the product of the scalars from l on.

    Args:
        embedding: bound of the stream before the first block, shape (d,), not negative.
        writes: bound of all that a block adds, shape (blocks, d), not negative.
        scalars: what a block multiplies the stream by after adding, shape (blocks,); None: by one.

    Returns:
        The bounds, in exact arithmetic up to the rounding of float64; `rounding_factor` says what floats may add.

    Raises:
        InputError: the shapes do not fit, or an entry is negative or not finite.
    """
    start = check_parameter(embedding, "the embedding's bound")
    added = np.asarray(writes, dtype=np.float64)
    if added.ndim != 2 or added.shape[1] != start.size:
        raise InputError(
            f"the writes' bounds have shape {added.shape} and the embedding's {start.shape}: (blocks, d) and (d,) fit"
        )
    factors = np.ones(len(added)) if scalars is None else check_parameter(scalars, "the block scalars")
    if factors.size != len(added):
        raise InputError(f"{factors.size} block scalars do not fit {len(added)} blocks")
    if (start < 0).any() or not (np.isfinite(added) & (added >= 0)).all():
        raise InputError("a bound of the embedding or of a write is negative or not finite")
    rows = np.empty((len(added) + 1, start.size))
    rows[0] = start
    with np.errstate(over="ignore", invalid="ignore"):  # whoever asked sees that a bound is infinite
        for block, (write, factor) in enumerate(zip(added, np.abs(factors), strict=True)):
            rows[block + 1] = factor * (rows[block] + write)
    return rows


def rounding_factor(blocks: int, writes: int, width: int, unit_roundoff: float) -> float:
    """By how much floats may push a computed stream past its exact bound, as a factor of at least one.

    Every rounding moves a magnitude up by a factor of at most 1 + u. Along any path to the last block there are one
    addition a write and one product by the block's scalar, and before those the product by the embedding's multiplier
    (itself rounded) or a norm's three roundings to the stream's dtype. The norm itself works in float32 or better: its
    mean of d squares is off by at most (d + 1) u32 relative, half of which is left after the root, and a root, a
    quotient and a product follow. This is for norms that subtract no mean, as all in the table of streams: what a
    subtraction cancels depends on the input.

    Args:
        blocks: number of blocks.
        writes: number of writes a block.
        width: d.
        unit_roundoff: u of the dtype that the stream is computed in, 2^-24 for float32 and 2^-8 for bfloat16.

    Returns:
        ``(1 + u)^(3 + blocks (writes + 2)) (1 + u32)^(d/2 + 4)``.
    """
    stream = (3 + blocks * (writes + 2)) * math.log1p(unit_roundoff)
    return math.exp(stream + (width / 2 + 4) * math.log1p(min(_FLOAT32, unit_roundoff)))


def dead_coordinates(bound: ArrayLike, tolerance: float) -> NDArray[np.bool_]:
    """Whether each coordinate's bound is at most `tolerance` times the median bound, shape (d,).

    Args:
        bound: one row of `stream_bound`, shape (d,).
        tolerance: relative to the median; 0 asks for coordinates that are exactly zero.

    Returns:
        True where the coordinate is dead.
    """
    values = np.asarray(bound, dtype=np.float64)
    dead: NDArray[np.bool_] = values <= tolerance * median(values)
    return dead
