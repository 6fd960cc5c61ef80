"""One file that holds everything: words, tables, charts and the library that draws them, and may ask for nothing.

The page's own policy (Content-Security-Policy) forbids every request, and every script and style sheet but those whose
hashes it names: Vega runs its expressions in an interpreter, so that nothing has to be evaluated. What is not drawn by
a script, words and tables, is there without one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from deadreckon import __version__
from deadreckon.render.colours import DARK, LIGHT, PAGE, css_variables, look
from deadreckon.render.markup import Html, element, fragment, script_data
from deadreckon.render.parts import Figure, Section, paragraph

# All that a page needs of vega-embed: no menu, no style sheet of its own, expressions interpreted.
_DRAW = """
window.deadreckonDraw = (element, spec, config) => vegaEmbed(element, spec, {
  ast: true, actions: false, config, defaultStyle: false, mode: "vega-lite", renderer: "svg",
  tooltip: {disableDefaultStyle: true},
});
"""


def page(title: str, headline: str, sections: Sequence[Section], command: str) -> str:
    """The whole page.

    Args:
        title: its title.
        headline: what the results say, in words.
        sections: its parts.
        command: what made it.

    Returns:
        HTML.
    """
    style, script, library = _style(), _resource("page.js"), _library()
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element(
            "meta", http_equiv="Content-Security-Policy", content=_policy([script, *[library] * bool(figures)], style)
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Html(style)),
    )
    contents = element(
        "nav",
        element("ul", *(element("li", element("a", s.title, href=f"#{s.name}")) for s in sections)),
        aria_label="Contents",
    )
    hint = paragraph(
        "Charts: hover for values, drag to move, Shift and wheel to zoom, double click to go back.",
        class_="hint screen",
    )
    no_script = element(
        "noscript", paragraph("Charts need JavaScript. Everything they show is in words and tables.", class_="hint")
    )
    header = element("header", element("h1", title), paragraph(headline, class_="headline"), no_script, hint, contents)
    footer = element("footer", paragraph(f"Made by deadreckon {__version__}: ", element("code", command)))
    charts = {figure.name: figure.spec(PAGE) for figure in figures}
    data = {"config": look(PAGE), "charts": charts}
    scripts = [
        element("script", script_data(data), id="charts", type="application/json"),
        element("script", Html(library)),
    ]
    body = element(
        "body",
        element("a", "Skip to the results", href="#results", class_="skip"),
        header,
        element("main", *(_section(section) for section in sections), id="results"),
        footer,
        *(scripts * bool(figures)),
        element("script", Html(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _section(section: Section) -> Html:
    heading = element("h2", section.title, id=f"{section.name}-title")
    return element("section", heading, *_blocks(section), id=section.name, aria_labelledby=f"{section.name}-title")


def _blocks(section: Section) -> Iterator[Html]:
    """The blocks in order, small figures in a row side by side."""
    for small, run in groupby(section.blocks, lambda block: isinstance(block, Figure) and block.small):
        shown = [_figure(block) if isinstance(block, Figure) else block for block in run]
        yield element("div", *shown, class_="side-by-side") if small else fragment(*shown)


def _figure(figure: Figure) -> Html:
    caption = element("figcaption", element("strong", figure.title), " ", element("span", figure.says))
    chart = element(
        "div", class_="chart", id=f"chart-{figure.name}", role="img", aria_label=f"Chart. {figure.title}: {figure.says}"
    )
    return element("figure", caption, chart)


def _policy(scripts: Sequence[str], style: str) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _style() -> str:
    light, dark = css_variables(LIGHT), css_variables(DARK)
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{_resource('page.css')}"
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    text: Any = vl_convert.javascript_bundle(_DRAW)
    # Nothing in it may end the element that it stands in; as an escape within a string it means the same.
    return str(text).replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _resource(name: str) -> str:
    return files("deadreckon.render").joinpath(name).read_text(encoding="utf-8")
