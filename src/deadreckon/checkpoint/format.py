"""The base type of every checkpoint format: a header of named tensors, of which few are ever read.

A format is added by deriving from `Checkpoint` and calling `register_format`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


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
    path: Path
    start: int
    stop: int
    step: int | None = 1


class Checkpoint(ABC):
    """An opened checkpoint: header and config are read, tensors are read one by one on request.

    Attributes:
        path: the file or directory that was named.
        config: the model's configuration as a mapping (empty when there is none).
        tensors: every tensor's entry by name.
        bytes_read: bytes read from disk so far, header and config included.
    """

    format: ClassVar[str]
    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    bytes_read: int

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether `path` looks like this format (by its name and first bytes, not by parsing it)."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read header and config.

        Raises:
            InputError: the file is damaged.
            UnreachableError: the file, or one that it names, cannot be read.
        """

    @abstractmethod
    def vector(self, name: str) -> NDArray[np.float64]:
        """One 1-D tensor in float64, shape (d,).

        Raises:
            InputError: no such tensor, not a vector, or a dtype that holds no plain numbers.
        """

    @property
    @abstractmethod
    def architecture(self) -> str | None:
        """The architecture's name in the format's own vocabulary (`model_type`, `general.architecture`)."""


_FORMATS: list[type[Checkpoint]] = []


def register_format(format_type: type[Checkpoint]) -> type[Checkpoint]:
    """Make a format known to the MODEL grammar (also usable as a class decorator)."""
    _FORMATS.append(format_type)
    return format_type


def format_of(path: Path) -> type[Checkpoint] | None:
    """The first registered format that recognises `path`, or None."""
    return next((format_type for format_type in _FORMATS if format_type.recognises(path)), None)
