"""Tensor names and the atlas's patterns for them: ``*`` any block's index, ``{last}`` the last one's."""

from __future__ import annotations

import re
from functools import cache

GAINS, SHIFTS = ("weight", "gamma", "scale"), ("bias", "beta")
"""The usual names of a norm's two parameters."""

_ALIASES = {"gamma": "weight", "beta": "bias"}  # files converted from TensorFlow
_WILD = {"*": r"\d+", "{last}": r"\d+", "{norm}": r"\w*norm\w*"}


def canonical(name: str) -> str:
    """The name with today's word for its last part: ``LayerNorm.gamma`` is ``LayerNorm.weight``."""
    stem, dot, leaf = name.rpartition(".")
    return f"{stem}{dot}{_ALIASES.get(leaf, leaf)}"


def with_last(pattern: str, layers: int | None) -> str:
    """The pattern with the last block's index filled in, where the number of blocks is known."""
    return pattern if layers is None else pattern.replace("{last}", str(layers - 1))


def matches(name: str, pattern: str, *, whole: bool = False, loose: bool = False) -> bool:
    """Whether a name is meant by a pattern.

    Args:
        name: a tensor's or a norm's name.
        pattern: as the atlas spells it.
        whole: the pattern must be all of the name, not just its end.
        loose: words may stand between those of the pattern, as where a version wrapped a tower once more.

    Returns:
        Whether it fits.
    """
    return _compiled(pattern, whole, loose).fullmatch(name) is not None


@cache
def _compiled(pattern: str, whole: bool, loose: bool) -> re.Pattern[str]:
    wrapper, dot = "" if whole else r"(?:.*\.)?", r"\.(?:[a-z_]+\.)*" if loose else r"\."
    return re.compile(wrapper + dot.join(_WILD.get(segment, re.escape(segment)) for segment in pattern.split(".")))


def in_block(name: str) -> bool:
    """Whether the name counts anything: blocks, experts, heads."""
    return any(segment.isdecimal() for segment in name.split("."))


def layer_order(name: str) -> list[tuple[int, str]]:
    """A sort key under which layer 10 comes after layer 9, and what is in no layer first."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
