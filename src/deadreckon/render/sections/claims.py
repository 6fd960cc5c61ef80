"""Verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from deadreckon.render.claims import claims
from deadreckon.render.gather import Findings
from deadreckon.render.markup import Html
from deadreckon.render.parts import Column, Section, badge, paragraph, table
from deadreckon.render.words import NONE
from deadreckon.results.reproduction import Claim


def section(findings: Findings) -> Section | None:
    """Each claim that the results bear on, with its verdict."""
    found = claims(findings)
    if not found:
        return None
    intro = paragraph("What these results say of each claim about dead directions, beside the published figure.")
    return Section("claims", "Claims", [intro, claims_table("Claims and verdicts", found)])


def claims_table(caption: str, found: Sequence[Claim]) -> Html:
    """Claims as a table."""
    columns = [Column("claim"), Column("verdict"), Column("here", wide=True), Column("the paper", wide=True)]
    rows = [(c.says, badge(c.verdict.replace("_", " ")), c.ours or NONE, c.theirs or NONE) for c in found]
    return table(caption, columns, rows, stacked=True)
