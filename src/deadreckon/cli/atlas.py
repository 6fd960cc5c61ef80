"""``deadreckon atlas``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deadreckon.cli.measure import prepare_torch

DRIFT = 1


@click.group()
def atlas() -> None:
    """The atlas of architectures: the file that lets a checkpoint's norms be told without torch.

    Its rows are written by building each architecture tiny and probing its modules; this needs torch and transformers.
    """


@atlas.command()
@click.argument("model_types", nargs=-1, metavar="[MODEL_TYPE...]")
def build(model_types: tuple[str, ...]) -> None:
    """Write the rows of these model types anew (all that transformers has, by default: an hour)."""
    builder = _builder()
    builder.update(model_types or builder.all_model_types(), progress=_say)


@atlas.command(epilog="Exit code 1: a row differs.")
@click.argument("model_types", nargs=-1, metavar="[MODEL_TYPE...]")
def check(model_types: tuple[str, ...]) -> int:
    """Compare committed rows (all, by default) with what the installed transformers does; print the drift."""
    lines, count = _builder().check(model_types, progress=_say)
    click.echo("\n".join(lines) or f"{count} rows agree")
    return DRIFT if lines else 0


@atlas.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write every model type's class here.")
def coverage(out: Path | None) -> None:
    """How many of transformers' model types the atlas classifies, and why it does not classify the others."""
    prepare_torch()
    from deadreckon.forward.atlas_coverage import atlas_coverage

    report = atlas_coverage()
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, count in report["counts"].items():
        click.echo(f"{count:5d}  {name}")
    click.echo(
        f"{report['coverage']:.1%} of {report['normed']} model types with a normed residual stream are classified"
    )


def _builder() -> Any:
    prepare_torch()
    from deadreckon.forward import atlas_builder

    return atlas_builder


def _say(line: str) -> None:
    click.echo(line, err=True)
