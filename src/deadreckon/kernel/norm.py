"""Norm layers as plain data: what a checkpoint and a loaded module both boil down to.

A norm maps the residual vector ``x`` in R^d to ``y = gain * z(x) + shift``. The *kind* says whether ``z`` has
its (group) mean subtracted, and only that decides whether the output has an exact linear kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deadreckon.errors import InputError, UsageError

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class NormKind:
    """A family of norm layers.

    Attributes:
        name: the name used in results and on the command line.
        centred: whether the (group) mean is subtracted before the gain is applied. This is what opens a kernel.
        normalised: whether the vector is divided by its (group) root mean square, ``eps`` included.
    """

    name: str
    centred: bool
    normalised: bool = True


LAYERNORM = NormKind("layernorm", centred=True)
RMSNORM = NormKind("rmsnorm", centred=False)

_KINDS: dict[str, NormKind] = {kind.name: kind for kind in (LAYERNORM, RMSNORM)}


def register_norm_kind(kind: NormKind) -> None:
    """Make ``kind`` known by its name to every verb.

    Raises:
        UsageError: a different kind already has that name.
    """
    if _KINDS.setdefault(kind.name, kind) != kind:
        raise UsageError(f"a different norm kind named {kind.name!r} is already registered: choose another name")


def norm_kind(name: str | NormKind) -> NormKind:
    """The registered norm kind of that name.

    Args:
        name: as registered; a kind is returned as it is.

    Returns:
        The kind.

    Raises:
        UsageError: no such kind.
    """
    if isinstance(name, NormKind):
        return name
    try:
        return _KINDS[name]
    except KeyError:
        raise UsageError(f"unknown norm kind {name!r}: choose one of {', '.join(sorted(_KINDS))}") from None


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm layer, with its parameters in float64.

    Attributes:
        name: the module's path, e.g. ``gpt_neox.final_layer_norm``.
        kind: the family.
        gain: the effective gain, shape (d,): what multiplies the normalised vector, any stored offset included.
        shift: the additive parameter, shape (d,), or None where the layer has none.
        role: final | head | encoder | decoder | vision | block.
        gain_offset: what the module adds to the stored tensor to get the gain (1 where it stores gain - 1).
        groups: number of equal, contiguous groups that are normalised separately.
        eps: the constant under the square root, where known.
    """

    name: str
    kind: NormKind
    gain: Float64Array
    shift: Float64Array | None = None
    role: str = "final"
    gain_offset: float = 0.0
    groups: int = 1
    eps: float | None = field(default=None)

    def __post_init__(self) -> None:
        check_parameter(self.gain, f"gain of {self.name}")
        if self.shift is not None:
            check_parameter(self.shift, f"shift of {self.name}")
            if self.shift.shape != self.gain.shape:
                raise InputError(
                    f"{self.name}: the gain has {self.gain.size} entries and the shift {self.shift.size}; "
                    "they must be equally long: the file is damaged or the two belong to different norms"
                )
        if self.groups < 1 or self.gain.size % self.groups:
            raise InputError(f"{self.name}: {self.gain.size} gains do not split into {self.groups} equal groups")

    @property
    def hidden_size(self) -> int:
        """Number of coordinates d."""
        return int(self.gain.size)


def check_parameter(values: ArrayLike, what: str) -> Float64Array:
    """A norm parameter as a finite float64 vector.

    Args:
        values: the entries, any real dtype.
        what: how to name it in an error.

    Returns:
        The values, shape (d,), d >= 1.

    Raises:
        InputError: not a non-empty vector of finite real numbers; the first bad index is named.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: not an array of real numbers ({error})") from None
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{what}: expected a non-empty vector, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise InputError(
            f"{what}: entry {bad[0]} is {array[bad[0]]} ({bad.size} of {array.size} entries are not finite); "
            "the checkpoint is damaged or training diverged"
        )
    return array


def effective_gain(stored: ArrayLike, offset: float = 0.0, *, what: str = "gain") -> Float64Array:
    """The gain that multiplies the normalised vector: the stored tensor plus the architecture's offset.

    Args:
        stored: the tensor as it lies in the checkpoint, shape (d,).
        offset: what the module adds to it (1 for Gemma-type norms that store gain - 1, else 0).
        what: how to name it in an error.

    Returns:
        The effective gain in float64, shape (d,).

    Raises:
        InputError: the tensor is not a non-empty vector of finite numbers.
    """
    return check_parameter(stored, what) + offset


def median(values: Float64Array) -> float:
    """The median, by sorting: NumPy's own imports masked arrays, which a cold start would pay for."""
    middle = np.sort(values)[[(values.size - 1) // 2, values.size // 2]]
    return float(middle.mean())
