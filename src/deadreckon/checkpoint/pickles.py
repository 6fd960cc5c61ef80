"""Pickles as data: the values of a checkpoint rebuilt from the opcodes, with nothing imported and nothing called.

A pickle is a program: its opcodes may name any function and call it. Here a name stays a name. The few that build the
tensors of a state dict are understood, calls of other libraries' classes leave a stand-in without contents, and a name
of Python's own library that no checkpoint needs is refused: that is what attacks are made of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from deadreckon.errors import InputError

STEPS_LIMIT = 400_000
"""Most opcodes and items of one pickle: ten thousand tensors take that many."""

_INERT = {
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"},
    "copyreg": {"_reconstructor"},
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "datetime": {"date", "time", "datetime", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "uuid": {"UUID"},
    "builtins": {
        *("bool", "int", "float", "complex", "str", "bytes", "bytearray", "tuple", "list", "dict", "set"),
        *("frozenset", "slice", "range", "object", "long", "unicode", "xrange"),
    },
}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "pathlib._local": "pathlib"}
_OLD_LIBRARY = frozenset({"__builtin__", "copy_reg", "commands", "popen2", "exceptions", "urllib2", "cPickle", "new"})

# The element type of each storage class and torch dtype: its name elsewhere in this package, and its bytes.
ELEMENTS = {
    **dict.fromkeys(("DoubleStorage", "float64"), ("F64", 8)),
    **dict.fromkeys(("FloatStorage", "float32"), ("F32", 4)),
    **dict.fromkeys(("HalfStorage", "float16"), ("F16", 2)),
    **dict.fromkeys(("BFloat16Storage", "bfloat16"), ("BF16", 2)),
    **dict.fromkeys(("LongStorage", "int64"), ("I64", 8)),
    **dict.fromkeys(("IntStorage", "int32"), ("I32", 4)),
    **dict.fromkeys(("ShortStorage", "int16"), ("I16", 2)),
    **dict.fromkeys(("CharStorage", "int8"), ("I8", 1)),
    **dict.fromkeys(("ByteStorage", "UntypedStorage", "uint8"), ("U8", 1)),
    **dict.fromkeys(("BoolStorage", "bool"), ("BOOL", 1)),
    **dict.fromkeys(("ComplexFloatStorage", "complex64"), ("C64", 8)),
    **dict.fromkeys(("ComplexDoubleStorage", "complex128"), ("C128", 16)),
    "uint16": ("U16", 2),
    "uint32": ("U32", 4),
    "uint64": ("U64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
}


@dataclass(frozen=True)
class Name:
    """A global that the pickle names; nothing was imported for it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Unknown:
    """What a call would have made, without its contents."""

    what: str


@dataclass(frozen=True)
class Storage:
    """A run of elements that the pickle refers to.

    Attributes:
        kind: name of its class, a key of `ELEMENTS` where that is known.
        key: the record that holds it.
        count: number of elements.
    """

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class Stored:
    """A tensor: a view of a storage.

    Attributes:
        storage: where its elements lie.
        kind: its element type, a key of `ELEMENTS` where that is known.
        offset: elements before the first.
        shape: sizes, slowest axis first.
        strides: elements from one entry to the next along each axis.
    """

    storage: Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_SET = Unknown("a set")


class TruncatedError(Exception):
    """The bytes end before the pickle does."""


def load(raw: bytes, start: int, where: str) -> tuple[Any, int]:
    """The value that a pickle describes, as plain data.

    Args:
        raw: bytes that hold it.
        start: where in them it begins.
        where: how to name it in an error.

    Returns:
        The value and where the pickle ends. Mappings become dicts (items whose key is no text or number are left out),
        tensors `Stored`, everything unknown `Unknown` or `Name`.

    Raises:
        TruncatedError: the bytes end before the pickle.
        InputError: damaged, too long, or it calls what no checkpoint needs.
    """
    from pickletools import genops

    machine, stream = _Machine(where), BytesIO(raw)
    stream.seek(start)
    end = start
    try:
        for opcode, argument, position in genops(stream):
            machine.step(opcode.name, argument)
            end = (position or 0) + 1
        return machine.stack[-1], end
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        if stream.tell() >= len(raw) and isinstance(error, ValueError):
            raise TruncatedError from None
        raise InputError(f"{where}: a damaged pickle ({type(error).__name__} at byte {stream.tell()})") from None


