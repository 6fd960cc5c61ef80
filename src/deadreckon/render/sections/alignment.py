"""Dead directions, predicted and measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import pi, sqrt
from typing import Any

from deadreckon.render.charts import alignment as chart
from deadreckon.render.claims import aligned
from deadreckon.render.gather import Findings
from deadreckon.render.labels import labels
from deadreckon.render.markup import Html
from deadreckon.render.parts import Column, Figure, Section, badge, paragraph, table
from deadreckon.render.runs import drawn
from deadreckon.render.words import cosine, counted, listed, number, of
from deadreckon.results.measurement import Figures, Measurement

_COLUMNS = [
    Column("model"),
    Column("norm"),
    Column("d", numbers=True),
    Column("N/d", numbers=True),
    Column("dtype"),
    Column("dead, predicted (exact)", numbers=True),
    Column("dead, measured (by gain + learned)", numbers=True),
    Column("|cos| with the bottom", numbers=True),
    Column("a random direction's", numbers=True),
    Column("variance along γ⁻¹ / mean", numbers=True),
    Column("in float64", numbers=True),
    Column("protocol"),
]
_FEW = 3
MOST = 60
"""Models in the chart."""


def random_level(size: int) -> float:
    """Mean |cos| of a random direction with a fixed one in d dimensions, √(2/(πd)) to leading order."""
    return sqrt(2 / (pi * size))


def section(findings: Findings) -> Section | None:
    """Every measured norm: what its parameters predict, and what the forward pass shows."""
    entries = findings.of(Measurement)
    if not entries:
        return None
    names = labels(entries)
    named = list(zip(names, (entry.record for entry in entries), strict=True))
    shown = [(name, entry.record) for name, entry in drawn(list(zip(names, entries, strict=True)), MOST)]
    draw = partial(chart.alignment, [row for each in shown for row in _rows(*each)], names=[name for name, _ in shown])
    says = (
        "1: the direction that the parameters predict is the one without variance. An RMSNorm predicts none; its γ⁻¹ "
        "is a control and belongs near the level of a random direction."
    )
    intro = paragraph(
        "Predicted from the parameters alone; measured on the outputs of the norm over one forward pass. A failed "
        "protocol means that the module that ran is not the norm that was read, and voids its row."
    )
    rows = [_cells(name, record) for name, record in named]
    blocks: list[Html | Figure] = [
        intro,
        Figure("alignment", "Does γ⁻¹ lie in the measured bottom of the spectrum?", says, draw),
        table("Dead directions, predicted and measured", _COLUMNS, rows),
        *(paragraph(f"{name}: {why}", class_="note") for name, why in _notes(named)),
    ]
    return Section("alignment", "Predicted and measured", blocks, _digest(named))


def _rows(name: str, record: Measurement) -> Iterator[dict[str, Any]]:
    own = chart.LAYERNORM if record.kernel_dim else chart.RMSNORM
    yield {"model": name, "series": chart.RANDOM, "value": random_level(record.hidden_size)}
    yield {"model": name, "series": chart.UNIFORM, "value": record.alignment_uniform}
    yield from ({"model": name, "series": chart.TWIN, "value": _cosine(twin)} for twin in record.twins)
    yield {"model": name, "series": own, "value": _cosine(record)}


def _cosine(figures: Figures) -> float:
    return figures.subspace_alignment if figures.kernel_dim else figures.alignment


def _cells(name: str, record: Measurement) -> list[str]:
    ok = record.protocol.status == "ok"
    measured = f"{record.algebraic_dead} + {record.learned_dead}" if ok else "–"
    mean = record.lambda_mean
    return [
        name,
        record.kind,
        f"{record.hidden_size:,}",
        f"{record.tokens_per_dimension:.1f}",
        record.environment.dtype,
        f"{record.predicted_dead} ({record.kernel_dim})",
        measured,
        cosine(_cosine(record)),
        f"{random_level(record.hidden_size):.3f}",
        number(record.lambda_dead / mean if mean > 0 else None),
        number(record.lambda_dead_float64 / mean if mean > 0 else None),
        badge(record.protocol.status),
    ]


def _notes(named: list[tuple[str, Measurement]]) -> Iterator[tuple[str, str]]:
    for name, record in named:
        if record.protocol.status != "ok":
            yield name, record.protocol.why
        yield from ((name, warning) for warning in record.warnings)


def _digest(named: list[tuple[str, Measurement]]) -> str:
    """The headline: how many norms did what their parameters say."""
    voided = [name for name, record in named if record.protocol.status != "ok"]
    kernels = [(name, record) for name, record in named if record.protocol.status == "ok" and record.kernel_dim]
    controls = [(name, record) for name, record in named if record.protocol.status == "ok" and not record.kernel_dim]
    parts = []
    if kernels:
        where = _where(kernels, [aligned(record) for _, record in kernels])
        parts.append(f"In {where} the directions that the parameters predict are those without variance.")
        further = sum(record.algebraic_dead + record.learned_dead - record.kernel_dim for _, record in kernels)
        if further > 0:
            explained = sum(record.algebraic_dead - record.kernel_dim for _, record in kernels)
            more = counted(further, "further direction is", "further directions are")
            parts.append(f"Beyond the exact kernel {more} dead; the gains explain {explained} of them.")
    if controls:
        where = _where(controls, [not record.lambda_dead_at_floor for _, record in controls])
        parts.append(f"RMSNorm leaves no such direction: in {where} there is variance along γ⁻¹.")
    if voided:
        parts.append(f"The protocol check failed for {counted(len(voided), 'measurement')}.")
    return " ".join(parts)


def _where(named: list[tuple[str, Measurement]], held: list[bool]) -> str:
    """Names, where they are few and all of them held; else how many did."""
    if all(held) and len(named) <= _FEW:
        return listed([name for name, _ in named])
    return of(sum(held), len(named), "measurement")
