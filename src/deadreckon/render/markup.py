"""HTML in which text is text: what is not markup already is escaped where it enters, whoever wrote it.

Names of models and tensors, reasons and evidence come from files that others made. They enter a page in two places:
between tags, through `element`, and as data of charts inside a script element, through `script_data`.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

_VOID = {"br", "meta"}
_LONGEST = 1200
# Controls, half surrogates (which UTF-8 cannot hold), and marks that end lines or turn the direction of text.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")


class Html(str):
    """Markup: text that `element` leaves as it is. Make one only of markup that holds nothing from outside."""

    __slots__ = ()


def visible(text: str) -> str:
    """Text with what cannot be seen spelled out, cut where it is longer than any reason need be."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST * 2 // 3]} … {text[-_LONGEST // 3 :]}"
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def element(tag: str, *children: str, **attributes: str | bool | None) -> Html:
    """An element.

    Args:
        tag: its name.
        *children: markup (`Html`), taken as it is, or text, which is escaped.
        **attributes: their values, escaped; ``class_`` stands for class and ``aria_label`` for aria-label. One that is
            None or False is left out, True gives it no value.

    Returns:
        The markup.
    """
    shown = "".join(_attribute(name, value) for name, value in attributes.items() if value not in {None, False})
    opening = f"<{tag}{shown}>"
    return Html(opening if tag in _VOID else f"{opening}{fragment(*children)}</{tag}>")


def fragment(*children: str) -> Html:
    """Markup and text one after another, the text escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(visible(c)) for c in children))


def script_data(data: Any) -> Html:
    """JSON that may stand inside a script element: none of its characters can end that, or open a comment in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII alone, half surrogates as \\uXXXX
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _attribute(name: str, value: str | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(visible(str(value)))}"'
