"""How far a predicted direction lies in the measured bottom, beside the level of a random one."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import Row, dots
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
    axis = alt.Axis(title="|cos|", values=_TICKS)
    return dots(
        rows,
        x=alt.X("value:Q", scale=alt.Scale(domain=[-0.02, 1.03], nice=False), axis=axis),
        line="model",
        names=names,
        shapes=_SHAPES,
        colours=(colours.measured, colours.exact, colours.twin, colours.fourth, colours.ink),
        tooltip=[
            alt.Tooltip("model:N", title="model"),
            alt.Tooltip("series:N", title="direction"),
            alt.Tooltip("value:Q", title="|cos|", format=".6f"),
        ],
        height=26,
    )


_TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1]
_SHAPES = {LAYERNORM: "circle", RMSNORM: "diamond", TWIN: "triangle-up", UNIFORM: "cross", RANDOM: "stroke"}
