"""Singular values of a residual stream over depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from deadreckon.render.charts.base import HEIGHT, Row, coloured, data, decades, fixed, move_and_zoom, power_axis
from deadreckon.render.colours import Colours

SMALLEST, GEOMEAN, LARGEST, FLOOR = "smallest", "geometric mean", "largest", "floor of the smallest"


def profile(rows: Sequence[Row], events: Sequence[Row], *, colours: Colours) -> alt.TopLevelMixin:
    """Singular values block by block, with the falls marked and named.

    Args:
        rows: by block, ``block``, what is known of this module's series by their names, and for the tooltip ``step``
            (ratio), ``module`` and ``status``.
        events: ``block``, ``label`` (what happened) and ``says``.
        colours: for light, dark or the page.

    Returns:
        The chart.
    """
    names = [name for name in _DASHES if any(row.get(name) is not None for row in rows)]
    low, high = decades([row[name] for row in rows for name in names if row.get(name) is not None])
    high = 10 * high if events else high  # room for their names
    last = max(row["block"] for row in rows)
    x = alt.X(
        "block:Q",
        scale=alt.Scale(domain=[-1.5, last + 0.5], nice=False),
        axis=alt.Axis(title="after block (−1: what enters the first)", grid=False, format="d", tickMinStep=1),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False, clamp=True),
        axis=power_axis("singular value / √N", (low, high)),
    )
    hues = dict(zip(_DASHES, (colours.measured, colours.exact, colours.twin, colours.floor), strict=True))
    look: dict[str, Any] = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolSize": 300}
    folded = alt.Chart(data(rows)).transform_fold([*names], as_=["series", "value"]).transform_filter("datum.value > 0")
    base = folded.encode(x=x, y=y, color=coloured(names, [hues[name] for name in names], **look))
    dash = alt.StrokeDash(
        "series:N",
        scale=alt.Scale(domain=names, range=[_DASHES[name] for name in names]),
        legend=alt.Legend(**look),
        title=None,
    )
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=dash)
    tooltip = [
        alt.Tooltip("block:Q", title="after block", format="d"),
        alt.Tooltip("module:N", title="module"),
        alt.Tooltip("series:N", title="singular value"),
        alt.Tooltip("value:Q", title="value", format=".3e"),
        alt.Tooltip("step:Q", title="step ratio", format=".3g"),
        alt.Tooltip("status:N", title="status"),
    ]
    # Seen on the line that counts; on the others there to be hovered over.
    seen = alt.condition(alt.datum.series == SMALLEST, alt.value(1), alt.value(0))
    points = base.mark_circle(size=34).encode(opacity=seen, tooltip=tooltip).add_params(move_and_zoom())
    layers: list[alt.Chart] = [lines, points]
    if events:
        at = alt.Chart(data(events)).encode(
            x=x,
            tooltip=[
                alt.Tooltip("block:Q", title="block", format="d"),
                alt.Tooltip("label:N", title="event"),
                alt.Tooltip("says:N", title="cause"),
            ],
        )
        layers += [
            at.mark_rule(color=colours.dead, strokeWidth=2, opacity=0.8),
            # On the side where there is room for it.
            at.transform_filter(f"datum.block <= {last / 2}")
            .mark_text(align="left", dx=6, dy=8, color=colours.dead, fontWeight="bold")
            .encode(y=alt.value(0), text="label:N"),
            at.transform_filter(f"datum.block > {last / 2}")
            .mark_text(align="right", dx=-6, dy=8, color=colours.dead, fontWeight="bold")
            .encode(y=alt.value(0), text="label:N"),
        ]
    return alt.layer(*layers).properties(**fixed(), height=HEIGHT)


_DASHES: dict[str, list[int]] = {SMALLEST: [1, 0], GEOMEAN: [8, 3], LARGEST: [4, 3], FLOOR: [2, 3]}
