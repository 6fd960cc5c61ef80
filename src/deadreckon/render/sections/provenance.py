"""Where the results come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deadreckon.render.gather import Findings
from deadreckon.render.markup import Html, element
from deadreckon.render.parts import Column, Section, folded, paragraph, table
from deadreckon.render.words import NONE, counted
from deadreckon.results.reading import FileStamp
from deadreckon.results.record import Record


def section(findings: Findings) -> Section | None:
    """Environment, inputs and seeds of every result, the files they rest on, and the files this page was made from."""
    blocks = [
        paragraph(
            "Hashes are SHA-256. A checkpoint's is of the whole file, or of its header where no more was read, as the "
            "column says."
        ),
        folded(f"How {counted(len(findings.entries), 'result')} came about", _results(findings)),
    ]
    stamps = dict.fromkeys(_stamps(findings))
    if stamps:
        columns = [Column("model"), Column("file"), Column("bytes", numbers=True), Column("covers"), Column("SHA-256")]
        rows = [
            [model, stamp.name, f"{stamp.bytes:,}", stamp.covers, element("code", stamp.sha256)]
            for model, stamp in stamps
        ]
        blocks.append(folded("Checkpoints", table("Files that the results rest on", columns, rows)))
    columns = [Column("file"), Column("bytes", numbers=True), Column("SHA-256")]
    sources = [
        [source.name, f"{source.bytes:,}" if source.sha256 else NONE, element("code", source.sha256 or NONE)]
        for source in findings.sources
    ]
    blocks.append(folded(f"Made from {counted(len(sources), 'file')}", table("Files of results", columns, sources)))
    if findings.passed_over:
        names = ", ".join(findings.passed_over)
        blocks.append(paragraph(f"Passed over, since they are no results: {names}", class_="note"))
    return Section("provenance", "Provenance", blocks)


def _results(findings: Findings) -> Html:
    columns = [
        Column("model"),
        Column("result"),
        Column("made with", wide=True),
        Column("settings", wide=True),
        Column("seconds", numbers=True),
    ]
    rows = []
    for entry in findings.entries:
        record: Any = entry.record
        seconds = getattr(record, "seconds", None)
        rows.append(
            [
                record.model,
                record.schema,
                _environment(record),
                "; ".join(_settings(record, entry.step)) or NONE,
                NONE if seconds is None else f"{seconds:,.1f}",
            ]
        )
    return table("Results", columns, rows)


def _environment(record: Record) -> str:
    found: Any = getattr(record, "environment", None)
    made = [f"deadreckon {record.deadreckon}"]
    if found is not None:
        made += [found.device, found.dtype, f"Python {found.python}", found.platform]
        made += [f"{name} {version}" for name, version in found.libraries.items()]
    return ", ".join(made)


def _settings(record: Record, step: int | None) -> Iterator[str]:
    """The settings that a record keeps, by the names of the options that set them."""
    if step is not None:
        yield f"step {step:,}"
    for name in (
        "norm",
        "revision",
        "data",
        "tokens",
        "seed",
        "affine",
        "solver",
        "tau",
        "collapse_ratio",
        "draws",
        "metric",
    ):
        value = getattr(record, name, None)
        if value is not None:
            yield (
                f"{name.replace('_', ' ')}: {value:,}"
                if isinstance(value, int)
                else f"{name.replace('_', ' ')}: {value}"
            )


def _stamps(findings: Findings) -> Iterator[tuple[str, FileStamp]]:
    for entry in findings.entries:
        yield from ((entry.record.model, stamp) for stamp in getattr(entry.record, "files", ()))
