"""Builds the atlas: one row an architecture, written by probing a tiny instance of the real module.

Run ``python -m deadreckon.forward.atlas_builder`` to write the committed file anew, with ``--check`` to compare it with
the installed transformers instead, with model types as arguments to do so for these alone.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deadreckon.checkpoint.atlas import ATLAS_PATH, SCHEMA
from deadreckon.forward.probe import NormProbe, probe_norm, probe_norms
from deadreckon.forward.stacks import Stack, find_stacks, redraw, watch
from deadreckon.forward.tiny import WIDTH, head_class, tiny_inputs, tiny_model

Row = dict[str, Any]

COMMAND = "python -m deadreckon.forward.atlas_builder"

# Single settings are toggled by themselves; these are published combinations of several.
COMBINATIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "opt": ({"do_layer_norm_before": False, "word_embed_proj_dim": WIDTH // 2},),
}

# Booleans of every config that steer training, caching or the kind of output, never the layers.
_NOT_LAYERS = re.compile(r"use_cache|output_\w+|return_\w+|tie_\w+|torchscript|gradient_checkpointing|is_encoder_decoder")

# How llama.cpp names norms, most telling first. Its converter has already added any offset, so a file's gain is always
# the effective one. The kind follows from which eps key is there; where both are, from the architecture's row.
GGUF: dict[str, Any] = {
    "stacks": [
        {"role": "final", "names": ["output_norm"]},
        {"role": "decoder", "names": ["dec.output_norm"]},
        {"role": "encoder", "names": ["enc.output_norm"]},
        {"role": "final", "names": ["blk.{last}.layer_output_norm"]},
        {"role": "vision", "names": ["v.post_ln"]},
    ],
    "blocks": ["token_embd_norm", "position_embd_norm", *(f"{stack}blk.*.{{norm}}" for stack in ("", "enc.", "dec.", "v."))],
    "kinds": {"layernorm": "attention.layer_norm_epsilon", "rmsnorm": "attention.layer_norm_rms_epsilon"},
    "hidden_size": "embedding_length",
    "layers": "block_count",
}


def build_atlas(model_types: Iterable[str], *, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The atlas's document, rows sorted by model type.

    Args:
        model_types: transformers' names.
        progress: told each model type and what came of it.

    Returns:
        Header and rows, ready for `write_atlas`.
    """
    import transformers

    rows = {}
    for model_type in sorted(set(model_types)):
        try:
            rows[model_type] = build_row(model_type)
        except Exception as error:  # a row that fails records why, and must not cost the others
            rows[model_type] = {"stacks": [], "why": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        progress(f"{model_type}: {rows[model_type].get('why', 'ok')}")
    return {"schema": SCHEMA, "transformers": transformers.__version__, "command": COMMAND, "gguf": GGUF, "rows": rows}


def write_atlas(atlas: Mapping[str, Any], path: Path = ATLAS_PATH) -> None:
    """Write the document with one row a line, so that a change of one architecture is a change of one line."""

    def text(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), sort_keys=True)

    head = [f"{text(key)}:{text(value)}" for key, value in atlas.items() if key != "rows"]
    rows = [f" {text(name)}:{text(row)}" for name, row in sorted(atlas["rows"].items())]
    path.write_text("{" + ",\n".join([*head, '"rows":{\n' + ",\n".join(rows) + "}}\n"]), encoding="utf-8")


