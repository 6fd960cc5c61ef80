"""``deadreckon census``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.output import emit, model_argument, offline_option, output_options
from deadreckon.errors import UsageError
from deadreckon.verbs.census import census as census_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.census import Census

_SHOWN = 6


@click.command()
@model_argument
@click.option("--emit", "direction", metavar="FAMILY:INDEX", help="One dead direction by tensor, for --save.")
@offline_option
@output_options
def census(model: str, direction: str | None, as_json: bool, out: Path | None, save: Path | None, quiet: bool) -> None:
    """Exactly dead parameter dimensions of MODEL, from shapes, ties and norms alone: no torch, no forward pass."""
    if save is not None and direction is None:
        raise UsageError("--save writes a direction: say which with --emit FAMILY:INDEX")
    if direction is not None and save is None:
        raise UsageError("--emit makes a direction: say where to with --save FILE")
    counted = census_of(model, emit=direction)
    emit(counted, lambda: census_table(counted), as_json=as_json, out=out, save=save)


def census_table(counted: Census) -> RenderableType:
    """The families with their counts, and what follows in words."""
    from rich.console import Group
    from rich.table import Table

    table = Table(title=f"{counted.model}: exactly dead parameter dimensions", title_justify="left")
    table.add_column("family")
    for heading in ("dimensions", "share of P"):
        table.add_column(heading, justify="right")
    for reason, count in counted.by_reason.items():
        if count:
            table.add_row(reason, f"{count:,}", f"{count / counted.parameters:.4%}")
    table.add_section()
    table.add_row("together", f"{counted.dead_dimensions:,}", f"{counted.share:.4%}")
    most = ", ".join(f"{t.tensor} ({t.dead:,})" for t in counted.by_tensor[:_SHOWN])
    lines = [
        f"of {counted.parameters:,} parameters of {counted.model_class}; what does not change is its "
        + ("log-probabilities" if counted.output == "logits" else "last hidden state"),
        f"the kernel of LayerNorm alone: {counted.layernorm_kernel_share:.4%} of P",
        f"learning coefficient (RLCT) at most {counted.rlct_upper_bound:,.1f}",
        f"most under {most}" if most else "none under any tensor",
    ]
    if counted.generic_dead_dimensions != counted.dead_dimensions:
        lines.append(f"with gains and shifts in general position: {counted.generic_dead_dimensions:,}")
    return Group(table, *lines, *counted.notes)
