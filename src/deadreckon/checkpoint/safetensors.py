"""Safetensors: one file, an index over shards, or a directory with either and its config.json.

A file is eight bytes of header length, a JSON header and the tensors' bytes. The header is checked whole, as the
format demands (offsets in range, sizes that fit the shapes, no overlap, no hole); of the rest only the tensors asked
for are read. Of a sharded checkpoint only the headers of the shards that hold them are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from deadreckon.checkpoint.bounded import (
    CONFIG_LIMIT,
    HEADER_LIMIT,
    cut_short,
    file_size,
    first_bytes,
    guess_content,
    parse_json,
    read_json,
    read_range,
    unreachable,
)
from deadreckon.checkpoint.format import Checkpoint, TensorEntry, register_format
from deadreckon.checkpoint.places import Place, RemotePath, at_once, exists, is_dir, names_in
from deadreckon.checkpoint.sharded import LazyTensors, in_shard, is_plain_name, read_config, read_index
from deadreckon.errors import InputError, UnreachableError

_FILE = ".safetensors"
_INDEX = ".safetensors.index.json"

# Width of an element in bits: the format packs its 4- and 6-bit floats.
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E8M0", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@register_format
class SafetensorsCheckpoint(Checkpoint):
    """A safetensors file, index or directory."""

    format: ClassVar[str] = "safetensors"
    reads_remote: ClassVar[bool] = True

    def __init__(self, path: Place) -> None:
        self.path = path
        self.bytes_read = 0
        self._shards: dict[Place, dict[str, TensorEntry]] = {}
        self._shard_of: Callable[[str], Place]
        weights = path
        if is_dir(path):
            weights = _weights(path)
            if weights.parent != path:
                self.bytes_read += file_size(path / "modules.json")
        config, size = read_config(weights.parent)
        self.config: Mapping[str, Any] = config
        self.bytes_read += size
        self.tensors: Mapping[str, TensorEntry]
        if weights.name.endswith(_INDEX):
            weight_map, size = read_index(weights)
            self.bytes_read += size
            self._shard_of = lambda name: weights.parent / weight_map[name]
            self.tensors = LazyTensors(
                weight_map, lambda name: in_shard(name, self._shard_of(name), weights, self._shard)
            )
        else:
            self._shard_of = lambda name: weights
            self.tensors = self._shard(weights)

    @classmethod
    def recognises(cls, path: Place) -> bool:
        """Whether `path` is a directory with safetensors, or a file with their name or first bytes."""
        if is_dir(path):
            return bool(_weight_names(_weight_folder(path)))
        return path.name.endswith((_FILE, _INDEX)) or first_bytes(path, 9)[8:] == b"{"

    @classmethod
    def open(cls, path: Place) -> SafetensorsCheckpoint:
        """Read the config and the header or the index."""
        return cls(path)

    def prefetch(self, names: Collection[str], *, entries_only: bool = False) -> None:
        """Get the headers of the shards that hold some tensors, then the tensors' bytes; see `Checkpoint.prefetch`."""
        if isinstance(self.path, RemotePath):
            shards = dict.fromkeys(self._shard_of(name) for name in names)
            unread = [shard for shard in shards if shard not in self._shards and exists(shard)]
            for shard, (entries, header_bytes) in zip(unread, at_once(read_header, unread), strict=True):
                self._shards[shard] = entries
                self.bytes_read += header_bytes
            super().prefetch(names, entries_only=entries_only)

    def _shard(self, path: Place) -> dict[str, TensorEntry]:
        """The entries of one file, its header read once."""
        if path not in self._shards:
            self._shards[path], header_bytes = read_header(path)
            self.bytes_read += header_bytes
        return self._shards[path]


def read_header(path: Place) -> tuple[dict[str, TensorEntry], int]:
    """Entries of one safetensors file, and the bytes read for them.

    Args:
        path: the file.

    Returns:
        The entries by name, and the length of the header with its eight bytes of length.

    Raises:
        InputError: the header breaks the format.
        UnreachableError: the file cannot be read.
    """
    size = file_size(path)
    start = read_range(path, 0, min(size, 9), "the header's length")
    length = int.from_bytes(start[:8], "little")
    if size < 10 or start[8:] != b"{" or not 2 <= length <= min(HEADER_LIMIT, size - 8):
        # A pickle's first two bytes are also a possible header length: only without the brace are they a pickle's.
        what = "" if start[8:] == b"{" else guess_content(path)
        raise InputError(f"{path}: not a safetensors file: {what or _wrong_start(start, length, size)}")
    raw = start[8:] + read_range(path, 9, length - 1, "the header")
    header = parse_json(raw, f"{path}: the header", unique_keys=True)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, fields, 8 + length, size) for name, fields in header.items()}
    _check_cover(path, entries, 8 + length, size)
    return entries, 8 + length


