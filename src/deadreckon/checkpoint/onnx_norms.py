"""The norms of an ONNX file, by its graph; where a config names the architecture, the atlas says which is a head's."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from deadreckon.checkpoint.atlas import lookup
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.naming import GAINS, canonical, matches, with_last
from deadreckon.checkpoint.onnx import OnnxCheckpoint
from deadreckon.checkpoint.onnx_graph import GraphNorm
from deadreckon.errors import UsageError
from deadreckon.kernel.norm import Norm, effective_gain, norm_kind

_LISTED = 12


def onnx_norms(
    checkpoint: Checkpoint, select: str | None = None, *, kind: str | None = None, gain_offset: float | None = None
) -> list[Norm]:
    """The norms of an ONNX file, with their parameters.

    Args:
        checkpoint: an opened ONNX file.
        select: as for `find_norms`.
        kind: in place of what the graph says.
        gain_offset: likewise.

    Returns:
        The norms, the one that makes the hidden state first.

    Raises:
        UsageError: the graph has no norm, or several that may be meant.
        InputError: a tensor is damaged.
        UnreachableError: a file of external data is missing.
    """
    norms = _norms_of(checkpoint)
    named = {_name(norm): norm for norm in norms if norm.gain is not None}

    def read(norm: GraphNorm, role: str) -> Norm:
        if norm.gain is None:
            raise UsageError(
                f"{checkpoint.path}: the final norm ({norm.seen}) has no stored gain in this graph" + _choices(named)
            )
        offset = norm.offset if gain_offset is None else gain_offset
        gain = effective_gain(checkpoint.vector(norm.gain), offset, what=f"{checkpoint.path}: {norm.gain}")
        shift = None if norm.shift is None else checkpoint.vector(norm.shift)
        return Norm(_name(norm), norm_kind(kind or norm.kind), gain, shift, role, float(offset), eps=norm.eps)

    if select is not None and select != "all":
        return [read(named[_selected(checkpoint, select, named)], "final")]
    ends = _ends(checkpoint, norms)
    found = [read(norm, role) for norm, role in ends]
    if select == "all":
        ended = [norm for norm, _ in ends]
        found += [read(norm, "block") for norm in named.values() if norm not in ended]
    return found


def graph_norm(checkpoint: Checkpoint, name: str) -> GraphNorm | None:
    """The graph's norm of that name."""
    return next((norm for norm in _norms_of(checkpoint) if norm.gain is not None and _name(norm) == name), None)


def _norms_of(checkpoint: Checkpoint) -> list[GraphNorm]:
    return checkpoint.norms if isinstance(checkpoint, OnnxCheckpoint) else []


def _ends(checkpoint: Checkpoint, norms: Sequence[GraphNorm]) -> list[tuple[GraphNorm, str]]:
    """The norms that end a stream with their roles, the main one first."""
    ends = sorted((norm for norm in norms if norm.output is not None), key=lambda norm: norm.output or 0)
    if not ends:
        what = "no LayerNorm or RMSNorm leads to an output of the graph"
        raise UsageError(f"{checkpoint.path}: {what}{_choices([_name(n) for n in norms if n.gain])}")
    architecture = lookup(checkpoint.config)
    stack = architecture.stacks[0] if architecture and architecture.stacks else None
    if stack is not None and stack.norm is not None:
        spelled = [with_last(name, stack.layers) for name in stack.norm.names]
        main = [n for n in norms if n.gain and any(matches(canonical(_name(n)), name) for name in spelled)]
        if len(main) == 1:
            return [(main[0], "final"), *((norm, "head") for norm in ends if norm != main[0])]
    main = [norm for norm in ends if norm.output == ends[0].output]
    if len(main) > 1:
        raise UsageError(
            f"{checkpoint.path}: {len(main)} norms lead to the first output with no other behind them: "
            f"{_list([_name(n) for n in main])}; choose with --norm NAME"
        )
    return [(norm, "final") for norm in ends]


def _name(norm: GraphNorm) -> str:
    """A norm's name: that of its gain, without the parameter's own part where it has one."""
    stem, _, leaf = (norm.gain or "a norm without gain").rpartition(".")
    return stem if stem and leaf in GAINS else leaf if not stem else f"{stem}.{leaf}"


def _selected(checkpoint: Checkpoint, wanted: str, named: dict[str, GraphNorm]) -> str:
    names = [name for name, norm in named.items() if wanted in (name, norm.gain)]
    names = names or [name for name in named if f".{name}".endswith(f".{wanted}")]
    if len(names) != 1:
        what = f"names {len(names)} norms" if names else "is no norm of the graph"
        raise UsageError(f"{checkpoint.path}: {wanted!r} {what}; choose one of {_list(names or list(named))}")
    return names[0]


def _choices(names: Collection[str]) -> str:
    return f"; choose with --norm NAME, NAME one of {_list(list(names))}" if names else ""


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
