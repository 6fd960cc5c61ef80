"""``deadreckon reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deadreckon.cli.measure import prepare_torch
from deadreckon.cli.output import emit, offline_option, output_options, progress

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from deadreckon.results.reproduction import Reproduction

NOT_AS_CLAIMED = 1


@click.command()
@click.option(
    "--scale",
    type=click.Choice(["full", "small"]),
    default="full",
    show_default=True,
    help="full: published sizes, up to 35B, on a GPU; small: the same models shrunk, minutes on a laptop.",
)
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model of the table; repeatable.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Draws of weights and inputs.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    metavar="DTYPE",
    help="The first runs every seed and is traced, others where there is room.  [default: bfloat16, float32]",
)
@click.option(
    "--trained", multiple=True, metavar="MODEL", help="A trained model to go with them, with twins; repeatable."
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keeps every task's record, and is gone on from.  [default: deadreckon-reproduce-SCALE]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@offline_option
@output_options
def reproduce(as_json: bool, out: Path | None, save: Path | None, quiet: bool, **options: Any) -> int:
    """The paper's table of 14 models and a verdict on each of its claims; exit code 1 where one is refuted."""
    prepare_torch()
    from deadreckon.study.reproduce import reproduce as run

    options |= {name: options[name] or None for name in ("models", "dtypes")}
    with progress("reproduce", quiet=quiet, unit="tasks") as update:
        options["progress"] = lambda done, total, task: update(task.model if task else "reproduce", done, total)
        found = run(**options)
    emit(found, lambda: reproduction_table(found), as_json=as_json, out=out, save=save)
    return NOT_AS_CLAIMED if found.failures or any(claim.verdict == "refuted" for claim in found.claims) else 0


def reproduction_table(found: Reproduction) -> RenderableType:
    """Claims with their verdicts, then the rows under them."""
    from rich.console import Group

    parts: list[RenderableType] = [_claims(found), "", _models(found)]
    if found.trained:
        parts += ["", _trained(found)]
    parts += [f"failed: {failure.verb} {failure.model}: {failure.why}" for failure in found.failures]
    where = f"{found.environment.device}, " if found.environment else ""
    parts += ["", f"{where}{found.seconds:.0f} s; every record is in {found.store}"]
    return Group(*parts)


def _claims(found: Reproduction) -> Table:
    table = _table("claims", "claim", "the paper", "here", "verdict")
    for claim in found.claims:
        table.add_row(claim.says, claim.theirs or "-", claim.ours, claim.verdict.replace("_", " "))
    return table


def _models(found: Reproduction) -> Table:
    headings = ("model", "kind", "d", "dtype", "N/d", "|cos|", "gains redrawn", "1/√d there", "float64", "stream")
    table = _table("random initialisation: |cos| between gain^-1 and the bottom direction", *headings)
    for row in found.models:
        table.add_row(
            row.model.removeprefix("random:"),
            row.kind_seen,
            str(row.hidden_size),
            row.dtype,
            f"{row.tokens_per_dimension:.0f}",
            f"{row.alignment:.6f}",
            "-" if row.alignment_redrawn is None else f"{row.alignment_redrawn:.6f}",
            "-" if row.uniform_redrawn is None else f"{row.uniform_redrawn:.4f}",
            f"{row.dead_share_float64:.0e}",
            f"{row.trace} {row.smallest_step_ratio:.3f}" if row.smallest_step_ratio is not None else row.trace or "-",
        )
    return table


def _trained(found: Reproduction) -> Table:
    headings = ("model", "kind", "d", "deeper by", "by the gain", "dead", "by the gain", "learned", "twins", "stream")
    table = _table("trained: decades of depth and dead directions against random-init twins", *headings)
    for row in found.trained:
        table.add_row(
            row.model,
            row.kind,
            str(row.hidden_size),
            "-" if row.deepening is None else f"{row.deepening:+.2f}",
            "-" if row.gain_decades is None else f"{row.gain_decades:+.2f}",
            *map(str, (row.dead, row.algebraic_dead, row.learned_dead, row.dead_twin)),
            row.trace.replace("_", " ") or "-",
        )
    return table


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
