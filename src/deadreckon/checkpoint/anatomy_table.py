"""The table of anatomies: which maps read which norm and which means go unseen, by class of model, without torch.

Its rows were written by watching tiny instances of the real classes (`deadreckon.forward.anatomy_builder`). A row is
chosen by the class and the settings in the config and confirmed by the names of the tensors; where none fits there is
an error, never a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from deadreckon.checkpoint.naming import canonical
from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.anatomy import Anatomy, NormSite, Reader, Writer

SCHEMA = "deadreckon.anatomies/1"
TABLE_PATH = Path(__file__).parent / "data" / "anatomies.json"
SHAPES_PATH = Path(__file__).parent / "data" / "zoo_shapes.json"

Shapes = Mapping[str, tuple[int, ...]]

_INDEXED = re.compile(r"(?P<list>.*?)\.(?P<index>\d+|\*|\{i(?:[+-]\d+)?\})\.(?P<rest>.*)")


# What files hold besides parameters: position numbers, causal masks, rotary tables.
_BUFFER = re.compile(r".*(position_ids|inv_freq|masked_bias|attn\.bias|attention\.bias|token_type_ids)")


def anatomy_of(
    model_type: Any, class_name: str | None, config: Mapping[str, Any], shapes: Shapes, where: str
) -> Anatomy:
    """The anatomy of a model from the names and shapes of its tensors.

    Args:
        model_type: transformers' name of the architecture.
        class_name: the class that the tensors belong to, where it is known.
        config: the model's configuration.
        shapes: shape of every tensor by name; what is no parameter of the class is left out.
        where: how to name the model in an error.

    Returns:
        The anatomy, in the tensors' own names.

    Raises:
        UsageError: the table has no row for that class, these settings or these tensors.
    """
    rows = [row for row in _rows() if row["model_type"] == model_type]
    if not rows:
        known = ", ".join(sorted({row["model_type"] for row in _rows()}))
        raise UsageError(f"{where}: no anatomy known for {model_type!r}; there is one for {known}")
    fitting = [row for row in rows if all(config.get(k, d) == v for k, (v, d) in row["when"].items())]
    if not fitting:
        settings = ", ".join(f"{key} = {config[key]!r}" for key in rows[0]["when"] if key in config)
        raise UsageError(f"{where}: no anatomy known for a {model_type} with {settings}")
    fitting.sort(key=lambda row: (row["class"] != class_name, -len(row["parameters"])))
    found = [(row, names) for row in fitting if (names := _matched(row, shapes)) is not None]
    if not found:
        missing = next(_missing(fitting[0], shapes))
        raise UsageError(
            f"{where}: no anatomy known for a {model_type} with these tensors: a {fitting[0]['class']} has {missing}, "
            "which is not there; the file is incomplete, or a setting changes the model"
        )
    row, names = found[0]
    if stray := _strays(row, rows, names, shapes):
        raise UsageError(
            f"{where}: no anatomy known for a {model_type} that has {stray[0]}, which a {row['class']} has not; "
            "a setting changes the model"
        )
    return _renamed(decode(row, {plain: shapes[name] for plain, name in names.items()}), names)


def zoo_shapes(name: str) -> Shapes:
    """Shapes of the parameters of a published configuration, tied ones once.

    Args:
        name: as in ``random:NAME``.

    Returns:
        Shape by name.

    Raises:
        UsageError: none are recorded.
    """
    entry = json.loads(SHAPES_PATH.read_bytes())["models"].get(name)
    if entry is None:
        raise UsageError(f"random:{name}: no anatomy known for this configuration, so no shapes are recorded")
    shapes: dict[str, tuple[int, ...]] = {}
    for pattern, shape in entry["tensors"].items():
        for index in range(entry["blocks"].get(pattern.partition(".*.")[0], 1)):
            shapes[pattern.replace(".*.", f".{index}.", 1)] = tuple(shape)
    return shapes


def model_types() -> tuple[str, ...]:
    """The architectures that the table has."""
    return tuple(sorted({row["model_type"] for row in _rows()}))


def encode(anatomy: Anatomy) -> dict[str, Any]:
    """An anatomy with its blocks folded together, as a row of the table holds it.

    Args:
        anatomy: of an instance with at least four blocks a list.

    Returns:
        The row's contents; `decode` undoes it for any number of blocks.

    Raises:
        InputError: blocks in the middle differ from each other.
    """
    counts = _counts(anatomy.tensors)
    facts = [_encoded(["norm", *_norm_fact(site)], counts) for site in anatomy.norms]
    facts += [
        _encoded(["writer", w.weight, w.bias, w.input_first, w.softmax, w.freedom], counts) for w in anatomy.writers
    ]
    facts += [_encoded(["table", name], counts) for name in anatomy.tables]
    folded: list[list[Any]] = []
    for fact, place in facts:
        text = json.dumps(fact)
        if place is None:
            folded.append(["", fact])
            continue
        seen = sorted(p[1] for f, p in facts if p is not None and p[0] == place[0] and json.dumps(f) == text)
        last = counts[place[0]] - 1
        inner = list(range(1, last))
        if seen and seen[0] != place[1]:
            continue
        parts = {"first": 0 in seen, "middle": seen != [] and set(inner) <= set(seen), "last": last in seen}
        if set(seen) & set(inner) and not parts["middle"]:
            raise InputError(f"blocks of {place[0]} differ: {text} holds for {seen} of {last + 1}")
        places = "all" if all(parts.values()) else "+".join(part for part, there in parts.items() if there)
        folded.append([places, fact])
    return {
        "parameters": _folded(anatomy.tensors, counts),
        "ties": dict(anatomy.ties or {}),
        "output": anatomy.output,
        "facts": folded,
    }


def decode(row: Mapping[str, Any], shapes: Shapes) -> Anatomy:
    """The anatomy that a row stands for.

    Args:
        row: a row of the table.
        shapes: shape of every parameter by the class's own names.

    Returns:
        The anatomy, with as many blocks as the shapes have.
    """
    counts = _counts(shapes, shortest=1)
    norms, writers, tables = [], [], []
    for places, fact in row["facts"]:
        for kind, *rest in _decoded(places, fact, counts):
            if kind == "norm":
                norms.append(_site(rest, shapes))
            elif kind == "writer":
                writers.append(Writer(*rest))
            else:
                tables.append(rest[0])
    return Anatomy(dict(shapes), tuple(norms), tuple(writers), tuple(tables), row["ties"], row["output"])


def _norm_fact(site: NormSite) -> list[Any]:
    readers = [[r.weight, r.bias, r.input_first, r.free] for r in site.readers]
    own = [site.name, site.kind, site.gain, site.shift, site.offset, site.groups, site.closed, site.mean_closed]
    return [*own, readers]


def _site(fact: list[Any], shapes: Shapes) -> NormSite:
    name, kind, gain, shift, offset, groups, closed, mean_closed, readers = fact
    reads = tuple(sorted((Reader(*reader) for reader in readers), key=lambda reader: reader.weight))
    width = shapes[gain][0] if gain else shapes[reads[0].weight][0 if reads[0].input_first else -1]
    return NormSite(name, kind, gain, shift, width, offset, groups, reads, closed, mean_closed)


def _counts(shapes: Shapes, shortest: int = 3) -> dict[str, int]:
    """Lists of blocks among the names, with their lengths."""
    found: dict[str, set[int]] = {}
    for name in shapes:
        if match := _INDEXED.fullmatch(name):
            found.setdefault(match["list"], set()).add(int(match["index"]))
    return {path: len(seen) for path, seen in found.items() if len(seen) >= shortest}


def _folded(shapes: Shapes, counts: Mapping[str, int]) -> list[str]:
    folded: dict[str, list[str]] = {}
    for name in shapes:
        match = _INDEXED.fullmatch(name)
        star = f"{match['list']}.*.{match['rest']}" if match and match["list"] in counts else name
        folded.setdefault(star, []).append(name)
    return [n for star, names in folded.items() for n in ([star] if _whole(star, names, counts) else names)]


def _whole(star: str, names: list[str], counts: Mapping[str, int]) -> bool:
    return ".*." in star and len(names) == counts[star.partition(".*.")[0]]


def _encoded(fact: list[Any], counts: Mapping[str, int]) -> tuple[list[Any], tuple[str, int] | None]:
    """A fact with indices relative to its own block's, and that block."""
    match = _INDEXED.fullmatch(fact[1])
    place = (match["list"], int(match["index"])) if match and match["list"] in counts else None

    flat = str(fact)

    def relative(value: Any) -> Any:
        if isinstance(value, list):
            unique: list[Any] = []
            for item in map(relative, value):
                if not isinstance(item, list) or item not in unique:
                    unique.append(item)
            return unique
        found = _INDEXED.fullmatch(value) if isinstance(value, str) else None
        if found is None or found["list"] not in counts:
            return value
        if place is None or found["list"] != place[0]:
            every = all(repr(f"{found['list']}.{i}.{found['rest']}") in flat for i in range(counts[found["list"]]))
            if not every and found["index"] != "0":
                raise InputError(f"{fact[1]} goes with {value}, which is neither the first block nor every block")
            return f"{found['list']}.*.{found['rest']}" if every else value
        offset = int(found["index"]) - place[1]
        return f"{found['list']}.{{i{f'{offset:+d}' if offset else ''}}}.{found['rest']}"

    return [relative(value) for value in fact], place