class _Machine:
    """The pickle machine's stack, marks and memo, over plain data."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        self.count(1)
        if opcode in _CONSTANTS:
            self.stack.append(argument)
        elif opcode in _VALUES:
            self.stack.append(_VALUES[opcode]())
        elif opcode in _GETS:
            self.stack.append(self.memo[argument])
        elif opcode in _PUTS:
            self.memo[argument] = self.stack[-1]
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        else:
            raise InputError(f"{self.where}: a pickle with the opcode {opcode}, which no state dict needs: not read")

    def count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > STEPS_LIMIT:
            raise InputError(
                f"{self.where}: a pickle of more than {STEPS_LIMIT} steps: no model needs so many; save its state dict "
                "alone"
            )

    def marked(self) -> list[Any]:
        """What was pushed since the last mark, taken off."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def memoise(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def build_tuple(self, size: int | None) -> None:
        if size is None:
            items = self.marked()
        else:
            if len(self.stack) < size:
                raise IndexError
            items = self.stack[-size:]
            del self.stack[-size:]
        self.stack.append(tuple(items))

    def build_list(self, _: Any) -> None:
        items = self.marked()
        self.stack.append(items)

    def build_set(self) -> None:
        self.marked()
        self.stack.append(_SET)

    def build_dict(self, _: Any) -> None:
        items = self.marked()
        self.stack.append({})
        self.set_items(items)

    def append(self, items: list[Any]) -> None:
        if isinstance(target := self.stack[-1], list):
            target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        if isinstance(target := self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            # Other keys are left out: the hash of a tuple nested a million deep would end the process.
            target.update((key, value) for key, value in pairs if type(key) in (str, int, float, bool, bytes))

    def name(self, module: Any, name: Any) -> None:
        """Push a name that may be named."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        self.count(3)  # it takes that much longer than other steps
        home = _OLD_NAMES.get(module, module)
        top = module.partition(".")[0]
        if (top in sys.stdlib_module_names or top in _OLD_LIBRARY) and name not in _INERT.get(home, ()):
            raise InputError(
                f"{self.where}: its pickle names {module[:80]}.{name[:80]}, which no checkpoint needs: opening it "
                "elsewhere may run that. Nothing was run here; do not trust this file"
            )
        self.stack.append(Name(home, name))

    def call(self, function: Any, arguments: Any) -> None:
        """Push what a call stands for."""
        known = _CALLS.get((function.module, function.name)) if isinstance(function, Name) else None
        if known is None:
            self.stack.append(Unknown(str(function) if isinstance(function, Name) else "a value"))
            return
        if not isinstance(arguments, tuple):
            raise TypeError
        self.stack.append(known(self, *arguments))

    def reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.call(self.stack.pop(), arguments)

    def make(self, has_keywords: bool) -> None:
        if has_keywords:
            self.stack.pop()
        self.reduce(None)

    def instance(self, named: Any) -> None:
        """INST names the class in the opcode, OBJ has pushed it after the mark."""
        items = self.marked()
        if named is not None:
            self.name(*named.split(" ", 1))
            items.insert(0, self.stack.pop())
        self.call(items[0], tuple(items[1:]))

    def persistent(self, _: Any) -> None:
        identity = self.stack.pop()
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            self.stack.append(Unknown("a persistent object"))
            return
        kind, key, count = identity[1], identity[2], identity[4]
        if not (isinstance(kind, Name) and isinstance(key, str) and _are_sizes((count,))):
            raise TypeError
        view = identity[5] if len(identity) > 5 else None
        self.stack.append(Storage(kind.name if view is None else f"view of a {kind.name}", key, count))


def _are_sizes(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _tensor(
    machine: _Machine, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, kind: Any = None
) -> Stored:
    machine.count(len(shape) + len(strides))
    shape, strides = tuple(shape), tuple(strides)
    if not (isinstance(storage, Storage) and len(shape) == len(strides) and _are_sizes((offset, *shape, *strides))):
        raise TypeError
    return Stored(storage, storage.kind if kind is None else kind, offset, shape, strides)


def _tensor_of_dtype(
    machine: _Machine,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    *rest: Any,
) -> Stored:
    if not isinstance(dtype, Name):
        raise TypeError
    return _tensor(machine, storage, offset, shape, strides, kind=dtype.name)


def _first(machine: _Machine, value: Any, *rest: Any) -> Any:
    return value


def _of_type(machine: _Machine, function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
    """A subclass of tensor, by what rebuilds it; deeper than that none is nested."""
    if isinstance(function, Name) and (known := _REBUILDERS.get((function.module, function.name))):
        return known(machine, *arguments)
    return Unknown(str(function))


def _mapping(machine: _Machine, *arguments: Any) -> dict[Any, Any]:
    """An OrderedDict, or a defaultdict (whose first argument makes its values), with or without its items."""
    machine.stack.append({})
    given = arguments[-1] if arguments else None
    if isinstance(given, dict):
        given = list(given.items())
    if isinstance(given, list | tuple):
        machine.count(len(given))
        for pair in given:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                machine.set_items(list(pair))
    made: dict[Any, Any] = machine.stack.pop()
    return made


def _sizes(machine: _Machine, values: Any = ()) -> tuple[Any, ...]:
    machine.count(len(values))
    return tuple(values)


_REBUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
}
_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    **_REBUILDERS,
    ("torch._tensor", "_rebuild_from_type"): _of_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch", "Size"): _sizes,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
}

_CONSTANTS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_VALUES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: _SET,
}
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "STOP": lambda machine, argument: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, argument: machine.marked().clear(),
    "DUP": lambda machine, argument: machine.stack.append(machine.stack[-1]),
    "MEMOIZE": _Machine.memoise,
    "TUPLE": lambda machine, argument: machine.build_tuple(None),
    "TUPLE1": lambda machine, argument: machine.build_tuple(1),
    "TUPLE2": lambda machine, argument: machine.build_tuple(2),
    "TUPLE3": lambda machine, argument: machine.build_tuple(3),
    "LIST": _Machine.build_list,
    "DICT": _Machine.build_dict,
    "FROZENSET": lambda machine, argument: machine.build_set(),
    "APPEND": lambda machine, argument: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, argument: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, argument: machine.marked().clear(),
    "SETITEM": lambda machine, argument: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, argument: machine.set_items(machine.marked()),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, argument: machine.name(*[machine.stack.pop(), machine.stack.pop()][::-1]),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": lambda machine, argument: machine.make(False),
    "NEWOBJ_EX": lambda machine, argument: machine.make(True),
    "INST": _Machine.instance,
    "OBJ": _Machine.instance,
    "BUILD": lambda machine, argument: machine.stack.pop() and None,
    "BINPERSID": _Machine.persistent,
}
