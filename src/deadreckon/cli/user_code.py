"""A layer out of the user's own code: ``package.module:Class`` or ``path/to/file.py:Class``, imported and built."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deadreckon.errors import InputError, UnreachableError, UsageError

if TYPE_CHECKING:
    from torch import nn

_EXAMPLE = "write package.module:Class or path/to/file.py:Class"


@contextmanager
def user_code() -> Iterator[None]:
    """The current directory is importable, and what the code prints goes to stderr, for the time of the context."""
    before = sys.path.copy()
    sys.path.insert(0, str(Path.cwd()))
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = before


def build_layer(target: str, hidden_size: int, arguments: Mapping[str, Any]) -> tuple[nn.Module, bool]:
    """The layer that `target` names.

    It is built as ``Class(hidden_size, **arguments)``, or ``Class(**arguments)`` where these leave no place for the
    hidden size.

    Args:
        target: ``package.module:Class`` or ``path/to/file.py:Class``; an instance is taken as it is.
        hidden_size: number of coordinates.
        arguments: keyword arguments.

    Returns:
        The layer, and whether it was built for that hidden size.

    Raises:
        UsageError: there is no such class, or it is no module.
        InputError: the code or the constructor fails.
        UnreachableError: the module or something that it imports is not found.
    """
    from torch import nn

    where, colon, name = target.rpartition(":")
    if not (colon and where and name):
        raise UsageError(f"{target}: no class is named: {_EXAMPLE}")
    found: Any = _import(where)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{where} has no {name}{_classes(found)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found, False
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UsageError(f"{target} is no torch.nn.Module class: name the layer's class")
    positional = (hidden_size,) if _fits(found, hidden_size, arguments) else ()
    try:
        return found(*positional, **arguments), bool(positional)
    except (Exception, SystemExit) as error:  # whatever foreign code raises
        given = ", ".join([*map(str, positional), *(f"{key}={value!r}" for key, value in arguments.items())])
        raise InputError(
            f"{target}: {name}({given}) fails: {_told(error)}; say what it needs with --hidden-size, --arg KEY=VALUE"
        ) from error


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as keyword arguments.

    Args:
        pairs: each a name and a Python literal; what is no literal is text.

    Returns:
        Name -> value.

    Raises:
        UsageError: there is no name, or it comes twice.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--arg {pair}: write KEY=VALUE, for example eps=1e-6")
        if key in arguments:
            raise UsageError(f"--arg {key} is given twice")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            arguments[key] = value
    return arguments


def _import(where: str) -> ModuleType:
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UnreachableError(f"{where}: no such file; {_EXAMPLE}")
    if not is_file and not all(part.isidentifier() for part in where.split(".")):
        raise UsageError(f"{where}: neither a Python module's name nor a .py file: {_EXAMPLE}")
    try:
        return _import_file(path) if is_file else importlib.import_module(where)
    except ModuleNotFoundError as error:
        missing = error.name or "a module"
        if f"{where}.".startswith(f"{missing}."):
            raise UnreachableError(
                f"there is no module {where} here ({missing} is not found); run this where it is, or {_EXAMPLE}"
            ) from error
        raise UnreachableError(f"{where} imports {missing}, which is not installed") from error
    except (Exception, SystemExit) as error:  # whatever foreign code raises when it is run
        raise InputError(f"{where} fails while it is imported: {_told(error)}") from error


def _import_file(path: Path) -> ModuleType:
    name = f"deadreckon_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnreachableError(f"{path}: Python cannot load it; {_EXAMPLE}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as when the file is run
    sys.modules[name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _fits(found: type, hidden_size: int, arguments: Mapping[str, Any]) -> bool:
    """Whether the constructor takes the hidden size first; also where nothing can be told."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(hidden_size, **arguments)
    except TypeError:
        try:
            signature.bind(**arguments)
        except TypeError:
            return True  # neither fits: the constructor's own complaint about the usual call says why
        return False
    return True


def _classes(found: Any) -> str:
    from torch import nn

    names = [name for name, value in vars(found).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    return f"; its layers are {', '.join(sorted(names)[:12])}" if names else "; it has no layers"


def _told(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