def _decoded(places: str, fact: list[Any], counts: Mapping[str, int]) -> Iterator[list[Any]]:
    match = _INDEXED.fullmatch(fact[1])
    if not places or match is None:
        yield [_at(value, 0, counts) for value in fact]
        return
    last = counts.get(match["list"], 0) - 1
    for index in range(last + 1):
        place = "last" if index == last else "first" if index == 0 else "middle"
        if places == "all" or place in places.split("+"):
            yield [_at(value, index, counts) for value in fact]


def _at(value: Any, index: int, counts: Mapping[str, int]) -> Any:
    if isinstance(value, list):
        items: list[Any] = []
        for item in value:
            wild = item[0] if isinstance(item, list) else ""
            match = _INDEXED.fullmatch(wild) if isinstance(wild, str) and ".*." in wild else None
            every = range(counts[match["list"]]) if match else range(1)
            items += [_at(_starless(item, i) if match else item, index, counts) for i in every]
        return items
    if not isinstance(value, str) or ".{i" not in value:
        return value
    return re.sub(r"\{i([+-]\d+)?\}", lambda m: str(index + int(m[1] or 0)), value)


def _starless(item: Any, index: int) -> Any:
    return [v.replace(".*.", f".{index}.", 1) if isinstance(v, str) else v for v in item]


