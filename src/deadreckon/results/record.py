"""The base of every result: a frozen, versioned record that equals its JSON.

A number that does not exist (the direction of a norm without a kernel, a ratio of two rounding floors) is None, never
NaN. Vectors too long for a terminal (bases, gains) ride along in ``record.vectors`` and are saved with ``--save``; they
are not part of the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from deadreckon import __version__
from deadreckon.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A result with its provenance.

    Attributes:
        schema: name and version of this kind of record, e.g. ``deadreckon.read/1``.
        deadreckon: version of the package that made it.
        model: the model as it was named.
    """

    kind_of_record: ClassVar[str] = ""

    schema: str = ""
    deadreckon: str = __version__
    model: str

    def __post_init__(self) -> None:
        if not self.schema:
            object.__setattr__(self, "schema", self.kind_of_record)

    def __getstate__(self) -> dict[str, Any]:
        """Fields only: what forms the vectors cannot be pickled, and they are no part of the record."""
        return {name: value for name, value in self.__dict__.items() if name != "_make_vectors"}

    @property
    def vectors(self) -> Vectors:
        """Named float64 arrays that belong to the result; empty on a record that was read back from JSON."""
        make: Callable[[], Vectors] = self.__dict__.get("_make_vectors", dict)
        return make()

    def with_vectors(self, make: Callable[[], Vectors]) -> Self:
        """The same record, with `make` to form its vectors when asked for (a basis can be as large as d x d)."""
        object.__setattr__(self, "_make_vectors", make)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The record as plain dictionaries and lists: exactly what ``--json`` prints."""
        return asdict(self)

    def to_json(self) -> str:
        """The record as one indented JSON document."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record that `to_dict` wrote.

        Args:
            data: plain dictionaries and lists.

        Returns:
            The record, without vectors.

        Raises:
            InputError: a key is missing or has the wrong type; the message gives its path.
        """
        import msgspec

        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise InputError(
                f"not a {cls.kind_of_record} record: {error}; it was edited or made by another version"
            ) from None

    def headline(self) -> list[tuple[str, str]]:
        """What a person wants to see first, as (label, value) rows."""
        return [("model", self.model)]

    def _repr_html_(self) -> str:
        import html

        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self.headline())
        return f"<table><caption>{html.escape(self.schema)}</caption>{rows}</table>"
