"""What parameters alone predict."""

from __future__ import annotations

from deadreckon.render.gather import Findings
from deadreckon.render.labels import labels
from deadreckon.render.parts import Column, Section, paragraph, table
from deadreckon.render.words import counted, number, power
from deadreckon.results.measurement import Measurement
from deadreckon.results.reading import Reading

_COLUMNS = [
    Column("model"),
    Column("norm"),
    Column("kind"),
    Column("d", numbers=True),
    Column("exact kernel", numbers=True),
    Column("predicted dead", numbers=True),
    Column("smallest gain", numbers=True),
    Column("median gain", numbers=True),
    Column("constant read along it", numbers=True),
]


def section(findings: Findings) -> Section | None:
    """The final norm of each checkpoint that was read."""
    entries = findings.of(Reading)
    if not entries:
        return None
    named = [(name, entry.record) for name, entry in zip(labels(entries), entries, strict=True)]
    rows = [
        [
            name,
            r.final_norm,
            r.kind,
            f"{r.hidden_size:,}",
            str(r.kernel_dim),
            f"{r.dead_count} at {power(r.tau)}",
            number(r.smallest_gain),
            number(r.median_gain),
            number(r.beta_projection),
        ]
        for name, r in named
    ]
    intro = paragraph(
        "From the gain of the final norm, without running the model: how many directions of its output can never vary."
    )
    total = sum(r.dead_count for _, r in named)
    digest = "" if findings.of(Measurement) else (
        f"The parameters of {counted(len(named), 'model')} name {counted(total, 'dead direction')}; nothing was run."
    )  # fmt: skip
    return Section("reading", "Read from the parameters", [intro, table("Final norms", _COLUMNS, rows)], digest)
