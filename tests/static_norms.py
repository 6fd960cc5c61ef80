"""Which norm ends a model, read off transformers' source: no module is built or run, and the atlas is not consulted.

A model's ``forward`` is followed backwards: the last call of one of its own modules, among the statements of its body,
either is a norm, which is the answer, or belongs to a class that is followed in turn (a loop over a list leads into the
list's class). Anything else that may make the hidden state (a linear map, a choice by the config) ends the search.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

_PASSIVE = ("dropout", "drop", "pooler", "gradient_checkpointing", "rotary", "embed_positions", "mask", "get_", "_")


@dataclass(frozen=True)
class Found:
    """The norm's path (``*`` for a list's index), kind and gain offset as its class's source says."""

    path: str
    kind: str
    offset: float


def final_norm(model_class: type) -> Found | None:
    """The norm that ends `model_class`'s forward, or None where its source does not say it plainly."""
    return _follow(model_class, "", 0)


def norm_class(cls: Any) -> tuple[str, float] | None:
    """(kind, gain offset) of a norm class, from the text of its forward; None: not a norm that this can read."""
    if cls is nn.LayerNorm:
        return "layernorm", 0.0
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)) or "norm" not in cls.__name__.lower():
        return None
    if issubclass(cls, nn.LayerNorm) and "forward" not in vars(cls):
        return "layernorm", 0.0
    tree = _method(cls, "forward")
    if tree is None:
        return None
    methods = [m for m in ("_norm",) if hasattr(cls, m)]
    nodes = [n for t in [tree, *(_method(cls, m) for m in methods)] if t is not None for n in ast.walk(t)]
    text = " ".join(ast.unparse(n) for n in nodes if isinstance(n, ast.expr))
    if "layer_norm(" in text or "super().forward" in text:
        return "layernorm", _offset(nodes)
    if "gate" in text or "weight" not in text:
        return None
    # A mean that is subtracted from what is normalised, rather than the mean of its square.
    means = {n.targets[0].id for n in nodes if isinstance(n, ast.Assign) and _plain_mean(n.value) and _named(n)}
    subtracted = any(
        isinstance(n, ast.BinOp) and isinstance(n.op, ast.Sub) and isinstance(n.right, ast.Name) and n.right.id in means
        for n in nodes
    )
    if subtracted:
        return "layernorm", _offset(nodes)
    if ".pow(2" in text or "square" in text or "** 2" in text or "rms_norm(" in text:
        return "rmsnorm", _offset(nodes)
    return None


def _named(node: ast.Assign) -> bool:
    return isinstance(node.targets[0], ast.Name)


def _plain_mean(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "mean"
        and isinstance(value.func.value, ast.Name)
    )


def _offset(nodes: list[ast.AST]) -> float:
    for node in nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            sides = (node.left, node.right)
            one = any(isinstance(s, ast.Constant) and s.value == 1 for s in sides)
            if one and any("self.weight" in ast.unparse(s) for s in sides):
                return 1.0
    return 0.0


def _follow(cls: type, prefix: str, depth: int, method: str = "forward") -> Found | None:
    members, body = _members(cls), _method(cls, method)
    if body is None or depth > 8:
        return None
    for name in reversed(list(_called(body, _loops(body, members)))):
        if any(name.startswith(p) or name.endswith(p) for p in _PASSIVE):
            continue
        made, listed = members.get(name, (None, False))
        if made is None:
            # A method of its own is followed in its place; what it is otherwise depends on the config.
            return _follow(cls, prefix, depth + 1, name) if _method(cls, name) is not None else None
        if "Dropout" in made.__name__ or made is nn.Identity or "Rotary" in made.__name__:
            continue
        path = f"{prefix}{name}" + (".*" if listed else "")
        kind = norm_class(made)
        if kind is not None:
            return Found(path, *kind)
        if made.__module__.startswith("torch"):
            return None
        return _follow(made, f"{path}.", depth + 1)
    return None


def _called(body: ast.FunctionDef, loops: dict[str, str]) -> Iterator[str]:
    """The names of the class's own modules and methods, in the order in which they are called.

    A method that is handed to a function (the feed-forward half, to be run in chunks) counts as called there.
    """
    calls = (n for n in ast.walk(body) if isinstance(n, ast.Call))
    for node in sorted(calls, key=lambda n: (n.end_lineno or 0, n.end_col_offset or 0)):
        if _of_self(node.func):
            yield node.func.attr  # type: ignore[attr-defined]
        elif isinstance(node.func, ast.Name) and node.func.id in loops:
            yield loops[node.func.id]
        elif isinstance(node.func, ast.Name) and "chunking" in node.func.id and _of_self(node.args[0]):
            yield node.args[0].attr  # type: ignore[attr-defined]


def _of_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _loops(forward: ast.FunctionDef, members: dict[str, tuple[Any, bool]]) -> dict[str, str]:
    """Loop variable -> the module list it runs over."""
    found = {}
    for node in ast.walk(forward):
        if isinstance(node, ast.For):
            lists = [
                n.attr for n in ast.walk(node.iter) if isinstance(n, ast.Attribute) and members.get(n.attr, (0, 0))[1]
            ]
            for target in ast.walk(node.target):
                if isinstance(target, ast.Name) and len(lists) == 1:
                    found[target.id] = lists[0]
    return found


@functools.cache
def _members(cls: type) -> dict[str, tuple[Any, bool]]:
    """Attribute -> (class of the module assigned to it in ``__init__``, whether it is a list of them).

    An attribute that is assigned more than one class is left out: which one it is depends on the config.
    """
    found: dict[str, list[tuple[Any, bool]]] = {}
    for owner in reversed(cls.__mro__):
        tree = _method(owner, "__init__", own=True)
        for node in ast.walk(tree) if tree is not None else ():
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                if (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                ):
                    made = list(_classes(owner, node.value))
                    if made:
                        listed = isinstance(node.value, ast.Call) and "ModuleList" in ast.unparse(node.value.func)
                        found.setdefault(target.attr, []).extend((m, listed) for m in made)
    return {name: made[0] for name, made in found.items() if len(set(made)) == 1}


def _classes(owner: type, value: ast.expr) -> Iterator[Any]:
    """The module classes that an expression instantiates (outermost; of a list, those of its elements)."""
    if isinstance(value, ast.IfExp):
        yield from _classes(owner, value.body)
        yield from _classes(owner, value.orelse)
    elif isinstance(value, ast.Call):
        name = ast.unparse(value.func)
        if name.endswith("ModuleList"):
            for argument in value.args:
                for node in ast.walk(argument):
                    if isinstance(node, ast.Call):
                        yield from (c for c in [_resolve(owner, ast.unparse(node.func))] if c is not None)
                        break
        elif (made := _resolve(owner, name)) is not None:
            yield made


def _resolve(owner: type, name: str) -> Any:
    value: Any = sys.modules[owner.__module__]
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if inspect.isclass(value) and issubclass(value, nn.Module) else None


@functools.cache
def _method(cls: type, name: str, own: bool = False) -> ast.FunctionDef | None:
    function = vars(cls).get(name) if own else getattr(cls, name, None)
    if function is None or cls.__module__.startswith("torch") or not hasattr(function, "__code__"):
        return None
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        return next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef))
    except (OSError, TypeError, SyntaxError, StopIteration):
        return None
