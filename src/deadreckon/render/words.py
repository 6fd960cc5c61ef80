"""Numbers and lists as a reader expects them in a sentence or a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE = "–"


def power(value: float) -> str:
    """A tolerance: a bare power of ten where it is one."""
    exponent = round(math.log10(value)) if 0 < value < 1e300 else 0
    exact = not -3 <= exponent <= 3 and math.isclose(value, 10.0**exponent, rel_tol=1e-12)
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}" if exact else number(value)


def number(value: float | None, digits: int = 3) -> str:
    """A number to some digits: plain where it is readable so, else with a power of ten."""
    if value is None or not math.isfinite(value):  # a ratio may leave what floats can hold
        return NONE
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        exponent = math.floor(math.log10(abs(value)))
        mantissa = f"{value / 10.0**exponent if exponent > -300 else value * 1e300 / 10.0 ** (exponent + 300):.1f}"
        if mantissa.lstrip("-") == "10.0":
            mantissa, exponent = mantissa.replace("10.0", "1.0"), exponent + 1
        return f"{mantissa}·10{str(exponent).translate(_SUPERSCRIPTS)}"
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def cosine(value: float | None) -> str:
    """A cosine, of which the sixth digit still means something."""
    return NONE if value is None else f"{value:.6f}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return NONE if value is None else f"{100 * value:.3g} %"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun: 1 model, 2 models."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def of(part: int, whole: int, one: str = "", many: str | None = None) -> str:
    """Part of a whole, with its noun: 9 of 9 models."""
    noun = one if whole == 1 or not one else many or f"{one}s"
    return f"{part:,} of {whole:,} {noun}".rstrip()


def listed(items: Sequence[str], most: int = 4) -> str:
    """Items in a sentence: a, b and c; those beyond `most` are counted."""
    shown = list(items) if len(items) <= most else [*items[: most - 1], f"{len(items) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def span(values: Sequence[float], show: Callable[[float], str] = number) -> str:
    """The range of values: one of them where they look the same."""
    low, high = (show(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
