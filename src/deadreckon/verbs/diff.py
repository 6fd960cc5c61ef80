"""``diff``: what quantising, merging or fine-tuning changed in a model's norms, from two checkpoints' parameters."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.places import RemotePath
from deadreckon.checkpoint.source import open_model, parse_model
from deadreckon.checkpoint.writers import find_writers
from deadreckon.errors import UsageError
from deadreckon.kernel.compare import dead_gains, gain_change, largest_angle
from deadreckon.kernel.norm import Norm
from deadreckon.kernel.subspace import DEFAULT_TAU, DeadSubspace
from deadreckon.results.diff import Difference, NormChange
from deadreckon.verbs.classify import classify_checkpoint

FAIL_KEYS = (
    "kernel_angle",
    "dead_angle",
    "largest_kernel_angle",
    "dead_count_change",
    "died",
    "came_alive",
    "largest_gain_change",
    "largest_shift_change",
    "fingerprint_change",
    "kind_change",
)
"""What a condition may be about: numbers of the result."""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class _Side:
    """One of the two: its name, its checkpoint, its norms, and what `classify` says."""

    name: str
    checkpoint: Checkpoint
    norms: list[Norm]
    kind: str

    @classmethod
    def of(cls, model: str | os.PathLike[str]) -> _Side:
        source = parse_model(model)
        checkpoint = open_model(source)
        return cls(str(source), checkpoint, find_norms(checkpoint, "all"), classify_checkpoint(checkpoint).kind)


def diff(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    tau: float = DEFAULT_TAU,
    fail_if: Sequence[str] = (),
) -> Difference:
    """What changed between the norms of two checkpoints of one model.

    Args:
        before: a MODEL name.
        after: another, of the same width and norms; its format may be another one.
        tau: tolerance of what counts as dead, relative to the mean predicted eigenvalue.
        fail_if: conditions ``KEY OP NUMBER``, e.g. ``kernel_angle > 1e-3``; those that hold are listed as failed.

    Returns:
        The difference.

    Raises:
        UsageError: a condition is not of that form or its key has no value here, or the models do not have the same
            norms.
        InputError: a file is damaged.
        UnreachableError: a file is missing.
    """
    conditions = [parse_condition(text) for text in fail_if]
    first, second = _Side.of(before), _Side.of(after)
    pairs, compared = _pairs(first, second)
    changes = [_change(a, b, tau) for a, b in pairs]
    main = changes[0]
    shares = [_share(side) for side in (first, second)]
    shifts = [change.shift_change for change in changes if change.shift_change is not None]
    result = Difference(
        model=first.name,
        other=second.name,
        tau=tau,
        kind_before=first.kind,
        kind_after=second.kind,
        kind_change=int(first.kind != second.kind),
        kernel_angle=main.kernel_angle,
        dead_angle=main.dead_angle,
        largest_kernel_angle=max(change.kernel_angle for change in changes),
        dead_count_change=main.dead_count_after - main.dead_count_before,
        died=sum(len(change.died) for change in changes),
        came_alive=sum(len(change.came_alive) for change in changes),
        largest_gain_change=max(change.gain_change for change in changes),
        largest_shift_change=max(shifts) if shifts else None,
        fingerprint_before=shares[0],
        fingerprint_after=shares[1],
        fingerprint_change=None if None in shares else (shares[1] or 0.0) - (shares[0] or 0.0),
        compared=compared,
        norms=changes,
        failed=[],
    )
    return replace(result, failed=[text for text, holds in conditions if holds(result)])


def parse_condition(text: str) -> tuple[str, Callable[[Difference], bool]]:
    """A condition in words, and whether it holds for a result.

    Args:
        text: ``KEY OP NUMBER``, OP one of ``> >= < <= == !=``.

    Returns:
        The condition without surplus blanks, and its test.

    Raises:
        UsageError: not of that form, or no such key; the message lists the keys.
    """
    match = _CONDITION.fullmatch(text)
    if match is None or match[1] not in FAIL_KEYS:
        raise UsageError(
            f"condition {text!r}: write KEY OP NUMBER with OP one of > >= < <= == != and KEY one of "
            f"{', '.join(FAIL_KEYS)}; for example 'kernel_angle > 1e-3'"
        )
    key, sign, number = match.groups()

    def holds(result: Difference) -> bool:
        value = getattr(result, key)
        if value is None:
            raise UsageError(f"condition {text!r}: {key} has no value for these models: leave it out")
        return _OPERATORS[sign](float(value), float(number))

    return f"{key} {sign} {number}", holds


def _pairs(first: _Side, second: _Side) -> tuple[list[tuple[Norm, Norm]], str]:
    """The norms that belong together, the final ones first."""
    if first.norms[0].hidden_size != second.norms[0].hidden_size:
        raise UsageError(
            f"{first.name} has a final norm of {first.norms[0].hidden_size} gains and {second.name} one of "
            f"{second.norms[0].hidden_size}: they are not the same model before and after"
        )
    if (first.checkpoint.format == "gguf") != (second.checkpoint.format == "gguf"):
        # llama.cpp's names do not say where a norm stands in an order that the other vocabulary would share.
        before, after = ([norm for norm in side.norms if norm.role != "block"] for side in (first, second))
        return _matched(first, second, before, after, key="role"), "end norms"
    return _matched(first, second, first.norms, second.norms, key="name"), "all norms"


def _matched(first: _Side, second: _Side, before: list[Norm], after: list[Norm], key: str) -> list[tuple[Norm, Norm]]:
    there = {_plain(getattr(norm, key)): norm for norm in after}
    names = [_plain(getattr(norm, key)) for norm in before]
    only = sorted(set(names) ^ set(there))
    if only:
        shown = ", ".join(only[:3]) + (f" and {len(only) - 3} more" if len(only) > 3 else "")
        raise UsageError(
            f"{first.name} and {second.name} do not have the same norms: {shown} only in one of them; compare the same "
            "model before and after"
        )
    pairs = [(norm, there[name]) for norm, name in zip(before, names, strict=True)]
    for a, b in pairs:
        if a.hidden_size != b.hidden_size:
            raise UsageError(
                f"{a.name} has {a.hidden_size} gains in {first.name} and {b.hidden_size} in {second.name}: "
                "compare the same model before and after"
            )
    return pairs


def _plain(name: str) -> str:
    """A name without the prefixes that heads and adapters put before it."""
    return re.sub(r"^(?:(?:model|transformer|bert|base_model|module)\.)+", "", name)


def _change(before: Norm, after: Norm, tau: float) -> NormChange:
    spaces = DeadSubspace.of(before), DeadSubspace.of(after)
    dead = dead_gains(before, tau), dead_gains(after, tau)
    moved, where = gain_change(before, after)
    shifts = [np.zeros(norm.hidden_size) if norm.shift is None else norm.shift for norm in (before, after)]
    return NormChange(
        norm=before.name,
        role=before.role,
        kernel_angle=largest_angle(spaces[0].kernel(), spaces[1].kernel()),
        dead_angle=largest_angle(spaces[0].dead_basis(tau), spaces[1].dead_basis(tau)),
        dead_count_before=spaces[0].dead_count(tau),
        dead_count_after=spaces[1].dead_count(tau),
        died=np.flatnonzero(dead[1] & ~dead[0]).tolist(),
        came_alive=np.flatnonzero(dead[0] & ~dead[1]).tolist(),
        gain_change=moved,
        gain_changed_at=where,
        shift_change=None
        if before.shift is None and after.shift is None
        else float(np.abs(shifts[1] - shifts[0]).max()),
    )


def _share(side: _Side) -> float | None:
    if isinstance(side.checkpoint.path, RemotePath):  # matrices are not fetched for this
        return None
    writers = find_writers(side.checkpoint, side.norms[0].hidden_size)
    return None if writers is None else writers.fingerprint.statistic
