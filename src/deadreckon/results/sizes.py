"""Amounts of memory as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, **{f"{p}{b}": s**n for n, p in enumerate("kmgt", 1) for b, s in (("b", 1000), ("ib", 1024))}}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", re.ASCII)


def parse_size(text: str) -> int | None:
    """Bytes out of a number with a unit.

    Args:
        text: ``500MB``, ``8 GiB`` or a number of bytes: KB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024.

    Returns:
        The bytes; None for what is no size.
    """
    match = _SIZE.fullmatch(text)
    if not match or match[2].lower() not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2].lower()])
