"""The paper's table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from deadreckon.render.charts import alignment as chart
from deadreckon.render.gather import Findings
from deadreckon.render.markup import Html
from deadreckon.render.parts import Column, Figure, Section, badge, paragraph, table
from deadreckon.render.words import NONE, cosine, counted, number, of
from deadreckon.results.reproduction import ModelRow, Reproduction

_MODELS = [
    Column("model"),
    Column("by its parameters"),
    Column("by the forward pass"),
    Column("parameters, 10⁹", numbers=True),
    Column("d", numbers=True),
    Column("dtype"),
    Column("N/d", numbers=True),
    Column("seeds", numbers=True),
    Column("|cos| of γ⁻¹", numbers=True),
    Column("gains redrawn", numbers=True),
    Column("1/√d there", numbers=True),
    Column("a random direction's", numbers=True),
    Column("variance along γ⁻¹ / mean", numbers=True),
    Column("in float64", numbers=True),
    Column("stream"),
    Column("smallest step ratio", numbers=True),
]
_TRAINED = [
    Column("model"),
    Column("norm"),
    Column("d", numbers=True),
    Column("subspace |cos|", numbers=True),
    Column("deeper by, decades", numbers=True),
    Column("of it by the gain", numbers=True),
    Column("dead (twins)", numbers=True),
    Column("by gain + learned", numbers=True),
    Column("stream"),
]


def section(findings: Findings) -> Section | None:
    """Every model of a reproduction, with what was claimed of it."""
    found = [entry.record for entry in findings.of(Reproduction)]
    if not found:
        return None
    blocks = [block for k, record in enumerate(found) for block in _blocks(k, record)]
    rows = [row for record in found for row in record.models]
    # The paper's own claims have a figure of theirs.
    verdicts = [c.verdict for record in found for c in record.claims if c.theirs and c.verdict != "not_tested"]
    models = counted(len(dict.fromkeys(row.model for row in rows)), "model")
    confirmed = of(verdicts.count("confirmed"), len(verdicts), "claim")
    refuted = f", {verdicts.count('refuted')} refuted" if "refuted" in verdicts else ""
    digest = f"On {models} at random initialisation: {confirmed} of the paper that could be tested confirmed{refuted}."
    return Section("reproduction", "The paper's table", blocks, digest)


def _blocks(index: int, record: Reproduction) -> Iterator[Html | Figure]:
    where = f" on {record.environment.device}" if record.environment else ""
    yield paragraph(
        f"{record.model}{where}: {number(record.seconds)} seconds for all tasks; their records: {record.store}"
    )
    names = [_name(row) for row in record.models]
    if names:
        draw = partial(chart.alignment, [part for row in record.models for part in _marks(row)], names=names)
        says = (
            "1: the direction that the gain names is the one without variance. At plain initialisation every gain is 1 "
            "and γ⁻¹ is 1/√d; with gains redrawn γ⁻¹ stays at 1 and 1/√d does not. An RMSNorm belongs near the random "
            "level."
        )
        yield Figure(f"reproduction-{index}", "Is γ⁻¹ the bottom direction at random initialisation?", says, draw)
        yield table("Models at random initialisation", _MODELS, [_model(row) for row in record.models])
    events = [f"{_name(row)}: {event}" for row in record.models for event in row.events]
    yield from (paragraph(event, class_="note") for event in events)
    if record.trained:
        rows = [
            [
                row.model,
                row.kind,
                f"{row.hidden_size:,}",
                cosine(row.subspace_alignment),
                number(row.deepening),
                number(row.gain_decades),
                f"{row.dead} ({row.dead_twin})",
                f"{row.algebraic_dead} + {row.learned_dead}",
                badge(row.trace.replace("_", " ") or NONE),
            ]
            for row in record.trained
        ]
        yield table("Trained models beside random-init twins", _TRAINED, rows)
    if record.failures:
        failures = [[f.model, f.verb, f.why] for f in record.failures]
        yield table("Failed tasks of it", [Column("model"), Column("verb"), Column("reason", wide=True)], failures)


def _name(row: ModelRow) -> str:
    return f"{row.model.removeprefix('random:')}, {row.dtype}"


def _marks(row: ModelRow) -> Iterator[dict[str, Any]]:
    own = chart.LAYERNORM if row.kind_seen == "layernorm" else chart.RMSNORM
    yield {"model": _name(row), "series": chart.RANDOM, "value": row.random_level}
    if row.uniform_redrawn is not None:
        yield {"model": _name(row), "series": chart.UNIFORM, "value": row.uniform_redrawn}
    for value in (row.alignment, row.alignment_redrawn):
        if value is not None:
            yield {"model": _name(row), "series": own, "value": value}


def _model(row: ModelRow) -> list[str]:
    return [
        row.model.removeprefix("random:"),
        row.kind_read or NONE,
        row.kind_seen,
        NONE if row.parameters is None else f"{row.parameters / 1e9:.2f}",
        f"{row.hidden_size:,}",
        row.dtype,
        f"{row.tokens_per_dimension:.1f}",
        str(len(row.seeds)),
        cosine(row.alignment),
        cosine(row.alignment_redrawn),
        number(row.uniform_redrawn),
        f"{row.random_level:.3f}",
        number(row.dead_share),
        number(row.dead_share_float64),
        badge(row.trace.replace("_", " ") or NONE),
        number(row.smallest_step_ratio),
    ]
