"""``deadreckon table``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.output import emit, result_options
from deadreckon.results.sweep import failure_lines
from deadreckon.results.writing import write_file

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from deadreckon.results.sweep import TaskTable

_SHOWN = {
    "read": {"kind": "kind", "hidden_size": "d", "kernel_dim": "kernel", "dead_count": "dead"}
    | {"smallest_gain": "smallest gain", "median_gain": "median gain"},
    "classify": {"results.0.kind": "kind", "results.0.contradictions.length": "contradictions"},
    "census": {"parameters": "parameters", "dead_dimensions": "dead", "share": "share", "rlct_upper_bound": "RLCT <="},
    "measure": {"kind": "kind", "protocol.status": "protocol", "predicted_dead": "predicted", "learned_dead": "learned"}
    | {"subspace_alignment": "alignment", "depth_decades": "decades", "effective_rank": "eff. rank"},
    "trace": {"verdict": "verdict", "worst_block": "worst block", "blocks.0.sigma_min": "sigma_min, in"}
    | {"blocks.-1.sigma_min": "sigma_min, out", "events.length": "events"},
    "fisher": {"metric": "metric", "holds": "holds", "sites.length": "sites", "sites.0.site": "first site"}
    | {"sites.0.ratio": "ratio", "sites.0.naive_ratio": "naive"},
}
"""Verb -> figure -> what heads its column in the terminal."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--csv", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="Write CSV; - is stdout.")
@click.option("--parquet", type=click.Path(path_type=Path), metavar="FILE", help="Write Parquet (needs pyarrow).")
@click.option("--column", "columns", multiple=True, metavar="PATH", help="One more figure by its path; repeatable.")
@click.option("--no-timings", is_flag=True, help="Leave times out: equal results, equal files.")
@result_options
def table(
    folder: Path,
    csv: Path | None,
    parquet: Path | None,
    columns: tuple[str, ...],
    no_timings: bool,
    as_json: bool,
    out: Path | None,
    quiet: bool,
) -> None:
    """The main figures of the tasks in DIR, one row a task; failed ones with their reasons."""
    from deadreckon.study.table import table as table_of
    from deadreckon.study.table import to_csv, to_parquet

    found = table_of(folder, timings=not no_timings, more=columns)
    if parquet is not None:
        write_file(parquet, to_parquet(found))
    if csv is not None and str(csv) != "-":
        write_file(csv, to_csv(found))
    if csv is not None and str(csv) == "-" and not as_json:
        click.echo(to_csv(found), nl=False)
        return
    emit(found, lambda: task_tables(found, columns), as_json=as_json, out=out)


def task_tables(found: TaskTable, more: tuple[str, ...] = ()) -> RenderableType:
    """A table for each verb with its figures, then what failed and why."""
    from rich.console import Group

    verbs = {row["verb"] for row in found.rows if row["status"] == "done"}
    failed = (
        (row["verb"], row["model"], row["revision"], row["why"]) for row in found.rows if row["status"] == "failed"
    )
    tables = [_of_verb(found, verb, _SHOWN[verb] | {name: name for name in more}) for verb in _SHOWN if verb in verbs]
    return Group(*tables, *failure_lines(failed)) if found.rows else "no task has come to an end yet"


def _of_verb(found: TaskTable, verb: str, figures: dict[str, str]) -> Table:
    """The done tasks of a verb; of what names them, the columns in which they differ."""
    from rich.table import Table

    rows = [row for row in found.rows if row["verb"] == verb and row["status"] == "done"]
    naming = ("revision", "step", "seed", *(name for name in found.columns if name.startswith("options.")))
    differing = [name for name in naming if len({row[name] for row in rows}) > 1]
    shown = {"model": "model", **{name: name.removeprefix("options.") for name in differing}, **figures}
    table = Table(title=f"{verb}: {len(rows)} tasks", title_justify="left")
    for heading in shown.values():
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(_shown(row[name]) for name in shown))
    return table


def _shown(cell: str | int | float | bool | None) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"{cell:.6g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
