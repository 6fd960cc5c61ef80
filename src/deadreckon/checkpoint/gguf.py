"""GGUF: a header walked with bounds on every length, and the tensors' offsets that it ends with.

The header opens with the model's metadata, in which the vocabulary is most of the bytes. Those arrays are stepped over
string by string without making strings. Every count is checked against what is left of the file before it is used.
Versions 2 and 3, little-endian: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any, ClassVar

from deadreckon.checkpoint.bounded import Cursor, cut_short, first_bytes, guess_content
from deadreckon.checkpoint.format import Checkpoint, TensorEntry, register_format
from deadreckon.checkpoint.places import Place
from deadreckon.errors import InputError

_MAGIC = b"GGUF"
_NAME_LIMIT = 65_535  # the format's limit on a metadata key
_KEEP_BYTES = 65_536  # a longer metadata string (a chat template, a licence) is stepped over
_KEEP_ITEMS = 1_024  # and so is a longer array: an array of one number a layer is kept, a vocabulary is not
_VALUES_LIMIT = 1 << 18  # tensors, metadata values and arrays in arrays: each is a step of a loop
_STRINGS_TO_A_VALUE = 16  # stepping over a string takes that much less time
_AXES_LIMIT = 8
_DEPTH_LIMIT = 4

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# ggml's element types: name, elements in a block, bytes of a block. Numbers that are missing were withdrawn.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


@register_format
class GgufCheckpoint(Checkpoint):
    """A GGUF file. Its config is the metadata: scalars and short arrays of numbers, by their dotted keys."""

    format: ClassVar[str] = "gguf"
    reads_remote: ClassVar[bool] = True

    def __init__(self, path: Place) -> None:
        self.path = path
        walk = _Walk(path)
        tensor_count, pair_count = walk.opening()
        self.config: dict[str, Any] = walk.metadata(pair_count)
        self.tensors: dict[str, TensorEntry] = walk.tensors(tensor_count, self.config.get("general.alignment", 32))
        self.bytes_read = walk.bytes_read

    @classmethod
    def recognises(cls, path: Place) -> bool:
        """Whether the file has this format's name or first bytes."""
        return path.suffix == ".gguf" or first_bytes(path, 4) == _MAGIC

    @classmethod
    def open(cls, path: Place) -> GgufCheckpoint:
        """Walk the header."""
        return cls(path)

    @property
    def architecture(self) -> str | None:
        """The metadata's `general.architecture`."""
        name = self.config.get("general.architecture")
        return name if isinstance(name, str) else None

    def _elsewhere(self) -> str:
        count, number = self.config.get("split.count"), self.config.get("split.no")
        if type(count) is not int or type(number) is not int or count < 2:
            return ""
        return f"; this is part {number + 1} of {count} of a split model: name the part that holds it, or merge them"


