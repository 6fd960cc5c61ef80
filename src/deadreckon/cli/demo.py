"""``deadreckon demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.measure import PROTOCOL_FAILED, dead_measured, prepare_torch, share_of_mean
from deadreckon.cli.output import emit, output_options, progress
from deadreckon.cli.report import REPORT_FILE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.measurement import Demonstration, Measurement


@click.command()
@click.option("--twin", type=click.IntRange(min=1), default=1, show_default=True, help="Random-init twins a model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the twins' weights.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=REPORT_FILE,
    show_default=True,
    help="Write it all as a page, too, where deadreckon[report] is installed; '' for none.",
)
@output_options
def demo(twin: int, seed: int, report: Path, as_json: bool, out: Path | None, save: Path | None, quiet: bool) -> int:
    """Read, verify and compare with random init: all-MiniLM-L6-v2 (LayerNorm) and SmolLM2-135M-Instruct (RMSNorm)."""
    prepare_torch()
    from deadreckon.verbs.demo import demo as run

    with progress("demo", quiet=quiet) as update:
        shown = run(twin=twin, seed=seed, progress=update)
    emit(shown, lambda: demo_table(shown), as_json=as_json, out=out, save=save)
    if report.name:
        click.echo(err=as_json)
        _write_report(shown, report, err=as_json)
    return 0 if all(m.protocol.status == "ok" for m in shown.measurements) else PROTOCOL_FAILED


def _write_report(shown: Demonstration, path: Path, *, err: bool) -> None:
    """The page, with what costs nothing to know beside what was measured; where its packages are missing, how to."""
    from deadreckon.render.report import missing_package, report
    from deadreckon.verbs.census import census
    from deadreckon.verbs.classify import classify

    if missing := missing_package():
        click.echo(f"no report: {missing} is not installed (pip install 'deadreckon[report]')", err=True)
        return
    models = [measurement.model for measurement in shown.measurements]
    made = report(shown, classify(*models), census(models[0]), title="deadreckon demo", command="deadreckon demo")
    made.save(path)
    click.echo(f"report: {path}", err=err)


def demo_table(shown: Demonstration) -> RenderableType:
    """Question by question, the two models side by side, with the answer in words underneath."""
    from rich.console import Group
    from rich.table import Table

    table = Table(
        title="Which directions of the final norm's output never vary?", title_justify="left", show_lines=True
    )
    table.add_column("")
    for m in shown.measurements:
        table.add_column(f"{m.model}\n{m.kind}, d = {m.hidden_size}", justify="right")
    for label, cell in _QUESTIONS:
        table.add_row(label, *(cell(m) for m in shown.measurements))
    return Group(table, "", *(_in_words(m) for m in shown.measurements))


def _twins(m: Measurement) -> str:
    return ", ".join(f"{twin.alignment:.6f}" for twin in m.twins)


_QUESTIONS = (
    ("dead directions predicted from the gain alone", lambda m: f"{m.predicted_dead} ({m.kernel_dim} of them exact)"),
    ("tokens run through the model to check", lambda m: f"{m.tokens:,}"),
    ("dead directions measured", dead_measured),
    (
        "angle between predicted and measured (radians)",
        lambda m: "nothing predicted" if m.largest_principal_angle is None else f"{m.largest_principal_angle:.0e}",
    ),
    ("does gain^-1 lie in the measured bottom?\n1 = entirely, 0 = not at all", lambda m: f"{m.subspace_alignment:.6f}"),
    ("the same for a random-init twin", _twins),
    ("variance along gain^-1, relative to the mean", lambda m: share_of_mean(m, m.lambda_dead)),
    ("is the norm that ran the norm that was read?", lambda m: m.protocol.status),
)


def _in_words(m: Measurement) -> str:
    if m.kernel_dim == 0:
        return (
            f"{m.model}: an RMSNorm does not subtract the mean, so it has no dead direction to predict, "
            f"and gain^-1 is a direction like any other (a random one scores about {0.8 * m.hidden_size**-0.5:.2f})."
        )
    more = m.predicted_dead - m.kernel_dim
    extra = f", and training drove {more} more to zero by shrinking gains" if more else ""
    sure = "no forward pass was needed to know"
    return f"{m.model}: a LayerNorm kills {m.kernel_dim} direction for every input{extra}; {sure}."
