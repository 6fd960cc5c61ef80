"""The residual stream over depth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from deadreckon.render.charts import profile as chart
from deadreckon.render.gather import Entry, Findings
from deadreckon.render.labels import labels
from deadreckon.render.markup import Html
from deadreckon.render.parts import Column, Figure, Section, badge, paragraph, table
from deadreckon.render.runs import drawn
from deadreckon.render.words import counted, listed, number
from deadreckon.results.trace import Stream, Trace

MOST = 36
"""Profiles on a page."""


def section(findings: Findings) -> Section | None:
    """A profile a stream, with its verdict and the falls named."""
    entries = findings.of(Trace)
    named = list(zip(labels(entries), entries, strict=True))
    streams, charted = _streams(named), _streams(drawn(named, MOST))[:MOST]
    if not streams:
        return None
    blocks = [
        paragraph(
            "Singular values of what each block hands on, tokens by coordinates. The identity path should carry every "
            "direction from block to block: where the smallest singular value falls while the geometric mean stays, a "
            "direction of the stream was lost."
        )
    ]
    if left_out := len(streams) - len(charted):
        words = counted(left_out, "stream of another step, seed or model", "streams of other steps, seeds or models")
        blocks.append(paragraph(f"Not drawn: {words}; the table has them all."))
    figures = [_figure(k, name, stream) for k, (name, stream) in enumerate(charted) if stream.blocks]
    tables = [_verdicts(streams)]
    if any(stream.events for _, stream in streams):
        tables.append(_events(streams))
    return Section(
        "stream",
        "Residual stream",
        [*blocks, *figures, *tables],
        _digest([(name, entry.record) for name, entry in named]),
    )


def _streams(named: list[tuple[str, Entry[Trace]]]) -> list[tuple[str, Stream]]:
    return [
        (name if len(entry.record.streams) == 1 else f"{name}, {stream.role}", stream)
        for name, entry in named
        for stream in entry.record.streams
    ]


def _figure(index: int, name: str, stream: Stream) -> Figure:
    events = [{"block": e.block, "label": f"{e.kind} at block {e.block}", "says": e.says} for e in stream.events]
    draw = partial(chart.profile, list(_rows(stream)), events)
    falls = [f"block {e.block}, {e.kind}: {_cause(e.cause)}" for e in stream.events]
    says = f"{_verdict(stream.verdict).capitalize()}: {stream.why}." + (f" At {listed(falls)}." if falls else "")
    return Figure(f"stream-{index}", name, says, draw, small=True)


def _rows(stream: Stream) -> Iterator[dict[str, Any]]:
    for node in stream.blocks:
        yield {
            "block": node.index,
            "module": node.block or "input",
            "status": node.status.replace("_", " "),
            "step": node.step_ratio,
            chart.SMALLEST: max(node.sigma_min, node.sigma_floor),
            chart.GEOMEAN: node.sigma_geomean,
            chart.LARGEST: node.sigma_max,
            chart.FLOOR: node.sigma_floor,
        }


def _verdicts(streams: list[tuple[str, Stream]]) -> Html:
    columns = [
        Column("stream"),
        Column("verdict"),
        Column("blocks", numbers=True),
        Column("d", numbers=True),
        Column("N/d", numbers=True),
        Column("smallest step ratio", numbers=True),
        Column("at block", numbers=True),
        Column("why", wide=True),
    ]
    rows = []
    for name, stream in streams:
        worst = next((node for node in stream.blocks if node.index == stream.worst_block), None)
        rows.append(
            [
                name,
                badge(_verdict(stream.verdict)),
                str(len(stream.blocks) - 1),
                f"{stream.hidden_size:,}",
                f"{stream.tokens_per_dimension:.1f}",
                number(worst.step_ratio if worst else None),
                "–" if worst is None else str(worst.index),
                stream.why,
            ]
        )
    return table("Verdicts on residual streams", columns, rows)


def _events(streams: list[tuple[str, Stream]]) -> Html:
    columns = [
        Column("stream"),
        Column("block", numbers=True),
        Column("what"),
        Column("cause"),
        Column("in words", wide=True),
        Column("coordinates of the lost direction"),
        Column("participation ratio", numbers=True),
        Column("before", numbers=True),
        Column("after", numbers=True),
        Column("floor", numbers=True),
    ]
    rows = [
        [
            name,
            str(event.block),
            badge(event.kind),
            _cause(event.cause),
            event.says,
            ", ".join(f"{c.coordinate} ({c.weight:.2f})" for c in event.direction.top[:4]),
            f"{event.direction.participation_ratio:.1f}",
            number(event.evidence.before),
            number(event.evidence.after),
            number(event.evidence.floor),
        ]
        for name, stream in streams
        for event in stream.events
    ]
    return table("Blocks over which the stream loses a direction or its scale", columns, rows)


def _digest(named: list[tuple[str, Trace]]) -> str:
    applicable = [(name, trace) for name, trace in named if trace.verdict != "not_applicable"]
    lost = [
        f"{name} (block {', '.join(str(e.block) for e in trace.events if e.kind == 'collapsed')})"
        for name, trace in applicable
        if trace.verdict == "collapsed"
    ]
    if lost:
        return f"The residual stream loses a direction in {listed(lost)}."
    if not applicable:
        return ""
    models = len({trace.model for _, trace in applicable})
    return f"The residual stream loses no direction in {counted(models, 'model')} traced."


def _verdict(verdict: str) -> str:
    return verdict.replace("_", " ")


def _cause(cause: str) -> str:
    return cause.replace("_", " ")
