"""The atlas: which norm ends which stream of which architecture, what it does, and how files spell it.

Its rows were written by probing the real modules (`deadreckon.forward.atlas_builder`); here they are looked up by a
model's config, without torch. Settings in the config that change the norms are applied on the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA = "deadreckon.atlas/1"
ATLAS_PATH = Path(__file__).parent / "data" / "atlas.json"
ABSENT = "atlas_absent.json"  # beside it: the model types without a row, with the reason

# Where composite configs keep the config of the language model, and of the one part that has a stream where there is no
# language model.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "vlm_config", "thinker_config", "decoder")
OTHER_CONFIGS = ("vision_config",)


@dataclass(frozen=True)
class NormRow:
    """One norm of an architecture.

    Attributes:
        module: path within the base model (within the whole model for the norm of a head).
        names: spellings in files, without the parameter's own name; ``{last}`` stands for the last block's index and
            ``*`` for any block's.
        kind: layernorm | rmsnorm.
        gain: the parameter that holds the gain; None: the norm has no parameters.
        shift: the parameter that holds the shift; None: it has none.
        offset: what the module adds to the stored gain.
        groups: contiguous groups that are normalised separately.
        eps: the constant under the square root, from the config where it says so.
        initial_gain: effective gain at random initialisation.
    """

    module: str
    names: tuple[str, ...]
    kind: str
    gain: str | None
    shift: str | None
    offset: float = 0.0
    groups: int = 1
    eps: float | None = None
    initial_gain: float = 1.0


@dataclass(frozen=True)
class StackRow:
    """One residual stream of an architecture.

    Attributes:
        role: final | decoder | encoder | vision.
        norm: the norm that makes the stream's hidden state; None: it ends without one.
        blocks: path of the list of blocks within the base model.
        placement: where norms sit: pre | post | sandwich | branch.
        hidden_size: size of the norm, where the config says it.
        layers: number of blocks, where the config says it.
        why: why there is no norm.
        note: what a reader of the norm has to know.
    """

    role: str
    norm: NormRow | None
    blocks: str | None = None
    placement: str | None = None
    hidden_size: int | None = None
    layers: int | None = None
    why: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Architecture:
    """What the atlas knows about a model of one config.

    Attributes:
        model_type: transformers' name of the row.
        stacks: its streams, the one of the base model's last hidden state first.
        head: the norm that feeds the output layer, where that is another one.
        others: groups of further norms that do the same, each with the patterns of its members' names.
    """

    model_type: str
    stacks: tuple[StackRow, ...]
    head: NormRow | None = None
    others: tuple[NormRow, ...] = ()

    @property
    def final(self) -> NormRow | None:
        """The norm that makes the base model's last hidden state; None: it ends without one."""
        return self.stacks[0].norm if self.stacks else None


def lookup(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a config.

    Args:
        config: a model's configuration, as config.json holds it. ``model_type`` may also be spelled as GGUF files do
            (without ``_`` and ``-``).

    Returns:
        The row with the config's own sizes and switches applied; the language model's row where the atlas does not
        know the composite; None where it knows neither.
    """
    name = known_name(config.get("model_type"))
    if name is not None:
        return _architecture(name, _rows()[name], config)
    return lookup_text(config)


def lookup_text(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of the language model inside a composite config.

    Args:
        config: a model's configuration.

    Returns:
        Its row, or that of the only other part; None where the config has no such part or the atlas does not know it.
    """
    for key in TEXT_CONFIGS if any(config.get(key) for key in TEXT_CONFIGS) else OTHER_CONFIGS:
        part = config.get(key)
        if isinstance(part, Mapping) and (found := lookup(part)) is not None:
            return found
    return None


def known_name(model_type: Any) -> str | None:
    """The atlas's spelling of a model type.

    Args:
        model_type: a name; ``_`` and ``-`` and case do not count.

    Returns:
        The row's name, or None.
    """
    if not isinstance(model_type, str):
        return None
    return model_type if model_type in _rows() else _folded().get(_fold(model_type))


def model_types() -> tuple[str, ...]:
    """The names of all rows, sorted."""
    return tuple(sorted(_rows()))


def why_absent(model_type: Any) -> str | None:
    """Why a model type of transformers has no row.

    Args:
        model_type: transformers' name.

    Returns:
        What the builder met; None where there is a row, or the builder never met the name.
    """
    return _reasons().get(model_type) if isinstance(model_type, str) else None


def gguf_naming() -> Mapping[str, Any]:
    """How GGUF files name norms and say their kind: the atlas's ``gguf`` section."""
    naming: Mapping[str, Any] = _document()["gguf"]
    return naming


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ATLAS_PATH.read_bytes())
    return document


@cache
def _reasons() -> dict[str, str]:
    reasons: dict[str, str] = json.loads(ATLAS_PATH.with_name(ABSENT).read_bytes())
    return reasons


def _rows() -> dict[str, Any]:
    rows: dict[str, Any] = _document()["rows"]
    return rows


@cache
def _folded() -> dict[str, str]:
    return {_fold(name): name for name in sorted(_rows(), reverse=True)}


def _fold(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _architecture(name: str, row: Mapping[str, Any], config: Mapping[str, Any]) -> Architecture:
    stacks = tuple(_stack(stack, config) for stack in _switched(row, config))
    head = _norm(row["head"], config) if "head" in row else None
    # A block norm shares the main norm's eps key where the two agree by default.
    first = row["stacks"][0]["norm"] if row["stacks"] else None
    default, value = (first["eps"][1], _eps(first["eps"], config)) if first else (None, None)
    others = tuple(
        _norm({**o, "eps": [None, value if o["eps"] == default else o["eps"]]}, config) for o in row.get("blocks", ())
    )
    return Architecture(name, stacks, head, others)


def _switched(row: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The stacks under the most specific switch that the config meets."""
    met = [s for s in row.get("switches", ()) if all(_meets(config, key, want) for key, want in s["when"].items())]
    return max(met, key=lambda switch: len(switch["when"]))["stacks"] if met else row["stacks"]


def _meets(config: Mapping[str, Any], key: str, wanted: Any) -> bool:
    value = _value(config, key)
    if isinstance(wanted, Mapping):
        other = _value(config, wanted["differs_from"])
        return value is not None and other is not None and value != other
    return value is not None and bool(value == wanted)


def _stack(row: Mapping[str, Any], config: Mapping[str, Any]) -> StackRow:
    return StackRow(
        role=row["role"],
        norm=_norm(row["norm"], config) if row["norm"] else None,
        blocks=row.get("blocks"),
        placement=row.get("placement"),
        hidden_size=_size(config, row.get("hidden_size")),
        layers=_size(config, row.get("layers")),
        why=row.get("why"),
        note=row.get("note"),
    )


def _norm(row: Mapping[str, Any], config: Mapping[str, Any]) -> NormRow:
    return NormRow(
        module=row.get("module", ""),
        names=tuple(row["names"]),
        kind=row["kind"],
        gain=row["gain"],
        shift=row.get("shift"),
        offset=row.get("offset", 0.0),
        groups=row.get("groups", 1),
        eps=_eps(row["eps"], config),
        initial_gain=row.get("initial_gain", 1.0),
    )


def _eps(row: Any, config: Mapping[str, Any]) -> float | None:
    """The config's value where it has one, else the architecture's default."""
    key, default = row
    value = _value(config, key) if key else None
    return float(value) if isinstance(value, int | float) else default


def _size(config: Mapping[str, Any], key: str | None) -> int | None:
    value = _value(config, key) if key else None
    return value if isinstance(value, int) and value > 0 else None


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
