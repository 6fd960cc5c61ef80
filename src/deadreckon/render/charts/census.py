"""Exactly dead parameter dimensions by family."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import Row, coloured, data, fixed, move_and_zoom, named
from deadreckon.render.colours import Colours


def census(rows: Sequence[Row], *, names: Sequence[str], families: Sequence[str], colours: Colours) -> alt.Chart:
    """A bar a model, its parts the families, as shares of all parameters.

    Args:
        rows: ``model``, ``series`` (the family), ``share`` and ``dimensions``.
        names: models from top to bottom.
        families: in the order of the bar's parts.
        colours: for light, dark or the page.

    Returns:
        The chart.
    """
    hues = [colours.series[k % len(colours.series)] for k in range(len(families))]
    order = [{**row, "order": families.index(row["series"])} for row in rows]
    chart: alt.Chart = (
        alt.Chart(data(order))
        .mark_bar(stroke=colours.paper, strokeWidth=1)
        .encode(
            x=alt.X("share:Q", axis=alt.Axis(title="share of all parameters", format="~%", tickCount=5)),
            y=alt.Y("model:N", scale=named(names), axis=alt.Axis(title=None, domain=False, ticks=False)),
            color=coloured(families, hues),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("model:N", title="model"),
                alt.Tooltip("series:N", title="family"),
                alt.Tooltip("dimensions:Q", title="dimensions", format=","),
                alt.Tooltip("share:Q", title="share of all parameters", format=".3%"),
            ],
        )
        .properties(**fixed(), height=30 * len(names))
        .add_params(move_and_zoom())
    )
    return chart
