"""How saved files spell the norms of a model: found by saving tiny models and matching the values."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deadreckon.forward.probe import NormProbe
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_classes import head_class
from deadreckon.forward.variant import Variant
from deadreckon.forward.watching import redraw


@dataclass
class Spelling:
    """One norm's names in files.

    Attributes:
        gain: the last part of the gain's name, None where the norm has none.
        shift: the last part of the shift's name, None where the norm has none.
        names: what comes before them, in every spelling that was seen, block indices as patterns.
    """

    gain: str | None
    shift: str | None
    names: list[str] = field(default_factory=list)


def spellings(model_type: str, variant: Variant, overrides: Mapping[str, Any]) -> dict[str, Spelling]:
    """How the norms of a base model are spelled, in its own files and in those of a model with a head.

    Args:
        model_type: transformers' name.
        variant: the base model.
        overrides: the settings that it was built with.

    Returns:
        Module path in the base model -> spelling.
    """
    found = {path: Spelling(probe.gain_name, probe.shift_name) for path, probe in variant.probes.items()}
    for model, prefix in _savable(model_type, variant, overrides):
        for saved in _saved(model):
            for path, probe in variant.probes.items():
                _note(found[path], model.get_submodule(f"{prefix}{path}"), probe, saved, path, variant)
    return found


def head_spelling(variant: Variant, path: str) -> Spelling:
    """How one norm of a model with a head is spelled.

    Args:
        variant: the whole model, head included.
        path: the norm's module path.

    Returns:
        Its spelling.
    """
    probe = variant.probes[path]
    found = Spelling(probe.gain_name, probe.shift_name)
    for saved in _saved(variant.model):
        _note(found, variant.model.get_submodule(path), probe, saved, path, variant)
    return found


def base_path(model: nn.Module, base: nn.Module) -> str | None:
    """Where in a model with a head the base model sits.

    Args:
        model: the model with a head.
        base: an instance of its base class.

    Returns:
        The path as a prefix, ending in a dot unless empty; None where it is not inside.
    """
    for path, module in model.named_modules():
        if type(module) is type(base):
            return f"{path}." if path else ""
    paths = {name for name, _ in model.named_modules()}
    for prefix in (f"{getattr(model, 'base_model_prefix', '')}.", ""):  # some hold the base's modules themselves
        if all(f"{prefix}{name}" in paths for name, _ in base.named_modules() if name):
            return prefix
    return None


def _note(
    spelling: Spelling, module: nn.Module, probe: NormProbe, saved: Mapping[bytes, str], path: str, variant: Variant
) -> None:
    if probe.shift_name and (name := saved.get(_bytes(getattr(module, probe.shift_name)))):
        spelling.shift = name.rpartition(".")[2]
    if probe.gain_name and (name := saved.get(_bytes(getattr(module, probe.gain_name)))):
        stem, _, spelling.gain = name.rpartition(".")
        pattern = _generalise(stem, path, variant)
        if pattern not in spelling.names:
            spelling.names.append(pattern)


def _generalise(name: str, path: str, variant: Variant) -> str:
    """Spell the block indices in a file's name as `Variant.pattern` does."""
    segments, start = name.split("."), 0
    for place, list_name, star in variant.indices(path):
        index = path.split(".")[place]
        places = [i for i in range(start, len(segments)) if segments[i] == index]
        same_list = [i for i in places if i and segments[i - 1] == list_name]
        if places:
            start = (same_list or places)[0]
            segments[start] = star
    return ".".join(segments)


def _savable(model_type: str, variant: Variant, overrides: Mapping[str, Any]) -> Iterator[tuple[nn.Module, str]]:
    """The base model, and the model with a head whose part it is, with the path of that part."""
    yield variant.model, ""
    if head_class(model_type) is None:
        return
    try:
        model = tiny_model(model_type, head=True, **overrides)
    except Exception:  # whatever a foreign class raises: there is no head model of this configuration
        return
    prefix = base_path(model, variant.model)
    if prefix is not None:
        redraw(model, {f"{prefix}{path}": probe for path, probe in variant.probes.items()}, seed=2)
        yield model, prefix


def _saved(model: Any) -> Iterator[dict[bytes, str]]:
    """Value -> name of the saved model's vectors, in the original naming and in transformers' own."""
    from safetensors.numpy import load_file

    if not hasattr(model, "save_pretrained"):  # a part that is never saved alone
        yield {_bytes(tensor): name for name, tensor in model.state_dict().items() if tensor.dim() == 1}
        return
    for original in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            try:
                model.save_pretrained(folder, save_original_format=original)
            except Exception:  # some architectures cannot be converted back at these sizes
                continue
            files = [load_file(path) for path in sorted(Path(folder).glob("*.safetensors"))]
        yield {array.tobytes(): name for file in files for name, array in file.items() if array.ndim == 1}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()
