"""ONNX: the graph's nodes and the places of its weights, by our own walk over the file; nothing is run or built.

Weights lie in the file or in files beside it, which are believed only within the model's own directory.
Fields by number: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from deadreckon.checkpoint.bounded import cut_short, file_size, guess_content
from deadreckon.checkpoint.format import Checkpoint, TensorEntry, register_format
from deadreckon.checkpoint.places import Place, RemotePath, exists
from deadreckon.checkpoint.sharded import LazyTensors, read_config
from deadreckon.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from deadreckon.checkpoint.onnx_graph import GraphNorm
    from deadreckon.checkpoint.protobuf import Field, Wire

# TensorProto.DataType: the name used elsewhere in this package, and bytes of an element.
_TYPES = {
    1: ("F32", 4),
    2: ("U8", 1),
    3: ("I8", 1),
    4: ("U16", 2),
    5: ("I16", 2),
    6: ("I32", 4),
    7: ("I64", 8),
    9: ("BOOL", 1),
    10: ("F16", 2),
    11: ("F64", 8),
    12: ("U32", 4),
    13: ("U64", 8),
    14: ("C64", 8),
    15: ("C128", 16),
    16: ("BF16", 2),
    17: ("F8_E4M3", 1),
    18: ("F8_E4M3FNUZ", 1),
    19: ("F8_E5M2", 1),
    20: ("F8_E5M2FNUZ", 1),
}
_DATA_FIELDS = {1: 4, 11: 10}  # where the numbers of a type stand when they are not in raw_data
_AXES_LIMIT = 16


@dataclass(frozen=True)
class Node:
    """One operation of the graph.

    Attributes:
        op: its type.
        inputs: names of the values it takes, empty where an optional one is left out.
        outputs: names of the values it makes.
        attributes: where its attributes stand in the file.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[Field, ...] = ()


