"""The base type of every checkpoint format: a header of named tensors, of which few are ever read.

A format is added by deriving from `Checkpoint` and calling `register_format`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deadreckon.checkpoint.places import Place, RemotePath, fetch_ahead
from deadreckon.errors import InputError


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: its bytes are ``path[start:stop]``.

    Attributes:
        dtype: the format's own name of the element type, e.g. ``BF16`` or ``F32``.
        shape: sizes, slowest axis first.
        step: elements from one entry of a vector to the next; None where a matrix does not lie row by row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Place
    start: int
    stop: int
    step: int | None = 1


class Checkpoint(ABC):
    """An opened checkpoint: header and config are read, tensors are read one by one on request.

    Attributes:
        path: the file or directory that was named.
        config: the model's configuration as a mapping (empty when there is none).
        tensors: every tensor's entry by name.
        bytes_read: bytes read so far, header and config included.
        revision: the commit on the hub that it is of; None for other places.
        reads_remote: whether the format is read through byte ranges alone, so that a `RemotePath` will do.
    """

    format: ClassVar[str]
    reads_remote: ClassVar[bool] = False
    path: Place
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    bytes_read: int
    revision: str | None = None

    @classmethod
    @abstractmethod
    def recognises(cls, path: Place) -> bool:
        """Whether `path` looks like this format (by its name and first bytes, not by parsing it)."""

    @classmethod
    @abstractmethod
    def open(cls, path: Place) -> Checkpoint:
        """Read header and config.

        Raises:
            InputError: the file is damaged.
            UnreachableError: the file, or one that it names, cannot be read.
        """

    def vector(self, name: str) -> NDArray[np.float64]:
        """One 1-D tensor in float64, shape (d,).

        Args:
            name: in the format's own vocabulary.

        Returns:
            The entries, all finite.

        Raises:
            InputError: no such tensor, not a vector, not plain finite numbers, or its file is damaged.
            UnreachableError: its file is missing.
        """
        from deadreckon.checkpoint.bounded import no_such_tensor
        from deadreckon.checkpoint.elements import read_vector

        if name not in self.tensors:
            raise InputError(no_such_tensor(self.path, name, self.tensors, self._elsewhere()))
        entry = self.tensors[name]
        values = read_vector(entry, self.tensors.keys())
        self.bytes_read += entry.stop - entry.start
        return values

    def _elsewhere(self) -> str:
        """Where a tensor that is not here may be, for the message."""
        return ""

    def prefetch(self, names: Collection[str], *, entries_only: bool = False) -> None:
        """Get tensors that will be asked for, in as few requests as they take; nothing where the files are at hand.

        Args:
            names: tensors of the checkpoint; `vector` says what is wrong with one that cannot be had.
            entries_only: get what their shapes need, not their numbers.
        """
        if isinstance(self.path, RemotePath) and not entries_only:
            entries = [self.tensors[name] for name in names]
            fetch_ahead((e.path, e.start, e.stop) for e in entries if len(e.shape) == 1)

    @property
    def architecture(self) -> str | None:
        """The architecture's name in the format's own vocabulary: of a config.json, the `model_type`."""
        name = self.config.get("model_type")
        return name if isinstance(name, str) else None


_FORMATS: list[type[Checkpoint]] = []


def register_format(format_type: type[Checkpoint]) -> type[Checkpoint]:
    """Make a format known to the MODEL grammar (also usable as a class decorator)."""
    _FORMATS.append(format_type)
    return format_type


def format_of(path: Place) -> type[Checkpoint] | None:
    """The first registered format that recognises `path`, or None."""
    able = (f for f in _FORMATS if f.reads_remote or not isinstance(path, RemotePath))
    return next((format_type for format_type in able if format_type.recognises(path)), None)
