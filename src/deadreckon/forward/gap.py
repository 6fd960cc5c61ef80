"""The init-to-trained gap: what training changed against random-init twins, with the spread over their seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from deadreckon.results.measurement import Figures, Gap, GapFigure


def init_gap(trained: Figures, twins: Sequence[Figures]) -> Gap:
    """Trained minus random init.

    Args:
        trained: figures of the trained model.
        twins: figures of its twins, at least one.

    Returns:
        The gap in depth, variance along the tested direction, effective rank and dead counts.
    """

    def change(value: Callable[[Figures], float | None]) -> GapFigure:
        after, before = value(trained), [value(twin) for twin in twins]
        known = [b for b in before if b is not None]
        if after is None or len(known) < len(before):
            return GapFigure(change=None, smallest=None, largest=None)
        differences = [after - b for b in known]
        return GapFigure(
            change=sum(differences) / len(differences), smallest=min(differences), largest=max(differences)
        )

    return Gap(
        depth_decades=change(lambda f: f.depth_decades),
        lambda_dead_decades=change(lambda f: math.log10(f.lambda_dead) if f.lambda_dead > 0 else None),
        effective_rank=change(lambda f: f.effective_rank),
        dead_counts={tau: change(lambda f, tau=tau: float(f.dead_counts[tau])) for tau in trained.dead_counts},  # type: ignore[misc]
    )
