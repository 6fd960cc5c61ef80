"""A YAML file as plain data that knows on which line each part of it stands."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deadreckon.errors import InputError, UnreachableError

Place = tuple[str | int, ...]
"""The way to a part: keys and indices."""


@dataclass(frozen=True)
class Document:
    """Plain data with its places.

    Attributes:
        name: what to call it in messages.
        data: dictionaries, lists and scalars.
        lines: place -> line, from 1; empty for data that no file holds.
    """

    name: str
    data: Any
    lines: dict[Place, int] = field(default_factory=dict)

    def error(self, place: Place, message: str) -> InputError:
        """The error about one part, with its line.

        Args:
            place: of the part.
            message: what is wrong with it and what to do.

        Returns:
            The error, to be raised.
        """
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        line = f", line {self.lines[known]}" if known in self.lines else ""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        return InputError(f"{self.name}{line}: {where}: {message}" if where else f"{self.name}{line}: {message}")


def load_document(path: Path) -> Document:
    """The document that a YAML (or JSON) file holds.

    Args:
        path: the file.

    Returns:
        Its data and places.

    Raises:
        InputError: not YAML, or a key twice.
        UnreachableError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror}; name a specification (YAML)") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, so not a specification") from None
    lines: dict[Place, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else _plain(loader, node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise InputError(f"{path}{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split()) or 'nested without end'}") from None
    return Document(str(path), data, lines)


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # PyYAML has no types
    """As YAML 1.2 reads numbers: 1e-6 is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _plain(loader: _Loader, node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    """A node's value; notes the lines of all that is in it."""
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, part, (*place, index), lines) for index, part in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    own = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in own:
            raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
        own.add(key.value if isinstance(key, yaml.ScalarNode) else None)
    loader.flatten_mapping(node)
    found: dict[Hashable, Any] = {}
    for key, value in node.value:
        name = loader.construct_object(key)
        if not isinstance(name, str):
            raise yaml.MarkedYAMLError(problem=f"{name!r} is no name of a field", problem_mark=key.start_mark)
        lines[*place, name] = key.start_mark.line + 1
        found[name] = _plain(loader, value, (*place, name), lines)
    return found
