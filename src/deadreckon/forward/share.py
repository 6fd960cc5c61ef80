"""Which rows of a calibration one process runs when several share them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deadreckon.errors import UsageError


@dataclass(frozen=True)
class Share:
    """One of `count` equal shares, dealt row by row.

    Attributes:
        index: which one, 0-based.
        count: how many there are.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that ``i/n`` means, i from 1 to n.

        Args:
            text: as on the command line.

        Returns:
            The share.

        Raises:
            UsageError: it is not of that form.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"shard {text!r}: write i/n with i from 1 to n, e.g. 1/4")
        return cls(int(match[1]) - 1, int(match[2]))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def of(self, first: int, count: int) -> list[int]:
        """Those of `count` rows, the first of which is row `first` of the calibration, that are in this share."""
        return [row for row in range(count) if (first + row) % self.count == self.index]

    def of_tokens(self, tokens: int | None) -> int | None:
        """About how many of the tokens are in this share."""
        return None if tokens is None else -(-tokens // self.count)


WHOLE = Share(0, 1)
