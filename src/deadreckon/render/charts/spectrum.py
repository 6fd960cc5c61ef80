"""The eigenvalues of one norm's output, smallest first, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from deadreckon.render.charts.base import HEIGHT, Row, data, decades, fixed, move_and_zoom, power_axis
from deadreckon.render.colours import Colours

NATIVE, EXACT, TWIN = "as computed", "in float64", "random-init twin"


def spectrum(rows: Sequence[Row], *, size: int, dead: int, tau: float, colours: Colours) -> alt.TopLevelMixin:
    """Eigenvalues against their rank, with the predicted dead subspace shaded.

    Args:
        rows: ``rank`` and what is known there, relative to the mean eigenvalue: ``native``, ``exact``, ``twin``,
            ``floor``; ``resolved`` is whether ``native`` is above its floor.
        size: d.
        dead: dimension of the predicted dead subspace.
        tau: an eigenvalue at most that counts as dead.
        colours: for light, dark or the page.

    Returns:
        The chart.
    """
    drawn = [row[key] for row in rows for key in ("native", "exact", "twin", "floor") if row.get(key) is not None]
    low, high = decades([*drawn, tau])
    ranks = alt.Scale(type="log", domain=[0.8, size * 1.15], nice=False)
    x = alt.X(
        "rank:Q",
        scale=ranks,
        axis=alt.Axis(title="rank of the eigenvalue, smallest first", grid=False, format=",d", tickCount=6),
    )
    value = alt.Scale(type="log", domain=[low, high], nice=False, clamp=True)
    known = [key for key in _SERIES if any(row.get(key) is not None for row in rows)]
    names = [_SERIES[key][0] for key in known]
    hues = {"native": colours.measured, "exact": colours.exact, "twin": colours.twin}
    colour = alt.Scale(domain=names, range=[hues[key] for key in known])
    shape = alt.Scale(domain=names, range=[_SERIES[key][1] for key in known])
    base = alt.Chart(data(rows)).encode(x)
    tooltip = [
        alt.Tooltip("rank:Q", title="rank", format=",d"),
        *(alt.Tooltip(f"{key}:Q", title=_SERIES[key][0], format=".2e") for key in known),
        alt.Tooltip("floor:Q", title="floor", format=".2e"),
    ]

    def y(key: str) -> alt.Y:
        return alt.Y(f"{key}:Q", scale=value, axis=power_axis("eigenvalue / mean", (low, high)))

    def points(key: str, size: int) -> alt.Chart:
        marks: alt.Chart = (
            base.transform_calculate(series=f"'{_SERIES[key][0]}'")
            .mark_point(size=size, strokeWidth=1.3)
            .encode(
                y(key),
                color=alt.Color("series:N", scale=colour, title=None),
                shape=alt.Shape("series:N", scale=shape, title=None),
                tooltip=tooltip,
            )
        )
        return marks

    layers: list[alt.Chart] = []
    if dead:
        end = dead + 0.5 if dead < size else size * 1.15
        band = alt.Chart(data([{"from": 0.8, "to": end, "top": high, "says": "predicted dead"}]))
        band = band.encode(x=alt.X("from:Q", scale=ranks))
        layers.append(band.mark_rect(color=colours.dead, opacity=0.14).encode(x2="to:Q"))
        layers.append(
            band.mark_text(align="left", baseline="top", dx=4, dy=5, color=colours.dead, fontSize=11).encode(
                y=alt.value(0), text="says:N"
            )
        )
    rule = alt.Chart(data([{"tau": tau, "end": size, "says": "counts as dead"}])).encode(y=alt.Y("tau:Q", scale=value))
    layers.append(rule.mark_rule(color=colours.dead, strokeDash=[6, 4], strokeWidth=1.2))
    layers.append(_at_the_end(rule, ranks, colours.dead, above=False))
    floors = [row for row in rows if row.get("floor") is not None]
    if floors:
        layers.append(
            base.transform_filter("isValid(datum.floor)")
            .mark_line(strokeDash=[2, 3], strokeWidth=1.5, color=colours.floor)
            .encode(y("floor"))
        )
        last = alt.Chart(data([{"floor": floors[-1]["floor"], "end": size, "says": "floor"}])).encode(y("floor"))
        layers.append(_at_the_end(last, ranks, colours.muted, above=True))
    if "twin" in known:
        layers += [base.mark_line(strokeWidth=1, color=colours.twin).encode(y("twin")), points("twin", 16)]
    if "exact" in known:
        layers.append(points("exact", 32))
    # Open circles are rounding: the eigenvalue is at its floor.
    filled = alt.condition("datum.resolved", alt.value(1), alt.value(0))
    layers.append(points("native", 24).encode(fill=alt.value(colours.measured), fillOpacity=filled))
    layers[-1] = layers[-1].add_params(move_and_zoom(both=True))
    return alt.layer(*layers).properties(**fixed(), height=HEIGHT)


def _at_the_end(line: alt.Chart, ranks: alt.Scale, colour: str, *, above: bool) -> alt.Chart:
    """The words of a line, at its right end."""
    marked = line.mark_text(
        align="right", baseline="bottom" if above else "top", dy=-3 if above else 4, color=colour, fontSize=11
    )
    words: alt.Chart = marked.encode(x=alt.X("end:Q", scale=ranks), text="says:N")
    return words


_SERIES = {"native": (NATIVE, "circle"), "exact": (EXACT, "diamond"), "twin": (TWIN, "triangle-up")}
