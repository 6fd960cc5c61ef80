"""A quantity over the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import Row, data, fixed, move_and_zoom
from deadreckon.render.colours import Colours
from deadreckon.render.markup import visible


def trajectory(
    rows: Sequence[Row], *, names: Sequence[str], title: str, logarithmic: bool, colours: Colours
) -> alt.Chart:
    """A line a model against the training step, which is on a scale that is linear up to 1 and logarithmic beyond.

    Args:
        rows: ``model``, ``step`` and ``value``.
        names: models, for the legend.
        title: what the value is, for who hovers; the chart's own title says it.
        logarithmic: whether the vertical axis is logarithmic, too.
        colours: for light, dark or the page.

    Returns:
        The chart.
    """
    last = max(row["step"] for row in rows)
    ticks = [0, *(10**k for k in range(12) if 10**k <= last)]
    kind = alt.Scale(type="log" if logarithmic else "linear", zero=False, nice=False, padding=10)
    known = [visible(name) for name in names]
    hues = [colours.series[k % len(colours.series)] for k in range(len(names))]
    dashes = [_DASHES[k % len(_DASHES)] for k in range(len(names))]
    legend = None if len(names) == 1 else alt.Legend()
    chart: alt.Chart = (
        alt.Chart(data(rows))
        .mark_line(point={"size": 30, "filled": True}, strokeWidth=1.8)
        .encode(
            x=alt.X(
                "step:Q",
                scale=alt.Scale(type="symlog", constant=1, nice=False, padding=8),
                axis=alt.Axis(title="training step", values=ticks, labelExpr=_STEPS, grid=False, labelOverlap="greedy"),
            ),
            y=alt.Y("value:Q", scale=kind, axis=alt.Axis(title=None, tickCount=6, format="~g")),
            color=alt.Color("model:N", scale=alt.Scale(domain=known, range=hues), legend=legend, title=None),
            strokeDash=alt.StrokeDash(
                "model:N", scale=alt.Scale(domain=known, range=dashes), legend=legend, title=None
            ),
            tooltip=[
                alt.Tooltip("model:N", title="model"),
                alt.Tooltip("step:Q", title="step", format=","),
                alt.Tooltip("value:Q", title=title, format=".5g"),
            ],
        )
        .properties(**fixed(), height=200)
        .add_params(move_and_zoom())
    )
    return chart


_STEPS = "datum.value >= 1000 ? format(datum.value / 1000, ',') + 'k' : format(datum.value, 'd')"
_DASHES = [[1, 0], [6, 3], [2, 2]]
