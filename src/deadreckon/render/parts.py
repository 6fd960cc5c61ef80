"""What sections are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deadreckon.render.colours import Colours
from deadreckon.render.markup import Html, element, fragment

LONG = 32
"""Rows beyond which a table is folded."""


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        name: unique on the page; ASCII letters, digits and hyphens.
        title: what it is of.
        says: what it shows, in a sentence or two.
        chart: makes the Vega-Lite chart, config left out, in the `Colours` it is given as ``colours``.
        small: whether several stand side by side where there is room.
    """

    name: str
    title: str
    says: str
    chart: Callable[..., Any]
    small: bool = False

    def spec(self, colours: Colours) -> dict[str, Any]:
        """The chart in Vega-Lite's JSON, without a config of its own.

        Args:
            colours: for light, dark or the page.

        Returns:
            The specification. It is not validated again: that every chart is valid is what the tests are for.
        """
        from altair.utils.schemapi import debug_mode

        with debug_mode(False):
            spec: dict[str, Any] = self.chart(colours=colours).to_dict(validate=False)
        return {key: value for key, value in spec.items() if key not in {"$schema", "config"}}


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading.

    Attributes:
        name: of its anchor.
        title: its heading.
        blocks: paragraphs, tables and figures in order.
        digest: what it adds to the page's headline; empty for nothing.
    """

    name: str
    title: str
    blocks: Sequence[Html | Figure]
    digest: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it holds numbers or sentences."""

    heading: str
    numbers: bool = False
    wide: bool = False

    @property
    def look(self) -> str | None:
        """Its class in the style sheet."""
        return "number" if self.numbers else "wide" if self.wide else None


def paragraph(*children: str, class_: str | None = None) -> Html:
    """A paragraph of text."""
    return element("p", *children, class_=class_)


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], *, stacked: bool = False) -> Html:
    """A table whose first column names its rows; it scrolls by itself where it is too wide, and is folded if long.

    Args:
        caption: what it is of.
        columns: left to right.
        rows: cells, text or markup, as many as columns.
        stacked: whether, on a narrow screen, a row's cells stand below each other; for tables of sentences.

    Returns:
        The markup.
    """
    head = fragment(*(element("th", c.heading, scope="col", class_=c.look) for c in columns))
    # A cell that is laid out as a block is no cell to a screen reader unless it says so.
    roles = {name: name if stacked else None for name in ("table", "row", "rowheader", "cell")}
    body = []
    for first, *rest in rows:
        cells = [
            element("td", cell, class_=column.look, data_label=column.heading if stacked else None, role=roles["cell"])
            for cell, column in zip(rest, columns[1:], strict=True)
        ]
        body.append(
            element("tr", element("th", first, scope="row", role=roles["rowheader"]), *cells, role=roles["row"])
        )
    made = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", head)),
        element("tbody", *body),
        class_="stacked" if stacked else None,
        role=roles["table"],
    )
    scrolled = element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return scrolled if len(rows) <= LONG else folded(f"{caption}: {len(rows)} rows", scrolled)


def folded(summary: str, *children: str) -> Html:
    """Content that opens when asked for."""
    return element("details", element("summary", summary), *children)


def badge(verdict: str) -> Html:
    """A verdict with a sign before it, so that colour is never all that tells."""
    sign, class_ = _BADGES.get(verdict, ("○", "open"))
    return element("span", element("span", sign, aria_hidden="true"), f" {verdict}", class_=f"badge {class_}")


_BADGES = {
    "confirmed": ("✓", "holds"),
    "ok": ("✓", "holds"),
    "preserved": ("✓", "holds"),
    "eased": ("✓", "holds"),
    "dead": ("✓", "holds"),
    "partly": ("◐", "open"),
    "rescaled": ("◐", "open"),
    "refuted": ("✗", "dead"),
    "failed": ("✗", "dead"),
    "collapsed": ("✗", "dead"),
    "not dead": ("✗", "dead"),
}
