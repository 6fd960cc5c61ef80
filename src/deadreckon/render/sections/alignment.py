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
from deadreckon.render.words import cosine, counted, number, of
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
    shown = named[:MOST]
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
    sound = [record for _, record in named if record.protocol.status == "ok"]
    kernels = [record for record in sound if record.kernel_dim]
    controls = [record for record in sound if not record.kernel_dim]
    parts = []
    if kernels:
        held = sum(aligned(record) for record in kernels)
        noun = "LayerNorm measurement" if all(record.kind == "layernorm" for record in kernels) else "measurement"
        parts.append(
            f"In {of(held, len(kernels), noun)} the directions that the parameters predict are those without variance."
        )
        further = sum(record.algebraic_dead + record.learned_dead - record.kernel_dim for record in kernels)
        if further > 0:
            explained = sum(record.algebraic_dead - record.kernel_dim for record in kernels)
            parts.append(
                f"Beyond the kernel {counted(further, 'direction is', 'directions are')} dead; the gains explain "
                f"{explained} of them."
            )
    if controls:
        clear = of(sum(not record.lambda_dead_at_floor for record in controls), len(controls), "measurement")
        parts.append(f"RMSNorm leaves no such direction: in {clear} there is variance along γ⁻¹.")
    if voided:
        parts.append(f"The protocol check failed for {counted(len(voided), 'measurement')}.")
    return " ".join(parts)
