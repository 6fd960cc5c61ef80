"""What all verbs share at the terminal: the output options, and a record as JSON or table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deadreckon.results.writing import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from deadreckon.results.record import Record

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PIPE_WIDTH = 120
_PATH: Any = click.Path(path_type=Path)

model_argument = click.argument("model")


def _go_offline(context: click.Context, option: click.Parameter, offline: bool) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub's own switch, which what is imported later heeds too


offline_option = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    callback=_go_offline,
    help="Ask no hub: models there are read from the cache.",
)


def output_options(command: _Command) -> _Command:
    """Add --json, --out, --save and --quiet."""
    return result_options(command, save=True)


def result_options(command: _Command, *, save: bool = False) -> _Command:
    """Add --json, --out and --quiet, and --save where a result has vectors."""
    options: list[Callable[[_Command], _Command]] = [
        click.option("--quiet", "-q", is_flag=True, help="No progress on stderr."),
        click.option("--out", "-o", type=_PATH, metavar="FILE", help="Write the JSON to FILE."),
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else."),
    ]
    if save:
        options.insert(1, click.option("--save", type=_PATH, metavar="FILE", help="Write the vectors (safetensors)."))
    for option in options:
        command = option(command)
    return command


def emit(
    record: Record, table: Callable[[], RenderableType], *, as_json: bool, out: Path | None, save: Path | None = None
) -> None:
    """Print a record and write it where asked.

    Args:
        record: the result.
        table: makes what a person reads, when one does.
        as_json: print the JSON instead.
        out: file for the JSON.
        save: safetensors file for the vectors.
    """
    if save is not None:
        from safetensors.numpy import save as serialise

        metadata = {"schema": record.schema, "record": record.to_json()}
        write_file(save, serialise({name: array.copy() for name, array in record.vectors.items()}, metadata))
    if out is not None:
        write_file(out, (record.to_json() + "\n").encode())
    if as_json:
        click.echo(record.to_json())
    else:
        console().print(table())


def console(*, stderr: bool = False) -> Console:
    """A Rich console that prints names as they are, and a full table also where the output is not a terminal."""
    from rich.console import Console

    width = None if (sys.stderr if stderr else sys.stdout).isatty() else _PIPE_WIDTH
    # No markup or emoji: brackets and colons in a tensor's or a file's name are just that.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


@contextmanager
def progress(label: str, *, quiet: bool, unit: str = "tokens") -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress line on stderr for work that takes more than a moment; nothing when quiet or not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
