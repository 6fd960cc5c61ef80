"""Tensor names and the atlas's patterns for them: ``*`` any block's index, ``{last}`` the last one's."""

from __future__ import annotations

import re
from collections.abc import Iterable

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


def matches(name: str, patterns: Iterable[str], *, whole: bool = False) -> bool:
    """Whether `name` is one of the patterns or, unless `whole`, ends in one at a dot."""
    joined = "|".join(
        r"\.".join(_WILD.get(segment, re.escape(segment)) for segment in pattern.split(".")) for pattern in patterns
    )
    return re.fullmatch(rf"{'' if whole else r'(?:.*\.)?'}(?:{joined})", name) is not None


def in_block(name: str) -> bool:
    """Whether the name counts anything: blocks, experts, heads."""
    return any(segment.isdecimal() for segment in name.split("."))


def layer_order(name: str) -> list[tuple[int, str]]:
    """A sort key under which layer 10 comes after layer 9, and what is in no layer first."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
