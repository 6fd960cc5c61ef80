"""Fisher information along parameter steps, relative to random ones of the same size."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import Row, coloured, data, decades, fixed, move_and_zoom, named, power_axis
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
    present = [name for name in _SHAPES if any(row["series"] == name for row in rows)]
    hues = dict(zip(_SHAPES, (colours.dead, colours.exact, colours.twin, colours.floor), strict=True))
    chart: alt.Chart = (
        alt.Chart(data([{**row, "value": max(row["value"], low)} for row in rows]))
        .mark_point(size=70, strokeWidth=1.8)
        .encode(
            x=alt.X(
                "value:Q",
                scale=alt.Scale(type="log", domain=[low, high], nice=False, clamp=True),
                axis=power_axis("Fisher information / that of a random direction", (low, high)),
            ),
            y=alt.Y("site:N", scale=named(names), axis=alt.Axis(title=None, grid=True, domain=False, ticks=False)),
            color=coloured(present, [hues[name] for name in present]),
            shape=alt.Shape(
                "series:N", scale=alt.Scale(domain=present, range=[_SHAPES[name] for name in present]), title=None
            ),
            tooltip=[
                alt.Tooltip("site:N", title="reader"),
                alt.Tooltip("series:N", title="step"),
                alt.Tooltip("value:Q", title="relative to random", format=".2e"),
            ],
        )
        .properties(**fixed(), height=24 * len(names))
        .add_params(move_and_zoom())
    )
    return chart


_SHAPES = {DEAD: "circle", NAIVE: "cross", RANDOM: "stroke", FLOOR: "triangle-left"}
