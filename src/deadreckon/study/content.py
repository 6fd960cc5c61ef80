"""What a model's files are at the moment, in one line: a commit on the hub, a digest of files of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from deadreckon.checkpoint.hub import HubName, open_hub
from deadreckon.checkpoint.source import parse_model, resolve

_READ_THROUGH = 1_000_000  # bytes: configs and tokenizers; of larger files, size and time of the last change are taken
_OF_A_MODEL = (
    *(".safetensors", ".gguf", ".onnx", ".data", ".pt", ".pth", ".bin", ".ckpt"),
    *(".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"),
)


def content_of(model: str, files: Iterable[str] = ()) -> str:
    """What stands for the content of a model and of other files that a task is given.

    Args:
        model: a MODEL name.
        files: files and folders to run it on; names of data sets on the hub stand for themselves.

    Returns:
        ``commit:…`` of a model on the hub, ``files:…`` a digest of names, sizes and either bytes (small files) or the
        time of the last change, and nothing of what the package itself or a web address decides.

    Raises:
        DeadreckonError: nothing is there, or it cannot be reached.
        OSError: a file cannot be read.
    """
    parts = [_of_model(model)]
    data = [path for name in files for path in _files(Path(name))]
    if data:
        parts.append(f"data:{_digest(data)}")
    return " ".join(part for part in parts if part)


def _of_model(model: str) -> str:
    source = parse_model(model)
    if source.scheme == "hub":
        name = HubName.parse(source.name)
        return "" if name is None else f"commit:{open_hub(name)[1]}"
    path = resolve(source) if source.scheme in {"file", "demo"} else None
    if not isinstance(path, Path):
        return ""
    found = [file for file in _files(path if path.is_dir() else path.parent) if file.suffix in _OF_A_MODEL]
    if path.is_file() and not path.name.endswith(".index.json"):  # by itself, with the configs beside it
        found = [file for file in found if file == path or file.suffix == ".json"]
    return f"files:{_digest(found)}"


def _files(path: Path) -> Iterator[Path]:
    """The files that a path stands for, sorted."""
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.is_file())
    elif path.exists():
        yield path


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        what = file.read_bytes() if stat.st_size <= _READ_THROUGH else str(stat.st_mtime_ns).encode()
        for part in (file.name.encode(), str(stat.st_size).encode(), hashlib.sha256(what).digest()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]
