"""Records read back from the files that ``--out`` and stores write, whatever their kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deadreckon.errors import InputError, UnreachableError
from deadreckon.results.record import Record
from deadreckon.results.schema import RECORDS

_KINDS = {record.kind_of_record: record for record in RECORDS}


def load_record(path: str | Path) -> Record:
    """The record in a JSON file.

    Args:
        path: the file.

    Returns:
        The record, of the class that its ``schema`` names, without vectors.

    Raises:
        InputError: it is not a record, or one of a newer version.
        UnreachableError: the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror}; name a result that --out wrote") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, so not a result of deadreckon") from None
    try:
        return record_of(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); name a result that --out wrote") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def record_of(data: Any) -> Record:
    """The record that plain dictionaries and lists hold.

    Args:
        data: what `Record.to_dict` gave.

    Returns:
        The record, without vectors.

    Raises:
        InputError: it is not a record, or one of a newer version.
    """
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if not isinstance(schema, str):
        raise InputError("no schema in it, so not a result of deadreckon; name a file that --out wrote")
    if schema in _KINDS:
        return _KINDS[schema].from_dict(data)
    name, _, version = schema.partition("/")
    known = next((kind for kind in _KINDS if kind.partition("/")[0] == name), None)
    if known is None or not version.isdecimal():
        raise InputError(f"its schema is {schema!r}, which is no result of deadreckon that this version knows")
    if int(version) > int(known.partition("/")[2]):
        raise InputError(
            f"its schema is {schema} and this version reads {known}: it was made by deadreckon "
            f"{data.get('deadreckon')}, install that or a newer one"
        )
    raise InputError(f"its schema is {schema}, which this version no longer reads ({known}): make the result again")