def drift(committed: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> list[str]:
    """What the committed rows say otherwise than rebuilt ones.

    Args:
        committed: rows by model type.
        rebuilt: rows by model type; only these are compared.

    Returns:
        One line a difference; empty when they agree.
    """
    lines = []
    for name, row in rebuilt.items():
        old = json.loads(json.dumps(committed.get(name, {})))
        new = json.loads(json.dumps(row))
        lines += [
            f"{name}: {key}: committed {json.dumps(old.get(key))}, probed {json.dumps(new.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return lines


def build_row(model_type: str) -> Row:
    """One row, from tiny instances of the base class and of one class with an output head.

    Args:
        model_type: transformers' name.

    Returns:
        ``stacks`` (role, block list, placement, config keys, the norm that ends it), ``head`` (the norm that feeds the
        output layer, where it is another one), ``blocks`` (every other norm) and ``switches`` (settings that change it).
    """
    base = _Variant.build(model_type, {})
    names = _file_names(model_type, base)
    row: Row = {"stacks": [_stack_row(model_type, stack, base, names) for stack in base.stacks]}
    head = _head_row(model_type, base)
    if head is not None:
        row["head"] = head
    others = _other_norms(base, names)
    switches = []
    for when, overrides in _settings(model_type, base):
        try:
            variant = _Variant.build(model_type, overrides)
            if variant.summary() == base.summary() and variant.patterns() == base.patterns():
                continue
            variant_names = _file_names(model_type, variant, overrides)
            if variant.summary() != base.summary():
                stacks = [_stack_row(model_type, stack, variant, variant_names, overrides) for stack in variant.stacks]
                switches.append({"when": when, "stacks": stacks})
            for key, spellings in _other_norms(variant, variant_names).items():
                others.setdefault(key, set()).update(spellings)
        except Exception:  # a setting that the architecture refuses is not a setting
            continue
    if others:
        row["blocks"] = [{**json.loads(key), "names": _shortest(found)} for key, found in sorted(others.items())]
    if switches:
        row["switches"] = switches
    return row


@dataclass
class _Variant:
    """A tiny base model under some settings, and what was found in it."""

    model: nn.Module
    probes: dict[str, NormProbe]
    fresh: dict[str, NormProbe]
    stacks: list[Stack]

    @classmethod
    def build(cls, model_type: str, overrides: Mapping[str, Any]) -> _Variant:
        model = tiny_model(model_type, **overrides)
        fresh = probe_norms(model)
        stacks = find_stacks(model, fresh)
        return cls(model, probe_norms(model), fresh, stacks)

    def summary(self) -> list[tuple[Any, ...]]:
        """What a switch may change: roles, places, kinds and parameters of the norms that end the stacks."""
        return [
            (s.role, s.norm and self.pattern(s.norm), s.placement, s.norm and _what(self.probes[s.norm])) for s in self.stacks
        ]

    def patterns(self) -> set[str]:
        return {f"{self.pattern(path)} {_what(probe)}" for path, probe in self.probes.items()}

    def pattern(self, path: str) -> str:
        """The path with the index of its block spelled ``*`` (``{last}`` for the norm that ends a stack)."""
        segments = path.split(".")
        for place, _, star in self.indices(path):
            segments[place] = star
        return ".".join(segments)

    def indices(self, path: str) -> list[tuple[int, str, str]]:
        """Where the path counts blocks: (segment, name of the list, how to spell the index).

        The outermost list of more than one element always counts blocks; one inside it does where its elements are
        alike (an attention layer's norm a head), and does not where they differ (T5's self-attention, cross, MLP).
        """
        found: list[tuple[int, str, str]] = []
        segments = path.split(".")
        for place in range(1, len(segments)):
            modules = self.model.get_submodule(".".join(segments[:place]))
            if isinstance(modules, nn.ModuleList) and len(modules) > 1:
                ends = not found and any(path == stack.norm for stack in self.stacks)
                if ends and int(segments[place]) != len(modules) - 1:
                    continue
                if not found or len({type(module) for module in modules}) == 1:
                    found.append((place, segments[place - 1], "{last}" if ends else "*"))
        return found


def _stack_row(
    model_type: str, stack: Stack, variant: _Variant, names: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Row:
    row: Row = {"role": stack.role, "norm": None}
    keys = _Keys(model_type, dict(overrides or {}), variant)
    if stack.blocks:
        row |= {"blocks": stack.blocks, "placement": stack.placement, "layers": keys.layers(stack.blocks)}
    row |= {name: value for name in ("why", "note") if (value := getattr(stack, name))}
    if stack.norm:
        row["norm"] = _norm_row(stack.norm, variant, names) | {"eps": keys.eps(stack.norm)}
        row["hidden_size"] = keys.hidden_size(stack.norm)
    return row


def _norm_row(path: str, variant: _Variant, names: Mapping[str, Any]) -> Row:
    probe, fresh = variant.probes[path], variant.fresh[path]
    row: Row = {"module": variant.pattern(path), **_what(probe), "names": names[path]["spellings"]}
    row |= {leaf: names[path][leaf] for leaf in ("gain", "shift")}
    if fresh.gain is not None and np.ptp(fresh.gain) == 0 and fresh.gain[0] != 1:
        row["initial_gain"] = float(fresh.gain[0])
    return row


def _what(probe: NormProbe) -> Row:
    """What the module does, as opposed to where it is."""
    row: Row = {"kind": probe.kind.name, "gain": probe.gain_name, "shift": probe.shift_name}
    row |= {"offset": probe.gain_offset} if probe.gain_offset != 0 else {}
    return row | ({"groups": probe.groups} if probe.groups != 1 else {})


def _other_norms(variant: _Variant, names: Mapping[str, Any]) -> dict[str, set[str]]:
    """All norms that end no stack: what they do -> their spellings."""
    found: dict[str, set[str]] = {}
    for path, probe in variant.probes.items():
        if any(path == stack.norm for stack in variant.stacks) and not variant.indices(path):
            continue
        spellings = {_starred(spelling) for spelling in names[path]["spellings"]}
        if spellings and probe.gain_name:
            what = {**_what(probe), "gain": names[path]["gain"], "eps": probe.eps}
            del what["shift"]  # whether there is one, the file says
            found.setdefault(json.dumps(what, sort_keys=True), set()).update(spellings)
    return found


def _starred(spelling: str) -> str:
    return spelling.replace("{last}", "*")


def _shortest(spellings: Iterable[str]) -> list[str]:
    """The spellings that do not end in another one: names are matched from their end."""
    unique = set(spellings)
    return sorted(s for s in unique if not any(s.endswith(f".{other}") for other in unique))


def _file_names(model_type: str, variant: _Variant, overrides: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """How each norm is spelled in saved files: found by saving base and head model and matching the values."""
    result: dict[str, dict[str, Any]] = {
        path: {"spellings": [], "gain": probe.gain_name, "shift": probe.shift_name} for path, probe in variant.probes.items()
    }
    for model, prefix in _savable(model_type, variant, overrides or {}):
        for saved in _saved(model):
            by_value = {array.tobytes(): name for name, array in saved.items()}
            for path, probe in variant.probes.items():
                module = model.get_submodule(f"{prefix}{path}")
                for leaf, own in (("gain", probe.gain_name), ("shift", probe.shift_name)):
                    name = by_value.get(_bytes(getattr(module, own))) if own else None
                    if name is not None:
                        stem, _, result[path][leaf] = name.rpartition(".")
                        spelling = _generalise(stem, path, variant)
                        if leaf == "gain" and spelling not in result[path]["spellings"]:
                            result[path]["spellings"].append(spelling)
    return result


def _savable(model_type: str, variant: _Variant, overrides: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """The base model, and the model with a head whose part it is, with the path of that part."""
    yield variant.model, ""
    if head_class(model_type) is None:
        return
    try:
        model = tiny_model(model_type, head=True, **overrides)
        prefix = _base_path(model, variant.model)
    except Exception:  # no head model of this configuration
        return
    if prefix is not None:
        redraw(model, {f"{prefix}{path}": probe for path, probe in variant.probes.items()}, seed=2)
        yield model, prefix


def _base_path(model: nn.Module, base: nn.Module) -> str | None:
    """Where in a head model the base model sits, as a prefix."""
    for path, module in model.named_modules():
        if type(module) is type(base):
            return f"{path}." if path else ""
    known = {name for name, _ in base.named_modules() if name}
    part = getattr(model, "base_model_prefix", "")  # a sibling of the base class holds the same modules directly
    for prefix in (f"{part}.", ""):
        if known <= {name.removeprefix(prefix) for name, _ in model.named_modules() if name.startswith(prefix)}:
            return prefix
    return None


def _saved(model: Any) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Vectors of the saved model by name, in the original naming and in transformers' own."""
    from safetensors.numpy import load_file

    for original in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            try:
                model.save_pretrained(folder, save_original_format=original)
            except Exception:  # some architectures cannot be converted back at these sizes
                continue
            files = [load_file(path) for path in Path(folder).glob("*.safetensors")]
        yield {name: array for file in files for name, array in file.items() if array.ndim == 1}


def _generalise(name: str, path: str, variant: _Variant) -> str:
    """Spell the block indices in a file's name as in `_Variant.pattern`."""
    segments, start = name.split("."), 0
    for place, list_name, star in variant.indices(path):
        index = path.split(".")[place]
        places = [i for i in range(start, len(segments)) if segments[i] == index]
        same_list = [i for i in places if i and segments[i - 1] == list_name]
        if places:
            start = (same_list or places)[0]
            segments[start] = star
    return ".".join(segments)


def _head_row(model_type: str, base: _Variant) -> Row | None:
    """The norm that feeds the output layer, when it is not one that ends a stack."""
    if head_class(model_type) is None:
        return None
    try:
        model: Any = tiny_model(model_type, head=True)
        prefix = _base_path(model, base.model)
        probes = probe_norms(model)
        redraw(model, probes)
        output, calls = watch(model, tiny_inputs(model))
    except Exception:  # the head class of this type runs on none of the inputs
        return None
    layer = next((p for p, m in model.named_modules() if m is model.get_output_embeddings()), None)
    fed = [c for c in calls if c.path == layer] if layer else [c for c in calls if _makes(c.made, output.get("logits"))]
    for call in reversed(calls):
        if call.path in probes and any(_makes(call.made, reader.given) for reader in fed):
            inside = prefix is not None and call.path.removeprefix(prefix) in base.probes and call.path.startswith(prefix)
            if inside:
                return None
            variant = _Variant(model, probes, probes, [])
            names = {call.path: _head_names(model, call.path, probes[call.path])}
            keys = _Keys(model_type, {}, variant, head=True)
            return _norm_row(call.path, variant, names) | {"eps": keys.eps(call.path)}
    return None


def _head_names(model: nn.Module, path: str, probe: NormProbe) -> dict[str, Any]:
    module, names = model.get_submodule(path), {"gain": probe.gain_name, "shift": probe.shift_name}
    spellings: list[str] = []
    for saved in _saved(model):
        by_value = {array.tobytes(): name for name, array in saved.items()}
        name = by_value.get(_bytes(getattr(module, probe.gain_name))) if probe.gain_name else None
        if name and name.rpartition(".")[0] not in spellings:
            spellings.append(name.rpartition(".")[0])
    return {**names, "spellings": spellings}


def _makes(made: torch.Tensor | None, wanted: Any) -> bool:
    return isinstance(wanted, torch.Tensor) and made is not None and made.shape == wanted.shape and torch.equal(made, wanted)


class _Keys:
    """Which config values a part of the model answers to, found by changing them one at a time."""

    def __init__(self, model_type: str, overrides: dict[str, Any], variant: _Variant, head: bool = False) -> None:
        self.model_type, self.overrides, self.variant, self.head = model_type, overrides, variant, head
        self.leaves = dict(_leaves(variant.model.config))

    def eps(self, path: str) -> list[Any]:
        """[key or None, the class's default]."""
        eps = self.variant.probes[path].eps
        near = [k for k, v in self.leaves.items() if isinstance(v, float) and abs(v - eps) <= 0.01 * eps]
        return [self._first(near, lambda _: 0.003, lambda m: _probe_at(m, path, "eps")), eps]

    def hidden_size(self, path: str) -> str | None:
        """The key of the norm's size."""
        size = self.variant.probes[path].hidden_size
        near = [k for k, v in self.leaves.items() if v == size and type(v) is int]
        found = self._first(near, lambda v: 2 * v, lambda m: _probe_at(m, path, "hidden_size"))
        return found or self._canonical("hidden_size", size)

    def layers(self, blocks: str) -> str | None:
        """The key of the number of blocks."""
        count = len(_modules(self.variant.model, blocks))
        near = [k for k, v in self.leaves.items() if v == count and type(v) is int and re.search("layer|depth|block", k)]
        found = self._first(near, lambda v: v + 1, lambda m: len(_modules(m, blocks)))
        return found or self._canonical("num_hidden_layers", count)

    def _canonical(self, name: str, value: int) -> str | None:
        """The config's own key for transformers' common name, where no single key could be changed alone."""
        key = getattr(self.variant.model.config, "attribute_map", {}).get(name, name)
        return key if self.leaves.get(key) == value else None

    def _first(self, keys: Sequence[str], change: Callable[[Any], Any], look: Callable[[nn.Module], Any]) -> str | None:
        """The key whose change is seen, the one that changes least of the model besides."""
        before = look(self.variant.model)
        found = []
        for key in keys:
            try:
                with torch.device("meta"):
                    model = tiny_model(self.model_type, self.head, **{**self.overrides, key: change(self.leaves[key])})
                if look(model) != before:
                    found.append((_difference(model, self.variant.model), len(key), key))
            except Exception:  # not every size can change alone
                continue
        return min(found)[2] if found else None


def _difference(a: nn.Module, b: nn.Module) -> int:
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in (a, b)]
    return len(set(shapes[0].items()) ^ set(shapes[1].items()))


def _probe_at(model: nn.Module, path: str, field: str) -> Any:
    probe = probe_norm(model.get_submodule(path))
    return getattr(probe, field, None)


def _settings(model_type: str, base: _Variant) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(condition, overrides): every boolean toggled, every free second width halved, and published combinations."""
    config = base.model.config
    keys = {stack.norm: _Keys(model_type, {}, base).hidden_size(stack.norm) for stack in base.stacks if stack.norm}
    width_keys = {key for key in keys.values() if key}
    for key, value in _leaves(config):
        if isinstance(value, bool) and not _NOT_LAYERS.fullmatch(key.rpartition(".")[2]):
            yield {key: not value}, {key: not value}
        elif type(value) is int and value == WIDTH and key not in width_keys and width_keys:
            same = [w for w in sorted(width_keys) if w.rpartition(".")[0] == key.rpartition(".")[0]]
            if same:
                yield {key: {"differs_from": same[0]}}, {key: value // 2}
    for overrides in COMBINATIONS.get(model_type, ()):
        when = {k: {"differs_from": min(width_keys)} if type(v) is int else v for k, v in overrides.items()}
        yield when, overrides


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that an architecture's own config class declares."""
    from transformers import PreTrainedConfig

    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    subs = set(getattr(config, "sub_configs", {}))
    for field in dataclasses.fields(config):
        value = vars(config).get(field.name)
        if field.name in subs and value is not None:
            yield from _leaves(value, f"{prefix}{field.name}.")
        elif field.name not in common and isinstance(value, bool | int | float):
            yield f"{prefix}{field.name}", value


def _modules(model: nn.Module, path: str) -> nn.ModuleList:
    module = model.get_submodule(path)
    return module if isinstance(module, nn.ModuleList) else nn.ModuleList()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the atlas, or check it.

    Args:
        arguments: the command line; None: the process's own.

    Returns:
        Exit code: 0, or 1 when a check found drift.
    """
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("model_types", nargs="*", help="rows to build (default: those of the committed atlas)")
    parser.add_argument("--check", action="store_true", help="compare with the committed atlas and write nothing")
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may depend on a download
    committed = json.loads(ATLAS_PATH.read_text(encoding="utf-8")) if ATLAS_PATH.exists() else {"rows": {}}
    chosen = options.model_types or sorted(committed["rows"])
    atlas = build_atlas(chosen, progress=lambda line: print(line, file=sys.stderr))
    if options.check:
        lines = drift(committed["rows"], atlas["rows"])
        print("\n".join(lines) or f"{len(chosen)} rows agree", file=sys.stderr)
        return 1 if lines else 0
    merged = copy.deepcopy(committed["rows"]) | atlas["rows"]
    write_atlas(atlas | {"rows": merged})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
