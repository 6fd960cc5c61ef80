"""The kind of a norm from evidence of different strengths, with what contradicts the conclusion kept in sight."""

from __future__ import annotations

from collections.abc import Sequence

from deadreckon.results.reading import Evidence

UNDETERMINED = "undetermined"
_STRENGTHS = ("weak", "strong", "decisive")


def conclude(evidence: Sequence[Evidence]) -> tuple[str, list[str]]:
    """The kind that the strongest evidence gives, and the evidence against it.

    Args:
        evidence: observations; one that says "undetermined" takes no side. Weak evidence alone does not decide.

    Returns:
        The kind (or "undetermined") and a sentence for each strong or decisive observation that says otherwise.
        Decisive observations that disagree among themselves leave the kind undetermined.
    """
    sides = [e for e in evidence if e.says != UNDETERMINED and e.strength != "weak"]
    if not sides:
        return UNDETERMINED, []
    strongest = max(_STRENGTHS.index(e.strength) for e in sides)
    verdicts = {e.says for e in sides if _STRENGTHS.index(e.strength) == strongest}
    kind = verdicts.pop() if len(verdicts) == 1 else UNDETERMINED
    return kind, [f"{e.name} says {e.says} ({e.value})" for e in sides if e.says != kind]
