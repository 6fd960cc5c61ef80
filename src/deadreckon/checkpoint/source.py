"""The MODEL grammar: the one way to name a model, and the way from a name to its files.

========================================  ============================================================
``DIR``                                   a directory with safetensors or pytorch_model.bin, and config.json
``x.safetensors``, ``….index.json``       one safetensors file, or an index over shards
``x.gguf``                                a GGUF file
``ORG/NAME[/PATH][@REVISION]``            a model on the Hugging Face hub, or a file or folder in its repository
``timm:NAME[@REVISION]``                  timm's name of a pretrained model: ``timm/NAME`` on the hub
``https://…/x.safetensors``               a file on a web server that serves byte ranges
``x.onnx``                                an ONNX file, with its external data beside it
``x.pt``, ``.pth``, ``.bin``, ``.ckpt``   a file of torch.save; its pickle is read as data and never run
``random:NAME[#SEED]``                    a published configuration of the zoo with random weights
``random:NAME-shrunk[#SEED]``             a small model of the same build, for a laptop
``demo:NAME``                             a small trained model that a package ships
========================================  ============================================================

What exists on this machine is meant first: a directory ``org/name`` wins over the model of that name, and ``./`` before
a path says that nothing else is meant. The oldest models of the hub have one name without a slash (``gpt2``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deadreckon.checkpoint import gguf, safetensors  # noqa: F401 - importing a format registers it
from deadreckon.checkpoint.bounded import guess_content, unreachable
from deadreckon.checkpoint.demo import demo_names, demo_path
from deadreckon.checkpoint.format import Checkpoint, format_of
from deadreckon.checkpoint.places import Place, is_dir, names_in
from deadreckon.errors import InputError, UnreachableError, UsageError

if TYPE_CHECKING:
    from deadreckon.checkpoint.hub import HubName
    from deadreckon.checkpoint.zoo import ZooEntry

ACCEPTED = (
    "a directory with safetensors or pytorch_model.bin and config.json, a .safetensors file or its .index.json, a "
    ".gguf, .onnx, .pt, .pth, .bin or .ckpt file, a model on the hub (ORG/NAME[@REVISION]), timm:NAME, an https "
    "address, random:NAME[#SEED], or demo:NAME"
)
"""What a model may be, in words."""

_PREFIX = re.compile(r"([a-z][a-z0-9+-]+):(.*)", re.DOTALL)  # two characters or more: C:\ is a path
_SHORT_NAME = re.compile(r"[a-z0-9.-]+")
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
_FILES = (".safetensors", ".gguf", ".json", ".onnx", ".pt", ".pth", ".bin", ".ckpt", *_FOREIGN)


@dataclass(frozen=True)
class Source:
    """A model's name, taken apart.

    Attributes:
        scheme: where it comes from.
        name: the path, the address, the hub's, the zoo's or the demo's name.
        seed: seed of the random weights, where one was given.
    """

    scheme: Literal["file", "hub", "url", "random", "demo"]
    name: str
    seed: int | None = None

    def __str__(self) -> str:
        if self.scheme == "url":
            return self.name.partition("?")[0]  # a query may be a signature
        prefix = f"{self.scheme}:" if self.scheme in {"random", "demo"} else ""
        return prefix + self.name + ("" if self.seed is None else f"#{self.seed}")


def parse_model(model: str | os.PathLike[str]) -> Source:
    """Take a model's name apart; of files only whether they exist is looked at.

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
        return Source("hub" if _is_for_the_hub(model) else "file", model)
    scheme, rest = match.groups()
    if scheme in {"https", "http"}:
        return Source("url", model)
    if scheme == "timm":
        return Source("hub", f"timm/{rest}")
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
    """What a source stands for on this machine: a path that exists, or an entry of the zoo.

    Args:
        source: a parsed name. The files of a `hub` model are downloaded into huggingface_hub's cache.

    Returns:
        The file or directory of a `file`, `hub` or `demo`, the published configuration of a `random`.

    Raises:
        UsageError: no demo or zoo entry of that name, or a web address, which is read and not downloaded.
        UnreachableError: nothing is there, or it cannot be downloaded.
    """
    if source.scheme == "random":
        from deadreckon.checkpoint.zoo import zoo_entry

        return zoo_entry(source.name)
    if source.scheme == "url":
        raise UsageError(f"{source}: one file on a web server can be read, not run: download it with its config.json")
    if source.scheme == "hub":
        from deadreckon.checkpoint import hub

        return hub.download(_hub_name(source))
    return demo_path(source.name) if source.scheme == "demo" else _local_path(source.name)


def open_model(model: str | os.PathLike[str] | Source) -> Checkpoint:
    """Open the checkpoint that a model's name stands for: its config and header are read.

    Args:
        model: a name, or a parsed one.

    Returns:
        The opened checkpoint. One elsewhere is read by byte ranges, none of it is downloaded whole.

    Raises:
        UsageError: not a name of the grammar, or a `random:` one, which has no file.
        InputError: the file is damaged, or of a kind that is not read.
        UnreachableError: nothing is there, or it cannot be read.
    """
    source = model if isinstance(model, Source) else parse_model(model)
    place, revision = _place(source)
    format_type = format_of(place)
    if format_type is None:  # the rarer ones are imported now: a cold start would pay for them
        from deadreckon.checkpoint import onnx, torchfile  # noqa: F401

        format_type = format_of(place)
    if format_type is None:
        raise InputError(f"{place}: {_why_not(place)}")
    checkpoint = format_type.open(place)
    checkpoint.revision = revision
    return checkpoint


def _place(source: Source) -> tuple[Place, str | None]:
    """Where a source's checkpoint lies, and the commit that it is of."""
    if source.scheme == "hub":
        from deadreckon.checkpoint import hub

        return hub.open_hub(_hub_name(source))
    if source.scheme == "url":
        from deadreckon.checkpoint.stores import open_url

        return open_url(source.name), None
    path = resolve(source)
    if not isinstance(path, Path):
        raise UsageError(f"{source}: a configuration with random weights has no checkpoint to open")
    return path, None


def _is_for_the_hub(model: str) -> bool:
    """Whether a name that has no scheme can only be one of the hub."""
    if lexists(model) or model in demo_names():
        return False
    # Two parts that end as a file does are a path that is not there; a file on the hub comes after two.
    if model.count("/") < 2 and model.partition("@")[0].endswith(_FILES):
        return False
    from deadreckon.checkpoint.hub import HubName

    return HubName.parse(model) is not None


def _hub_name(source: Source) -> HubName:
    from deadreckon.checkpoint.hub import HubName

    if (name := HubName.parse(source.name)) is None:
        raise UsageError(f"{source}: not a name on the hub: write ORG/NAME[/PATH][@REVISION]")
    return name


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
    return f"; did you mean demo:{name}?" if name in demo_names() else ""


def _why_not(path: Place) -> str:
    """Why no format recognises a path that exists, and what to do."""
    if not is_dir(path):
        return (
            _FOREIGN.get(path.suffix) or guess_content(path) or f"not a checkpoint that is read here; name {ACCEPTED}"
        )
    from deadreckon.checkpoint.torchfile import SUFFIXES

    names = names_in(path)
    for what, suffixes in (("GGUF", ".gguf"), ("ONNX", ".onnx"), ("torch.save", SUFFIXES)):
        if found := [name for name in names if name.endswith(suffixes)]:
            return f"holds {what} files: name the one to read, for example {path / found[0]}"
    return f"this directory holds no checkpoint; name {ACCEPTED}"