def _wrong_start(start: bytes, length: int, size: int) -> str:
    if size < 10:
        return f"{size} bytes are too few for a header"
    if not 2 <= length <= HEADER_LIMIT:
        return f"its header would be {length} bytes long (the format allows 2 to {HEADER_LIMIT})"
    if length > size - 8:
        return f"its header should be {length} bytes long and only {size - 8} follow: the file was cut short"
    return f"its header starts with {start[8:]!r} instead of '{{'"


def _entry(path: Place, name: str, fields: Any, data: int, size: int) -> TensorEntry:
    """One checked entry of the header; `data` is where the tensors' bytes begin."""
    where = f"{path}: tensor {name!r}"
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise InputError(f"{where}: the header must give its dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise InputError(f"{where}: unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape):
        raise InputError(f"{where}: shape {str(shape)[:60]} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{where}: data_offsets {str(offsets)[:60]} are not two increasing offsets")
    start, stop = data + offsets[0], data + offsets[1]
    if stop > size:
        raise InputError(cut_short(path, f"tensor {name!r}", stop, size))
    if _bits(shape, _BITS[dtype], 8 * size) != 8 * (stop - start):
        raise InputError(f"{where}: {stop - start} bytes do not hold shape {str(shape)[:60]} of {dtype}")
    return TensorEntry(name, dtype, tuple(shape), path, start, stop)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _bits(shape: list[int], width: int, most: int) -> int:
    """Bits of a tensor, or some number above `most`: the exact product of hostile sizes could take minutes."""
    if 0 in shape:
        return 0
    total = width
    for axis in shape:
        total *= axis
        if total > most:
            break
    return total


def _check_cover(path: Place, entries: Mapping[str, TensorEntry], data: int, size: int) -> None:
    """Refuse tensors that overlap, and bytes that belong to none: something could hide there."""
    end, before = data, "the header"
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start < end:
            raise InputError(f"{path}: tensors {before} and {entry.name!r} overlap")
        if entry.start > end:
            gap = entry.start - end
            raise InputError(f"{path}: {gap} bytes between {before} and {entry.name!r} belong to no tensor")
        end, before = entry.stop, repr(entry.name)
    if end != size:
        raise InputError(f"{path}: {size - end} bytes after {before} belong to no tensor")


def _weight_names(directory: Place) -> list[str]:
    try:
        return [name for name in names_in(directory) if name.endswith((_FILE, _INDEX))]
    except OSError as error:
        raise UnreachableError(unreachable(directory, error)) from None


def _weight_folder(directory: Place) -> Place:
    """Where the weights lie: sentence-transformers may keep the transformer in a folder that modules.json names."""
    modules = directory / "modules.json"
    if _weight_names(directory) or not exists(modules):
        return directory
    listed, _ = read_json(modules, CONFIG_LIMIT)
    for module in listed if isinstance(listed, list) else ():
        if isinstance(module, dict) and str(module.get("type")).endswith(".Transformer"):
            folder = module.get("path")
            if isinstance(folder, str) and is_plain_name(folder) and is_dir(directory / folder):
                return directory / folder
    return directory


def _weights(directory: Place) -> Place:
    """The file or index to read in a directory, chosen as transformers chooses."""
    folder = _weight_folder(directory)
    names = _weight_names(folder)
    for preferred in ("model" + _FILE, "model" + _INDEX):
        if preferred in names:
            return folder / preferred
    for suffix in (_INDEX, _FILE):
        matching = [name for name in names if name.endswith(suffix)]
        if len(matching) == 1:
            return folder / matching[0]
        if matching:
            shown = ", ".join(matching[:4]) + (", …" if len(matching) > 4 else "")
            raise InputError(f"{folder}: {len(matching)} candidates ({shown}), no model{suffix}: name the file itself")
    raise InputError(f"{folder}: no {_FILE} file in this directory")
