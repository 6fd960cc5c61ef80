"""What the smallest singular value does from node to node: ratios, statuses, where it falls, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deadreckon.forward.precision import AT_FLOOR
from deadreckon.forward.stream import NodeSpectrum

OK, RANK_LIMITED, AT_THE_FLOOR = "ok", "rank_limited", "at_floor"
RESCALED, COLLAPSED = "rescaled", "collapsed"


@dataclass(frozen=True)
class Step:
    """One node in relation to the one before.

    Attributes:
        spectrum: of the node.
        status: ok | rank_limited | at_floor.
        ratio: sigma_min over that of the node before; None where there is none above its floor.
        relative: the same in units of the geometric mean.
        cumulative: sigma_min over that of node -1; None where that is at its floor.
    """

    spectrum: NodeSpectrum
    status: str
    ratio: float | None = None
    relative: float | None = None
    cumulative: float | None = None


@dataclass(frozen=True)
class Fall:
    """A step that falls below the collapse ratio.

    Attributes:
        index: of the block.
        kind: rescaled | collapsed.
        attributed_to: the block whose rescaling had made the direction small against what is written here; None: none.
    """

    index: int
    kind: str
    attributed_to: int | None = None


def steps(spectra: Sequence[NodeSpectrum]) -> list[Step]:
    """The nodes in their order, each in relation to the one before.

    Nodes at their floor before the first that is not are `rank_limited`: the inputs do not span the stream there.

    Args:
        spectra: by ascending index.

    Returns:
        One entry a node.
    """
    found: list[Step] = []
    spanned = False
    for spectrum in spectra:
        # sigma, not its square: AT_FLOOR is a factor between variances.
        low = spectrum.sigma_min <= math.sqrt(AT_FLOOR) * spectrum.sigma_floor
        spanned |= not low
        status = OK if not low else AT_THE_FLOOR if spanned else RANK_LIMITED
        before = found[-1] if found and found[-1].spectrum.index == spectrum.index - 1 else None
        first = found[0] if found and found[0].spectrum.index == -1 else None
        ratio = relative = cumulative = None
        if before is not None and before.status == OK:
            ratio = spectrum.sigma_min / before.spectrum.sigma_min
            if spectrum.sigma_geomean > 0:
                relative = ratio * before.spectrum.sigma_geomean / spectrum.sigma_geomean
        if first is not None and first.status == OK:
            cumulative = spectrum.sigma_min / first.spectrum.sigma_min
        found.append(Step(spectrum, status, ratio, relative, cumulative))
    return found


def falls(found: Sequence[Step], collapse_ratio: float) -> list[Fall]:
    """Where the smallest singular value falls, alone or against the others.

    Args:
        found: what `steps` returned.
        collapse_ratio: ratios below it count.

    Returns:
        By ascending index.
    """
    events: list[Fall] = []
    rescaled: int | None = None
    scale = 0.0  # of the stream before it was rescaled
    for before, step in pairwise(found):
        if step.ratio is None:
            continue
        fell = step.ratio < collapse_ratio
        drowned = step.relative is not None and step.relative < collapse_ratio
        lost = step.status == AT_THE_FLOOR
        index = step.spectrum.index
        if before.spectrum.sigma_geomean >= scale:
            rescaled = None  # the stream has regained what it had: nothing written from here on is larger for it
        if (drowned or lost) and not fell and rescaled is not None:
            events.append(Fall(index, COLLAPSED, rescaled))
        elif (fell and drowned) or lost:
            events.append(Fall(index, COLLAPSED))
        elif fell or drowned:
            events.append(Fall(index, RESCALED))
            if fell:
                rescaled, scale = index, max(scale, before.spectrum.sigma_geomean)
    return events


def worst(found: Sequence[Step]) -> int | None:
    """Index of the node with the smallest step ratio; None where no step has one."""
    judged = [step for step in found if step.ratio is not None]
    return min(judged, key=lambda step: step.ratio or 0.0).spectrum.index if judged else None


def verdict(found: Sequence[Step], events: Sequence[Fall]) -> tuple[str, str]:
    """The verdict on a stream, and what it rests on in words.

    Args:
        found: what `steps` returned.
        events: what `falls` returned.

    Returns:
        preserved | eased | rescaled | collapsed | not_applicable, and why.
    """
    judged = [step for step in found if step.ratio is not None]
    if not judged:
        return "not_applicable", "the stream is nowhere of full rank on these inputs, so there is no ratio to judge"
    by_index = {step.spectrum.index: step for step in judged}
    low = min(judged, key=lambda step: step.ratio or 0.0)
    least = f"the smallest step ratio is {low.ratio:.3g} at block {low.spectrum.index}"
    if own := [event for event in events if event.kind == COLLAPSED and event.attributed_to is None]:
        return "collapsed", f"a direction is lost at block {own[0].index}; {least}"
    shrunk = [event for event in events if event.kind == RESCALED and _shrank(by_index[event.index])]
    if shrunk:
        return "rescaled", f"the whole stream shrinks at block {shrunk[0].index}; {least}"
    eased = [step for before, step in pairwise(found) if step.ratio and _below(before, step)]
    if eased:
        return "eased", f"it falls at {len(eased)} of {len(judged)} blocks; {least}"
    return "preserved", f"it falls nowhere; {least}"


def _shrank(step: Step) -> bool:
    """Whether a rescaling is one of the smallest value itself, not of the others growing past it."""
    return step.ratio is not None and step.relative is not None and step.ratio < step.relative


def _below(before: Step, step: Step) -> bool:
    """Whether a step ratio is below 1 by more than what the two values are known to."""
    high = step.spectrum.sigma_min + step.spectrum.sigma_floor
    known = before.spectrum
    return high < known.sigma_min - known.sigma_min_error - known.sigma_floor
