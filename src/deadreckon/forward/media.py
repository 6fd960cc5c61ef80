"""Files of images or sound, and the columns of data sets that hold them, as named pieces of bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deadreckon.errors import InputError, UnreachableError, UsageError

HUB = "hf:"
_SAVED = ("dataset_dict.json", "state.json")  # what datasets' save_to_disk leaves in a directory


@dataclass(frozen=True)
class Medium:
    """One image or sound.

    Attributes:
        name: what messages call it.
        read: its bytes, as a file of its format holds them.
    """

    name: str
    read: Callable[[], bytes]


class Undecodable(Exception):
    """Bytes that are no image or sound; the message says why."""


def find_media(paths: Sequence[str | Path], *, kind: str, extensions: Collection[str]) -> list[Medium]:
    """Every image or sound that `paths` name, folders searched with all their subfolders, sorted.

    Args:
        paths: files; folders; directories that ``datasets`` saved; ``hf:NAME`` or ``hf:NAME:SPLIT`` for a data set on
            the Hugging Face hub.
        kind: ``image`` or ``audio``; the column of a data set.
        extensions: of the files to take from a folder, lower case, with the dot.

    Returns:
        The media, not yet read.

    Raises:
        UsageError: a folder or data set holds none.
        UnreachableError: no such path, or the package that reads data sets is missing.
    """
    found: list[Medium] = []
    for path in paths:
        if str(path).startswith(HUB) or any((Path(path) / name).exists() for name in _SAVED):
            found += _rows(str(path), kind)
            continue
        path = Path(path)
        if not path.exists():
            raise UnreachableError(f"{path}: no such file or folder; name images, sounds, or a folder of them")
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in extensions) if path.is_dir() else [path]
        files = [file for file in files if not file.name.startswith(".") and (file == path or file.is_file())]
        if not files:
            raise UsageError(
                f"{path}: no {kind} file is in this folder (looked for {' '.join(sorted(extensions))}); name another"
            )
        found += [Medium(str(file), file.read_bytes) for file in files]
    return found


def usable(
    media: Sequence[Medium], decode: Callable[[bytes], object], *, kind: str, skip_bad: bool
) -> tuple[list[Medium], tuple[str, ...]]:
    """The media that can be decoded; all are tried, several at a time, before anything is run on them.

    Args:
        media: what was found.
        decode: raises `Undecodable` where the bytes are not what they should be.
        kind: ``image`` or ``audio``, for messages.
        skip_bad: leave out those that cannot be decoded, instead of refusing.

    Returns:
        The usable ones, and the names of the others.

    Raises:
        InputError: some cannot be decoded and `skip_bad` is not set, or none can.
    """

    def problem(medium: Medium) -> str | None:
        try:
            decode(medium.read())
        except (Undecodable, OSError) as error:
            return f"{medium.name}: {getattr(error, 'strerror', None) or error}"
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(problem, media))
    bad = [text for text in problems if text is not None]
    if bad and not skip_bad:
        raise InputError(
            f"{len(bad)} of {len(media)} {kind} inputs cannot be read: {'; '.join(bad)}; mend or remove them, or leave "
            "them out with skip_bad=True (--skip-bad)"
        )
    good = [medium for medium, text in zip(media, problems, strict=True) if text is None]
    if not good:
        raise InputError(f"none of the {len(media)} {kind} inputs can be read: {'; '.join(bad)}")
    return good, tuple(medium.name for medium, text in zip(media, problems, strict=True) if text is not None)


def _rows(path: str, kind: str) -> list[Medium]:
    """The rows of a data set's first column of images or sounds, undecoded."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise UnreachableError(
            f"{path} is a Hugging Face data set and the package datasets is not installed: pip install datasets, or "
            "name a folder of files"
        ) from None
    table = _table(datasets, path)
    feature = {"image": datasets.Image, "audio": datasets.Audio}[kind]
    column = next((name for name, kept in table.features.items() if isinstance(kept, feature)), None)
    if column is None or not len(table):
        raise UsageError(f"{path}: no column of {kind}s among {', '.join(table.features)}, or no rows; name another")
    table = table.cast_column(column, feature(decode=False))

    def reader(index: int) -> Callable[[], bytes]:
        def read() -> bytes:
            cell = table[index][column] or {}
            if cell.get("bytes") is None and cell.get("path") is None:
                raise Undecodable("the row is empty")
            return bytes(cell["bytes"]) if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()

        return read

    return [Medium(f"{path}[{index}]", reader(index)) for index in range(len(table))]


def _table(datasets: Any, path: str) -> Any:
    name, _, split = path.removeprefix(HUB).partition(":")
    try:
        if path.startswith(HUB):
            found = datasets.load_dataset(name, split=split or None)
        else:
            found = datasets.load_from_disk(path)
    except Exception as error:  # whatever another project's loader makes of the user's words
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreachableError(f"{path}: datasets cannot load it: {reason}") from error
    if not isinstance(found, dict):
        return found
    if len(found) > 1:
        how = f"{HUB}{name}:SPLIT" if path.startswith(HUB) else f"{path}/SPLIT"
        raise UsageError(f"{path}: it has the splits {', '.join(found)}; choose one: {how}")
    return next(iter(found.values()))
