"""Files of torch.save: .pt, .pth, .bin and .ckpt, and the index over pytorch_model.bin's shards.

Since torch 1.6 such a file is a zip archive of one pickle and a record for each storage; before, it was five pickles
and then the storages. Both are read alike: the pickle is walked as data (see `pickles`), and of the storages only the
bytes of the tensors asked for are touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from deadreckon.checkpoint.bounded import (
    cut_short,
    file_size,
    first_bytes,
    guess_content,
    read_range,
)
from deadreckon.checkpoint.format import Checkpoint, TensorEntry, register_format
from deadreckon.checkpoint.places import Place, exists, is_dir
from deadreckon.checkpoint.sharded import LazyTensors, in_shard, read_config, read_index
from deadreckon.errors import InputError

if TYPE_CHECKING:
    from deadreckon.checkpoint.pickles import Storage, Stored
    from deadreckon.checkpoint.zipped import Archive

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
"""How files of torch.save are called."""

_INDEX = ".bin.index.json"
_IN_DIRECTORY = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
_ZIP = b"PK\x03\x04"
_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # before 1.6: torch's number, the end of a pickle of any protocol
_PICKLE_LIMIT = 1 << 24
_FIRST_READ = 1 << 16
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")
_LISTED = 8
_RESAVE = "load it where you trust it and save its state dict: torch.save(model.state_dict(), FILE)"


@register_format
class TorchCheckpoint(Checkpoint):
    """A file of torch.save, the index over several, or a directory with pytorch_model.bin."""

    format: ClassVar[str] = "torch"
    reads_remote: ClassVar[bool] = True

    def __init__(self, path: Place) -> None:
        self.path = path
        self.bytes_read = 0
        self._shards: dict[Place, Mapping[str, TensorEntry]] = {}
        weights = _in_directory(path) if is_dir(path) else path
        if weights is None:
            raise InputError(f"{path}: no {_IN_DIRECTORY[0]} in this directory")
        config, self.bytes_read = read_config(weights.parent)
        self.config: Mapping[str, Any] = config
        self.tensors: Mapping[str, TensorEntry]
        if weights.name.endswith(_INDEX):
            weight_map, size = read_index(weights)
            self.bytes_read += size
            self.tensors = LazyTensors(
                weight_map, lambda name: in_shard(name, weights.parent / weight_map[name], weights, self._file)
            )
        else:
            self.tensors = self._file(weights)

    @classmethod
    def recognises(cls, path: Place) -> bool:
        """Whether `path` has the name or first bytes of such a file, or is a directory with one."""
        if is_dir(path):
            return _in_directory(path) is not None
        if path.name.endswith((*SUFFIXES, _INDEX)):
            return True
        first = first_bytes(path, 128)
        # NumPy's archives are zip files as well; torch writes the pickle first.
        return (first.startswith(_ZIP) and b"/data.pkl" in first) or _MAGIC in first[:32]

    @classmethod
    def open(cls, path: Place) -> TorchCheckpoint:
        """Read the config and walk the pickle, or read the index."""
        return cls(path)

    def _file(self, path: Place) -> Mapping[str, TensorEntry]:
        """The entries of one file, its pickle walked once."""
        if path not in self._shards:
            first = first_bytes(path, 512)
            if first.startswith(_ZIP):
                self._shards[path] = self._zipped(path)
            elif _MAGIC in first[:32]:
                self._shards[path] = self._sequential(path)
            else:
                file_size(path)  # a directory or a missing file says so itself
                raise InputError(f"{path}: not a file of torch.save: {_what_else(path, first)}")
        return self._shards[path]

    def _zipped(self, path: Place) -> Mapping[str, TensorEntry]:
        """The layout since torch 1.6."""
        from deadreckon.checkpoint.pickles import TruncatedError, load
        from deadreckon.checkpoint.zipped import Archive

        archive = Archive(path)
        folder = _folder(archive)
        if f"{folder}/constants.pkl" in archive.members:
            raise InputError(f"{path}: a TorchScript program, not a state dict: {_RESAVE}")
        if f"{folder}/byteorder" in archive.members:
            start, stop = archive.place(f"{folder}/byteorder")
            _check_order(path, read_range(path, start, min(stop - start, 16), "the byte order") == b"little")
            self.bytes_read += stop - start
        start, stop = archive.place(f"{folder}/data.pkl")
        if stop - start > _PICKLE_LIMIT:
            raise InputError(f"{path}: a pickle of {stop - start} bytes; at most {_PICKLE_LIMIT} are read: {_RESAVE}")
        raw = read_range(path, start, stop - start, "its pickle")
        self.bytes_read += archive.bytes_read + len(raw)
        try:
            value, _ = load(raw, 0, str(path))
        except TruncatedError:
            raise InputError(f"{path}: its pickle ends too early: the file is damaged") from None
        tensors = _state_dict(path, value)

        def place(storage: Storage) -> tuple[int, int]:
            record = f"{folder}/data/{storage.key}"
            if record not in archive.members:
                raise InputError(f"{path}: no record {record!r}, which holds tensors: the file is damaged")
            before = archive.bytes_read
            found = archive.place(record)
            self.bytes_read += archive.bytes_read - before
            return found

        return LazyTensors(tensors, lambda name: _entry(path, name, tensors[name], *place(tensors[name].storage)))

    def _sequential(self, path: Place) -> Mapping[str, TensorEntry]:
        """The layout before torch 1.6: magic, version, byte order, value, keys, and each storage after its length."""
        from deadreckon.checkpoint.pickles import ELEMENTS, TruncatedError, load

        size = file_size(path)
        length = min(size, _FIRST_READ)
        while True:
            raw = read_range(path, 0, length, "its pickles")
            try:
                values, at = [], 0
                for _ in range(5):
                    value, at = load(raw, at, str(path))
                    values.append(value)
                break
            except TruncatedError:
                if length == size:
                    raise InputError(f"{path}: its pickles end too early: the file was cut short") from None
                if length == _PICKLE_LIMIT:
                    raise InputError(f"{path}: pickles of over {length} bytes are not read: {_RESAVE}") from None
                length = min(size, 16 * length, _PICKLE_LIMIT)
        _, version, system, value, keys = values
        if version != 1001 or not isinstance(keys, list):
            raise InputError(f"{path}: a version of torch.save's old layout that is not known: {_RESAVE}")
        _check_order(path, isinstance(system, dict) and system.get("little_endian") is True)
        self.bytes_read += length
        tensors = _state_dict(path, value)
        storages = {s.storage.key: s.storage for s in _all_tensors(value)}
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            if not isinstance(key, str) or key not in storages or storages[key].kind not in ELEMENTS:
                break  # of those behind a storage of unknown length it is not known where they lie
            start = at + 8
            at = start + storages[key].count * ELEMENTS[storages[key].kind][1]
            if at > size:
                raise InputError(cut_short(path, f"storage {key!r}", at, size))
            places[key] = (start, at)

        def locate(name: str) -> TensorEntry:
            tensor = tensors[name]
            place = places.get(tensor.storage.key)
            if place is None:
                raise InputError(f"{path}: tensor {name!r}: where its storage lies cannot be told: {_RESAVE}")
            count = int.from_bytes(read_range(path, place[0] - 8, 8, "a storage's length"), "little")
            self.bytes_read += 8
            if count != tensor.storage.count:
                raise InputError(
                    f"{path}: tensor {name!r} needs a storage of {tensor.storage.count} elements, and {count} are said "
                    "to lie there: the file is damaged"
                )
            return _entry(path, name, tensor, *place)

        return LazyTensors(tensors, locate)


def _in_directory(path: Place) -> Place | None:
    """The file to read in a directory, chosen as transformers chooses."""
    return next((path / name for name in _IN_DIRECTORY if exists(path / name)), None)


def _what_else(path: Place, first: bytes) -> str:
    if first[257:262] == b"ustar":
        return f"a tar archive, as torch wrote before version 0.1.10: {_RESAVE}"
    if first[:1] == b"\x80":
        return f"a bare pickle, which holds objects and not tensors' bytes, and pickles are not opened here: {_RESAVE}"
    return guess_content(path) or f"it starts with {first[:8]!r}"


def _check_order(path: Place, little: bool) -> None:
    if not little:
        raise InputError(f"{path}: saved on a big-endian machine; only little-endian files are read: save it again")


def _folder(archive: Archive) -> str:
    """The folder of the archive in which everything lies."""
    found = [name for name in archive.members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise InputError(f"{archive.path}: a zip archive without a model's data.pkl: not a file of torch.save")
    return found[0].partition("/")[0]


def _state_dict(path: Place, value: Any) -> dict[str, Stored]:
    """The mapping of names to tensors in a checkpoint.

    It is the value itself where that holds a tensor, else what lies under the first of `_STATE_DICTS` that is there,
    else the only mapping with tensors one level down.

    Args:
        path: the file, for an error.
        value: what its pickle describes.

    Returns:
        The tensors by name.

    Raises:
        InputError: there is none, or several.
    """
    from deadreckon.checkpoint.pickles import Stored, Unknown

    for _ in range(4):
        if not isinstance(value, dict):
            what = f"an object of class {value.what}" if isinstance(value, Unknown) else f"a {type(value).__name__}"
            raise InputError(f"{path}: holds {what}, not a mapping of names to tensors: {_RESAVE}")
        if tensors := {key: held for key, held in value.items() if isinstance(held, Stored) and isinstance(key, str)}:
            return tensors
        under = [key for key in _STATE_DICTS if isinstance(value.get(key), dict)][:1]
        if not under:
            under = [key for key, held in value.items() if isinstance(held, dict) and _has_tensors(held)]
        if len(under) > 1:
            raise InputError(
                f"{path}: {len(under)} mappings of tensors, under {_shown(under)}; save the one to read by itself: "
                f"torch.save(torch.load(FILE, weights_only=True)[{under[0]!r}], NEW)"
            )
        if not under:
            raise InputError(f"{path}: no mapping of names to tensors, only {_shown(value) or 'nothing'}: {_RESAVE}")
        value = value[under[0]]
    raise InputError(f"{path}: mappings nested too deep to be a state dict: {_RESAVE}")


def _has_tensors(mapping: Mapping[Any, Any]) -> bool:
    from deadreckon.checkpoint.pickles import Stored

    return any(isinstance(held, Stored) for held in mapping.values())


def _all_tensors(value: Any) -> Iterable[Stored]:
    """Every tensor in a value, each container looked into once."""
    from deadreckon.checkpoint.pickles import Stored

    waiting, seen = [value], set()
    while waiting:
        held = waiting.pop()
        if isinstance(held, Stored):
            yield held
        elif isinstance(held, dict | list | tuple) and id(held) not in seen:
            seen.add(id(held))
            waiting.extend(held.values() if isinstance(held, dict) else held)


def _shown(keys: Iterable[Any]) -> str:
    listed = [repr(key)[:60] for key in keys]
    return ", ".join(listed[:_LISTED]) + (", …" if len(listed) > _LISTED else "")


def _entry(path: Place, name: str, tensor: Stored, start: int, stop: int) -> TensorEntry:
    """Where a tensor's bytes lie, given those of its storage."""
    from deadreckon.checkpoint.pickles import ELEMENTS

    if tensor.kind not in ELEMENTS:
        return TensorEntry(name, tensor.kind[:40], tensor.shape, path, start, start)
    dtype, width = ELEMENTS[tensor.kind]
    if 0 in tensor.shape:
        return TensorEntry(name, dtype, tensor.shape, path, start, start)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    first = start + tensor.offset * width
    end = start + (last + 1) * width
    if end > stop:
        raise InputError(
            f"{path}: tensor {name!r} of shape {str(tensor.shape)[:60]} reaches {end - stop} bytes past the end of its "
            "storage: the file is damaged"
        )
    return TensorEntry(name, dtype, tensor.shape, path, first, end, _step(tensor.shape, tensor.strides))


def _step(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Elements from one entry to the next, or None where a tensor of several axes is not laid out row by row."""
    if len(shape) == 1:
        return strides[0] if shape[0] > 1 else 1
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return None
        expected *= size
    return 1
