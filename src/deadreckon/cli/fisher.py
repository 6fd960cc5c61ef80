"""``deadreckon fisher``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deadreckon.cli.measure import input_options, place_options, prepare_torch
from deadreckon.cli.output import emit, model_argument, offline_option, output_options, progress
from deadreckon.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.fisher import Fisher, FisherSite

NOT_DEAD = 1


@click.command(epilog="Exit code 1: a step that a kernel makes dead was seen.")
@model_argument
@click.option(
    "--site",
    "sites",
    multiple=True,
    metavar="head|all|PATH",
    help="Readers of norms, by any dotted part of their paths; repeatable.  [default: head]",
)
@click.option(
    "--tokens", type=click.IntRange(min=1), help="Predictions to average.  [default: 256 at the head, else 64]"
)
@click.option("--draws", type=click.IntRange(min=8), default=8, show_default=True, help="Random directions a site.")
@click.option("--gauge/--no-gauge", default=True, show_default=True, help="Take finite steps too.")
@input_options
@click.option("--affine", metavar="lognormal:SIGMA", help="Redraw gains and shifts of a random: model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights, inputs and directions.")
@place_options
@offline_option
@output_options
def fisher(
    model: str, sites: tuple[str, ...], as_json: bool, out: Path | None, save: Path | None, quiet: bool, **options: Any
) -> int:
    """Directional Fisher information of MODEL along the steps of its weights that a norm's kernel makes dead."""
    if save is not None:
        raise UsageError("fisher has no vectors to --save; --out FILE writes its figures")
    prepare_torch()
    from deadreckon.verbs.fisher import fisher as run

    with progress(model, quiet=quiet, unit="sites") as update:
        options["progress"] = lambda done, total: update(model, done, total)
        record = run(model, site=sites or "head", **options)
    emit(record, lambda: fisher_table(record), as_json=as_json, out=out, save=save)
    return 0 if record.holds else NOT_DEAD


def fisher_table(record: Fisher) -> RenderableType:
    """A row a site, and each kind of site in words."""
    from rich.console import Group
    from rich.table import Table

    metric = "softmax" if record.metric == "softmax" else "Gaussian, of the last hidden state"
    title = f"{record.model}: directional Fisher information over {record.tokens} predictions ({metric})"
    table = Table(title=title, title_justify="left")
    table.add_column("site")
    for heading in ("c = w.shift", "with remedy", "floor", "without", "finite steps", "without"):
        table.add_column(heading, justify="right")
    for site in record.sites:
        table.add_row(
            site.site,
            f"{site.constant:.2g}",
            "-" if site.ratio is None else f"{site.ratio:.1e}",
            f"{site.floor:.1e}",
            f"{site.naive_ratio:.1e}",
            _gauge(site.is_gauge),
            _gauge(site.naive_is_gauge),
        )
    lines = [f"{site.site}: {site.says}" for site in _told(record.sites)]
    lines.append(f"ratios to the median of {record.draws} random directions of the same norm in the same tensors")
    return Group(table, *lines, *(f"note: {warning}" for warning in record.warnings))


def _told(sites: list[FisherSite]) -> list[FisherSite]:
    """One site of every kind, and those that surprise."""
    kinds: dict[tuple[object, ...], FisherSite] = {}
    for site in sites:
        naive_dead = site.naive_ratio <= 10 * site.floor
        kinds.setdefault((site.has_kernel, site.remedy, site.is_dead, site.virtual, naive_dead, site.holds), site)
    return list(kinds.values())


def _gauge(verdict: bool | None) -> str:
    return "-" if verdict is None else "gauge" if verdict else "not gauge"