def starred(name: str) -> str:
    """A name with the number of its block left open."""
    match = _INDEXED.fullmatch(name)
    return f"{match['list']}.*.{match['rest']}" if match else name


def _expected(row: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[str]:
    for pattern in row["parameters"]:
        if ".*." in pattern:
            for index in range(counts.get(pattern.partition(".*.")[0], 1)):
                yield pattern.replace(".*.", f".{index}.", 1)
        else:
            yield pattern


def _spellings(row: Mapping[str, Any], shapes: Shapes) -> dict[str, str]:
    """The class's own spelling of each tensor -> the tensor: the base model's prefix may be left out or be extra."""
    base = f"{row['base']}." if row["base"] else ""
    heads = {pattern.split(".")[0] for pattern in row["parameters"]}
    filed = {file: plain for plain, file in row.get("files", {}).items()}
    own = {}
    for name in shapes:
        plain = canonical(name)
        for spelling in (plain, f"{base}{plain}", plain.removeprefix(base)):
            if (star := starred(spelling)) in filed:
                index = _INDEXED.fullmatch(spelling)
                plain = filed[star].replace(".*.", f".{index['index'] if index else ''}.", 1)
                break
        if plain.split(".")[0] not in heads:
            plain = plain.removeprefix(base) if plain.startswith(base) and base else f"{base}{plain}"
        own[plain] = name
    return own


def _strays(row: Mapping[str, Any], rows: list[Any], names: Mapping[str, str], shapes: Shapes) -> list[str]:
    """Tensors inside the base model that the class does not have: neither buffers, nor ties, nor another class's."""
    used = set(names.values())
    own = _spellings(row, shapes)
    counts = _counts(dict.fromkeys(own, ()), shortest=1)
    known = {name for other in rows for name in _expected(other, counts)}
    known |= {f"{row['base']}.{name}" for name in known} | {name.removeprefix(f"{row['base']}.") for name in known}
    strays = [
        plain
        for plain, name in own.items()
        if name not in used and plain not in row["ties"] and plain not in known and not _BUFFER.fullmatch(plain)
    ]
    return [name for name in strays if not row["base"] or name.startswith(f"{row['base']}.")]


def _missing(row: Mapping[str, Any], shapes: Shapes) -> Iterator[str]:
    own = _spellings(row, shapes)
    return (name for name in _expected(row, _counts(dict.fromkeys(own, ()), shortest=1)) if name not in own)


def _matched(row: Mapping[str, Any], shapes: Shapes) -> dict[str, str] | None:
    """The class's own name -> the tensor's, of every parameter; None where one is missing."""
    own = _spellings(row, shapes)
    expected = list(_expected(row, _counts(dict.fromkeys(own, ()), shortest=1)))
    return {name: own[name] for name in expected} if all(name in own for name in expected) else None


def _renamed(anatomy: Anatomy, names: Mapping[str, str]) -> Anatomy:
    """The same with the tensors' own names."""

    def to(name: str | None) -> Any:
        return None if name is None else names[name]

    return Anatomy(
        tensors={names[name]: shape for name, shape in anatomy.tensors.items()},
        norms=tuple(
            replace(
                site,
                gain=to(site.gain),
                shift=to(site.shift),
                readers=tuple(replace(r, weight=to(r.weight), bias=to(r.bias)) for r in site.readers),
            )
            for site in anatomy.norms
        ),
        writers=tuple(replace(w, weight=to(w.weight), bias=to(w.bias)) for w in anatomy.writers),
        tables=tuple(names[name] for name in anatomy.tables),
        ties={other: names.get(name, name) for other, name in (anatomy.ties or {}).items()},
        output=anatomy.output,
    )


@cache
def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(TABLE_PATH.read_bytes())["rows"]
    return rows
