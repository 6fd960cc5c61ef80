"""``deadreckon classify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.output import emit, offline_option, output_options
from deadreckon.verbs.classify import classify as classify_models

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.reading import Classifications


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--functional", is_flag=True, help="Also load each model and run its norm alone (needs torch).")
@offline_option
@output_options
def classify(
    models: tuple[str, ...], functional: bool, as_json: bool, out: Path | None, save: Path | None, quiet: bool
) -> None:
    """Whether each MODEL ends in a LayerNorm, an RMSNorm or neither, from its parameters, with the evidence.

    A MODEL in quotes may be a pattern: 'models/*' stands for every checkpoint that it matches.
    """
    if functional:
        from deadreckon.cli.measure import prepare_torch

        prepare_torch()
    classified = classify_models(*models, functional=functional)
    emit(classified, lambda: classification_table(classified), as_json=as_json, out=out, save=save)


def classification_table(classified: Classifications) -> RenderableType:
    """One row a model: kind, evidence, contradictions."""
    from rich.table import Table

    table = Table(title="normalisation from parameters", title_justify="left")
    for heading in ("model", "kind", "evidence", "contradictions"):
        table.add_column(heading, overflow="fold")
    for result in classified.results:
        evidence = "\n".join(f"{e.name}: {e.value} ({e.strength}: {e.says})" for e in result.evidence)
        table.add_row(result.model, result.kind, evidence, "\n".join(result.contradictions) or "none")
    return table
