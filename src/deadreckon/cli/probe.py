"""``deadreckon probe``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.output import emit, output_options
from deadreckon.cli.user_code import build_layer, parse_arguments, user_code
from deadreckon.errors import UnreachableError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.probe import Probe

_SIZE = 64
_LAYOUTS = ("tokens", "batched", "channels_first", "image")


@click.command()
@click.argument("layer", metavar="MODULE:CLASS")
@click.option(
    "--hidden-size", "-d", type=click.IntRange(2, 4096), help="Coordinates d.  [default: what the layer tells, or 64]"
)
@click.option("--arg", "-a", "pairs", multiple=True, metavar="KEY=VALUE", help="Argument of the class; repeatable.")
@click.option(
    "--layout",
    type=click.Choice(_LAYOUTS),
    help="(n, d), (b, t, d), (b, d, t) or (b, d, h, w).  [default: the first that works]",
)
@click.option("--training", is_flag=True, help="Run it in training mode (batch statistics).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of tokens and parameters.")
@output_options
def probe(
    layer: str,
    hidden_size: int | None,
    pairs: tuple[str, ...],
    layout: str | None,
    training: bool,
    seed: int,
    as_json: bool,
    out: Path | None,
    save: Path | None,
    quiet: bool,
) -> None:
    """Screen a norm layer of your own code, whatever its formula, for directions of its output that never vary.

    MODULE:CLASS is package.module:Class or path/to/file.py:Class. That code is imported and run: name only code that
    you trust. The current directory is importable. The layer is built as Class(HIDDEN_SIZE, KEY=VALUE...), or as
    Class(KEY=VALUE...) where these leave no place for the hidden size; values are Python literals, or else text.
    """
    _need_torch()
    arguments = parse_arguments(pairs)
    import torch

    from deadreckon.forward.lone_layer import told_width
    from deadreckon.verbs.probe import probe as run

    with user_code():
        torch.manual_seed(seed)  # a layer may draw its own parameters
        built, took_size = build_layer(layer, hidden_size or _SIZE, arguments)
        size = hidden_size or (None if took_size else told_width(built)) or _SIZE
        record = run(built, size, layout=layout, training=training, seed=seed, name=layer)
    emit(record, lambda: probe_table(record), as_json=as_json, out=out, save=save)


def _need_torch() -> None:
    """An error that says what to install, where torch is not.

    Raises:
        UnreachableError: it is not installed.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnreachableError(
            f"probing needs {error.name}, which is not installed: pip install 'deadreckon[measure]'"
        ) from None


def probe_table(record: Probe) -> RenderableType:
    """What was found, line by line, and the verdict."""
    from rich.console import Group
    from rich.table import Table

    mode = "training" if record.training else "evaluation"
    title = f"{record.model}: d = {record.hidden_size}, {record.layout} layout, {mode} mode"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("found")
    for row in _rows(record):
        table.add_row(*row)
    return Group(
        table, f"It {record.says}." if _is_clause(record) else f"{record.says}.", *(f"note: {n}" for n in record.notes)
    )


def _is_clause(record: Probe) -> bool:
    return record.verdict != "undetermined"


def _rows(record: Probe) -> list[tuple[str, str]]:
    draws = _dims(record.by_draw) if record.by_draw else "no parameters"
    rows = [
        ("kernel dimension, parameters as given", _dim(record.kernel_dim)),
        ("  on tokens of one distribution alone", _dims(record.by_distribution)),
        ("  for other parameters", draws),
        ("  for all of them", _dim(record.inherent_dim)),
    ]
    if record.kernel_form is not None:
        rows.append(("the kernel is", record.kernel_form))
    if record.kernel_dim:
        constants = ", ".join("differs" if k.constant is None else f"{k.constant:.3g}" for k in record.directions)
        more = ", ..." if record.kernel_dim > len(record.directions) else ""
        rows.append(("w.y, the same for every token", constants + more))
    if record.depends_on:
        rows.append(("it moves with", ", ".join(record.depends_on)))
    if record.largest_dead is not None:
        rows.append(
            ("largest deviation that counts as zero", f"{record.largest_dead:.1e} (floor {record.dead_floor:.1e})")
        )
    if record.smallest_live is not None:
        rows.append(
            (
                "smallest that does not" if record.largest_dead is not None else "smallest deviation of a direction",
                f"{record.smallest_live:.1e} (floor {record.live_floor:.1e})",
            )
        )
    held = [
        f"{each.name.replace('_', ' ')} ({each.holds.replace('_', ' ')})"
        for each in record.invariances
        if each.holds != "no"
    ]
    rows.append(("as a function", ", ".join(held) or "no invariance found"))
    rows.append(("an output depends on", _reach(record)))
    if record.quadratic_constraints is not None:
        rows.append(("quadratic constraints", str(record.quadratic_constraints)))
    return rows


def _reach(record: Probe) -> str:
    coordinates = "its own coordinate" if record.elementwise else "all coordinates"
    return f"{coordinates} {'of all tokens' if record.mixes_tokens else 'of its token'}"


def _dim(value: int | None) -> str:
    return "undetermined" if value is None else str(value)


def _dims(dims: dict[str, int | None]) -> str:
    return ", ".join(f"{name}: {_dim(dim)}" for name, dim in dims.items())
