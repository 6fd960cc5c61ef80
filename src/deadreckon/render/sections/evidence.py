"""The classifier's evidence."""

from __future__ import annotations

from deadreckon.render.gather import Findings
from deadreckon.render.markup import Html, element, fragment
from deadreckon.render.parts import Column, Section, paragraph, table
from deadreckon.render.words import of
from deadreckon.results.reading import Classifications, Evidence


def section(findings: Findings) -> Section | None:
    """Each model's kind of norm with every observation it rests on, and what contradicts it."""
    results = [result for entry in findings.of(Classifications) for result in entry.record.results]
    if not results:
        return None
    rows = [
        [
            result.model,
            element("strong", result.kind),
            _list([_line(evidence) for evidence in result.evidence]),
            _list(result.contradictions) if result.contradictions else "none",
        ]
        for result in results
    ]
    columns = [Column("model"), Column("kind"), Column("evidence", wide=True), Column("contradictions", wide=True)]
    intro = paragraph(
        "Read from files alone, without running the model. Each observation is weighed by itself; what contradicts the "
        "conclusion is told, not averaged away: it is how a converted or mislabelled checkpoint shows."
    )
    odd = sum(bool(result.contradictions) for result in results)
    digest = f"Evidence of {of(odd, len(results), 'classified checkpoint')} contradicts itself." if odd else ""
    return Section(
        "evidence",
        "LayerNorm or RMSNorm: the evidence",
        [intro, table("Evidence", columns, rows, stacked=True)],
        digest,
    )


def _line(evidence: Evidence) -> Html:
    name = element("strong", evidence.name.replace("_", " "))
    return fragment(name, f": {evidence.value} ({evidence.strength}: {evidence.says})")


def _list(items: list[Html] | list[str]) -> Html:
    return element("ul", *(element("li", item) for item in items))
