"""How residual streams are made up: through which norms the blocks of an architecture write, and what else enters.

A norm's name does not say whether it stands before a branch or behind it: Llama's ``post_attention_layernorm`` feeds
its MLP. So a small table says, for each architecture whose every write was seen to pass a norm, which norms these are
and how the embedding enters; the tests hold each row against the real modules. What is not in the table gets no bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deadreckon.checkpoint.atlas import TEXT_CONFIGS, Architecture, NormRow, gguf_naming, known_name, lookup
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.kernel.stream_bound import NoBound

TABLE_PATH = Path(__file__).parent / "data" / "streams.json"

_NORMED = ("sandwich", "branch")


@dataclass(frozen=True)
class Stream:
    """How an architecture's stream is made up, its config applied.

    Attributes:
        architecture: the row of the table.
        row: what the table says.
        config: the text model's own config.
        norms: the atlas's rows of block norms, empty where all are plain (GGUF).
        blocks: path of the list of blocks.
        layers: number of blocks, where known.
        composite: whether the model takes more than text.
    """

    architecture: str
    row: Mapping[str, Any]
    config: Mapping[str, Any]
    norms: tuple[NormRow, ...]
    blocks: str
    layers: int | None
    composite: bool
    gguf: Mapping[str, Any] | None = None

    def name(self, part: str) -> str:
        """A part of a block as these tensors spell it."""
        return part if self.gguf is None else str(self.gguf["names"].get(part, part))

    def number(self, key: str) -> float:
        """A multiplier: from the config, one unless the table says otherwise."""
        said = self.row.get(key)
        if said is None:
            return 1.0
        value = self.config.get(said["key"])
        return float(value) if isinstance(value, int | float) else float(said["default"])

    def embedding_scale(self, width: int) -> float:
        """What the model multiplies an embedding by."""
        said = self.row.get("embedding_scale")
        if isinstance(said, Mapping) and "sqrt_width_if" in said:
            value = self.config.get(said["sqrt_width_if"])
            said = "sqrt_width" if (said["default"] if value is None else value) else None
        return math.sqrt(width) if said == "sqrt_width" else self.number("embedding_scale") if said else 1.0


def stream_of_config(config: Mapping[str, Any]) -> Stream | NoBound:
    """How the stream of a model of that config is made up.

    Args:
        config: a model's configuration, as config.json holds it.

    Returns:
        The stream, or why its bound is not known.
    """
    table = _table()
    outer = known_name(config.get("model_type")) or str(config.get("model_type"))
    why, own, composite = table["refused"].get(outer), config, outer in table["composites"]
    if why is not None:
        return NoBound(f"{outer}: {why}")
    name = outer
    if composite:
        own = next((part for key in TEXT_CONFIGS if isinstance(part := config.get(key), Mapping)), {})
        name = own.get("model_type") or table["composites"][outer]
        name = known_name(name) or name
    architecture = lookup({**own, "model_type": name})
    row = table["rows"].get(name)
    placement = architecture.stacks[0].placement if architecture and architecture.stacks else None
    if row is None or architecture is None or placement not in _NORMED:
        return NoBound(_why_not(name, architecture if name == outer else lookup(config), placement))
    main = architecture.stacks[0]
    # T5Gemma 2 takes images as well; they enter its encoder, whose stream is another one.
    return Stream(name, row, own, architecture.others, main.blocks or "layers", main.layers, composite)


def stream_of_gguf(checkpoint: Checkpoint) -> Stream | NoBound:
    """How the stream of a GGUF file is made up, in llama.cpp's own names.

    Args:
        checkpoint: an opened GGUF file.

    Returns:
        The stream, or why its bound is not known.
    """
    naming, table = _table()["gguf"], _table()
    architecture = checkpoint.architecture or "unknown"
    name = naming["architectures"].get(architecture)
    if name is None:
        known = gguf_naming()["architectures"].get(architecture, architecture)
        found = lookup({"model_type": known})
        placement = found.stacks[0].placement if found and found.stacks else None
        if placement in _NORMED:
            return NoBound(f"{architecture}: how GGUF files spell what its blocks write through is not known here")
        return NoBound(_why_not(architecture, found, placement))
    layers = checkpoint.config.get(f"{architecture}.{naming['layers']}")
    blocks = layers if type(layers) is int and layers > 0 else None
    return Stream(name, table["rows"][name], {}, (), naming["blocks"], blocks, False, naming)


def _why_not(name: Any, architecture: Architecture | None, placement: str | None) -> str:
    if placement is None and architecture is not None and architecture.stacks:
        placement = architecture.stacks[0].placement
    if architecture is None:
        return f"the atlas does not know the architecture {name!r}"
    if placement == "pre":
        return f"the blocks of {name} add to the stream what no norm has bounded"
    if placement == "post":
        return (
            f"each block of {name} ends in a norm of the whole stream: nothing adds up, and that norm's own gain "
            "bounds every coordinate"
        )
    if placement in _NORMED:
        return f"the blocks of {name} write through norms, but what else enters its stream was not verified"
    return f"it is not known through which norms, if any, the blocks of {name} write"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE_PATH.read_bytes())
    return table
