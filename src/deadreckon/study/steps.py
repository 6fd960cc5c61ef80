"""Lists of training steps as people write them, ``[0, 1, 2, 4, ..., 512, 1000, 2000, ..., 143000]``, and in names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

_DOTS = {"...", "…"}
_ENDS_IN_STEP = re.compile(
    r"(?:(?:checkpoint|ckpt|(?:global_?)?step|iter(?:ation)?|epoch)[-_]?)?(\d{1,12})", re.IGNORECASE
)
_HAS_STEP = re.compile(r"(?:^|[-_])step[-_]?(\d{1,12})(?!\d)", re.IGNORECASE)


def step_of(name: str) -> int | None:
    """The training step that a folder's or a revision's name tells.

    Args:
        name: ``checkpoint-500``, ``step1000``, ``500``, ``stage1-step1000-tokens5B``.

    Returns:
        The step; None where the name tells none.
    """
    match = _ENDS_IN_STEP.fullmatch(name) or _HAS_STEP.search(name)
    return int(match[1]) if match else None


def fill_steps(steps: Sequence[int | str]) -> list[int]:
    """A list of steps with its dots filled in.

    The three numbers before the dots (two, where there are no more) say how it goes on: by adding or by multiplying.
    It must come out at the number after the dots.

    Args:
        steps: numbers, and ``...`` between some of them.

    Returns:
        All numbers.

    Raises:
        ValueError: it does not come out, both ways would, or there is something else in the list.
    """
    found: list[int] = []
    for index, step in enumerate(steps):
        if step in _DOTS:
            following = steps[index + 1] if index + 1 < len(steps) else None
            if len(found) < 2 or not isinstance(following, int):
                raise ValueError("... stands between numbers, two at least before it and one after it")
            found += _between(found[-3:], following)
        elif not isinstance(step, int):
            raise ValueError(f"{step!r} is neither a step nor ...")
        elif step < 0:
            raise ValueError(f"{step} is no step: they start at 0")
        else:
            found.append(step)
    return found


def _between(before: list[int], last: int) -> list[int]:
    """What the dots after some numbers stand for, up to and without the last."""
    if len(before) == 3 and not (_evenly(before) or _factor(before)):
        before = before[1:]  # the first belongs to an earlier stretch: 512, 1000, 2000, ..., 143000
    ways = [numbers for numbers in (_added(before, last), _multiplied(before, last)) if numbers is not None]
    shown = ", ".join(map(str, before))
    if not ways:
        raise ValueError(
            f"{shown}, ..., {last} does not come out at {last}, by adding or by multiplying; "
            "the checkpoints of Pythia are [0, 1, 2, 4, ..., 512, 1000, 2000, ..., 143000]"
        )
    if len(ways) == 2 and ways[0] != ways[1]:
        raise ValueError(f"{shown}, ..., {last} comes out by adding and by multiplying: write one more number")
    return ways[0]


def _added(before: list[int], last: int) -> list[int] | None:
    step = _evenly(before)
    if not step or last <= before[-1] or (last - before[-1]) % step:
        return None
    return list(range(before[-1] + step, last, step))


def _multiplied(before: list[int], last: int) -> list[int] | None:
    if not (factor := _factor(before)):
        return None
    found, number = [], before[-1] * factor
    while number < last:
        found.append(number)
        number *= factor
    return found if number == last else None


def _evenly(numbers: list[int]) -> int:
    """What is added each time; 0 where it is not the same each time."""
    steps = {b - a for a, b in pairwise(numbers)}
    return max(0, steps.pop()) if len(steps) == 1 else 0


def _factor(numbers: list[int]) -> int:
    """What each is multiplied by; 0 where that is not one whole number above 1."""
    if numbers[0] <= 0:
        return 0
    factor = numbers[1] // numbers[0]
    return factor if factor > 1 and all(b == a * factor for a, b in pairwise(numbers)) else 0
