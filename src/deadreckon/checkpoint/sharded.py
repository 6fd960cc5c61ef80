"""What checkpoints in several files share: an index from tensor names to files, and config.json beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deadreckon.checkpoint.bounded import CONFIG_LIMIT, HEADER_LIMIT, read_json
from deadreckon.checkpoint.format import TensorEntry
from deadreckon.checkpoint.places import Place, exists
from deadreckon.errors import InputError, UnreachableError

_SEPARATOR = re.compile(r"[/\\:]")  # of folders and drives, on any system


class LazyTensors(Mapping[str, TensorEntry]):
    """Names that are known; an entry costs what it takes to locate it when it is first asked for."""

    def __init__(self, names: Mapping[str, object], locate: Callable[[str], TensorEntry]) -> None:
        self._names = names
        self._locate = locate

    def __getitem__(self, name: str) -> TensorEntry:
        if name not in self._names:
            raise KeyError(name)
        return self._locate(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_config(folder: Place) -> tuple[dict[str, Any], int]:
    """The settings in a folder's config.json, empty where there is none, and the bytes read for them.

    Args:
        folder: where the weights lie.

    Returns:
        Settings and size.

    Raises:
        InputError: it is not a JSON object.
        UnreachableError: it cannot be read.
    """
    path = folder / "config.json"
    if not exists(path):
        return {}, 0
    config, size = read_json(path, CONFIG_LIMIT)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object with the model's settings")
    return config, size


def read_index(path: Place) -> tuple[dict[str, str], int]:
    """File name by tensor name, out of an index, and the bytes read for it.

    Args:
        path: of the index.

    Returns:
        Map and size; every name is a bare one of a file beside the index.

    Raises:
        InputError: it is not an index, or names a file elsewhere.
        UnreachableError: it cannot be read.
    """
    index, size = read_json(path, HEADER_LIMIT)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: no weight_map from tensor names to shard files")
    for name, shard in weight_map.items():
        if not is_plain_name(shard):
            raise InputError(
                f"{path}: tensor {name!r} is said to lie in {shard!r}; "
                "a shard must be named by its bare file name and lie beside the index"
            )
    return weight_map, size


def in_shard(
    name: str, shard: Place, index: Place, entries: Callable[[Place], Mapping[str, TensorEntry]]
) -> TensorEntry:
    """A tensor's entry in the file that an index names for it.

    Args:
        name: of the tensor.
        shard: the file.
        index: the index, for the message.
        entries: reads a file's entries.

    Returns:
        The entry.

    Raises:
        UnreachableError: the file is not there.
        InputError: it does not hold the tensor.
    """
    if not exists(shard):
        raise UnreachableError(f"{shard}: no such file; {index.name} says that it holds tensor {name!r}")
    found = entries(shard)
    if name not in found:
        raise InputError(f"{shard}: no tensor {name!r}, although {index.name} says that it lies here")
    return found[name]


def is_plain_name(name: Any) -> bool:
    """Whether this is one path component on every system. A link of such a name is fine: hub caches are links."""
    return isinstance(name, str) and name.isprintable() and name not in ("", ".", "..") and not _SEPARATOR.search(name)
