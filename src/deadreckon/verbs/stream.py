"""The bound of a residual stream in the terms of a reading."""

from __future__ import annotations

import numpy as np

from deadreckon.kernel.norm import Float64Array, median
from deadreckon.kernel.stream_bound import NoBound, StreamParts, dead_coordinates, stream_bound
from deadreckon.results.reading import BoundedCoordinate, StreamReading

_SHOWN_COORDINATES = 8


def reading_of_stream(
    found: StreamParts | NoBound, tolerance: float, bytes_read: int = 0
) -> tuple[StreamParts | None, StreamReading]:
    """What the parts of a stream say about its coordinates after the last block.

    Args:
        found: the parts, or why there are none.
        tolerance: a bound counts as zero up to this times the median bound.
        bytes_read: what gathering the parts has read.

    Returns:
        The parts where they give a bound, and the reading.
    """
    if isinstance(found, NoBound):
        return None, StreamReading(applies=False, why=found.why, bytes_read=bytes_read)
    bound = found.bound()[-1]
    if not np.isfinite(bound).all():
        why = f"{found.architecture}: the bound is too large for a float: block scalars or gains multiply beyond 1e308"
        return None, StreamReading(applies=False, why=why, bytes_read=bytes_read)
    added = stream_bound(np.zeros_like(bound), found.writes, found.scalars)[-1]
    order = np.argsort(bound, kind="stable")
    scalars = [] if found.scalars is None else found.scalars.tolist()
    whole = found.embedding is not None
    reading = StreamReading(
        applies=True,
        why=found.why_no_embedding,
        covers="stream" if whole else "writes",
        inputs="token ids alone" if found.text_only else "any token ids",
        architecture=found.architecture,
        blocks=len(found.writes),
        hidden_size=bound.size,
        norms=list(found.norms),
        tolerance=tolerance,
        dead_coordinates=int(dead_coordinates(bound, tolerance).sum()) if whole else None,
        unwritten_coordinates=int(dead_coordinates(added, tolerance).sum()),
        bound_min=float(bound.min()),
        bound_median=median(bound),
        bound_max=float(bound.max()),
        smallest=_coordinates(bound, order[:_SHOWN_COORDINATES]),
        largest=_coordinates(bound, order[::-1][:_SHOWN_COORDINATES]),
        block_scalars=scalars,
        scalar_product=float(np.prod(np.abs(scalars))),
        embedding_term=whole,
        embedding_scale=found.embedding_scale,
        bytes_read=bytes_read,
    )
    return found, reading


def _coordinates(bound: Float64Array, chosen: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[BoundedCoordinate]:
    return [BoundedCoordinate(index=int(i), bound=float(bound[i])) for i in chosen]
