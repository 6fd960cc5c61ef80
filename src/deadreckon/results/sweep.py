"""Many tasks together: the results of ``sweep`` and ``table``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class FailedTask:
    """A task that failed.

    Attributes:
        key: of the task.
        verb: that was called.
        model: on which it was called.
        revision: of that model; None where none was asked for.
        why: what failed, in one line.
    """

    key: str
    verb: str
    model: str
    revision: str | None
    why: str


def failure_lines(failures: Iterable[tuple[object, object, object, object]]) -> list[str]:
    """Failed tasks in words.

    Args:
        failures: verb, model, revision and reason of each.

    Returns:
        One line for every reason on every model at every revision.
    """
    verbs: dict[tuple[object, ...], list[str]] = {}
    for verb, model, revision, why in failures:
        verbs.setdefault((model, revision, why), []).append(str(verb))
    return [
        f"failed: {', '.join(dict.fromkeys(called))} {model}{'' if revision is None else f', {revision}'}: {why}"
        for (model, revision, why), called in verbs.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Sweep(Record):
    """What came of a sweep: the result of ``sweep``. ``model`` names its models.

    Attributes:
        folder: where the tasks are.
        engine: in-process | ray.
        shard: which share of the tasks, i/n; None for all.
        tasks: how many there are in this share.
        computed: how many of them were carried out now.
        found: how many had been done before, or were done by another process.
        failed: how many failed.
        failures: those, with their reasons.
        seconds: wall time.
    """

    kind_of_record: ClassVar[str] = "deadreckon.sweep/1"

    folder: str
    engine: str
    shard: str | None
    tasks: int
    computed: int
    found: int
    failed: int
    failures: list[FailedTask]
    seconds: float

    def headline(self) -> list[tuple[str, str]]:
        """How many tasks there are, were there before, and failed."""
        share = "" if self.shard is None else f" (shard {self.shard})"
        rows = [("tasks", f"{self.tasks}{share} in {self.folder}")]
        rows += [("computed / found", f"{self.computed} / {self.found}"), ("failed", str(self.failed))]
        return rows


@dataclass(frozen=True, kw_only=True)
class TaskTable(Record):
    """The main figures of many tasks: the result of ``table``. ``model`` names their models.

    Attributes:
        columns: names of the figures, dots leading into the verb's own record.
        rows: one a task, with every column; null where the verb has no such figure.
    """

    kind_of_record: ClassVar[str] = "deadreckon.table/1"

    columns: list[str]
    rows: list[dict[str, str | int | float | bool | None]]

    def headline(self) -> list[tuple[str, str]]:
        """How many tasks there are, by verb."""
        verbs = [str(row["verb"]) for row in self.rows]
        return [(verb, f"{verbs.count(verb)} tasks") for verb in dict.fromkeys(verbs)]
