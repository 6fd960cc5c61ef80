"""Builds the atlas: one row an architecture, written by probing tiny instances of the real modules.

``deadreckon atlas build`` writes the committed file anew, ``deadreckon atlas check`` compares it with the installed
transformers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from deadreckon.checkpoint.atlas import ABSENT, ATLAS_PATH, SCHEMA
from deadreckon.forward.config_keys import ConfigKeys, leaves
from deadreckon.forward.probe import probe_norms
from deadreckon.forward.spelling import Spelling, base_path, head_spelling, spellings
from deadreckon.forward.stacks import Stack
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_classes import head_class
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.tiny_sizes import WIDTH
from deadreckon.forward.variant import Variant, behaviour
from deadreckon.forward.watching import redraw, watch

Row = dict[str, Any]

COMMAND = "deadreckon atlas build"

_LONGEST_REASON = 160

# Settings are changed one by one; these are published combinations of several.
COMBINATIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "opt": ({"do_layer_norm_before": False, "word_embed_proj_dim": WIDTH // 2},),
}

# Booleans that steer training, caching or the form of the output, never the layers.
_NOT_LAYERS = re.compile(
    r"use_cache|output_\w+|return_\w+|tie_\w+|torchscript|gradient_checkpointing|is_encoder_decoder"
)

# Tried for every setting that names a kind of norm in words.
_NORM_WORDS = ("layernorm", "layer_norm", "rmsnorm", "rms_norm", "no_norm")

# How llama.cpp names norms, most telling first. Its converter has already added any offset, so a file's gain is always
# the effective one. The kind is that of the architecture's row, else it follows from which eps key is there.
GGUF: Row = {
    "stacks": [
        {"role": "final", "names": ["output_norm"]},
        {"role": "decoder", "names": ["dec.output_norm"]},
        {"role": "encoder", "names": ["enc.output_norm"]},
        {"role": "final", "names": ["blk.{last}.layer_output_norm"]},
        {"role": "vision", "names": ["v.post_ln"]},
    ],
    "blocks": ["token_embd_norm", "position_embd_norm", *(f"{s}blk.*.{{norm}}" for s in ("", "enc.", "dec.", "v."))],
    "kinds": {"layernorm": "attention.layer_norm_epsilon", "rmsnorm": "attention.layer_norm_rms_epsilon"},
    "hidden_size": "embedding_length",
    "layers": "block_count",
    # Of some architectures the norm behind the last block has another's name.
    "own_stacks": {name: [{"role": "final", "names": ["token_embd_norm"]}] for name in ("lfm2", "lfm2moe")},
    "architectures": {
        "command-r": "cohere",
        "phi2": "phi",
        "t5encoder": "t5",
        "llama4": "llama4_text",
        "starcoder": "gpt_bigcode",
        "gemma3n": "gemma3n_text",
        "gemma-embedding": "gemma3_text",
        "jina-bert-v3": "jina_embeddings_v3",
        "nomic-bert-moe": "nomic_bert",
        "nemotron_h_moe": "nemotron_h",
        "qwen2vl": "qwen2",
        "llama-embed": "llama",
        "chatglm": "glm",
        "mimo2": "mimo_v2_flash",
    },
}


def build_atlas(model_types: Iterable[str], *, progress: Callable[[str], None] = lambda _: None) -> Row:
    """The atlas's document.

    Args:
        model_types: transformers' names.
        progress: told each model type and what came of it.

    Returns:
        Header and rows, ready for `write_atlas`; under ``absent`` the model types that have no row, with the reason.
    """
    import transformers

    rows, absent = {}, {}
    for model_type in sorted(set(model_types)):
        try:
            row = build_row(model_type)
        except Exception as error:  # one architecture that fails must not cost the others
            why: str | None = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        else:
            why = _why_open(row)
        if why is None:
            rows[model_type] = row
        else:
            absent[model_type] = why
        progress(f"{model_type}: {why or 'ok'}")
    head = {"schema": SCHEMA, "transformers": transformers.__version__, "command": COMMAND, "gguf": GGUF}
    return {**head, "absent": absent, "rows": rows}


def _why_open(row: Row) -> str | None:
    """Why a row decides nothing; None: it does."""
    # A stream that was not seen to end in a norm may still do so, in one that probing does not recognise. That it ends
    # without one is believed where probing recognised the norms of its blocks and it was seen what makes the stream.
    stacks = row["stacks"]
    main = stacks[0] if stacks else row
    if sum(stack["role"] == "decoder" for stack in stacks) > 1:
        return "it reports several decoders' streams, and which is the main one cannot be told"
    if any(stack["norm"] for stack in stacks):
        return None
    if main.get("placement") and re.match(
        "the last block|.*Linear|.*out of a norm's output|.* takes (the last block|a norm)'s output", main["why"]
    ):
        return None
    return f"no norm was recognised at its end: {main.get('why')}"[:_LONGEST_REASON]


def write_atlas(atlas: Mapping[str, Any], path: Path = ATLAS_PATH) -> None:
    """Write the document with one row a line, so that a change of one architecture is a change of one line.

    Args:
        atlas: header, rows, and the model types without one, which go to a file of their own beside it.
        path: where to.
    """
    head = [f"{_json(key)}:{_json(value)}" for key, value in atlas.items() if key not in {"absent", "rows"}]
    rows = [f" {_json(name)}:{_json(row)}" for name, row in sorted(atlas["rows"].items())]
    path.write_text("{" + ",\n".join([*head, '"rows":{\n' + ",\n".join(rows) + "}}\n"]), encoding="utf-8")
    absent = json.dumps(atlas["absent"], indent=0, sort_keys=True)
    path.with_name(ABSENT).write_text(f"{absent}\n", encoding="utf-8")


def drift(committed: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> list[str]:
    """What committed rows say otherwise than rebuilt ones.

    Args:
        committed: rows by model type.
        rebuilt: rows by model type; only these are compared.

    Returns:
        One line a difference; empty when they agree.
    """
    lines = []
    for name, row in rebuilt.items():
        old, new = ({key: _json(value) for key, value in r.items()} for r in (committed.get(name, {}), row))
        lines += [
            f"{name}: {key}: committed {old.get(key)}, probed {new.get(key)}"
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
        output layer, where it is another one), ``blocks`` (every other norm) and ``switches`` (settings under which the
        stacks are different ones).

    Raises:
        UsageError: no such model type, or it runs on none of the inputs that can be made.
    """
    base = Variant.build(model_type, {})
    names = spellings(model_type, base, {})
    row: Row = {"stacks": [_stack_row(model_type, stack, base, names, {}) for stack in base.stacks]}
    if not base.stacks:
        row["why"] = "its output has no last hidden state"
    if (head := _head_row(model_type, base)) is not None:
        row["head"] = head
    others, switches = _other_norms(base, names), []
    for when, overrides in _settings(model_type, base):
        try:
            variant = Variant.build(model_type, overrides)
            switched = variant.summary() != base.summary()
            if not switched and variant.norms() == base.norms():
                continue
            names = spellings(model_type, variant, overrides)
            stacks = [_stack_row(model_type, stack, variant, names, overrides) for stack in variant.stacks]
        except Exception:  # a setting that the architecture refuses is not a setting
            continue
        if switched:
            switches.append({"when": when, "stacks": stacks})
        for what, found in _other_norms(variant, names).items():
            others.setdefault(what, set()).update(found)
    if others:
        row["blocks"] = [{**json.loads(what), "names": _shortest(found)} for what, found in sorted(others.items())]
    if switches:
        row["switches"] = switches
    return row


