"""Fill in what the documentation quotes from the program: help screens, outputs, tables of keys, JSON Schema files.

Markers in a page say what belongs between them::

    <!-- output: deadreckon read --help -->    a command, and what it prints
    <!-- keys: Reading -->                     the fields of a record of `deadreckon.results`
    <!-- names: random -->                     what may follow ``random:``
    <!-- table: engine -->                     a table of recorded benchmarks, see benchmark_tables.py
    <!-- end -->                               closes each of them

Run it to bring everything up to date; ``--fast`` leaves the outputs of forward passes as they are; ``--check`` writes
nothing and exits with 1 when something is out of date. A check runs no forward pass: of these it only asks that an
output is there, because rounding differs between machines.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmark_tables import table

from deadreckon.checkpoint.zoo import zoo_names
from deadreckon.cli.main import main as deadreckon_main
from deadreckon.results import measurement
from deadreckon.results.schema import MODULES, RECORDS, attributes, json_schema
from deadreckon.study.spec import spec_schema

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = "kernel", "rmsnorm", "residual", "classification", "fisher", "deepening", "further"
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/cli.md",
    "docs/json.md",
    "docs/trace.md",
    "docs/census.md",
    "docs/fisher.md",
    "docs/classify.md",
    "docs/probe.md",
    "docs/hub.md",
    "docs/sweep.md",
    "docs/scale.md",
    "docs/report.md",
    "docs/reproduce.md",
    *(f"docs/claims/{page}.md" for page in CLAIMS),
)
SCHEMAS = "docs/schemas"

_MARKED = re.compile(
    r"^(?P<indent> *)<!-- (?P<what>output|keys|names|table): (?P<of>.+?) -->\n(?P<body>.*?)^ *<!-- end -->", re.M | re.S
)
_FORWARD = ("measure", "probe", "demo", "fisher")
_UNREACHABLE = 3


def update(root: Path = ROOT, *, fast: bool = False) -> dict[Path, str]:
    """The files that are out of date, with the text that they should have.

    Args:
        root: the repository.
        fast: leave outputs of forward passes as they are, provided that there is one.

    Returns:
        Path -> text; empty when everything is up to date.
    """
    wanted = {root / SCHEMAS / name: text for name, text in schemas().items()}
    for page in PAGES:
        if (path := root / page).exists():
            wanted[path] = fill(_text(path), fast=fast)
    for path in (root / SCHEMAS).glob("*.json"):
        wanted.setdefault(path, "")  # of a record that is no more: emptied, for a person to delete
    return {path: text for path, text in wanted.items() if _text(path) != text}


def fill(page: str, *, fast: bool = False) -> str:
    """A page with everything between its markers brought up to date.

    Args:
        page: Markdown.
        fast: as for `update`.

    Returns:
        The page. An output that differs from the one there in nothing but the time it took stays.
    """

    def block(match: re.Match[str]) -> str:
        old = textwrap.dedent(match["body"]).strip("\n")
        new = {"output": _output, "keys": _keys, "names": _names, "table": _table}[match["what"]](
            match["of"], old, fast
        )
        body = old if _timeless(old) == _timeless(new) else new
        marked = f"<!-- {match['what']}: {match['of']} -->\n\n{body}\n\n<!-- end -->"
        return textwrap.indent(marked, match["indent"], lambda line: bool(line.strip()))

    return _MARKED.sub(block, page)


def schemas() -> dict[str, str]:
    """File name -> JSON Schema of each record, and of a sweep's file, their properties described by the docstrings."""
    documents = {}
    for record in RECORDS:
        name = record.kind_of_record.removeprefix("deadreckon.").replace("/", "-")
        documents[f"{name}.json"] = json.dumps(json_schema(record), indent=1) + "\n"
    documents["sweep-spec.json"] = json.dumps(spec_schema(), indent=1) + "\n"
    return documents


def run(command: str) -> tuple[str, int]:
    """What a ``deadreckon`` command prints to a pipe, and its exit code.

    Args:
        command: as typed in a shell, without redirections.

    Returns:
        Standard output without trailing blanks, and the exit code.
    """
    plain = {"COLUMNS": "80", "NO_COLOR": "1"}
    forced = {name for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE") if name in os.environ}
    with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(io.StringIO()) as out:
        for name in forced:
            del os.environ[name]
        code = deadreckon_main(shlex.split(command)[1:])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()), code


def _output(command: str, old: str, fast: bool) -> str:
    first = f"```console\n$ {command}\n"
    is_forward = shlex.split(command)[1] in _FORWARD and not command.endswith("--help")
    if fast and is_forward and old.startswith(first) and old.count("\n") > 2:
        return old
    text, code = run(command)
    if code == _UNREACHABLE:  # a demo model that is not installed here
        return old
    if code:
        raise SystemExit(f"{command} ended with exit code {code}: mend it before it is shown")
    return f"{first}{text}\n```"


def _keys(name: str, _old: str, _fast: bool) -> str:
    record = next(getattr(module, name) for module in MODULES if hasattr(module, name))
    meanings = attributes(record)
    rows = [(f"`{field.name}`", _type(field.type), _cell(meanings.get(field.name, ""))) for field in _fields(record)]
    return "\n".join(["| key | type | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _names(of: str, _old: str, _fast: bool) -> str:
    names = ", ".join(f"`{name}`" for name in {"random": zoo_names}[of]())
    return textwrap.fill(f"{names}.", 118, break_long_words=False, break_on_hyphens=False)


def _table(of: str, _old: str, _fast: bool) -> str:
    return table(of)


def _fields(record: type) -> Iterator[dataclasses.Field[Any]]:
    """The record's fields; those that a measurement shares with its twins are left to the table of these."""
    shared = {field.name for field in dataclasses.fields(measurement.Figures)}
    for field in dataclasses.fields(record):
        if record is measurement.Figures or not issubclass(record, measurement.Figures) or field.name not in shared:
            yield field


def _type(annotation: Any) -> str:
    """A field's annotation in the words of JSON."""
    words = {"str": "string", "int": "integer", "float": "number", "bool": "true or false", "None": "null"}
    text = re.sub(r"list\[(.+)\]", r"list of \1", str(annotation))
    text = re.sub(r"dict\[str, (.+)\]", r"object of \1", text)
    return re.sub(r"\w+", lambda word: words.get(word[0], word[0]), text).replace(" | ", " or ")


def _cell(text: str) -> str:
    """Plain text in a cell of a Markdown table; the docstrings' double backticks become single ones."""
    return re.sub(r"([|<])", r"\\\1", text).replace("``", "`").rstrip(".")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _timeless(text: str) -> str:
    return re.sub(r"\bin [\d.]+ (ms|s)\b", "in a while", text)


def main(arguments: list[str] | None = None) -> int:
    """Bring the documentation up to date, or check that it is.

    Args:
        arguments: the command line; None: the process's own.

    Returns:
        Exit code: 0, or 1 when a check found something out of date.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something is out of date")
    parser.add_argument("--fast", action="store_true", help="leave the outputs of forward passes as they are")
    options = parser.parse_args(arguments)
    stale = update(fast=options.fast or options.check)
    for path, text in stale.items():
        print(f"{'out of date' if options.check else 'written'}: {path.relative_to(ROOT)}", file=sys.stderr)
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
