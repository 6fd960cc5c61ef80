"""Where a checkpoint lies: a path of this machine, or the likeness of one on another.

Readers of formats work on either: they ask for sizes and byte ranges through `deadreckon.checkpoint.bounded` and for
names through the functions here, so one parser with its bounds serves files on disk and on the hub.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

_AT_ONCE = 4  # requests that wait for an answer at a time
_AHEAD_LIMIT = 1 << 26  # bytes that may be kept ahead: the vectors of every norm of the largest models are 16 MB

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class RemotePath(ABC):
    """A file or folder on another machine: of `pathlib.Path` what a reader needs, and reads by byte range.

    Two paths of one store are equal where they name the same thing.

    Attributes:
        inside: the path within the store, without a leading slash.
    """

    inside: PurePosixPath

    @property
    @abstractmethod
    def traffic(self) -> tuple[int, int]:
        """Requests sent so far over the connection that this path belongs to, and bytes received in answer."""

    @property
    def name(self) -> str:
        """The last component."""
        return self.inside.name

    @property
    def suffix(self) -> str:
        """The last component's last suffix, with its dot."""
        return self.inside.suffix

    @property
    @abstractmethod
    def parent(self) -> RemotePath:
        """The folder around it."""

    @abstractmethod
    def __truediv__(self, name: str) -> RemotePath: ...

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a file or folder."""

    @abstractmethod
    def is_dir(self) -> bool:
        """Whether there is a folder."""

    @abstractmethod
    def names(self) -> list[str]:
        """What the folder holds, sorted."""

    @abstractmethod
    def size(self) -> int:
        """Size of the file, bytes.

        Raises:
            InputError: it is a folder.
            UnreachableError: there is none, or the other machine did not say.
        """

    @abstractmethod
    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes from `start` on, which lie within the size.

        Raises:
            UnreachableError: the other machine did not give them.
        """

    @abstractmethod
    def keep(self, start: int, stop: int) -> None:
        """Get a byte range ahead of its reading."""


Place = Path | RemotePath
"""Anywhere that a checkpoint may lie."""


def exists(place: Place) -> bool:
    """Whether something is there; False, too, where one may not look."""
    return place.exists() if isinstance(place, RemotePath) else os.path.exists(place)


def is_dir(place: Place) -> bool:
    """Whether a directory is there; False, too, where one may not look."""
    return place.is_dir() if isinstance(place, RemotePath) else os.path.isdir(place)


def names_in(directory: Place) -> list[str]:
    """What a directory holds, sorted; OSError where it cannot be listed."""
    return directory.names() if isinstance(directory, RemotePath) else sorted(os.listdir(directory))


def at_once(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """The results of `work` on each item in their order, a few requests in flight at a time."""
    if len(items) < 2:
        return [work(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fetch_ahead(spans: Iterable[tuple[Place, int, int]]) -> None:
    """Get byte ranges of remote files ahead of their reading, adjacent ones in one request.

    Args:
        spans: file, first byte and the byte after the last; what is on this machine is left alone.
    """
    joined: dict[RemotePath, list[tuple[int, int]]] = {}
    room = _AHEAD_LIMIT
    for place, start, stop in sorted(spans, key=lambda span: span[1:]):
        if not isinstance(place, RemotePath) or (room := room - (stop - start)) < 0:
            continue
        ranges = joined.setdefault(place, [])
        begin = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
        ranges.append((begin, stop))
    at_once(lambda span: span[0].keep(*span[1]), [(place, span) for place, ranges in joined.items() for span in ranges])