def _stack_row(
    model_type: str, stack: Stack, variant: Variant, names: Mapping[str, Spelling], overrides: Mapping[str, Any]
) -> Row:
    row: Row = {"role": stack.role, "norm": None}
    keys = ConfigKeys(model_type, variant.model, overrides=overrides)
    if stack.blocks:
        row |= {"blocks": stack.blocks, "placement": stack.placement, "layers": keys.layers(stack.blocks)}
    row |= {name: value for name in ("why", "note") if (value := getattr(stack, name))}
    if stack.norm:
        row["norm"] = _norm_row(stack.norm, variant, names[stack.norm]) | {"eps": keys.eps(stack.norm)}
        row["hidden_size"] = keys.hidden_size(stack.norm)
    return row


def _norm_row(path: str, variant: Variant, spelling: Spelling) -> Row:
    fresh = variant.fresh[path].gain
    row = {"module": variant.pattern(path), **behaviour(variant.probes[path])}
    row |= {"gain": spelling.gain, "shift": spelling.shift, "names": spelling.names}
    if fresh is not None and np.ptp(fresh) == 0 and fresh[0] != 1:
        row["initial_gain"] = float(fresh[0])
    return row


def _head_row(model_type: str, base: Variant) -> Row | None:
    """The norm that feeds the output layer, when it is not one of the base model's."""
    if head_class(model_type) is None:
        return None
    try:
        model: Any = tiny_model(model_type, head=True)
        probes = probe_norms(model)
        redraw(model, probes)
        output, calls = watch(model, tiny_inputs(model))
        layer = model.get_output_embeddings()
    except Exception:  # whatever a foreign class raises: the class with a head cannot be examined
        return None
    path = next((p for p, m in model.named_modules() if m is layer), None)
    readers = [c for c in calls if c.path == path or (layer is None and _equal(c.made, output.get("logits")))]
    feeding = (c.path for c in reversed(calls) if c.path in probes and any(_equal(c.made, r.given) for r in readers))
    norm, prefix = next(feeding, None), base_path(model, base.model)
    if norm is None or (prefix is not None and norm.startswith(prefix) and norm.removeprefix(prefix) in base.probes):
        return None
    whole = Variant(model, probes, probes, [])
    return _norm_row(norm, whole, head_spelling(whole, norm)) | {
        "eps": ConfigKeys(model_type, model, head=True).eps(norm)
    }


