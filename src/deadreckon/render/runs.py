"""Training runs among results: which checkpoints belong to one, and which speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from deadreckon.render.gather import Entry

Found = TypeVar("Found", bound=Entry[Any])


def run_name(entry: Entry[Any]) -> str:
    """The model without what names its step (a revision, a folder of checkpoints), and how else runs differ."""
    record = entry.record
    name: str = record.model
    for mark in (getattr(record, "revision", None), f"step{entry.step}", f"checkpoint-{entry.step}"):
        if mark and name.endswith(mark):
            name = name[: -len(mark)].rstrip("@/-_")
    extra = [getattr(record, "affine", None), f"seed {record.seed}" if getattr(record, "seed", 0) else None]
    return ", ".join([name.rsplit("/", 1)[-1] or name, *(text for text in extra if text)])


def last_steps(named: Sequence[tuple[str, Found]]) -> list[tuple[str, Found]]:
    """Of each run the last checkpoint, which stands for it where every checkpoint would be too much.

    Args:
        named: results of one kind with their names.

    Returns:
        Those of no run, and the last of each run, where its first was.
    """
    last: dict[Any, tuple[str, Found]] = {}
    for k, (name, entry) in enumerate(named):
        record = entry.record
        dtype = getattr(getattr(record, "environment", None), "dtype", None)
        key = k if entry.step is None else (run_name(entry), dtype, getattr(record, "norm", None), record.schema)
        if key not in last or (entry.step or 0) >= (last[key][1].step or 0):
            last[key] = (name, entry)
    return list(last.values())


def drawn(named: Sequence[tuple[str, Found]], most: int) -> list[tuple[str, Found]]:
    """What charts are made of: the last checkpoint of each run, and where that is too much, one result of each model.

    Args:
        named: results of one kind with their names.
        most: how many charts, or rows of a chart, there is room for.

    Returns:
        At most so many, in order; of several results of one model that as its initialiser made it, at the first seed.
    """
    chosen = last_steps(named)
    if len(chosen) > most:
        plain_first = sorted(chosen, key=lambda each: getattr(each[1].record, "affine", None) is not None)
        first = {entry.record.model: id(entry) for _, entry in reversed(plain_first)}
        chosen = [each for each in chosen if id(each[1]) in first.values()]
    return chosen[:most]
