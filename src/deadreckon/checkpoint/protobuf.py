"""Protocol buffers as the wire has them: numbered fields of a message, walked in place with bounds on all lengths.

A file is never read whole: fields that hold bytes are given as ranges, so that weights are stepped over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from deadreckon.checkpoint.bounded import file_size, read_range
from deadreckon.checkpoint.places import Place
from deadreckon.errors import InputError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_BLOCK = 1 << 12  # small: what follows a weight that was stepped over is read afresh
_STEPS_LIMIT = 1 << 18
_READ_LIMIT = 1 << 26
_TEXT_LIMIT = 1 << 16


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: of the field.
        wire: its type on the wire.
        start: offset of its contents; of a varint the value itself.
        stop: offset of the byte after them.
    """

    number: int
    wire: int
    start: int
    stop: int


class Wire:
    """A file of protocol buffers.

    Attributes:
        path: the file.
        size: its size, bytes.
        bytes_read: bytes read so far.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self.size = file_size(path)
        self.bytes_read = 0
        self._steps = 0
        self._block = b""
        self._begin = 0

    def fields(self, start: int, stop: int, what: str) -> Iterator[Field]:
        """The fields of a message, in their order.

        Args:
            start: offset of the message.
            stop: offset of the byte after it.
            what: its name, for an error.

        Yields:
            Each field. Contents that it claims end within the message.

        Raises:
            InputError: damaged, or more fields than any model needs.
            UnreachableError: the file cannot be read.
        """
        at = start
        while at < stop:
            self._steps += 1
            if self._steps > _STEPS_LIMIT:
                raise InputError(f"{self.path}: more than {_STEPS_LIMIT} fields: no model's graph needs so many")
            key, at = self._varint(at, stop, what)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, at = self._varint(at, stop, what)
                yield Field(number, wire, value, at)
                continue
            if wire == BYTES:
                length, at = self._varint(at, stop, what)
            elif wire in (FIXED32, FIXED64):
                length = 4 if wire == FIXED32 else 8
            else:
                raise InputError(f"{self.path}: {what}: a field of the unknown type {wire} at byte {at}: damaged")
            if number == 0 or at + length > stop:
                raise InputError(
                    f"{self.path}: {what}: a field at byte {at} claims {length} bytes and {stop - at} are left: the "
                    "file was cut short or is damaged"
                )
            yield Field(number, wire, at, at + length)
            at += length

    def content(self, field: Field, what: str, limit: int = _TEXT_LIMIT) -> bytes:
        """The bytes of a field.

        Args:
            field: of this file.
            what: its name, for an error.
            limit: the longest believed.

        Returns:
            The bytes.

        Raises:
            InputError: it is no such field, or too long.
            UnreachableError: the file cannot be read.
        """
        if field.wire == VARINT or field.stop - field.start > limit:
            raise InputError(f"{self.path}: {what} is not what it should be: the file is damaged")
        at = field.start - self._begin
        if at < 0 or field.stop - self._begin > len(self._block):
            self._load(field.start, field.stop - field.start)
            at = 0
        return self._block[at : at + field.stop - field.start]

    def text(self, field: Field, what: str) -> str:
        """The text of a field, undecodable bytes kept."""
        return self.content(field, what).decode("utf-8", "backslashreplace")

    def numbers(self, field: Field, what: str) -> list[int]:
        """The whole numbers of a field: one, or several that are packed."""
        if field.wire == VARINT:
            return [_signed(field.start)]
        raw, values, at = self.content(field, what), [], 0
        while at < len(raw):
            value = shift = 0
            while True:
                if at == len(raw) or shift > 63:
                    raise InputError(f"{self.path}: {what} is not what it should be: the file is damaged")
                value |= (raw[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if raw[at - 1] < 128:
                    break
            values.append(_signed(value))
        return values

    def number32(self, field: Field, what: str) -> float:
        """The 32-bit float of a field."""
        if field.wire != FIXED32:
            raise InputError(f"{self.path}: {what} is not what it should be: the file is damaged")
        return float(struct.unpack("<f", self.content(field, what))[0])

    def _varint(self, at: int, stop: int, what: str) -> tuple[int, int]:
        index = at - self._begin
        if index < 0 or index + 10 > len(self._block):
            self._load(at, 10)
            index = 0
        if at < stop and index < len(self._block) and (value := self._block[index]) < 128:
            return value, at + 1
        value = shift = 0
        for byte in self._block[index : index + min(10, stop - at)]:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value, at + shift // 7
        raise InputError(f"{self.path}: {what}: no number at byte {at}: the file was cut short or is damaged")

    def _load(self, at: int, count: int) -> None:
        """Have the bytes from `at` on in the block, as far as the file goes."""
        length = min(max(_BLOCK, count), self.size - at)
        self.bytes_read += length
        if self.bytes_read > _READ_LIMIT:
            raise InputError(f"{self.path}: over {_READ_LIMIT} bytes of graph: no model needs so many")
        self._block, self._begin = read_range(self.path, at, length, "the graph"), at


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
