"""How far a predicted direction lies in the measured bottom, beside the level of a random one."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import Row, coloured, data, fixed, move_and_zoom, named
from deadreckon.render.colours import Colours

LAYERNORM, RMSNORM, TWIN, UNIFORM, RANDOM = (
    "γ⁻¹, LayerNorm",
    "γ⁻¹, RMSNorm (control)",
    "γ⁻¹ of a random-init twin",
    "1/√d in place of γ⁻¹",
    "a random direction",
)


def alignment(rows: Sequence[Row], *, names: Sequence[str], colours: Colours) -> alt.Chart:
    """A line a model: marks at cosines between 0 and 1.

    Args:
        rows: ``model``, ``series`` (one of this module's names) and ``value``.
        names: models from top to bottom.
        colours: for light, dark or the page.

    Returns:
        The chart.
    """
    present = [name for name in _SHAPES if any(row["series"] == name for row in rows)]
    hues = dict(zip(_SHAPES, (colours.measured, colours.exact, colours.twin, colours.fourth, colours.ink), strict=True))
    chart: alt.Chart = (
        alt.Chart(data(rows))
        .mark_point(size=70, strokeWidth=1.8)
        .encode(
            x=alt.X(
                "value:Q",
                scale=alt.Scale(domain=[-0.02, 1.03], nice=False),
                axis=alt.Axis(title="|cos|", values=_TICKS),
            ),
            y=alt.Y("model:N", scale=named(names), axis=alt.Axis(title=None, grid=True, domain=False, ticks=False)),
            color=coloured(present, [hues[name] for name in present]),
            shape=alt.Shape(
                "series:N", scale=alt.Scale(domain=present, range=[_SHAPES[name] for name in present]), title=None
            ),
            tooltip=[
                alt.Tooltip("model:N", title="model"),
                alt.Tooltip("series:N", title="direction"),
                alt.Tooltip("value:Q", title="|cos|", format=".6f"),
            ],
        )
        .properties(**fixed(), height=26 * len(names))
        .add_params(move_and_zoom())
    )
    return chart


_TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1]
_SHAPES = {LAYERNORM: "circle", RMSNORM: "diamond", TWIN: "triangle-up", UNIFORM: "cross", RANDOM: "stroke"}
