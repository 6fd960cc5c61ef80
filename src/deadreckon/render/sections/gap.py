"""What training changed."""

from __future__ import annotations

from functools import partial

from deadreckon.render.charts import gap as chart
from deadreckon.render.gather import Findings
from deadreckon.render.labels import labels
from deadreckon.render.markup import Html
from deadreckon.render.parts import Column, Figure, Section, paragraph, table
from deadreckon.render.words import NONE, power
from deadreckon.results.measurement import Gap, GapFigure, Measurement


def section(findings: Findings) -> Section | None:
    """Each trained model beside its random-init twins, on the same inputs."""
    entries = findings.of(Measurement)
    named = [(n, e.record, e.record.gap) for n, e in zip(labels(entries), entries, strict=True) if e.record.gap]
    if not named:
        return None
    depth, rank = [], []
    for name, record, _ in named:
        for series, figures in [*((chart.TWIN, twin) for twin in record.twins), (chart.TRAINED, record)]:
            if figures.depth_decades is not None:
                depth.append({"model": name, "series": series, "value": figures.depth_decades})
            if figures.effective_rank is not None:
                rank.append({"model": name, "series": series, "value": figures.effective_rank / record.hidden_size})
    names = [name for name, *_ in named]
    blocks = [
        paragraph(
            "The same configuration with weights as the model's own initialiser draws them, run on the same inputs, "
            "shows what training has added. Depth: decades between the variance along γ⁻¹ and the mean variance."
        )
    ]
    if depth:
        draw = partial(chart.gap, depth, names=names, title="depth of γ⁻¹ below the mean, decades")
        says = "Further right is deeper. A LayerNorm is deep before training; a jump comes from gains driven to zero."
        blocks.append(Figure("gap-depth", "Depth before and after training", says, draw, small=True))  # type: ignore[arg-type]
    if rank:
        draw = partial(chart.gap, rank, names=names, title="effective rank / d")
        says = "How evenly the singular values are spread: 1 is all alike, near 0 a few that hold everything."
        blocks.append(Figure("gap-rank", "Effective rank before and after training", says, draw, small=True))  # type: ignore[arg-type]
    blocks.append(_table(named))
    return Section("gap", "What training changed", blocks)


def _table(named: list[tuple[str, Measurement, Gap]]) -> Html:
    taus = list(dict.fromkeys(tau for *_, gap in named for tau in gap.dead_counts))
    columns = [
        Column("model"),
        Column("twins", numbers=True),
        Column("depth, decades", numbers=True),
        Column("log₁₀ of the variance along γ⁻¹", numbers=True),
        Column("effective rank", numbers=True),
        *(Column(f"dead at {_tolerance(tau)}", numbers=True) for tau in taus),
    ]
    rows = []
    for name, record, gap in named:
        changes = [gap.depth_decades, gap.lambda_dead_decades, gap.effective_rank]
        counts = [gap.dead_counts.get(tau) for tau in taus]
        cells = [*(_change(c, 2) for c in changes), *(NONE if c is None else _change(c, 0) for c in counts)]
        rows.append([name, str(len(record.twins)), *cells])
    return table("Trained minus random init (smallest and largest over twins)", columns, rows)


def _change(figure: GapFigure, digits: int) -> str:
    if figure.change is None:
        return NONE
    text = f"{figure.change:+,.{digits}f}"
    if figure.smallest is None or figure.largest is None or figure.smallest == figure.largest:
        return text
    return f"{text} ({figure.smallest:+,.{digits}f} to {figure.largest:+,.{digits}f})"


def _tolerance(tau: str) -> str:
    try:
        return power(float(tau))
    except ValueError:
        return tau
