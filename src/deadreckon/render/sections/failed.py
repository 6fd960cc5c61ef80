"""Tasks without a result."""

from __future__ import annotations

from deadreckon.render.gather import Findings
from deadreckon.render.parts import Column, Section, badge, paragraph, table
from deadreckon.render.words import counted


def section(findings: Findings) -> Section | None:
    """What failed, and why."""
    if not findings.failed:
        return None
    rows = [
        [f.model, f.verb, "–" if f.step is None else f"{f.step:,}", badge("failed"), f.why] for f in findings.failed
    ]
    columns = [
        Column("model"),
        Column("verb"),
        Column("step", numbers=True),
        Column("status"),
        Column("reason", wide=True),
    ]
    intro = paragraph("Nothing above rests on these; what they would have shown is missing.")
    digest = f"{counted(len(findings.failed), 'task')} failed."
    return Section("failed", "Failed tasks", [intro, table("Failed tasks", columns, rows)], digest)