class _Walk(Cursor):
    """The parts of a GGUF header in their order: opening, metadata, tensors."""

    def __init__(self, path: Place) -> None:
        super().__init__(path)
        self._values = 0

    def opening(self) -> tuple[int, int]:
        """Check magic and version; the numbers of tensors and of metadata pairs."""
        if (first := first_bytes(self.path, 4)) != _MAGIC:
            what = guess_content(self.path) or f"it starts with {first!r}, not {_MAGIC!r}"
            raise InputError(f"{self.path}: not a GGUF file: {what}")
        self.take(4, "the magic")
        version = self.unpack(_U32, "the version")
        if version & 0xFFFF == 0:
            raise InputError(f"{self.path}: a big-endian GGUF file; only little-endian ones are read: convert it again")
        if version not in (2, 3):
            raise InputError(f"{self.path}: GGUF version {version}; versions 2 and 3 are read")
        tensors = self.unpack(_U64, "the number of tensors")
        pairs = self.unpack(_U64, "the number of metadata pairs")
        # The smallest tensor has an empty name, no axis, a type and an offset; the smallest pair holds one byte.
        self.check_room(tensors, 24, "tensors")
        self.check_room(pairs, 13, "metadata pairs")
        return tensors, pairs

    def metadata(self, count: int) -> dict[str, Any]:
        """The metadata worth keeping: scalars, strings of moderate length, short arrays of numbers."""
        kept: dict[str, Any] = {}
        for index in range(count):
            key = self._name(f"the key of metadata pair {index}")
            if key in kept:
                raise InputError(f"{self.path}: metadata key {key!r} appears twice")
            kept[key] = self._value(self.unpack(_U32, f"the type of {key!r}"), f"metadata {key!r}")
        return {key: value for key, value in kept.items() if value is not None}

    def tensors(self, count: int, alignment: Any) -> dict[str, TensorEntry]:
        """The tensors' entries, checked to lie in the file, aligned and apart."""
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise InputError(f"{self.path}: general.alignment is {str(alignment)[:40]!r}, not a power of two")
        infos = {}
        for index in range(count):
            name = self._name(f"the name of tensor {index}")
            if name in infos:
                raise InputError(f"{self.path}: tensor {name!r} appears twice")
            infos[name] = self._tensor_info(f"tensor {name!r}")
        data = -(-self.position // alignment) * alignment
        entries = {}
        for name, (dtype, shape, offset, length) in infos.items():
            if offset % alignment:
                raise InputError(
                    f"{self.path}: tensor {name!r}: offset {offset} is not a multiple of the alignment {alignment}"
                )
            start, stop = data + offset, data + offset + length
            if stop > self.size:
                raise InputError(cut_short(self.path, f"tensor {name!r}", stop, self.size))
            entries[name] = TensorEntry(name, dtype, shape, self.path, start, stop)
        end, before = data, ""
        for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
            if entry.start < end:
                raise InputError(f"{self.path}: tensors {before!r} and {entry.name!r} overlap")
            end, before = entry.stop, entry.name
        return entries

    def _tensor_info(self, what: str) -> tuple[str, tuple[int, ...], int, int]:
        """Type, shape (slowest axis first, the reverse of the file's order), offset and bytes of one tensor."""
        self._count_values(1)
        axes = self.unpack(_U32, what)
        if axes > _AXES_LIMIT:
            raise InputError(f"{self.path}: {what} has {axes} axes (at most {_AXES_LIMIT} are read)")
        sizes = [self.unpack(_U64, what) for _ in range(axes)]
        code, offset = self.unpack(_U32, what), self.unpack(_U64, what)
        if code not in _TYPES:
            raise InputError(f"{self.path}: {what} has the unknown element type {code}")
        dtype, block, block_bytes = _TYPES[code]
        if sizes and sizes[0] % block:
            raise InputError(f"{self.path}: {what}: rows of {sizes[0]} do not split into {dtype} blocks of {block}")
        return dtype, tuple(reversed(sizes)), offset, prod(sizes) // block * block_bytes

    def _value(self, kind: int, what: str, depth: int = 0) -> Any:
        """One metadata value, or None for one that is stepped over."""
        self._count_values(1)
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind], what)
        if kind == _STRING:
            length = self.unpack(_U64, what)
            if length <= _KEEP_BYTES:
                return self.take(length, what).decode("utf-8", errors="replace")
            self.skip(length, what)
        elif kind == _ARRAY:
            return self._array(what, depth)
        else:
            raise InputError(f"{self.path}: {what} has the unknown type {kind}")
        return None

    def _array(self, what: str, depth: int) -> list[Any] | None:
        member, count = self.unpack(_U32, what), self.unpack(_U64, what)
        if member in _SCALARS:
            scalar = _SCALARS[member]
            self.check_room(count, scalar.size, f"entries in {what}")
            if count <= _KEEP_ITEMS:
                return [number for (number,) in scalar.iter_unpack(self.take(count * scalar.size, what))]
            self.skip(count * scalar.size, what)
        elif member == _STRING:
            self.check_room(count, _U64.size, f"strings in {what}")
            self._count_values(count // _STRINGS_TO_A_VALUE)
            self.skip_strings(count, what)
        elif depth == _DEPTH_LIMIT:
            raise InputError(f"{self.path}: {what} nests arrays more than {_DEPTH_LIMIT} deep")
        else:
            self.check_room(count, _U32.size + _U64.size, f"arrays in {what}")
            for _ in range(count):
                self._value(member, what, depth + 1)
        return None

    def _name(self, what: str) -> str:
        length = self.unpack(_U64, what)
        if length > _NAME_LIMIT:
            raise InputError(f"{self.path}: {what} is {length} bytes long (the format allows {_NAME_LIMIT})")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {what} is not UTF-8 text") from None

    def _count_values(self, count: int) -> None:
        self._values += count
        if self._values > _VALUES_LIMIT:
            raise InputError(f"{self.path}: the header holds more than {_VALUES_LIMIT} values: no model needs so many")
