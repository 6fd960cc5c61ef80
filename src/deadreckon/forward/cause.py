"""The cause of an event, decided by the numbers in its evidence alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from deadreckon.forward.precision import AT_FLOOR
from deadreckon.results.trace import StreamEvidence, TokenGroup

_MOST = 0.99  # share that counts as all of it
_FEW = 0.5  # share of the tokens up to which they are a part of them, and the others the rule
_CANCELS = -0.9  # correlation from which a write counts as the negative of what was there
_NAMED = 8


def cause(found: StreamEvidence, collapse_ratio: float) -> tuple[str, str]:
    """The first cause, from the most particular to the most general, that the numbers bear out.

    Args:
        found: the numbers of all candidates.
        collapse_ratio: step ratios below it are events.

    Returns:
        One of `Event.cause`, and the same in words.
    """
    for name, rule in _RULES:
        if (says := rule(found, collapse_ratio)) is not None:
            return name, says
    return "unexplained", _unexplained(found, collapse_ratio)


def _block_scalar(found: StreamEvidence, collapse_ratio: float) -> str | None:
    """Without the scalar the step would be none to report."""
    if found.scalar is None or found.step_ratio < collapse_ratio * abs(found.scalar):
        return None
    if abs(found.scalar) >= 1:
        return None
    return f"{found.scalar_tensor or 'a factor of its output'} multiplies the whole stream by {found.scalar:.3g}"


def _norm_node(found: StreamEvidence, _: float) -> str | None:
    """The block's output is a norm's, and the direction is that norm's kernel."""
    if found.norm_alignment is None or found.norm_alignment < _MOST:
        return None
    return "the block ends in a norm, and this is its dead direction"


def _precision_floor(found: StreamEvidence, _: float) -> str | None:
    """What the direction held before is no more than what rounding makes of it now."""
    rounding = math.sqrt(AT_FLOOR) * found.floor  # AT_FLOOR is a factor between variances
    if max(found.before, found.after) > rounding:
        return None
    return f"the direction held {found.before:.2g}, and the stream now rounds to {found.floor:.2g}"


def _dead_coordinate(found: StreamEvidence, _: float) -> str | None:
    """The direction lies in the columns that fell."""
    if not found.dead_coordinates or found.dead_weight < _MOST:
        return None
    many = len(found.dead_coordinates)
    names = ", ".join(map(str, found.dead_coordinates[:_NAMED])) + (", ..." if many > _NAMED else "")
    return f"coordinate{'s' if many > 1 else ''} {names} of the stream {'are' if many > 1 else 'is'} dead from here on"


def _token_subset(found: StreamEvidence, collapse_ratio: float) -> str | None:
    """Few tokens carried it, and on the others it does not fall: they had as little before."""
    modalities = [group for group in found.tokens if not group.group.startswith("position")]
    places = sorted((g for g in found.tokens if g not in modalities), key=lambda group: -group.before)
    for some in (*([group] for group in modalities), *(places[: k + 1] for k in range(len(places)))):
        tokens, before, after = (math.fsum(getattr(g, key) for g in some) for key in ("tokens", "before", "after"))
        if tokens > _FEW or before < _MOST:
            continue
        had, have = (_level(found.before, 1 - before, 1 - tokens), _level(found.after, 1 - after, 1 - tokens))
        if had <= max(have / collapse_ratio, math.sqrt(AT_FLOOR) * found.floor):
            return f"only {_names(some)} carried the direction{_and_cancelled(found, collapse_ratio)}"
    return None


def _branch_cancellation(found: StreamEvidence, collapse_ratio: float) -> str | None:
    """What the parts write is the negative of what was there, and nothing else is needed to explain what is left."""
    if found.correlation is None or found.correlation > _CANCELS or found.remainder > collapse_ratio:
        return None
    return f"{_cancelling(found, collapse_ratio)} the negative of what the direction held"


_RULES: Sequence[tuple[str, Callable[[StreamEvidence, float], str | None]]] = (
    ("block_scalar", _block_scalar),
    ("norm_node", _norm_node),
    ("precision_floor", _precision_floor),
    ("dead_coordinate", _dead_coordinate),
    ("token_subset", _token_subset),
    ("branch_cancellation", _branch_cancellation),
)


def _unexplained(found: StreamEvidence, collapse_ratio: float) -> str:
    if found.step_ratio >= collapse_ratio:
        return "the other directions grew past this one"
    if found.remainder > collapse_ratio:
        return "the block takes the direction away, and none of the parts that it was seen to be made of does"
    return "no candidate explains it: see their numbers"


def _cancelling(found: StreamEvidence, collapse_ratio: float) -> str:
    """The fewest parts that leave less than the collapse ratio of it, and their verb."""
    named: list[str] = []
    share = 0.0
    for write in sorted(found.writes, key=lambda write: -write.share):
        if share >= 1 - collapse_ratio:
            break
        named.append(write.module)
        share += write.share
    return f"{' and '.join(named)} write{'' if len(named) > 1 else 's'}"


def _and_cancelled(found: StreamEvidence, collapse_ratio: float) -> str:
    says = _branch_cancellation(found, collapse_ratio)
    return "" if says is None else f"; {says}"


def _names(groups: Sequence[TokenGroup]) -> str:
    if groups[0].group.startswith("position"):
        return ", ".join(group.group for group in groups)
    return f"{groups[0].group} tokens"


def _level(whole: float, energy: float, tokens: float) -> float:
    """Root mean square over some tokens from that over all, their share of its square and of the tokens."""
    return whole * math.sqrt(max(energy, 0.0) / tokens)
