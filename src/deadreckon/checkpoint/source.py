"""The MODEL grammar: the one way to name a model, and the way from a name to its files.

========================================  ============================================================
``DIR``                                   a directory with safetensors or pytorch_model.bin, and config.json
``x.safetensors``, ``….index.json``       one safetensors file, or an index over shards
``x.gguf``                                a GGUF file
``x.onnx``                                an ONNX file, with its external data beside it
``x.pt``, ``.pth``, ``.bin``, ``.ckpt``   a file of torch.save; its pickle is read as data and never run
``random:NAME[#SEED]``                    a published configuration of the zoo with random weights
``demo:NAME``                             a small trained model that a package ships
========================================  ============================================================
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deadreckon.checkpoint import gguf, safetensors  # noqa: F401 - importing a format registers it
from deadreckon.checkpoint.bounded import guess_content, unreachable
from deadreckon.checkpoint.demo import demo_names, demo_path
from deadreckon.checkpoint.format import Checkpoint, format_of
from deadreckon.errors import InputError, UnreachableError, UsageError

if TYPE_CHECKING:
    from deadreckon.checkpoint.zoo import ZooEntry

ACCEPTED = (
    "a directory with safetensors or pytorch_model.bin and config.json, a .safetensors file or its .index.json, a "
    ".gguf, .onnx, .pt, .pth, .bin or .ckpt file, random:NAME[#SEED], or demo:NAME"
)
"""What a model may be, in words."""

_PREFIX = re.compile(r"([a-z][a-z0-9+-]+):(.*)", re.DOTALL)  # two characters or more: C:\ is a path
_SHORT_NAME = re.compile(r"[a-z0-9.-]+")
_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")
_FOREIGN = {
    **dict.fromkeys(
        (".pkl", ".pickle"),
        "bare pickles are not opened, because opening one runs what is in it; load it where you trust it and save its "
        "state dict: torch.save(model.state_dict(), FILE.pt)",
    ),
    ".h5": "Keras files are not read; convert it to safetensors",
    ".msgpack": "Flax files are not read; convert it to safetensors",
    ".npz": "NumPy archives are not read; pass the gain as an array in Python",
}


@dataclass(frozen=True)
class Source:
    """A model's name, taken apart.

    Attributes:
        scheme: where it comes from.
        name: the path, the zoo's name or the demo's name.
        seed: seed of the random weights, where one was given.
    """

    scheme: Literal["file", "random", "demo"]
    name: str
    seed: int | None = None

    def __str__(self) -> str:
        prefix = "" if self.scheme == "file" else f"{self.scheme}:"
        return prefix + self.name + ("" if self.seed is None else f"#{self.seed}")


def parse_model(model: str | os.PathLike[str]) -> Source:
    """Take a model's name apart; no file is looked at.

    Args:
        model: a name of the grammar above. A `pathlib.Path` is always a path.

    Returns:
        The parts.

    Raises:
        UsageError: empty, a scheme that is not known, or a badly written name or seed.
    """
    if not isinstance(model, str):
        return Source("file", os.fspath(model))
    if not model:
        raise UsageError(f"the model's name is empty: name {ACCEPTED}")
    match = _PREFIX.fullmatch(model)
    if not match:
        return Source("file", model)
    scheme, rest = match.groups()
    if scheme == "demo":
        return Source("demo", _short_name(model, rest))
    if scheme == "random":
        name, mark, seed = rest.partition("#")
        if mark and not (seed.isascii() and seed.isdigit() and len(seed) < 20):
            raise UsageError(f"{model}: the seed after # must be a whole number, 0 or more")
        return Source("random", _short_name(model, name), int(seed) if mark else None)
    raise UsageError(
        f"{model}: {scheme}: is not read by this version; name {ACCEPTED} "
        "(write ./ before a path that has a colon in its first part)"
    )


def resolve(source: Source) -> Path | ZooEntry:
    """What a source stands for: a path that exists, or an entry of the zoo.

    Args:
        source: a parsed name.

    Returns:
        The file or directory of a `file` or `demo`, the published configuration of a `random`.

    Raises:
        UsageError: no demo or zoo entry of that name.
        UnreachableError: nothing is there.
    """
    if source.scheme == "random":
        from deadreckon.checkpoint.zoo import zoo_entry

        return zoo_entry(source.name)
    return demo_path(source.name) if source.scheme == "demo" else _local_path(source.name)


def open_model(model: str | os.PathLike[str] | Source) -> Checkpoint:
    """Open the checkpoint that a model's name stands for: its config and header are read.

    Args:
        model: a name, or a parsed one.

    Returns:
        The opened checkpoint.

    Raises:
        UsageError: not a name of the grammar, or a `random:` one, which has no file.
        InputError: the file is damaged, or of a kind that is not read.
        UnreachableError: nothing is there, or it cannot be read.
    """
    source = model if isinstance(model, Source) else parse_model(model)
    path = resolve(source)
    if not isinstance(path, Path):
        raise UsageError(f"{source}: a configuration with random weights has no checkpoint to open")
    format_type = format_of(path)
    if format_type is None:  # the rarer ones are imported now: a cold start would pay for them
        from deadreckon.checkpoint import onnx, torchfile  # noqa: F401

        format_type = format_of(path)
    if format_type is not None:
        return format_type.open(path)
    raise InputError(f"{path}: {_why_not(path)}")


def _short_name(model: str, name: str) -> str:
    if not _SHORT_NAME.fullmatch(name):
        raise UsageError(f"{model}: the name after the colon is made of a-z, 0-9, dots and hyphens")
    return name


def _local_path(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        raise UnreachableError(f"{name}: no such file or directory{_hint(name)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreachableError(unreachable(Path(name), error)) from None
    return path


def _hint(name: str) -> str:
    """What may have been meant by a path that is not there."""
    if name in demo_names():
        return f"; did you mean demo:{name}?"
    from deadreckon.checkpoint.torchfile import SUFFIXES

    match = _HUB_NAME.fullmatch(name)
    if (
        not match
        or name.startswith(".")
        or name.endswith((".safetensors", ".gguf", ".json", ".onnx", *SUFFIXES, *_FOREIGN))
    ):
        return ""
    repository, revision = match.groups()
    option = f" --revision {revision}" if revision else ""
    return (
        "; models on a hub are not read by this version: download it first "
        f"(hf download {repository}{option} --local-dir DIR) and name the directory"
    )


def _why_not(path: Path) -> str:
    """Why no format recognises a path that exists, and what to do."""
    if not path.is_dir():
        return (
            _FOREIGN.get(path.suffix) or guess_content(path) or f"not a checkpoint that is read here; name {ACCEPTED}"
        )
    from deadreckon.checkpoint.torchfile import SUFFIXES

    names = sorted(os.listdir(path))
    for what, suffixes in (("GGUF", ".gguf"), ("ONNX", ".onnx"), ("torch.save", SUFFIXES)):
        if found := [name for name in names if name.endswith(suffixes)]:
            return f"holds {what} files: name the one to read, for example {path / found[0]}"
    return f"this directory holds no checkpoint; name {ACCEPTED}"
