"""Spectra of the norms' outputs."""

from __future__ import annotations

from functools import partial
from typing import Any

from deadreckon.render.charts.spectrum import spectrum
from deadreckon.render.gather import Findings
from deadreckon.render.labels import labels
from deadreckon.render.parts import Figure, Section, paragraph
from deadreckon.render.runs import drawn
from deadreckon.render.words import counted, power
from deadreckon.results.measurement import Eigenvalues, Measurement

MOST = 36
"""Spectra on a page."""
_AT_FLOOR = 4.0  # a value up to so many times its floor is rounding, as in the records


def section(findings: Findings) -> Section | None:
    """A chart a measurement: its eigenvalues, the dead subspace and the floor."""
    entries = findings.of(Measurement)
    named = [(name, entry) for name, entry in zip(labels(entries), entries, strict=True) if _kept(entry.record).ranks]
    chosen = drawn(named, MOST)
    if not chosen:
        return None
    blocks = [
        paragraph(
            "Eigenvalues of the covariance of each norm's output, relative to their mean. Shaded: the ranks that the "
            "parameters predict to be dead. Dashed: what counts as dead. Open circles are at their floor, which is "
            "rounding: only that they are small means something, and one that rounding made negative is drawn at it."
        )
    ]
    if left_out := len(named) - len(chosen):
        blocks.append(
            paragraph(f"Not drawn: {counted(left_out, 'spectrum', 'spectra')} of other steps, seeds or further models.")
        )
    figures = [_figure(k, name, entry.record) for k, (name, entry) in enumerate(chosen)]
    return Section("spectrum", "Spectra", [*blocks, *figures])


def _kept(record: Measurement) -> Eigenvalues:
    """The eigenvalues that were kept; none in records of versions that kept none."""
    return record.spectrum or Eigenvalues(ranks=[], native=[], float64=[], native_floor=[], float64_floor=0.0)


def _figure(index: int, name: str, record: Measurement) -> Figure:
    kept = _kept(record)
    twin = next((twin.spectrum for twin in record.twins if twin.spectrum), None)
    draw = partial(
        spectrum,
        _rows(kept, record.lambda_mean, twin, record.twins[0].lambda_mean if record.twins else 0.0),
        size=record.hidden_size,
        dead=record.predicted_dead,
        tau=record.tau,
    )
    return Figure(f"spectrum-{index}", name, _says(record), draw, small=True)


def _rows(kept: Eigenvalues, mean: float, twin: Eigenvalues | None, twin_mean: float) -> list[dict[str, Any]]:
    """Relative to the mean; what rounding made negative or zero is drawn at its floor, if that is known."""
    mean, twin_mean = mean or 1.0, twin_mean or 1.0
    others = (
        {} if twin is None else dict(zip(twin.ranks, zip(twin.native, twin.native_floor, strict=False), strict=False))
    )
    rows = []
    for rank, native, exact, floor in zip(kept.ranks, kept.native, kept.float64, kept.native_floor, strict=False):
        beside, beside_floor = others.get(rank, (None, None))
        rows.append(
            {
                "rank": rank,
                "native": _at_least(native, floor, mean),
                "exact": _at_least(exact, kept.float64_floor, mean),
                "floor": None if floor is None else floor / mean,
                "twin": None if beside is None else _at_least(beside, beside_floor, twin_mean),
                "resolved": floor is None or native > _AT_FLOOR * floor,
            }
        )
    return rows


def _at_least(value: float, floor: float | None, mean: float) -> float | None:
    value = max(value, floor or 0.0) if value <= 0 else value
    return value / mean if value > 0 else None


def _says(record: Measurement) -> str:
    dead = record.algebraic_dead + record.learned_dead
    predicted = f"{record.predicted_dead} predicted dead ({record.kernel_dim} exactly)"
    measured = f"{dead} measured at or below {power(record.tau)} of the mean"
    partly = " Solved for its bottom end and the largest value alone." if record.solver == "bottom" else ""
    what = f"{record.kind}, d = {record.hidden_size:,}, {record.tokens_per_dimension:.1f} tokens a dimension"
    return f"{what}: {predicted}, {measured}.{partly}"
