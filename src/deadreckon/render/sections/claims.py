"""Verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from deadreckon.render.claims import Claim, claims
from deadreckon.render.gather import Findings
from deadreckon.render.markup import Html
from deadreckon.render.parts import Column, Section, badge, paragraph, table


def section(findings: Findings) -> Section | None:
    """Each claim that the results bear on, with its verdict."""
    found = claims(findings)
    if not found:
        return None
    blocks = [
        paragraph("What these results say of each claim about dead directions, beside the published figure."),
        claims_table("Claims and verdicts", found),
    ]
    return Section("claims", "Claims", blocks)


def claims_table(caption: str, found: Sequence[Claim]) -> Html:
    """Claims as a table."""
    columns = [Column("claim"), Column("verdict"), Column("here", wide=True), Column("published", wide=True)]
    return table(caption, columns, [(c.claim, badge(c.verdict), c.ours, c.theirs) for c in found], stacked=True)
