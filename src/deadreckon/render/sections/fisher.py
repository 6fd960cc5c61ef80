"""Fisher information along dead parameter steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

from deadreckon.render.charts import fisher as chart
from deadreckon.render.gather import Findings
from deadreckon.render.labels import labels
from deadreckon.render.markup import Html
from deadreckon.render.parts import Column, Figure, Section, badge, paragraph, table
from deadreckon.render.words import counted, number
from deadreckon.results.fisher import Fisher, FisherSite

MOST = 40
"""Sites in a chart."""
_COLUMNS = [
    Column("reader"),
    Column("norm"),
    Column("constant", numbers=True),
    Column("remedy"),
    Column("F with remedy / random", numbers=True),
    Column("floor", numbers=True),
    Column("F without / random", numbers=True),
    Column("largest change of an output", numbers=True),
    Column("verdict"),
    Column("in words", wide=True),
]


def section(findings: Findings) -> Section | None:
    """Each reader of a norm: the step along the kernel beside random ones."""
    entries = findings.of(Fisher)
    if not entries:
        return None
    blocks: list[Html | Figure] = [
        paragraph(
            "A step of a reader's weights along the norm's kernel, with what takes its constant away (a bias, or the "
            "norm's shift), changes no output: its Fisher information is rounding beside that of random steps of the "
            "same size in the same tensors."
        )
    ]
    for k, (name, entry) in enumerate(zip(labels(entries), entries, strict=True)):
        sites = entry.record.sites
        draw = partial(chart.fisher, list(_rows(sites[:MOST])), names=[site.site for site in sites[:MOST]])
        more = f" {counted(len(sites) - MOST, 'further reader')} in the table." if len(sites) > MOST else ""
        metric = "softmax" if entry.record.metric == "softmax" else "Gaussian, of the last hidden state"
        says = f"{entry.record.tokens:,} predictions, metric {metric}; 1 is the median random step.{more}"
        blocks.append(Figure(f"fisher-{k}", name, says, draw))
        blocks.append(table(f"{name}: readers of norms", _COLUMNS, [_cells(site) for site in sites]))
    return Section("fisher", "Fisher information", blocks)


def _rows(sites: list[FisherSite]) -> Iterator[dict[str, Any]]:
    for site in sites:
        level = median(site.random) if site.random else 0.0
        if level > 0:
            yield from ({"site": site.site, "series": chart.RANDOM, "value": draw / level} for draw in site.random)
        yield {"site": site.site, "series": chart.FLOOR, "value": site.floor}
        yield {"site": site.site, "series": chart.NAIVE, "value": site.naive_ratio}
        if site.ratio is not None:
            yield {"site": site.site, "series": chart.DEAD, "value": site.ratio}


def _cells(site: FisherSite) -> list[str]:
    changes = [step.max_logit_change for step in site.gauge if step.max_logit_change is not None]
    promised = site.has_kernel and site.remedy != "none"
    return [
        site.site,
        f"{site.norm} ({site.norm_kind})",
        number(site.constant),
        site.remedy,
        number(site.ratio),
        number(site.floor),
        number(site.naive_ratio),
        number(max(changes) if changes else None),
        badge(("dead" if site.holds else "not dead") if promised else "control"),
        site.says,
    ]
