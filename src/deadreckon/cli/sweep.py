"""``deadreckon sweep``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.measure import prepare_torch
from deadreckon.cli.output import console, emit, offline_option, result_options
from deadreckon.results.sweep import failure_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.sweep import Sweep
    from deadreckon.results.task import Task

TASK_FAILED = 1
_QUIET_FOR = 30.0  # seconds between two lines where nobody looks at a terminal


@click.command(epilog="Start it again to go on where it was stopped. Exit code 1: a task failed.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="Where results are kept.  [default: SPEC's name]"
)
@click.option(
    "--engine", default="in-process", show_default=True, metavar="NAME", help="in-process, or ray: many at a time."
)
@click.option("--workers", type=click.IntRange(min=1), help="Cores that Ray may use on this machine.  [default: all]")
@click.option("--address", metavar="ADDRESS", help="A Ray cluster that is there, e.g. auto.")
@click.option("--shard", metavar="i/n", help="Only one of n shares of the tasks, for job arrays.")
@offline_option
@result_options
def sweep(
    spec: Path,
    folder: Path | None,
    engine: str,
    workers: int | None,
    address: str | None,
    shard: str | None,
    as_json: bool,
    out: Path | None,
    quiet: bool,
) -> int:
    """Carry out what SPEC, a YAML file, asks for: verbs on models, revisions, seeds and data, each task once."""
    from deadreckon.study.options import ForwardOptions
    from deadreckon.study.spec import load_spec
    from deadreckon.study.sweep import sweep as run

    if engine == "in-process" and any(isinstance(given, ForwardOptions) for *_, given in load_spec(spec)[0].calls()):
        prepare_torch()
    with _progress(quiet=quiet) as progress:
        swept = run(spec, folder, engine=engine, workers=workers, address=address, shard=shard, progress=progress)
    emit(swept, lambda: sweep_table(swept), as_json=as_json, out=out)
    return TASK_FAILED if swept.failed else 0


def sweep_table(swept: Sweep) -> RenderableType:
    """How many tasks there are, and which failed for which reason."""
    from rich.console import Group
    from rich.table import Table

    table = Table(show_header=False, title="Sweep", title_justify="left")
    for label, value in swept.headline():
        table.add_row(label, value)
    lines = failure_lines((each.verb, each.model, each.revision, each.why) for each in swept.failures)
    return Group(table, *lines, f"next: deadreckon table {swept.folder}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int, Task | None], None] | None]:
    """Where a sweep is and how long it will take, on stderr: a bar in a terminal, now and then a line elsewhere."""
    if quiet:
        yield None
        return
    pace = _Pace()
    if not sys.stderr.isatty():
        yield lambda done, total, task: pace.say(done, total, task)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        shown = bar.add_task("", total=None)

        def update(done: int, total: int, task: Task | None) -> None:
            pace.count(task)
            bar.update(shown, completed=done, total=total, description=pace.left(total - done))

        yield update


class _Pace:
    """How fast tasks come to an end."""

    def __init__(self) -> None:
        self.started = self.said = time.monotonic()
        self.computed = self.failed = 0

    def count(self, task: Task | None) -> None:
        """Count a task that was carried out; None is one that was there before."""
        self.computed += task is not None
        self.failed += task is not None and task.status == "failed"

    def left(self, tasks: int) -> str:
        """Seconds a task, how many failed, and the time that so many more will take."""
        if not self.computed:
            return ""
        each = (time.monotonic() - self.started) / self.computed
        seconds = round(each * tasks)
        hours, minutes = divmod(seconds // 60, 60)
        left = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{each:.2g} s a task{failed}, about {left} left"

    def say(self, done: int, total: int, task: Task | None) -> None:
        """A line, if the last one was a while ago."""
        self.count(task)
        if task is not None and time.monotonic() - self.said > _QUIET_FOR:
            self.said = time.monotonic()
            click.echo(f"{done} of {total} tasks, {self.left(total - done)}", err=True)
