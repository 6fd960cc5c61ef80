"""Fisher information along parameter steps, relative to random ones of the same size."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import Row, decades, dots, power_axis
from deadreckon.render.colours import Colours

DEAD, NAIVE, RANDOM, FLOOR = "along the kernel, with its remedy", "its weights alone", "random directions", "floor"


def fisher(rows: Sequence[Row], *, names: Sequence[str], colours: Colours) -> alt.Chart:
    """A line a site: marks on a logarithmic axis.

    Args:
        rows: ``site``, ``series`` (one of this module's names) and ``value``, relative to the median random direction.
        names: sites from top to bottom.
        colours: for light, dark or the page.

    Returns:
        The chart.
    """
    low, high = decades([row["value"] for row in rows], lowest=1e-36)
    axis = power_axis("Fisher information / that of a random direction", (low, high))
    return dots(
        [{**row, "value": max(row["value"], low)} for row in rows],
        x=alt.X("value:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False, clamp=True), axis=axis),
        line="site",
        names=names,
        shapes=_SHAPES,
        colours=(colours.dead, colours.exact, colours.twin, colours.floor),
        tooltip=[
            alt.Tooltip("site:N", title="reader"),
            alt.Tooltip("series:N", title="step"),
            alt.Tooltip("value:Q", title="relative to random", format=".2e"),
        ],
        height=24,
    )


_SHAPES = {DEAD: "circle", NAIVE: "cross", RANDOM: "stroke", FLOOR: "triangle-left"}
