"""``table``: the main figures of all tasks in a folder, one row a task."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.results.sweep import TaskTable
from deadreckon.results.task import Task
from deadreckon.study.store import Store

Cell = str | int | float | bool | None

FIGURES: dict[str, tuple[str, ...]] = {
    "read": (
        *("kind", "final_norm", "hidden_size", "tau", "kernel_dim", "dead_count", "zero_gains", "smallest_gain"),
        *("median_gain", "largest_gain", "beta_projection", "direction.participation_ratio"),
    ),
    "classify": ("results.0.kind", "results.0.contradictions.length"),
    "census": (
        *("model_class", "output", "parameters", "dead_dimensions", "share", "layernorm_kernel_share"),
        *("rlct_upper_bound", "generic_dead_dimensions", "norms"),
    ),
    "measure": (
        *("kind", "norm", "hidden_size", "tau", "tokens", "data", "environment.dtype", "protocol.status"),
        *("protocol.norm_residual", "protocol.kernel_variance", "kernel_dim", "predicted_dead", "algebraic_dead"),
        *("learned_dead", "alignment", "alignment_uniform", "subspace_alignment", "largest_principal_angle"),
        *("lambda_dead", "lambda_dead_float64", "lambda_min", "lambda_2", "lambda_mean", "lambda_max"),
        *("depth_decades", "depth_decades_float64", "effective_rank", "participation_ratio", "stable_rank"),
        *("schur_ratio", "schur_reference", "twins.length", "gap.depth_decades.change", "gap.effective_rank.change"),
    ),
    "trace": (
        *("blocks_path", "hidden_size", "tokens", "data", "environment.dtype", "verdict", "worst_block"),
        *("blocks.length", "blocks.0.sigma_min", "blocks.-1.sigma_min", "blocks.-1.sigma_floor"),
        *("blocks.-1.sigma_geomean", "events.length", "events.0.block", "events.0.kind", "events.0.cause"),
    ),
    "fisher": (
        *("metric", "tokens", "data", "environment.dtype", "holds", "sites.length", "sites.0.site"),
        "sites.0.norm_kind",
        *("sites.0.dead", "sites.0.naive", "sites.0.ratio", "sites.0.naive_ratio", "sites.0.floor"),
        *("sites.0.is_dead", "sites.0.is_gauge"),
    ),
}
"""Verb -> paths into its record: keys, indices (-1 is the last), and length."""

_TASK = ("verb", "model", "revision", "step", "seed")
_NOWHERE: Any = object()
_END = ("status", "why", "commit", "seconds", "key")


def table(folder: str | Path, *, timings: bool = True, more: Sequence[str] = ()) -> TaskTable:
    """The main figures of all tasks in a folder, failed ones with their reasons.

    Args:
        folder: where ``sweep`` keeps its results.
        timings: whether to give wall times; without them, tables of the same tasks are equal to the last bit.
        more: further figures, as paths into the verbs' records, e.g. ``protocol.norm_tolerance``.

    Returns:
        One row a task, sorted by model, step, revision, verb, seed and options. `rows` makes a data frame as it is.

    Raises:
        UsageError: no task has one of the further figures.
        InputError: a file is no task, or one that a newer version made.
        UnreachableError: there are no results in the folder.
    """
    tasks = Store(folder).tasks()
    for path in more:
        if tasks and all(_at(task.result or {}, path) is _NOWHERE for task in tasks):
            raise UsageError(
                f"no task has a figure {path!r}: name a path into a verb's record, e.g. protocol.norm_tolerance"
            )
    rows = [_row(task, more) for task in tasks]
    options = sorted({name for row in rows for name in row if name.startswith("options.")})
    figures = dict.fromkeys(path for verb in FIGURES for path in FIGURES[verb] if any(t.verb == verb for t in tasks))
    columns = list(dict.fromkeys([*_TASK, *options, *figures, *more, *_END]))
    if not timings:
        columns.remove("seconds")
    return TaskTable(
        model=", ".join(dict.fromkeys(task.model for task in tasks)),
        columns=columns,
        rows=[{name: row.get(name) for name in columns} for row in rows],
    )


def to_csv(found: TaskTable) -> bytes:
    """A table as CSV: empty cells where there is no figure, true and false, numbers that read back to the last bit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(found.columns)
    for row in found.rows:
        writer.writerow([_spelt(row[name]) for name in found.columns])
    return text.getvalue().encode()


def to_parquet(found: TaskTable) -> bytes:
    """A table as Parquet, each column of one type.

    Args:
        found: the table.

    Returns:
        The file.

    Raises:
        UnreachableError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UnreachableError("Parquet needs pyarrow: pip install 'deadreckon[table]'") from None
    columns = {name: _of_one_type([row[name] for row in found.rows]) for name in found.columns}
    arrays = {name: pyarrow.array(cells, type=_type(pyarrow, cells)) for name, cells in columns.items()}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


def _row(task: Task, more: Sequence[str]) -> dict[str, Cell]:
    result = task.result or {}
    seed = task.options.get("seed", result.get("seed"))
    row: dict[str, Cell] = {
        **{name: getattr(task, name) for name in ("verb", "model", "revision", "step")},
        **{name: getattr(task, name) for name in ("status", "why", "seconds", "key")},
        "seed": seed,
        "commit": result.get("revision"),
    }
    row |= {f"options.{name}": _scalar(value) for name, value in task.options.items() if name != "seed"}
    return row | {path: _scalar(_at(result, path)) for path in (*FIGURES[task.verb], *more) if path not in row}


def _at(data: Any, path: str) -> Any:
    """What a path leads to; `_NOWHERE` where there is no such thing, which is not a null that is there."""
    for part in path.split("."):
        if isinstance(data, dict):
            data = data.get(part, _NOWHERE)
        elif isinstance(data, list) and part == "length":
            return len(data)
        elif isinstance(data, list) and part.lstrip("-").isdecimal() and -len(data) <= int(part) < len(data):
            data = data[int(part)]
        else:
            return None if data is None else _NOWHERE
    return data


def _scalar(value: Any) -> Cell:
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True)
    return None if value is _NOWHERE else value


def _spelt(cell: Cell) -> str:
    if cell is None:
        return ""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def _of_one_type(cells: list[Cell]) -> list[Cell]:
    """The cells as they are where one type holds them all, otherwise as text."""
    kinds = {type(cell) for cell in cells if cell is not None}
    return cells if len(kinds) < 2 or kinds == {int, float} else [None if c is None else _spelt(c) for c in cells]


def _type(pyarrow: Any, cells: list[Cell]) -> Any:
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds and kinds <= {int, float}:
        return pyarrow.int64() if kinds == {int} else pyarrow.float64()
    return pyarrow.bool_() if kinds == {bool} else pyarrow.string()
