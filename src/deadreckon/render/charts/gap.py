"""What training changed: a line a model from its random-init twins to itself."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import Row, coloured, data, fixed, move_and_zoom, named
from deadreckon.render.colours import Colours

TWIN, TRAINED = "random-init twin", "as trained"


def gap(rows: Sequence[Row], *, names: Sequence[str], title: str, colours: Colours) -> alt.TopLevelMixin:
    """Marks of the twins and of the trained model, joined.

    Args:
        rows: ``model``, ``series`` (one of this module's names) and ``value``.
        names: models from top to bottom.
        title: of the axis.
        colours: for light, dark or the page.

    Returns:
        The chart.
    """
    ends = [
        {"model": name, "from": min(values), "to": max(values)}
        for name in names
        if (values := [row["value"] for row in rows if row["model"] == name])
    ]
    y = alt.Y("model:N", scale=named(names), axis=alt.Axis(title=None, domain=False, ticks=False))
    x = alt.Scale(zero=True, nice=False, padding=12)
    bars = (
        alt.Chart(data(ends))
        .mark_rule(color=colours.line, strokeWidth=4)
        .encode(x=alt.X("from:Q", scale=x, axis=alt.Axis(title=title)), x2="to:Q", y=y)
    )
    marks = (
        alt.Chart(data(rows))
        .mark_point(size=80, strokeWidth=1.8, filled=True, opacity=1)
        .encode(
            x=alt.X("value:Q", scale=x),
            y=y,
            color=coloured([TWIN, TRAINED], [colours.twin, colours.measured]),
            shape=alt.Shape(
                "series:N", scale=alt.Scale(domain=[TWIN, TRAINED], range=["triangle-up", "circle"]), title=None
            ),
            tooltip=[
                alt.Tooltip("model:N", title="model"),
                alt.Tooltip("series:N", title="weights"),
                alt.Tooltip("value:Q", title=title, format=".4g"),
            ],
        )
    )
    return alt.layer(bars, marks.add_params(move_and_zoom())).properties(**fixed(), height=30 * len(names))
