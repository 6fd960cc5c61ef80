"""The directory of a zip archive, read with bounds, for archives whose members are stored as they are.

Only the directory at the end is read; a member's own header is looked at when its bytes are asked for. Archives that
pack, encrypt or repeat their members are refused: torch.save writes none of these.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from deadreckon.checkpoint.bounded import cut_short, file_size, read_range
from deadreckon.checkpoint.places import Place
from deadreckon.errors import InputError

MAGIC = b"PK\x03\x04"

_DIRECTORY_LIMIT = 1 << 24  # bytes: a member takes about a hundred
_MEMBERS_LIMIT = 1 << 17
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL32 = 0xFFFFFFFF
_ENCRYPTED = 0x2041  # bits 0, 6 and 13 of a member's flags


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    Attributes:
        name: as the directory spells it.
        header: offset of its own header in the archive.
        size: its bytes, stored as they are.
        method: how it is packed; 0: not at all.
        flags: the directory's flags.
    """

    name: str
    header: int
    size: int
    method: int
    flags: int


class Archive:
    """A zip archive whose directory was read.

    Attributes:
        path: the file.
        members: by name.
        bytes_read: bytes read so far, of directory and headers.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self.size = file_size(path)
        self.bytes_read = 0
        self._begin, length, count = self._find_directory()
        self.members = self._read_directory(length, count)

    def place(self, name: str) -> tuple[int, int]:
        """Where a member's bytes lie.

        Args:
            name: the member's name.

        Returns:
            Offsets of its first byte and of the one after its last.

        Raises:
            InputError: packed or encrypted, or its own header contradicts the directory.
            UnreachableError: the file cannot be read.
        """
        member = self.members[name]
        where = f"{self.path}: record {name!r}"
        if member.flags & _ENCRYPTED:
            raise InputError(f"{where} is encrypted: torch.save writes no such archives")
        if member.method != 0:
            raise InputError(
                f"{where} is compressed, and is not unpacked here: torch.save stores it as it is; load it where you "
                "trust it and save it again"
            )
        raw = self._read(member.header, _LOCAL.size, f"the header of record {name!r}")
        magic, _, _, method, *_, name_length, extra_length = _LOCAL.unpack(raw)
        start = member.header + _LOCAL.size + name_length + extra_length
        if magic != MAGIC or method != member.method:
            raise InputError(f"{where}: no such record where the archive's directory says it lies")
        spelled = self._read(member.header + _LOCAL.size, name_length, f"the name of record {name!r}")
        if spelled != name.encode("utf-8", "surrogateescape"):
            raise InputError(f"{where} calls itself {spelled[:60]!r}: the archive's directory is damaged")
        if start + member.size > self._begin:
            raise InputError(cut_short(self.path, f"record {name!r}", start + member.size, self._begin))
        return start, start + member.size

    def _read(self, start: int, count: int, what: str) -> bytes:
        raw = read_range(self.path, start, count, what)
        self.bytes_read += count
        return raw

    def _find_directory(self) -> tuple[int, int, int]:
        """Offset, length and number of entries of the directory."""
        # The archive ends in a record of 22 bytes, behind which a comment may stand.
        tail_start = max(0, self.size - _END.size - 0xFFFF - _END64_LOCATOR.size)
        short = max(tail_start, self.size - 256)  # enough without a comment
        for start in dict.fromkeys((short, tail_start)):
            tail = self._read(start, self.size - start, "the archive's directory")
            at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
            if at >= 0:
                break
        else:
            raise InputError(f"{self.path}: a zip archive without its directory: the file was cut short")
        _, disk, first_disk, _, count, length, begin, _ = _END.unpack_from(tail, at)
        end = start + at
        if count == 0xFFFF or _FULL32 in (length, begin):
            begin, length, count, end = self._directory64(start + at)
        elif disk or first_disk:
            raise InputError(f"{self.path}: an archive in several parts: not written by torch.save")
        if begin + length > end:
            raise InputError(cut_short(self.path, "the archive's directory", begin + length, end))
        if length > _DIRECTORY_LIMIT or count > min(_MEMBERS_LIMIT, length // _ENTRY.size):
            raise InputError(
                f"{self.path}: the archive claims {count} records in a directory of {length} bytes: no model needs that"
            )
        return begin, length, count

    def _directory64(self, end: int) -> tuple[int, int, int, int]:
        what = "the archive's 64-bit directory"
        if end < _END64_LOCATOR.size:
            raise InputError(f"{self.path}: {what} is missing: the file was cut short")
        raw = self._read(end - _END64_LOCATOR.size, _END64_LOCATOR.size, what)
        magic, _, place, _ = _END64_LOCATOR.unpack(raw)
        if magic != b"PK\x06\x07":
            raise InputError(f"{self.path}: {what} is missing: the file was cut short")
        magic, *_, count, length, begin = _END64.unpack(self._read(place, _END64.size, what))
        if magic != b"PK\x06\x06":
            raise InputError(f"{self.path}: {what} is not where it should be: the file is damaged")
        return begin, length, count, place

    def _read_directory(self, length: int, count: int) -> dict[str, Member]:
        raw = self._read(self._begin, length, "the archive's directory")
        members: dict[str, Member] = {}
        at = 0
        for _ in range(count):
            if at + _ENTRY.size > length:
                raise InputError(f"{self.path}: the archive's directory ends within an entry: the file is damaged")
            fields = _ENTRY.unpack_from(raw, at)
            magic, flags, method, packed, size = fields[0], fields[3], fields[4], fields[8], fields[9]
            name_length, extra_length, comment_length, header = fields[10], fields[11], fields[12], fields[16]
            at += _ENTRY.size
            extra = raw[at + name_length : at + name_length + extra_length]
            name = raw[at : at + name_length].decode("utf-8", "surrogateescape")
            at += name_length + extra_length + comment_length
            if magic != b"PK\x01\x02" or at > length:
                raise InputError(f"{self.path}: the archive's directory is damaged")
            size, packed, header = _widened(extra, size, packed, header)
            if name in members:
                raise InputError(
                    f"{self.path}: record {name[:80]!r} appears twice, and readers disagree on which counts"
                )
            if method == 0 and size != packed:
                raise InputError(f"{self.path}: record {name[:80]!r} is {size} bytes and takes up {packed}: damaged")
            members[name] = Member(name, header, size, method, flags)
        return members


def _widened(extra: bytes, *values: int) -> tuple[int, ...]:
    """The values with those that are full in 32 bits taken from the 64-bit field among the extras."""
    found, at = b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            found = extra[at + 4 : at + 4 + length]
            break
        at += 4 + length
    wide = iter([number for (number,) in struct.iter_unpack("<Q", found[: len(found) // 8 * 8])])
    return tuple(next(wide, value) if value == _FULL32 else value for value in values)
