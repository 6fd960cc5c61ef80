"""Reads that check the size of the file first: nothing is allocated that the file cannot back.

Files are opened for one read at a time and never memory-mapped, so the bytes a checkpoint reports are those it asked
for, no handle outlives a call, and a file that shrinks meanwhile is an error rather than a fault.
"""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Iterable
from itertools import islice, pairwise
from typing import Any

import numpy as np

from deadreckon.checkpoint.places import Place, RemotePath
from deadreckon.errors import DeadreckonError, InputError, UnreachableError

HEADER_LIMIT = 100_000_000
"""Longest header believed, bytes: the safetensors format's own limit, and five times the largest GGUF vocabulary."""

CONFIG_LIMIT = 10_000_000
"""Longest config.json believed, bytes."""

JSON_VALUES_LIMIT = 800_000
"""Most values believed in a JSON text: ninety thousand tensors of a header, four times the longest index."""

_BLOCK = 1 << 15
_REMOTE_BLOCK = 1 << 17  # where each read is a request; from then on as much again as was read

_FIRST_BYTES = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes, pickle and all: name it *.pt"),
    (b"\x80\x02", "a pickle: if torch.save wrote it, name it *.pt"),
    (b"\x80\x03", "a pickle: if torch.save wrote it, name it *.pt"),
    (b"\x80\x04", "a pickle: if torch.save wrote it, name it *.pt"),
    (b"\x80\x05", "a pickle: if torch.save wrote it, name it *.pt"),
    (b"GGUF", "a GGUF file: name it *.gguf"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for: run `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<", "an HTML or XML page: the download failed"),
)


def guess_content(path: Place) -> str:
    """What the first bytes of a file that is not what its name says suggest, or an empty string."""
    first = first_bytes(path, 32)
    return next((what for magic, what in _FIRST_BYTES if first.startswith(magic)), "")


def file_size(path: Place) -> int:
    """Size of a regular file, bytes.

    Args:
        path: the file; links are followed.

    Returns:
        The size.

    Raises:
        InputError: a directory, pipe or device.
        UnreachableError: missing, or not permitted.
    """
    if isinstance(path, RemotePath):
        return path.size()
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UnreachableError(unreachable(path, error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file")
    return status.st_size


def read_range(path: Place, start: int, count: int, what: str) -> bytes:
    """The bytes ``path[start:start + count]``, all of them.

    Args:
        path: a regular file.
        start: offset of the first byte.
        count: how many bytes.
        what: what they hold, for an error.

    Returns:
        Exactly `count` bytes.

    Raises:
        InputError: the file ends before, or is no regular file.
        UnreachableError: the file cannot be read.
    """
    size = file_size(path)
    if start < 0 or count < 0 or start + count > size:
        raise InputError(cut_short(path, what, start + count, size))
    if isinstance(path, RemotePath):
        return path.read(start, count)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            raw = file.read(count)
            while len(raw) < count and (more := file.read(count - len(raw))):
                raw += more
    except OSError as error:
        raise UnreachableError(unreachable(path, error)) from None
    if len(raw) < count:
        raise InputError(f"{path}: {what} ended after {len(raw)} of {count} bytes: the file shrank while being read")
    return raw


def first_bytes(path: Place, count: int) -> bytes:
    """Up to `count` bytes from the start of the file; none where there is no readable file."""
    try:
        return read_range(path, 0, min(count, file_size(path)), "the start")
    except DeadreckonError:
        return b""


def read_json(path: Place, limit: int) -> tuple[Any, int]:
    """The content of a JSON file, and its size in bytes.

    Args:
        path: the file.
        limit: the largest size believed, bytes.

    Returns:
        The parsed value and the number of bytes read.

    Raises:
        InputError: too large, or not JSON.
        UnreachableError: the file cannot be read.
    """
    size = file_size(path)
    if size > limit:
        raise InputError(f"{path}: {size} bytes are too many for this file (at most {limit} are read)")
    return parse_json(read_range(path, 0, size, "the file"), str(path)), size


def parse_json(raw: bytes, where: str, *, unique_keys: bool = False) -> Any:
    """The value of a UTF-8 JSON text.

    Args:
        raw: the text.
        where: how to name it in an error.
        unique_keys: refuse an object that has one key twice; readers that take the first and readers that take the
            last would see different tensors.

    Returns:
        The value, of whatever JSON type.

    Raises:
        InputError: not UTF-8, not JSON, nested beyond reason, of too many values, or a key twice.
    """
    # A value is a few bytes of text and a hundred of memory. Each but the first follows a comma or opens a list.
    if (values := sum(map(raw.count, (b",", b"[", b"{")))) > JSON_VALUES_LIMIT:
        raise InputError(f"{where}: some {values} values are too many for a model's JSON (at most {JSON_VALUES_LIMIT})")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique if unique_keys else None)
    except _TwiceError as error:
        raise InputError(f"{where}: {error} appears twice, and readers disagree on which one counts") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None


class _TwiceError(Exception):
    """A JSON key that appears twice in one object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = sorted(key for key, _ in pairs)
        raise _TwiceError(repr(next(key for key, following in pairwise(keys) if key == following)))
    return result


def unreachable(path: Place, error: Exception) -> str:
    """The message for a path that the operating system would not open."""
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file or directory"
    return f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"


def cut_short(path: Place, what: str, end: int, size: int) -> str:
    """The message for something that reaches past the end of the file."""
    return f"{path}: {what} should end at byte {end}, but the file has {size}: it was cut short or is damaged"


def no_such_tensor(path: Place, name: str, names: Iterable[str], hint: str = "") -> str:
    """The message for a tensor that is not in the checkpoint, with the closest of its names."""
    from difflib import get_close_matches

    # The comparison is slow, and a file may hold any number of names.
    close = get_close_matches(name, list(islice(names, 5000)), n=3)
    nearest = f"; the closest names are {', '.join(map(repr, close))}" if close else ""
    return f"{path}: no tensor named {name!r}{nearest}{hint}"


class Cursor:
    """A place in a file that moves forwards, reads a block at a time and stops at a limit.

    Attributes:
        path: the file.
        size: its size, bytes.
        limit: where to stop: the end of the file, or `HEADER_LIMIT` if that comes first.
        position: offset of the next byte.
        bytes_read: bytes read so far; what is skipped over within a block counts, what lies beyond it does not.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self.size = file_size(path)
        self.limit = min(self.size, HEADER_LIMIT)
        self.position = 0
        self.bytes_read = 0
        self._block = b""
        self._block_start = 0

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes; `what` they hold is for an error."""
        at = self._fill(count, what)
        self.position += count
        return self._block[at : at + count]

    def unpack(self, scalar: struct.Struct, what: str) -> Any:
        """The next number."""
        at = self._fill(scalar.size, what)
        self.position += scalar.size
        return scalar.unpack_from(self._block, at)[0]

    def skip(self, count: int, what: str) -> None:
        """Move over `count` bytes unread."""
        self._check_end(count, what)
        self.position += count

    def skip_strings(self, count: int, what: str) -> None:
        """Move over `count` byte strings, each after its length in eight bytes."""
        length = struct.Struct("<Q").unpack_from
        while count:
            start = self._fill(8, what)
            block, last = self._block, len(self._block) - 8
            done, at = _short_strings(block, start, count)
            count -= done
            while count and at <= last:
                at += 8 + length(block, at)[0]
                count -= 1
            self.skip(at - start, what)

    def check_room(self, count: int, smallest: int, what: str) -> None:
        """Refuse a count of things that cannot all fit, each of them `smallest` bytes long or longer.

        Args:
            count: how many the file claims.
            smallest: bytes of the smallest possible one.
            what: their name in the plural.

        Raises:
            InputError: there is no room for so many.
        """
        room = self.limit - self.position
        if count * smallest > room:
            raise InputError(f"{self.path}: the header claims {count} {what}, with {room} bytes left for them")

    def _fill(self, count: int, what: str) -> int:
        """Have the next `count` bytes in the block; where in it they begin."""
        at = self.position - self._block_start
        if at + count > len(self._block):
            self._check_end(count, what)
            left = self._block[at:]
            begin = self.position + len(left)
            ahead = max(_REMOTE_BLOCK, self.bytes_read) if isinstance(self.path, RemotePath) else _BLOCK
            fresh = read_range(self.path, begin, min(max(ahead, count - len(left)), self.limit - begin), what)
            self.bytes_read += len(fresh)
            self._block, self._block_start, at = left + fresh, self.position, 0
        return at

    def _check_end(self, count: int, what: str) -> None:
        end = self.position + count
        if end > self.size:
            raise InputError(cut_short(self.path, what, end, self.size))
        if end > self.limit:
            raise InputError(f"{self.path}: {what} ends at byte {end}: no header is longer than {self.limit} bytes")


def _short_strings(block: bytes, at: int, count: int) -> tuple[int, int]:
    """How many strings, at most `count`, surely follow each other from `at` on, and where the next one begins."""
    # A vocabulary is hundreds of thousands of strings: a loop over them would be most of the time of a read. A length
    # below 256 is a byte before seven zeros. Where each such place is the one that the place before points at, they
    # are the strings; at the first that is not (a text with zeros, a longer string), the caller goes on one by one.
    data = np.frombuffer(block, np.uint8)[at:]
    zero = data == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    begins = np.flatnonzero(seven[1:])[:count]
    if begins.size == 0 or begins[0] != 0:
        return 0, at
    following = begins + 8 + data[begins]
    breaks = np.flatnonzero(following[:-1] != begins[1:])
    done = int(breaks[0]) + 1 if breaks.size else begins.size
    return done, at + int(following[done - 1])