def _other_norms(variant: Variant, names: Mapping[str, Spelling]) -> dict[str, set[str]]:
    """All norms but those outside the blocks that end a stack: what they do, as JSON -> their spellings."""
    ends = {stack.norm for stack in variant.stacks}
    found: dict[str, set[str]] = {}
    for path, probe in variant.probes.items():
        spelled = {name.replace("{last}", "*") for name in names[path].names}
        if spelled and (path not in ends or variant.indices(path)):
            what = {**behaviour(probe), "gain": names[path].gain, "eps": probe.eps}
            del what["shift"]  # whether there is one, the file says
            found.setdefault(_json(what), set()).update(spelled)
    return found


def _shortest(names: Iterable[str]) -> list[str]:
    """The names that do not end in another one: names are matched from their end."""
    unique = set(names)
    return sorted(name for name in unique if not any(name.endswith(f".{other}") for other in unique))


def _settings(model_type: str, base: Variant) -> Iterator[tuple[Row, Row]]:
    """(condition, overrides): booleans toggled, second widths halved, kinds of norm renamed, published combinations."""
    keys = ConfigKeys(model_type, base.model)
    widths = {key for stack in base.stacks if stack.norm and (key := keys.hidden_size(stack.norm))}
    for key, value in leaves(base.model.config):
        owner, _, name = key.rpartition(".")
        if isinstance(value, bool):
            if not _NOT_LAYERS.fullmatch(name):
                yield {key: not value}, {key: not value}
        elif isinstance(value, str):
            if "norm" in name:
                yield from (({key: word}, {key: word}) for word in _NORM_WORDS if word != value)
        elif value == WIDTH and key not in widths:
            same_owner = (width for width in sorted(widths) if width.rpartition(".")[0] == owner)
            yield from (({key: {"differs_from": width}}, {key: WIDTH // 2}) for width in same_owner)
    for overrides in COMBINATIONS.get(model_type, ()):
        yield {k: {"differs_from": min(widths)} if type(v) is int else v for k, v in overrides.items()}, overrides


def _equal(made: Tensor | None, wanted: Any) -> bool:
    return (
        isinstance(wanted, Tensor) and made is not None and made.shape == wanted.shape and bool((made == wanted).all())
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def all_model_types() -> list[str]:
    """The names of all model types of the installed transformers, sorted."""
    from transformers import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING.keys())


def update(model_types: Iterable[str], *, progress: Callable[[str], None] = lambda _: None) -> None:
    """Build rows and write them into the committed atlas, in place of those it had of the same names.

    Args:
        model_types: transformers' names.
        progress: told each model type and what came of it.
    """
    _work_offline()
    atlas, old = build_atlas(model_types, progress=progress), committed()
    rows = {name: row for name, row in old["rows"].items() if name not in atlas["absent"]} | atlas["rows"]
    absent = {name: why for name, why in (old["absent"] | atlas["absent"]).items() if name not in rows}
    write_atlas(atlas | {"absent": absent, "rows": rows})


def check(
    model_types: Iterable[str] = (), *, progress: Callable[[str], None] = lambda _: None
) -> tuple[list[str], int]:
    """Build rows again and compare them with the committed ones; nothing is written.

    Args:
        model_types: transformers' names; none: those of all committed rows.
        progress: told each model type and what came of it.

    Returns:
        One line a difference, and the number of rows compared.
    """
    _work_offline()
    rows = committed()["rows"]
    atlas = build_atlas(model_types or rows, progress=progress)
    lost = [f"{name}: has a row, but {why}" for name, why in atlas["absent"].items() if name in rows]
    return lost + drift(rows, atlas["rows"]), len(atlas["rows"]) + len(lost)


def committed() -> Row:
    """The committed atlas, with the model types that have no row; empty where there is none."""
    empty: Row = {"absent": {}, "rows": {}}
    if not ATLAS_PATH.exists():
        return empty
    rows, absent = (json.loads(path.read_text(encoding="utf-8")) for path in (ATLAS_PATH, ATLAS_PATH.with_name(ABSENT)))
    whole: Row = rows | {"absent": absent}
    return whole


def _work_offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may depend on a download
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
