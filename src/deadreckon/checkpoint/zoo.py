"""The zoo: published configurations that ``random:NAME`` builds with random weights, and ``random:NAME-shrunk`` small.

Each entry names transformers' classes and the keyword arguments of the config, with the parameter count that the model
was published with where one is known exactly, and that of the configuration otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deadreckon.checkpoint.atlas import lookup
from deadreckon.checkpoint.shrunk import shrunk
from deadreckon.errors import UsageError
from deadreckon.kernel.norm import Norm, norm_kind

_ZOO_PATH = Path(__file__).parent / "data" / "zoo.json"
SHRUNK = "-shrunk"
"""What the names of small models end in."""
_WIDTHS = "hidden_size", "n_embd", "d_model"
_LAYERS = "num_hidden_layers", "n_layer", "n_layers"


@dataclass(frozen=True)
class ZooEntry:
    """One published configuration.

    Attributes:
        name: its name in ``random:NAME``.
        hub_id: the model on the hub that was published with it.
        model_class: transformers' class.
        config_class: the class of its config.
        config_kwargs: keyword arguments of the config.
        model_type: transformers' name of the architecture.
        hidden_size: width of the (text) residual stream.
        layers: number of its blocks.
        parameters: parameter count, tied weights once; None for a shrunk one.
        published: whether `parameters` is a published count; if not, it was counted on this configuration.
        provenance: where the configuration was taken from.
        note: what is and is not part of the model.
        unconfirmed: what could not be checked against the original.
    """

    name: str
    hub_id: str
    model_class: str
    config_class: str
    config_kwargs: Mapping[str, Any]
    model_type: str
    hidden_size: int
    layers: int
    parameters: int | None
    published: bool
    provenance: str
    note: str = ""
    unconfirmed: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as config.json would hold it."""
        return {"model_type": self.model_type, **self.config_kwargs}


def zoo_names() -> tuple[str, ...]:
    """The names of all entries, sorted."""
    return tuple(sorted(_entries()))


def zoo_entry(name: str) -> ZooEntry:
    """The published configuration of that name, or a small one of its build.

    Args:
        name: as in ``random:NAME`` or ``random:NAME-shrunk``.

    Returns:
        The entry.

    Raises:
        UsageError: no such entry; near matches are listed.
    """
    entries = _entries()
    if name in entries:
        return entries[name]
    if name.removesuffix(SHRUNK) in entries:
        return _small(entries[name.removesuffix(SHRUNK)])
    from difflib import get_close_matches

    wanted = name.lower()
    near = get_close_matches(wanted, entries, n=4, cutoff=0.5)
    near = list(dict.fromkeys([*(n for n in sorted(entries) if wanted and n.startswith(wanted)), *near]))[:6]
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(entries))}"
    raise UsageError(f"no published configuration named {name!r} in the zoo: {hint}")


def zoo_norms(entry: ZooEntry) -> list[Norm]:
    """The norms that end the streams of a randomly initialised model, as its initialiser leaves them.

    Args:
        entry: a published configuration.

    Returns:
        The norms, that of the base model's last hidden state first; gains at their initial effective value, shifts 0.

    Raises:
        UsageError: this configuration ends without a norm, or the atlas does not know its architecture.
    """
    architecture = lookup(entry.config)
    if architecture is None:
        raise UsageError(f"random:{entry.name}: the atlas does not know the architecture {entry.model_type!r}")
    norms = []
    for index, stack in enumerate(architecture.stacks):
        row, width = stack.norm, stack.hidden_size or (entry.hidden_size if index == 0 else None)
        if row is None or width is None:
            continue
        # Spellings of the base class come first, those of the class with a head last.
        with_head = "For" in entry.model_class or "Head" in entry.model_class
        name = row.names[-1 if with_head else 0] if row.names else row.module
        norms.append(
            Norm(
                name=name.replace("{last}", str((stack.layers or entry.layers) - 1)),
                kind=norm_kind(row.kind),
                gain=np.full(width, row.initial_gain),
                shift=np.zeros(width) if row.shift else None,
                role=stack.role,
                gain_offset=float(row.offset),
                groups=row.groups,
                eps=row.eps,
            )
        )
    if not norms:
        why = architecture.stacks[0].why if architecture.stacks else None
        raise UsageError(
            f"random:{entry.name}: this architecture ends un-normed{f' ({why})' if why else ''}: it has no final norm"
        )
    return norms


def _small(entry: ZooEntry) -> ZooEntry:
    config = shrunk(entry.config_kwargs)
    stream = config.get("text_config", config)
    width, layers = (next(stream[k] for k in keys if k in stream) for keys in (_WIDTHS, _LAYERS))
    note = "shrunk: heads, widths, blocks and vocabulary are not the published ones"
    return replace(
        entry,
        name=entry.name + SHRUNK,
        config_kwargs=config,
        hidden_size=width,
        layers=layers,
        parameters=None,
        published=False,
        note=note,
    )


@cache
def _entries() -> dict[str, ZooEntry]:
    return {entry["name"]: ZooEntry(**entry) for entry in json.loads(_ZOO_PATH.read_bytes())}
