"""The charts as image files, drawn by the same code as those of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deadreckon.render.colours import LIGHT, look
from deadreckon.render.markup import visible
from deadreckon.render.parts import Figure

_WIDTH = 640
_SCALE = 2.0  # pixels of a PNG to a unit of the drawing
_LINE = 92  # characters of a subtitle's line at that width


def images(figures: list[Figure], kind: str) -> Iterator[tuple[str, bytes]]:
    """File names and contents.

    Args:
        figures: what to draw.
        kind: png | svg.

    Yields:
        A name made of what the chart is of, and the image, in light colours on white.
    """
    import textwrap

    import vl_convert

    for number, figure in enumerate(figures, 1):
        spec = figure.spec(LIGHT)
        spec["config"] = {**look(LIGHT), "background": LIGHT.paper}
        spec["width"], spec["padding"] = _WIDTH, 16
        spec["title"] = {
            "text": visible(figure.title),
            "subtitle": textwrap.wrap(visible(figure.says), _LINE),
            "fontSize": 15,
            "subtitleFontSize": 12,
        }
        name = re.sub(r"[^a-z0-9]+", "-", f"{figure.name.rstrip('-0123456789')} {figure.title}".lower()).strip("-")
        stem = f"{number:02d}-{name[:60].strip('-')}"
        if kind == "svg":
            yield f"{stem}.svg", vl_convert.vegalite_to_svg(spec).encode()
        else:
            yield f"{stem}.png", vl_convert.vegalite_to_png(spec, scale=_SCALE)
