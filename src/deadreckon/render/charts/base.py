"""What charts share: data short enough for a page, scales, legends and how a reader moves in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

import altair as alt

from deadreckon.render.markup import visible

HEIGHT = 240
_LARGEST = 1e300
_ROOM = 1.5  # between a mark and the end of a logarithmic axis
Row = Mapping[str, Any]


def data(rows: Sequence[Row]) -> alt.InlineData:
    """Rows as inline data: numbers to seven digits, for cosines near 1, and names as a reader can see them."""
    known = [{key: _shown(value) for key, value in row.items()} for row in rows]
    return alt.InlineData(values=[{key: value for key, value in row.items() if value is not None} for row in known])


def move_and_zoom(*, both: bool = False) -> alt.Parameter:
    """Drag with a mouse to move, Shift and wheel to zoom, double click to go back.

    Without Shift the wheel scrolls the page, and so does a finger: a chart must be no trap on the way down.

    Args:
        both: along both axes; else along x alone.

    Returns:
        The parameter.
    """
    drag = "[pointerdown[event.pointerType === 'mouse'], window:pointerup] > window:pointermove!"
    return alt.selection_interval(
        bind="scales", encodings=["x", "y"] if both else ["x"], translate=drag, zoom="wheel![event.shiftKey]"
    )


def coloured(names: Sequence[str], colours: Sequence[str], **legend: Any) -> alt.Color:
    """Colour by the name of a series, with a legend: the field is ``series``."""
    return alt.Color(
        "series:N", scale=alt.Scale(domain=list(names), range=list(colours)), legend=alt.Legend(**legend), title=None
    )


def named(names: Sequence[str]) -> alt.Scale:
    """A scale of names from top to bottom; in a list to sort by, they would become parts of an expression."""
    return alt.Scale(domain=[visible(name) for name in names])


def decades(values: Sequence[float], lowest: float = 1e-20) -> tuple[float, float]:
    """Ends of a logarithmic axis, whole decades around positive values; those below `lowest` are left to its edge."""
    positive = [max(value, lowest) for value in values if 0 < value < _LARGEST] or [1e-1]
    low = next((exponent for exponent in range(300, -300, -1) if 10.0**exponent <= min(positive) / _ROOM), -300)
    high = next((exponent for exponent in range(low + 1, 308) if 10.0**exponent >= max(positive) * _ROOM), 308)
    return 10.0**low, 10.0**high


def power_axis(title: str | None, ends: tuple[float, float], most: int = 7) -> alt.Axis:
    """A logarithmic axis that is labelled at whole powers of ten, evenly.

    Args:
        title: of the axis.
        ends: of the axis, powers of ten.
        most: labels at most.

    Returns:
        The axis.
    """
    low, high = (round(log10(end)) for end in ends)
    step = max(1, -(-(high - low) // most))
    return alt.Axis(title=title, values=[10.0**k for k in range(high, low - 1, -step)], labelExpr=_POWER)


def dots(
    rows: Sequence[Row],
    *,
    x: alt.X,
    line: str,
    names: Sequence[str],
    shapes: Mapping[str, str],
    colours: Sequence[str],
    tooltip: Sequence[alt.Tooltip],
    height: int,
) -> alt.Chart:
    """A line a name, with a mark of its own colour and shape for each series.

    Args:
        rows: of fields `line`, ``series`` and ``value``.
        x: along the lines.
        line: field that says which line a mark lies on.
        names: lines from top to bottom.
        shapes: series -> shape, those that have no row among them.
        colours: of the series, in the order of `shapes`.
        tooltip: what a mark says.
        height: of a line, pixels.

    Returns:
        The chart.
    """
    present = [name for name in shapes if any(row["series"] == name for row in rows)]
    hues = dict(zip(shapes, colours, strict=True))
    scale = alt.Scale(domain=present, range=[shapes[name] for name in present])
    chart: alt.Chart = (
        alt.Chart(data(rows))
        .mark_point(size=70, strokeWidth=1.8)
        .encode(
            x=x,
            y=alt.Y(f"{line}:N", scale=named(names), axis=alt.Axis(title=None, grid=True, domain=False, ticks=False)),
            color=coloured(present, [hues[name] for name in present]),
            shape=alt.Shape("series:N", scale=scale, title=None),
            tooltip=list(tooltip),
        )
        .properties(**fixed(), height=height * len(names))
        .add_params(move_and_zoom())
    )
    return chart


def fixed() -> dict[str, Any]:
    """Properties of a chart as wide as its place and as high as its rows."""
    return {"width": "container", "autosize": alt.AutoSizeParams(type="fit-x", contains="padding")}


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if abs(value) < _LARGEST else None  # a ratio may leave what floats can hold
    return visible(value) if isinstance(value, str) else value


_DIGIT = "slice('⁰¹²³⁴⁵⁶⁷⁸⁹', {0}, {0} + 1)"
_EXPONENT = "abs(round(log(datum.value) / LN10))"
_POWER = (
    "datum.value === 1 ? '1' : '10' + (datum.value < 1 ? '⁻' : '')"
    + "".join(
        f" + ({_EXPONENT} >= {unit} ? {_DIGIT.format(f'(floor({_EXPONENT} / {unit}) % 10)')} : '')"
        for unit in (100, 10)
    )
    + f" + {_DIGIT.format(f'({_EXPONENT} % 10)')}"
)
