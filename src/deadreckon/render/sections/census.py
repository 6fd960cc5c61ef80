"""The census of exactly dead parameter dimensions."""

from __future__ import annotations

from functools import partial

from deadreckon.render.charts.census import census
from deadreckon.render.gather import Findings
from deadreckon.render.labels import labels
from deadreckon.render.parts import Column, Figure, Section, paragraph, table
from deadreckon.render.words import share
from deadreckon.results.census import Census


def section(findings: Findings) -> Section | None:
    """How many parameter dimensions no output depends on, by family."""
    entries = findings.of(Census)
    if not entries:
        return None
    named = [(name, entry.record) for name, entry in zip(labels(entries), entries, strict=True)]
    families = [
        f for f in dict.fromkeys(f for _, c in named for f in c.by_reason) if any(c.by_reason.get(f) for _, c in named)
    ]
    words = {family: family.replace("_", " ") for family in families}
    rows = [
        {"model": name, "series": words[family], "share": count / c.parameters, "dimensions": count}
        for name, c in named
        for family, count in c.by_reason.items()
        if count and c.parameters
    ]
    draw = partial(census, rows, names=[name for name, _ in named], families=list(words.values()))
    says = "Each part is a family of parameter steps that change no output, at any distance; families are counted once."
    columns = [
        Column("model"),
        Column("parameters", numbers=True),
        Column("exactly dead", numbers=True),
        Column("share", numbers=True),
        *(Column(words[family], numbers=True) for family in families),
        Column("learning coefficient at most", numbers=True),
    ]
    cells = [
        [
            f"{name} ({c.model_class})",
            f"{c.parameters:,}",
            f"{c.dead_dimensions:,}",
            share(c.share),
            *(f"{c.by_reason.get(family, 0):,}" for family in families),
            f"{c.rlct_upper_bound:,.1f}",
        ]
        for name, c in named
    ]
    intro = paragraph(
        "Counted from shapes, ties and norms alone. Half of what is left bounds the learning coefficient of singular "
        "learning theory from above."
    )
    figure = [Figure("census", "Exactly dead parameter dimensions by family", says, draw)] if rows else []
    return Section("census", "Dead parameter dimensions", [intro, *figure, table("Census", columns, cells)])
