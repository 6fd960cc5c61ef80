"""The results that a report is made of: found in files and folders, sorted by kind, those of failed tasks apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Generic, TypeVar

from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.results.measurement import Demonstration
from deadreckon.results.record import Record
from deadreckon.results.saved import load_record, record_of
from deadreckon.results.task import Task

_AT_LEAST_ONE = {"hidden_size", "parameters", "tokens"}
Kind = TypeVar("Kind", bound=Record, covariant=True)


@dataclass(frozen=True)
class Entry(Generic[Kind]):
    """A result and where it came from.

    Attributes:
        record: the result.
        source: index of its file in `Findings.sources`.
        step: training step of the model, where its task knows one.
    """

    record: Kind
    source: int
    step: int | None = None


@dataclass(frozen=True)
class Source:
    """A file of results: its name, SHA-256 and size; no hash where a record was handed over as an object."""

    name: str
    sha256: str | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Failed:
    """A task without a result."""

    verb: str
    model: str
    step: int | None
    why: str


@dataclass
class Findings:
    """Everything that was found.

    Attributes:
        entries: results, in the order of their files.
        failed: tasks that failed.
        sources: the files.
        passed_over: JSON files in folders that are no results.
    """

    entries: list[Entry[Record]] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def of(self, kind: type[Kind]) -> list[Entry[Kind]]:
        """The entries whose record is of a kind."""
        return [
            Entry(entry.record, entry.source, entry.step) for entry in self.entries if isinstance(entry.record, kind)
        ]

    def add(self, record: Record, source: int, step: int | None = None) -> None:
        """Take in a record; those that hold others are taken apart.

        Args:
            record: of any kind.
            source: index of its file.
            step: training step of the model.

        Raises:
            InputError: it holds a number that no verb writes.
        """
        match record:
            case Task(result=None):
                self.failed.append(Failed(record.verb, record.model, record.step, record.why))
            case Task(result=result):
                self.add(record_of(result), source, record.step)
            case Demonstration():
                for part in (*record.readings, *record.measurements):
                    self.add(part, source, step)
            case _:
                _check_numbers(record.to_dict(), record.schema)
                self.entries.append(Entry(record, source, step))


def gather(places: Sequence[str | Path | Record]) -> Findings:
    """The results in files, folders and hands.

    Args:
        places: files that ``--out`` wrote, folders of them, stores of a sweep (their folder ``tasks``), or records.

    Returns:
        What they hold. JSON files of a folder that name no schema of deadreckon are passed over.

    Raises:
        InputError: a file is damaged, or of a newer version.
        UnreachableError: a file or folder cannot be read.
        UsageError: there is no result in any of them.
    """
    findings = Findings()
    seen: set[Path] = set()
    for place in places:
        if isinstance(place, Record):
            findings.sources.append(Source(f"{place.schema} of {place.model}"))
            findings.add(place, len(findings.sources) - 1)
            continue
        before = len(findings.entries)
        for path in _files(Path(place)):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            if path != Path(place) and _is_other(path):
                findings.passed_over.append(str(path))
            else:
                _take(findings, path)
        findings.entries[before:] = sorted(findings.entries[before:], key=lambda entry: _place(findings, entry))
    if not findings.entries and not findings.failed:
        names = ", ".join(str(place) for place in places if not isinstance(place, Record))
        raise UsageError(f"{names or 'nothing given'}: no result there; name files that --out wrote, or their folder")
    return findings


def _place(findings: Findings, entry: Entry[Record]) -> tuple[Any, ...]:
    """Results in the order they were given in; those of a store, whose files are named by hashes, by their models."""
    if Path(findings.sources[entry.source].name).parent.name != "tasks":
        return ()
    seed, affine, where = (getattr(entry.record, name, None) for name in ("seed", "affine", "environment"))
    return entry.record.model, entry.step or 0, affine or "", seed or 0, "" if where is None else where.dtype


def _take(findings: Findings, path: Path) -> None:
    record = load_record(path)
    data = path.read_bytes()
    findings.sources.append(Source(str(path), hashlib.sha256(data).hexdigest(), len(data)))
    try:
        findings.add(record, len(findings.sources) - 1)
    except InputError as error:  # the result inside a task
        raise InputError(f"{path}: {error}") from None


def _files(place: Path) -> Iterator[Path]:
    """The file, or the JSON files of a folder and of its store of tasks."""
    if not place.is_dir():
        yield place
        return
    try:
        for folder in (place, place / "tasks"):
            if folder.is_dir():
                yield from sorted(p for p in folder.iterdir() if p.suffix == ".json" and not p.name.startswith("."))
    except OSError as error:
        raise UnreachableError(f"{error.filename}: {error.strerror}; name a folder that can be read") from None


def _check_numbers(value: Any, path: str) -> None:
    """Refuse what Python's JSON lets pass and no verb writes: a number that is none, or an empty space."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key in _AT_LEAST_ONE and isinstance(part, int) and part < 1:
                raise InputError(f"{path}.{key} is {part}, which no model has: the result was edited or damaged")
            _check_numbers(part, f"{path}.{key}")
    elif isinstance(value, list):
        for part in value:
            _check_numbers(part, path)
    elif isinstance(value, float) and not isfinite(value):
        raise InputError(f"{path} is {value}, and results hold finite numbers: it was edited or damaged")


def _is_other(path: Path) -> bool:
    """Whether a file of a folder is readable JSON of something else; one that is damaged is not passed over."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    schema = data.get("schema") if isinstance(data, dict) else None
    return not (isinstance(schema, str) and schema.startswith("deadreckon."))
