"""Quantities over the checkpoints of training runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from deadreckon.render.charts.trajectory import trajectory
from deadreckon.render.gather import Entry, Findings
from deadreckon.render.parts import Column, Figure, Section, paragraph, table
from deadreckon.render.runs import run_name
from deadreckon.render.words import counted, number
from deadreckon.results.measurement import Measurement
from deadreckon.results.reading import Reading
from deadreckon.results.record import Record
from deadreckon.results.trace import Trace

MOST_LINES = 12


@dataclass(frozen=True)
class Quantity:
    """What is followed: its name, what it tells, the record that knows it, and how to read it off there."""

    name: str
    says: str
    kind: type[Record]
    of: Callable[[Any], float | None]
    logarithmic: bool = False


def _smallest_step(trace: Trace) -> float | None:
    ratios = [node.step_ratio for node in trace.blocks if node.step_ratio is not None]
    return min(ratios) if ratios else None


QUANTITIES = (
    Quantity(
        "effective rank / d",
        "How evenly the norm's output fills its space; it often dips early in training and recovers.",
        Measurement,
        lambda m: None if m.effective_rank is None else m.effective_rank / m.hidden_size,
    ),
    Quantity(
        "dead directions at 0.01 of the mean",
        "Directions with less than a hundredth of the mean variance: a loose net, which catches what opens and closes.",
        Measurement,
        lambda m: m.dead_counts.get("1e-02"),
    ),
    Quantity(
        "dead directions at 10⁻⁶ of the mean",
        "Directions that are dead outright.",
        Measurement,
        lambda m: m.dead_counts.get("1e-06"),
    ),
    Quantity(
        "|cos| of γ⁻¹ with the bottom",
        "1 while the direction that the gain names is the one without variance.",
        Measurement,
        lambda m: m.subspace_alignment if m.kernel_dim else m.alignment,
    ),
    Quantity(
        "depth of γ⁻¹, decades",
        "Decades between the mean variance and that along γ⁻¹, as the model computes it.",
        Measurement,
        lambda m: m.depth_decades,
    ),
    Quantity(
        "smallest step ratio of the stream",
        "Below 1 some block takes from the smallest singular value of the residual stream.",
        Trace,
        _smallest_step,
    ),
    Quantity(
        "smallest gain",
        "Gains that shrink to nearly zero kill further directions.",
        Reading,
        lambda r: r.smallest_gain or None,
        logarithmic=True,
    ),
)


def section(findings: Findings) -> Section | None:
    """A chart a quantity with at least two steps, and all values as a table."""
    figures: list[Figure] = []
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for quantity in QUANTITIES:
        rows = _rows(quantity, findings.of(quantity.kind))
        names = list(dict.fromkeys(row["model"] for row in rows))
        for row in rows:
            cells.setdefault((row["model"], row["step"]), {})[quantity.name] = row["value"]
        if not names:
            continue
        shown = names[:MOST_LINES]
        more = f" {counted(len(names) - MOST_LINES, 'further run')} in the table." if len(names) > MOST_LINES else ""
        draw = partial(
            trajectory,
            [row for row in rows if row["model"] in shown],
            names=shown,
            title=quantity.name,
            logarithmic=quantity.logarithmic and all(row["value"] > 0 for row in rows),
        )
        name = f"trajectory-{QUANTITIES.index(quantity)}"
        figures.append(Figure(name, quantity.name, quantity.says + more, draw, small=True))
    if not figures:
        return None
    known = [q.name for q in QUANTITIES if any(q.name in found for found in cells.values())]
    columns = [Column("run"), Column("step", numbers=True), *(Column(name, numbers=True) for name in known)]
    lines = [
        [run, f"{step:,}", *(number(found.get(name), 4) for name in known)]
        for (run, step), found in sorted(cells.items())
    ]
    intro = paragraph("Checkpoints of training runs, by step; the scale of steps is logarithmic beyond 1.")
    return Section("trajectory", "Over training", [intro, *figures, table("Checkpoints by step", columns, lines)])


def _rows(quantity: Quantity, entries: list[Entry[Any]]) -> list[dict[str, Any]]:
    """Values of runs with at least two steps, by step."""
    found = []
    for entry in entries:
        value = quantity.of(entry.record)
        if entry.step is not None and value is not None:
            found.append({"model": run_name(entry), "step": entry.step, "value": float(value)})
    runs = [row["model"] for row in found]
    several = {run for run in runs if len({row["step"] for row in found if row["model"] == run}) > 1}
    return sorted((row for row in found if row["model"] in several), key=lambda row: (row["model"], row["step"]))
