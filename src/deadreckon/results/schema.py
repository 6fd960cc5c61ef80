"""JSON Schema of every record, its properties described by the records' own docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import msgspec

from deadreckon.results import census, diff, fisher, measurement, probe, reading, reproduction, sweep, task, trace
from deadreckon.results.census import Census
from deadreckon.results.diff import Difference
from deadreckon.results.fisher import Fisher
from deadreckon.results.measurement import Demonstration, Measurement, Shard
from deadreckon.results.probe import Probe
from deadreckon.results.reading import Classifications, Reading
from deadreckon.results.record import Record
from deadreckon.results.reproduction import Reproduction
from deadreckon.results.sweep import Sweep, TaskTable
from deadreckon.results.task import Task
from deadreckon.results.trace import Trace

MODULES = (census, diff, fisher, measurement, probe, reading, reproduction, sweep, task, trace)
"""Where records and their parts are."""

RECORDS: tuple[type[Record], ...] = (
    Reading,
    Classifications,
    Difference,
    Census,
    Measurement,
    Trace,
    Fisher,
    Probe,
    Shard,
    Demonstration,
    Task,
    Reproduction,
    Sweep,
    TaskTable,
)


def json_schema(record: type[Record]) -> dict[str, Any]:
    """JSON Schema of a record (draft 2020-12).

    Args:
        record: one of `RECORDS`.

    Returns:
        The schema: the name and version of the record are constants in it, and every property has its meaning.
    """
    schema = msgspec.json.schema(record)
    parts: dict[str, Any] = {name: part for module in MODULES for name, part in vars(module).items()}
    for name, definition in schema["$defs"].items():
        describe(definition, parts[name])
        if "schema" in definition["properties"]:
            definition["properties"]["schema"] = {"const": parts[name].kind_of_record}
            definition["properties"]["deadreckon"].pop("default")
            definition["required"] = ["schema", "deadreckon", *definition["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def describe(definition: dict[str, Any], part: type) -> None:
    """Put what a class's docstring says into its JSON Schema.

    Args:
        definition: as msgspec forms it; changed in place.
        part: the class.
    """
    meanings = attributes(part)
    definition["description"] = inspect.cleandoc(definition["description"]).partition("\n\nAttributes:")[0]
    for key, value in definition["properties"].items():
        if key in meanings:
            value["description"] = meanings[key]


def attributes(record: type) -> dict[str, str]:
    """Field -> meaning in JSON's terms, from the ``Attributes:`` sections of a class's docstring and its bases'."""
    meanings: dict[str, str] = {}
    for base in reversed(record.__mro__):
        _, _, section = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        # A field starts a line at the section's own depth; deeper lines continue it.
        for entry in re.split(r"\n(?! )", textwrap.dedent(section).strip()):
            name, colon, meaning = " ".join(entry.split()).partition(": ")
            if colon:
                meanings[name] = re.sub(r"\bNone\b", "null", meaning)
    return meanings
