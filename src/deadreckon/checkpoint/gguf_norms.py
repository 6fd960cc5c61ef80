"""The norms of a GGUF file, by llama.cpp's own naming and metadata, in the terms of the atlas."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from deadreckon.checkpoint.atlas import Architecture, NormRow, StackRow, gguf_naming, lookup
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.naming import layer_order, matches, with_last


def gguf_architecture(checkpoint: Checkpoint, vectors: Collection[str]) -> Architecture | None:
    """What a GGUF file says about its norms.

    The kind is that of the architecture's row in the atlas, else that of the eps key in the metadata. Where there are
    both keys they say nothing, and where a shift contradicts the key the kind is undetermined: the same rules by which
    evidence is weighed. The gain offset is always 0: the converter has already added any.

    Args:
        checkpoint: an opened GGUF file.
        vectors: the names of its 1-D tensors.

    Returns:
        The architecture, its streams restricted to those whose norm is in the file (or the main one, if none is); None
        where neither the architecture nor a norm is known.
    """
    naming, config, name = gguf_naming(), checkpoint.config, checkpoint.architecture or "unknown"
    row = lookup({"model_type": naming["architectures"].get(name, name)})
    eps = {kind: value for kind, key in naming["kinds"].items() if (value := config.get(f"{name}.{key}")) is not None}
    known = row.final.kind if row and row.final else ""
    kind = known or (next(iter(eps)) if len(eps) == 1 else "")
    value = eps.get(kind, next(iter(eps.values()), None))
    size, layers = (_whole(config.get(f"{name}.{naming[key]}")) for key in ("hidden_size", "layers"))
    norm = NormRow("", (), kind, "weight", None, eps=float(value) if isinstance(value, int | float) else None)
    stacks: dict[str, StackRow] = {}
    for stack in (*naming["own_stacks"].get(name, ()), *naming["stacks"]):
        found = next((stem for n in stack["names"] if (stem := _stem(n, layers, vectors))), None)
        if found:
            contradicted = not known and kind == "rmsnorm" and f"{found}.bias" in vectors
            end = replace(norm, module=found, names=(found,), kind="undetermined" if contradicted else kind)
            width = size if stack["role"] != "vision" else None
            stacks.setdefault(stack["role"], StackRow(stack["role"], end, hidden_size=width, layers=layers))
    if not stacks and row is None and not eps:
        return None
    if not stacks:
        bare = row is not None and row.final is not None and row.final.gain is None
        end = replace(norm, module="output_norm", names=("output_norm",), gain=None if bare else "weight")
        stacks["final"] = StackRow("final", end, hidden_size=size, layers=layers)
    return Architecture(name, tuple(stacks.values()), others=(replace(norm, names=tuple(naming["blocks"])),))


def _stem(pattern: str, layers: int | None, vectors: Collection[str]) -> str | None:
    """A norm of this vocabulary in the file; its names are never wrapped, so endings do not count."""
    exact = with_last(pattern, layers)
    if f"{exact}.weight" in vectors:
        return exact
    # The count may include blocks of other uses: then the last one in the file that has such a norm.
    stems = (name.removesuffix(".weight") for name in vectors if matches(name, f"{pattern}.weight", whole=True))
    return max(stems, key=layer_order, default=None)


def _whole(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
