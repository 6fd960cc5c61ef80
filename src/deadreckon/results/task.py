"""One verb on one model, as a store of many keeps it: the results of ``sweep`` and ``reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class Task(Record):
    """A verb that was called on a model, with what came of it.

    Attributes:
        key: names the task by content: verb, model, revision, options, and the version of the verb's record. Tasks of
            the same key have the same result.
        verb: which verb was called.
        revision: revision of the model, where one was asked for.
        step: training step of that revision or folder; None where it has none.
        options: keyword arguments of the verb.
        status: done | failed.
        why: what failed, in one line; empty when done.
        result: the verb's own record; None where it failed.
        seconds: wall time.
    """

    kind_of_record: ClassVar[str] = "deadreckon.task/1"

    key: str
    verb: str
    revision: str | None
    step: int | None
    options: dict[str, Any]
    status: str
    why: str
    result: dict[str, Any] | None
    seconds: float

    def headline(self) -> list[tuple[str, str]]:
        """What was called on what, and whether it came to an end."""
        return [("verb", self.verb), ("model", self.model), ("status", self.why or self.status)]
