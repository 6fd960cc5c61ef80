"""Writes the table of anatomies by watching tiny instances of real classes, and the zoo's shapes on the meta device.

    python -m deadreckon.forward.anatomy_builder [MODEL_TYPE ...]

A setting that changes the anatomy (tied embeddings, a parallel residual) gets rows of its own, one a combination.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from deadreckon.checkpoint.anatomy_table import (
    SCHEMA,
    SHAPES_PATH,
    TABLE_PATH,
    _counts,
    _folded,
    decode,
    encode,
    starred,
)
from deadreckon.checkpoint.zoo import zoo_entry, zoo_names
from deadreckon.errors import DeadreckonError, InputError
from deadreckon.forward.anatomy_watch import watch_anatomy
from deadreckon.forward.config_keys import leaves
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_classes import head_class
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.tiny_sizes import LAYERS

COVERED = (
    "albert", "bert", "bloom", "dinov2", "distilbert", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo",
    "gpt_neox", "gptj", "llama", "mistral", "mpt", "olmo2", "opt", "phi", "qwen2", "qwen3", "roberta", "stablelm",
    "starcoder2", "t5", "vit", "whisper",
)  # fmt: skip

# Settings that move norms, biases and ties; the others change what is between a reader and a writer.
_SETTINGS = re.compile(
    r"tie_word_embeddings|.*(norm|residual|bias|parallel|multi_query|decoder_architecture|alibi|swiglu).*"
)


def build_rows(model_type: str) -> Iterator[dict[str, Any]]:
    """The rows of one architecture: its class with a head and its base class, under every setting that matters.

    Args:
        model_type: transformers' name.

    Yields:
        The rows.
    """
    for head in (True, False):
        if head and head_class(model_type) is None:
            continue
        first = tiny_model(model_type, head=head).config
        deep = _deep_enough(first)
        defaults = {key: value for key, value in leaves(first) if isinstance(value, bool) and _SETTINGS.fullmatch(key)}
        if head and hasattr(first, "tie_word_embeddings"):
            defaults["tie_word_embeddings"] = bool(first.tie_word_embeddings)
        plain = _row(model_type, head, deep)
        matter = [
            key
            for key, value in defaults.items()
            if (changed := _row(model_type, head, {**deep, key: not value})) is not None and changed != plain
        ]
        for values in itertools.product((False, True), repeat=len(matter)):
            settings = dict(zip(matter, values, strict=True))
            row = _row(model_type, head, {**deep, **{k: v for k, v in settings.items() if v != defaults[k]}})
            if row is not None:
                yield {**row, "when": {key: [value, defaults[key]] for key, value in settings.items()}}


def _deep_enough(config: Any) -> dict[str, int]:
    """What makes a tiny model deep enough to tell the blocks in the middle from the ends."""
    key = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    return {key: LAYERS} if getattr(config, key, LAYERS) < LAYERS else {}


def _row(model_type: str, head: bool, overrides: Mapping[str, Any]) -> dict[str, Any] | None:
    """One row, or None where the class does not take these settings or its blocks cannot be folded."""
    try:
        model: Any = tiny_model(model_type, head=head, **overrides)
        anatomy = watch_anatomy(model, tiny_inputs(model))
        encoded = encode(anatomy)
    except Exception as error:  # whatever a foreign class raises
        print(f"{model_type} {dict(overrides)}: {error}", file=sys.stderr)
        return None
    back = decode(encoded, anatomy.tensors)
    same = (set(back.norms), set(back.writers), set(back.tables)) == (
        set(anatomy.norms),
        set(anatomy.writers),
        set(anatomy.tables),
    )
    if not same:
        raise InputError(f"{model_type}: its anatomy does not survive being folded")
    base = model.base_model_prefix if model.base_model is not model else ""
    row = {"model_type": model_type, "class": type(model).__name__, "base": base, **encoded}
    return {**row, "files": files} if (files := _file_spellings(model)) else row


def _file_spellings(model: Any) -> dict[str, str]:
    """Folded names of parameters -> what files call them, where that is something else."""
    parameters = dict(model.named_parameters())
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for number, value in enumerate(parameters.values()):
            value.fill_(number)  # no two hold the same
        model.save_pretrained(folder)
        filed = {n: int(v.flatten()[0]) for p in Path(folder).glob("*.safetensors") for n, v in load_file(p).items()}
    named = {number: name for name, number in filed.items()}
    spelled = {name: named.get(number, name) for number, name in enumerate(parameters)}
    return {starred(name): starred(file) for name, file in spelled.items() if file != name and name not in filed}


def build_shapes(names: Sequence[str]) -> dict[str, Any]:
    """Shapes of every parameter of published configurations.

    Args:
        names: entries of the zoo.

    Returns:
        Name -> tensors by folded name, and the lengths of the lists of blocks.
    """
    import transformers

    found = {}
    for name in names:
        entry = zoo_entry(name)
        config = getattr(transformers, entry.config_class)(**entry.config_kwargs)
        with torch.device("meta"):
            model = getattr(transformers, entry.model_class)(config)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        counts = _counts(shapes)
        tensors: dict[str, tuple[int, ...]] = {}
        for pattern in _folded(shapes, counts):
            members = [pattern.replace(".*.", f".{i}.", 1) for i in range(counts.get(pattern.partition(".*.")[0], 1))]
            alike = len({shapes[m] for m in members if m in shapes}) == 1
            tensors |= {pattern: shapes[members[0]]} if alike else {m: shapes[m] for m in members}
        found[name] = {"blocks": counts, "tensors": tensors}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both files.

    Args:
        arguments: the command line; None: the process's own.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", help="rows to build (default: all)")
    chosen = parser.parse_args(arguments).model_types or list(COVERED)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    rows = json.loads(TABLE_PATH.read_bytes())["rows"] if TABLE_PATH.exists() else []
    for model_type in chosen:
        try:
            built = list(build_rows(model_type))
        except DeadreckonError as error:
            print(f"{model_type}: {error}", file=sys.stderr)
            continue
        print(f"{model_type}: {len(built)} rows", file=sys.stderr)
        rows = [row for row in rows if row["model_type"] != model_type] + built
        rows.sort(key=lambda row: (row["model_type"], row["class"], json.dumps(row["when"], sort_keys=True)))
        _write(TABLE_PATH, {"schema": SCHEMA}, "rows", [json.dumps(row, sort_keys=True) for row in rows])
    covered = {row["model_type"] for row in rows}
    models = build_shapes([name for name in zoo_names() if zoo_entry(name).model_type in covered])
    lines = [f"{json.dumps(name)}: {json.dumps(entry, sort_keys=True)}" for name, entry in sorted(models.items())]
    SHAPES_PATH.write_text('{"models": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    return 0


def _write(path: Any, header: Mapping[str, Any], key: str, lines: Sequence[str]) -> None:
    start = json.dumps(header)[:-1]
    path.write_text(f'{start}, "{key}": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
