"""Files behind a web address, read by range and remembered in pieces, and the paths that name them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from deadreckon.checkpoint.bounded import file_size, read_range
from deadreckon.checkpoint.places import RemotePath
from deadreckon.checkpoint.remote import Link, Web
from deadreckon.errors import InputError, UnreachableError, UsageError

_FIRST = 1 << 16  # what the first request for a file brings: most headers of shards, whole
_HUBS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


@dataclass
class StoredFile:
    """One file of a store.

    Attributes:
        web: the connection to it.
        link: its address.
        cached: the same file on this machine, read in its place.
    """

    web: Web
    link: Link
    cached: Path | None = None
    _pieces: list[tuple[int, bytes]] = field(default_factory=list, repr=False)

    def size(self) -> int:
        """Size in bytes; asking a server that did not list it brings the file's start."""
        if self.cached is not None:
            return file_size(self.cached)
        if self.link.size is None:
            self.keep(0, _FIRST)
        return self.link.size or 0

    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes from `start` on."""
        if self.cached is not None:
            return read_range(self.cached, start, count, "the file")
        size = self.size()
        if count and not self._pieces and start < _FIRST:
            if start == 0 and count == size:  # asked for without a range: servers compress or ignore those of texts
                self._pieces.append((0, self.web.whole(self.link, size)))
            else:
                self.keep(0, min(size, max(_FIRST, start + count)))
        raw = self._known(start, start + count)
        if len(raw) < count:
            raw += self.web.range(self.link, start + len(raw), start + count)
        if len(raw) != count:
            raise UnreachableError(f"{self.link.label}: {len(raw)} bytes came of {count}: it has changed")
        return raw

    def keep(self, start: int, stop: int) -> None:
        """Get a range and remember it."""
        if self.cached is None and len(self._known(start, stop)) < stop - start:
            self._pieces.append((start, self.web.range(self.link, start, stop)))

    def _known(self, start: int, stop: int) -> bytes:
        """As much of a range as is remembered from its start on."""
        known = (raw[start - at : stop - at] for at, raw in self._pieces if at <= start < at + len(raw))
        return max(known, key=len, default=b"")


class Store(ABC):
    """Files under one address.

    Attributes:
        web: the connection to them.
    """

    web: Web

    def __init__(self) -> None:
        self._files: dict[PurePosixPath, StoredFile] = {}

    def file(self, inside: PurePosixPath) -> StoredFile:
        """The file of that path, whether there is one or not."""
        if inside not in self._files:
            self._files[inside] = self._make(inside)
        return self._files[inside]

    @abstractmethod
    def label(self, inside: PurePosixPath) -> str:
        """How to name a path to the user, in the MODEL grammar."""

    @abstractmethod
    def is_file(self, inside: PurePosixPath) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def folder(self, inside: PurePosixPath) -> list[str] | None:
        """What a folder holds, sorted; None where there is none."""

    @abstractmethod
    def _make(self, inside: PurePosixPath) -> StoredFile: ...


@dataclass(frozen=True)
class StoredPath(RemotePath):
    """A path in a store."""

    store: Store
    inside: PurePosixPath

    def __str__(self) -> str:
        return self.store.label(self.inside)

    def __truediv__(self, name: str) -> StoredPath:
        return StoredPath(self.store, self.inside / name)

    @property
    def traffic(self) -> tuple[int, int]:
        """Requests and bytes over the store's connection."""
        return self.store.web.requests, self.store.web.received

    @property
    def parent(self) -> StoredPath:
        """The folder around it."""
        return StoredPath(self.store, self.inside.parent)

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return self.store.is_file(self.inside) or self.is_dir()

    def is_dir(self) -> bool:
        """Whether there is a folder."""
        return self.store.folder(self.inside) is not None

    def names(self) -> list[str]:
        """What the folder holds, sorted."""
        return self.store.folder(self.inside) or []

    def size(self) -> int:
        """Size of the file, bytes."""
        if not self.store.is_file(self.inside):
            if self.is_dir():
                raise InputError(f"{self}: not a regular file")
            raise UnreachableError(f"{self}: no such file or directory")
        return self.store.file(self.inside).size()

    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes from `start` on."""
        return self.store.file(self.inside).read(start, count)

    def keep(self, start: int, stop: int) -> None:
        """Get a byte range ahead of its reading."""
        self.store.file(self.inside).keep(start, stop)


class WebFolder(Store):
    """What lies beside a file on a web server, which lists nothing: only asking tells what is there."""

    def __init__(self, url: str) -> None:
        super().__init__()
        parts = urlsplit(url)
        self._base, _, name = parts.path.rpartition("/")
        self._site, self._query = f"{parts.scheme}://{parts.netloc}", parts.query
        self.named = PurePosixPath(name)
        self.web = Web(self._site.lower(), {}, _explain)
        self._there: dict[PurePosixPath, bool] = {self.named: True}

    def label(self, inside: PurePosixPath) -> str:
        """The address without its query, which may be a secret."""
        return f"{self._site}{self._base}/{inside}"

    def is_file(self, inside: PurePosixPath) -> bool:
        """Whether the server has it; an address that is signed is good for one file only."""
        if inside not in self._there:
            self._there[inside] = not self._query and self._answers(inside)
        return self._there[inside]

    def folder(self, inside: PurePosixPath) -> None:
        """None: a web server lists nothing."""

    def _answers(self, inside: PurePosixPath) -> bool:
        try:
            return self.file(inside).size() > 0
        except UnreachableError:
            return False

    def _make(self, inside: PurePosixPath) -> StoredFile:
        query = f"?{self._query}" if self._query and inside == self.named else ""
        label = self.label(inside)
        return StoredFile(self.web, Link(label + query, label))


def open_url(url: str) -> StoredPath:
    """The file behind a web address.

    Args:
        url: ``https://…``, or ``http://`` to this machine.

    Returns:
        Its path; nothing was asked for yet.

    Raises:
        UsageError: a name and password in it, no file's name, a page of the hub, or http to another machine.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or not parts.path.rpartition("/")[2]:
        raise UsageError(f"{url}: not the address of a file")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{parts.scheme}://{host}: a name and password in an address end up in logs: leave them out")
    if parts.scheme == "http" and host not in _LOCAL_HOSTS:
        raise UsageError(f"{url}: http can be altered on its way: write https")
    if host in _HUBS and "/resolve/" not in parts.path:
        raise UsageError(f"{url}: a page; name the model as the hub does: {'/'.join(parts.path.split('/')[1:3])}")
    folder = WebFolder(url)
    return StoredPath(folder, folder.named)


def _explain(label: str, status: int, headers: Mapping[str, str]) -> str:
    if status in {404, 410}:
        return f"{label}: no such file there"
    if status in {401, 403}:
        return f"{label}: the server does not allow it ({status})"
    return f"{label}: the server answered {status}"
