"""What a checkpoint's files say about the kind of its norms, each observation by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deadreckon.checkpoint.adapter import adapter_note
from deadreckon.checkpoint.atlas import gguf_naming, lookup, why_absent
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.naming import canonical
from deadreckon.checkpoint.places import RemotePath
from deadreckon.checkpoint.timm_norms import is_timm, timm_architecture
from deadreckon.kernel.norm import Norm
from deadreckon.results.reading import Evidence

_NORMED = ("sandwich", "branch")


def gather(checkpoint: Checkpoint, norm: Norm | None) -> list[Evidence]:
    """Observations about the norm that ends a checkpoint's stream.

    Args:
        checkpoint: an opened checkpoint.
        norm: its final norm, as far as it was found.

    Returns:
        Evidence from the architecture's name, the metadata and the tensors that lie beside the gain.
    """
    name = checkpoint.architecture
    if checkpoint.format == "gguf":
        name = gguf_naming()["architectures"].get(name, name)
    evidence = [of_architecture({**checkpoint.config, "model_type": name})]
    timm = _timm(checkpoint)
    evidence += timm
    if note := adapter_note(checkpoint.path):
        evidence.append(Evidence(name="adapter", says="undetermined", strength="weak", value=note))
    if checkpoint.format == "gguf":
        evidence += _epsilon_keys(checkpoint)
    if checkpoint.format == "onnx" and norm is not None:
        evidence += _graph(checkpoint, norm)
    if evidence[0].says == "none":  # the norm is of something else, a pooled token
        return evidence
    if norm is not None and norm.shift is None:
        evidence.append(_shift("undetermined", "weak", f"{norm.name} has no shift; LayerNorms without one exist"))
    elif norm is not None and any(e.says == "undetermined" for e in timm):
        evidence.append(_shift("undetermined", "weak", f"{norm.name} has a shift; in timm GroupNorms do too"))
    elif norm is not None:
        evidence.append(_shift("layernorm", "strong", f"{norm.name} has a shift beside its gain"))
    return evidence


def of_architecture(config: Mapping[str, Any]) -> Evidence:
    """What the atlas says of the norm that ends an architecture.

    Args:
        config: a model's configuration, with its ``model_type``.

    Returns:
        Decisive evidence where the architecture is known.
    """
    name, row = config.get("model_type"), lookup(config)
    if row is None or not row.stacks:
        why = why_absent(name)
        seen = f"{name} is not in the atlas{f': {why}' if why else ''}" if name else "the files name no architecture"
        return Evidence(name="architecture", says="undetermined", strength="weak", value=seen)
    final = row.final
    return Evidence(
        name="architecture",
        says="none" if final is None else final.kind,
        strength="decisive",
        value=f"{name} ends un-normed" if final is None else f"{name} is in the atlas of probed modules",
    )


def of_weights(checkpoint: Checkpoint, norm: Norm | None) -> Evidence | None:
    """What the kind of norm left behind in the matrices that write to the stream.

    Args:
        checkpoint: an opened checkpoint; parts of a few matrices are read.
        norm: its final norm, as far as it was found.

    Returns:
        Strong evidence where one kind is ruled out; None where no writer can be told or read, where norms stand between
        the writers and the stream, or where the files lie elsewhere and their config names the architecture.

    Raises:
        InputError: the file ends too early.
        UnreachableError: it cannot be read.
    """
    row = lookup({**checkpoint.config, "model_type": checkpoint.architecture})
    main = row.stacks[0] if row and row.stacks else None
    if main is not None and (main.norm is None or main.placement in _NORMED or isinstance(checkpoint.path, RemotePath)):
        return None
    from deadreckon.checkpoint.writers import find_writers

    checkpoint.prefetch(list(checkpoint.tensors), entries_only=True)
    writers = find_writers(checkpoint, None if norm is None else norm.hidden_size)
    if writers is None:
        return None
    found, says = writers.fingerprint, writers.says
    share = f"R = {found.statistic:.2f} of {writers.tensors}{' times LayerScale' if writers.scaled else ''}"
    expected = f"{found.matrices} read; 1 +- {found.deviation:.2f} if unrelated to 1, p {_level(found.p_unrelated)}"
    if says == "undetermined" and not (writers.named or writers.plain):
        why = "; there are more vectors than norms need, and a LayerScale among them may hide the mean"
    else:
        left = f"at most {found.initial_share:.2f} if a LayerNorm had left it behind, p {_level(found.p_left_behind)}"
        why = f"; {left}" if says != "layernorm" else ""
    return Evidence(
        name="weights_fingerprint",
        says=says,
        strength="weak" if says == "undetermined" else "strong",
        value=f"{share} ({expected}{why})",
    )


def _level(p: float) -> str:
    """A p-value in words; the gamma distribution stands for the true one only so far out."""
    return "< 1e-6" if p < 1e-6 else f"= {p:.2g}"


def _timm(checkpoint: Checkpoint) -> list[Evidence]:
    if not is_timm(checkpoint.config):
        return []
    found = timm_architecture(checkpoint.config, {canonical(name) for name in checkpoint.tensors})
    if found is None or found.final is None:
        return []
    known = found.final.kind != "undetermined"
    value = (
        f"{found.model_type}: {'a family with norms' if known else 'not a family known to have norms'} over channels"
    )
    strength = "strong" if known else "weak"
    return [Evidence(name="timm_architecture", says=found.final.kind, strength=strength, value=value)]


def _epsilon_keys(checkpoint: Checkpoint) -> list[Evidence]:
    found = []
    for kind, key in gguf_naming()["kinds"].items():
        full = f"{checkpoint.architecture}.{key}"
        if full in checkpoint.config:
            found.append(Evidence(name="epsilon_key", says=kind, strength="strong", value=f"the metadata has {full}"))
    if len(found) > 1:  # a converter wrote both: they say nothing
        value = " and ".join(evidence.value for evidence in found)
        return [Evidence(name="epsilon_key", says="undetermined", strength="weak", value=value)]
    return found


def _graph(checkpoint: Checkpoint, norm: Norm) -> list[Evidence]:
    from deadreckon.checkpoint.onnx_norms import graph_norm

    found = graph_norm(checkpoint, norm.name)
    if found is None:
        return []
    return [Evidence(name="graph_node", says=found.kind, strength="decisive", value=f"{norm.name}: {found.seen}")]


def _shift(says: str, strength: str, value: str) -> Evidence:
    return Evidence(name="shift_tensor", says=says, strength=strength, value=value)
