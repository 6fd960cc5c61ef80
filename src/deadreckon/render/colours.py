"""Colours by what they mean, for light, for dark and for paper, and the look of all charts.

A page's charts name CSS variables in place of colours, so that light, dark and print are the style sheet's business and
no chart is drawn twice. Images have the light colours themselves. The hues are those of Okabe and Ito (2008), which
stay apart for every kind of colour vision, darkened on white and lightened on black until their contrast is 3 at least
(4.5 for text); shapes and dashes say the same once more.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, kw_only=True)
class Colours:
    """A colour for each meaning.

    Attributes:
        paper: what everything stands on.
        ink: text.
        muted: second text, axes.
        line: grid and borders.
        panel: of cards and heads of tables.
        measured: what a model computes; LayerNorm.
        exact: the same in float64; RMSNorm.
        twin: random-init twins, references.
        dead: what is dead, lost or fails.
        holds: what holds.
        floor: rounding floors.
        fourth: a further series, like the next ones.
        fifth: likewise.
        sixth: likewise.
    """

    paper: str
    ink: str
    muted: str
    line: str
    panel: str
    measured: str
    exact: str
    twin: str
    dead: str
    holds: str
    floor: str
    fourth: str
    fifth: str
    sixth: str

    @property
    def series(self) -> list[str]:
        """Colours for things without a meaning of their own, in order."""
        return [self.measured, self.exact, self.holds, self.fourth, self.fifth, self.dead, self.sixth, self.twin]


LIGHT = Colours(
    paper="#ffffff",
    ink="#1b1f24",
    muted="#57606a",
    line="#d8dee4",
    panel="#f6f8fa",
    measured="#0067a8",
    exact="#b35c00",
    twin="#6e7781",
    dead="#b3243b",
    holds="#00785a",
    floor="#8c959f",
    fourth="#a3487f",
    fifth="#2b8fc0",
    sixth="#8a7400",
)

DARK = Colours(
    paper="#0f1419",
    ink="#e6edf3",
    muted="#9aa5b1",
    line="#2d353e",
    panel="#171d24",
    measured="#56b4e9",
    exact="#f0a83c",
    twin="#8b98a5",
    dead="#ff7b86",
    holds="#3fc79a",
    floor="#6f7c89",
    fourth="#dd94bd",
    fifth="#8fd0f5",
    sixth="#e5d84d",
)

PAGE = Colours(**{field.name: f"var(--{field.name})" for field in fields(Colours)})


def css_variables(colours: Colours) -> str:
    """Declarations of the variables that `PAGE` names."""
    return "".join(f"--{field.name}:{getattr(colours, field.name)};" for field in fields(Colours))


def look(colours: Colours) -> dict[str, Any]:
    """Vega-Lite's config, the same for every chart."""
    text = {"font": FONT, "color": colours.ink}
    axis = {
        "labelFont": FONT,
        "titleFont": FONT,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": colours.muted,
        "titleColor": colours.muted,
        "domainColor": colours.line,
        "tickColor": colours.line,
        "gridColor": colours.line,
        "gridOpacity": 0.7,
        "titlePadding": 8,
        "labelLimit": 150,
    }
    legend = {
        "orient": "top",
        "title": None,
        "labelFont": FONT,
        "labelFontSize": 12,
        "labelColor": colours.ink,
        "labelLimit": 260,
        "symbolSize": 70,
        "columns": 2,
        "columnPadding": 18,
        "padding": 0,
        "offset": 10,
    }
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "legend": legend,
        "text": text,
        # Labels for every single mark would drown a listener; the figure's own description says what it shows.
        "aria": False,
        "title": {"font": FONT, "color": colours.ink, "subtitleColor": colours.muted, "anchor": "start", "offset": 14},
    }