@dataclass
class _Tensor:
    """A weight as the file describes it."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    code: int = 0
    raw: Field | None = None
    data: dict[int, list[Field]] = field(default_factory=dict)
    external: dict[str, str] | None = None


@register_format
class OnnxCheckpoint(Checkpoint):
    """An ONNX file. Its tensors are the initializers, and the vectors and scalars among its constants.

    Attributes:
        nodes: the main graph's operations, in the file's order.
        outputs: names of the values that the graph puts out.
    """

    format: ClassVar[str] = "onnx"

    def __init__(self, path: Place) -> None:
        from deadreckon.checkpoint.protobuf import BYTES, Wire

        if isinstance(path, RemotePath):
            raise InputError(f"{path}: ONNX files are read from this machine alone: download it first")
        self.path: Path = path
        self.config: Mapping[str, Any] = {}
        self.nodes: list[Node] = []
        self.outputs: list[str] = []
        self._weights: dict[str, _Tensor] = {}
        self._scalars: dict[str, list[float] | None] = {}
        self._wire: Wire = Wire(path)
        graphs = [f for f in self._top() if f.number == 7 and f.wire == BYTES]
        if len(graphs) != 1:
            raise InputError(f"{path}: not an ONNX model: it holds {len(graphs)} graphs: the file is damaged")
        for part in self._wire.fields(graphs[0].start, graphs[0].stop, "the graph"):
            if part.wire != BYTES:
                continue
            if part.number == 1:
                self._add_node(part)
            elif part.number == 5:
                self._add_weight(self._tensor(part))
            elif part.number == 12:
                self.outputs += [self._wire.text(f, "an output") for f in self._parts(part, "an output", 1)]
        self.bytes_read = self._wire.bytes_read
        self.config, size = read_config(path.parent)
        self.bytes_read += size
        self.tensors: Mapping[str, TensorEntry] = LazyTensors(
            dict.fromkeys(self._weights, ""), lambda name: self._entry(self._weights[name])
        )

    @classmethod
    def recognises(cls, path: Place) -> bool:
        """Whether the file has this format's name; it has no first bytes of its own."""
        return path.suffix == ".onnx"

    @classmethod
    def open(cls, path: Place) -> OnnxCheckpoint:
        """Walk the graph."""
        return cls(path)

    @cached_property
    def norms(self) -> list[GraphNorm]:
        """The norms of the graph, in its order."""
        from deadreckon.checkpoint.onnx_graph import graph_norms

        before = self._wire.bytes_read
        found = graph_norms(self)
        self.bytes_read += self._wire.bytes_read - before
        return found

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Sizes of a weight; None where nothing of that name is stored."""
        return tuple(self._weights[name].dims) if name in self._weights else None

    def attributes(self, node: Node) -> dict[str, float | list[int]]:
        """The numbers among a node's attributes, by name."""
        found: dict[str, float | list[int]] = {}
        for place in node.attributes:
            name = ""
            value: float | list[int] | None = None
            for part in self._wire.fields(place.start, place.stop, "an attribute"):
                if part.number == 1:
                    name = self._wire.text(part, "an attribute's name")
                elif part.number == 2:
                    value = self._wire.number32(part, "an attribute")
                elif part.number in (3, 8):
                    held: list[int] = value if isinstance(value, list) else []
                    value = held + self._wire.numbers(part, "an attribute")
            if value is not None:
                found[name] = value
        return found

    def scalars(self, name: str) -> list[float] | None:
        """The numbers of a small stored tensor, None where it is none or holds none."""
        if name not in self._scalars:
            self._scalars[name] = self._read_scalars(name)
        return self._scalars[name]

    def _read_scalars(self, name: str) -> list[float] | None:
        from deadreckon.checkpoint.bounded import read_range

        weight = self._weights.get(name)
        if weight is None or prod(weight.dims[:_AXES_LIMIT]) > _AXES_LIMIT or weight.code not in (1, 6, 7, 10, 11):
            return None
        if weight.code in (6, 7) and weight.raw is None:
            return [n for f in weight.data.get(weight.code - 1 if weight.code == 6 else 7, []) for n in self._ints(f)]
        entry = self._entry(weight)
        if entry.stop == entry.start:
            return None
        raw = read_range(entry.path, entry.start, entry.stop - entry.start, f"tensor {name!r}")
        self.bytes_read += len(raw)
        kind = {1: "<f4", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}[weight.code]
        return [float(value) for value in np.frombuffer(raw, kind)]

    def _ints(self, place: Field) -> list[int]:
        return self._wire.numbers(place, "a constant")

    def _top(self) -> list[Field]:
        """The fields of the whole file."""
        try:
            fields = list(self._wire.fields(0, self._wire.size, "the model"))
        except InputError:
            if what := guess_content(self.path):
                raise InputError(f"{self.path}: not an ONNX model: {what}") from None
            raise
        return fields

    def _parts(self, place: Field, what: str, number: int) -> list[Field]:
        return [f for f in self._wire.fields(place.start, place.stop, what) if f.number == number]

    def _add_node(self, place: Field) -> None:
        from deadreckon.checkpoint.protobuf import BYTES

        op, domain, inputs, outputs, attributes = "", "", [], [], []
        for part in self._wire.fields(place.start, place.stop, "a node"):
            if part.wire != BYTES:
                continue
            if part.number == 5:
                attributes.append(part)
            elif part.number in (1, 2, 4, 7):
                text = self._wire.text(part, "a node")
                if part.number == 1:
                    inputs.append(text)
                elif part.number == 2:
                    outputs.append(text)
                elif part.number == 4:
                    op = text
                else:
                    domain = text
        if domain not in ("", "ai.onnx", "com.microsoft"):
            op = f"{domain}.{op}"
        if op == "Constant" and len(outputs) == 1:
            for attribute in attributes:
                for held in self._parts(attribute, "a constant", 5):
                    weight = self._tensor(held)
                    weight.name = outputs[0]
                    if len(weight.dims) < 2:
                        self._add_weight(weight)
        else:
            self.nodes.append(Node(op, tuple(inputs), tuple(outputs), tuple(attributes)))

    def _add_weight(self, weight: _Tensor) -> None:
        if weight.name in self._weights:
            raise InputError(f"{self.path}: tensor {weight.name!r} appears twice, and readers disagree on which counts")
        self._weights[weight.name] = weight

    def _tensor(self, place: Field) -> _Tensor:
        """A weight's description; its numbers are stepped over."""
        from deadreckon.checkpoint.protobuf import VARINT

        found, wire, location = _Tensor(), self._wire, 0
        for part in wire.fields(place.start, place.stop, "a tensor"):
            if part.number == 1:
                found.dims += wire.numbers(part, "a tensor's sizes")
            elif part.number == 2 and part.wire == VARINT:
                found.code = part.start
            elif part.number == 8:
                found.name = wire.text(part, "a tensor's name")
            elif part.number == 9:
                found.raw = part
            elif part.number == 13:
                key, value = (
                    "".join(wire.text(f, "where a tensor lies") for f in self._parts(part, "external data", number))
                    for number in (1, 2)
                )
                found.external = {**(found.external or {}), key: value}
            elif part.number == 14 and part.wire == VARINT:
                location = part.start
            elif part.number in (4, 5, 7, 10):
                held = found.data.setdefault(part.number, [])
                if len(held) < 2:  # more than one stands for an unpacked list, which is not read
                    held.append(part)
        where = f"{self.path}: tensor {found.name[:200]!r}"
        if len(found.dims) > _AXES_LIMIT or not all(0 <= size < 1 << 63 for size in found.dims):
            raise InputError(f"{where}: shape {str(found.dims)[:60]} is not a list of sizes")
        if location == 0:
            found.external = None
        elif location != 1 or not found.external or "location" not in found.external:
            raise InputError(f"{where} lies in another file, and which is not said: the file is damaged")
        return found

    def _entry(self, weight: _Tensor) -> TensorEntry:
        """Where a weight's numbers lie, checked."""
        where, shape = f"{self.path}: tensor {weight.name!r}", tuple(weight.dims)
        dtype, width = _TYPES.get(weight.code, (f"ONNX type {weight.code}", 0))
        size = prod(shape) * width
        if weight.external is not None:
            path, start, length = self._outside(weight.name, weight.external, size)
        else:
            path, place = self.path, weight.raw
            if place is None and weight.code in _DATA_FIELDS:
                held = weight.data.get(_DATA_FIELDS[weight.code], [])
                place = held[0] if len(held) == 1 else None
            if place is None:
                return TensorEntry(weight.name, f"unpacked {dtype}", shape, path, 0, 0)
            start, length = place.start, place.stop - place.start
        if width and length != size:
            raise InputError(f"{where}: {length} bytes do not hold shape {str(shape)[:60]} of {dtype}")
        return TensorEntry(weight.name, dtype, shape, path, start, start + length)

    def _outside(self, name: str, external: Mapping[str, str], size: int) -> tuple[Path, int, int]:
        """File, offset and length of a weight that is kept in another file."""
        location, home = external["location"], self.path.parent
        parts = PureWindowsPath(location)  # which knows both kinds of slash, and drives
        if not location.isprintable() or parts.anchor or not parts.parts or ".." in parts.parts:
            raise InputError(
                f"{self.path}: tensor {name!r} is said to lie in {location[:200]!r}; external data must lie in the "
                "model's own directory"
            )
        path = home / location
        if not exists(path):
            raise UnreachableError(f"{path}: no such file; {self.path.name} says that it holds tensor {name!r}")
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home)):
            raise InputError(
                f"{path}: a link out of the model's directory, which external data must not leave: put the file itself "
                "beside the model"
            )
        numbers = []
        for key, default in (("offset", 0), ("length", size)):
            text = external.get(key, str(default))
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise InputError(
                    f"{self.path}: tensor {name!r}: the {key} {text[:40]!r} of its external data is no number"
                )
            numbers.append(int(text))
        start, length = numbers
        if start + length > (end := file_size(path)):
            raise InputError(cut_short(path, f"tensor {name!r}", start + length, end))
        return path, start, length
