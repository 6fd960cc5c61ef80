"""Results that have no section of their own."""

from __future__ import annotations

from deadreckon.render.gather import Findings
from deadreckon.render.markup import element, fragment
from deadreckon.render.parts import Column, Section, table
from deadreckon.results.census import Census
from deadreckon.results.fisher import Fisher
from deadreckon.results.measurement import Measurement
from deadreckon.results.reading import Classifications, Reading
from deadreckon.results.reproduction import Reproduction
from deadreckon.results.trace import Trace

_SHOWN = (Census, Classifications, Fisher, Measurement, Reading, Reproduction, Trace)


def section(findings: Findings) -> Section | None:
    """What each of them says first."""
    rest = [entry.record for entry in findings.entries if not isinstance(entry.record, _SHOWN)]
    if not rest:
        return None
    rows = [
        [
            record.model,
            record.schema.removeprefix("deadreckon.").partition("/")[0],
            element("ul", *(element("li", fragment(f"{label}: {value}")) for label, value in record.headline())),
        ]
        for record in rest
    ]
    columns = [Column("model"), Column("verb"), Column("result", wide=True)]
    return Section("others", "Further results", [table("Further results", columns, rows)])
