"""``deadreckon diff``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.output import emit, offline_option, output_options
from deadreckon.kernel.subspace import DEFAULT_TAU
from deadreckon.verbs.diff import FAIL_KEYS
from deadreckon.verbs.diff import diff as diff_models

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.diff import Difference, NormChange

_SHOWN = 12


@click.command(epilog=f"KEY is one of {', '.join(FAIL_KEYS)}; OP is one of > >= < <= == !=.")
@click.argument("before")
@click.argument("after")
@click.option("--tau", type=float, default=DEFAULT_TAU, show_default=True, help="What counts as dead.")
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="CONDITION",
    help="Exit with 1 where it holds, e.g. 'kernel_angle > 1e-3'. May be given several times.",
)
@offline_option
@output_options
def diff(
    before: str,
    after: str,
    tau: float,
    fail_if: tuple[str, ...],
    as_json: bool,
    out: Path | None,
    save: Path | None,
    quiet: bool,
) -> int:
    """What changed in a model's norms between two checkpoints, BEFORE and AFTER.

    Kernel angles, gains that died or came alive, the largest change of a gain, the kind, and the fingerprint of the
    matrices that write to the stream. A CONDITION is KEY OP NUMBER.
    """  # noqa: DOC201 - a help screen
    difference = diff_models(before, after, tau=tau, fail_if=fail_if)
    emit(difference, lambda: difference_table(difference), as_json=as_json, out=out, save=save)
    return 1 if difference.failed else 0


def difference_table(difference: Difference) -> RenderableType:
    """The norms that changed most, and what holds for the whole."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{difference.model} -> {difference.other}", title_justify="left")
    headings = ("norm", "role", "kernel angle", f"dead at {difference.tau:g}", "died", "came alive", "gain change")
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="left" if heading in headings[:2] else "right")
    changed = sorted(difference.norms[1:], key=_weight, reverse=True)
    changed = [norm for norm in changed if _weight(norm) > (0, 0.0)]
    for norm in [difference.norms[0], *changed[:_SHOWN]]:
        table.add_row(
            norm.norm,
            norm.role,
            f"{norm.kernel_angle:.2g}",
            f"{norm.dead_count_before} -> {norm.dead_count_after}",
            str(len(norm.died)),
            str(len(norm.came_alive)),
            f"{norm.gain_change:.2g}",
        )
    lines = [f"kind: {difference.kind_before} -> {difference.kind_after}"]
    if difference.fingerprint_before is not None and difference.fingerprint_after is not None:
        lines.append(f"fingerprint R: {difference.fingerprint_before:.3f} -> {difference.fingerprint_after:.3f}")
    same = len(difference.norms) - 1 - len(changed)
    lines.append(f"{len(difference.norms)} norms compared ({difference.compared}); {same} of them unchanged")
    lines += [f"failed: {text}" for text in difference.failed]
    return Group(table, Text("\n".join(lines)))


def _weight(norm: NormChange) -> tuple[int, float]:
    """What makes a norm worth showing: gains that died or came alive first, then how far any moved."""
    return len(norm.died) + len(norm.came_alive), norm.gain_change
