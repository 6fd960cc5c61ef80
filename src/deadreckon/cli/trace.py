"""``deadreckon trace``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deadreckon.cli.measure import input_options, place_options, prepare_torch
from deadreckon.cli.output import emit, model_argument, offline_option, output_options, progress
from deadreckon.results.sizes import parse_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.trace import Event, Stream, StreamEvidence, Trace

COLLAPSED = 1
_BARS = "▁▂▃▄▅▆▇█"


def _blocks(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Block indices out of a list of numbers and ranges."""
    if value is None:
        return None
    found: set[int] = set()
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise click.BadParameter(f"{part.strip()!r} is neither a number nor a range: give 0,5,10-20", ctx, param)
        found |= set(range(int(first), int(last or first) + 1))
    return sorted(found)


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes out of a number with a unit."""
    if value is None:
        return None
    size = parse_size(value)
    if size is None or not 0 < size < 2**60:
        raise click.BadParameter(f"{value!r} is no amount of memory: give e.g. 8GB or 500MiB", ctx, param)
    return size


@click.command(epilog="A trace of the stream, not that of a matrix. Exit code 1: a direction is lost.")
@model_argument
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens to take.  [default: 8 d]")
@input_options
@click.option("--blocks", metavar="0,5,10-20", callback=_blocks, help="Blocks to trace.  [default: all]")
@click.option("--blocks-path", metavar="PATH", help="Module path of the list of blocks, if another is meant.")
@click.option(
    "--bottom",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Smallest singular values to --save, with directions.",
)
@click.option("--memory", metavar="8GB", callback=_memory, help="Most that Grams take; more passes where it is little.")
@click.option(
    "--collapse-ratio",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Step ratios below it are events.",
)
@click.option("--affine", metavar="lognormal:SIGMA", help="Redraw gains and shifts of a random: model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights and inputs.")
@place_options
@offline_option
@output_options
def trace(model: str, as_json: bool, out: Path | None, save: Path | None, quiet: bool, **options: Any) -> int:
    """Follow MODEL's residual stream block by block: where it loses a direction, and why."""
    prepare_torch()
    from deadreckon.verbs.trace import trace as run

    with progress(model, quiet=quiet) as update:
        found = run(model, progress=lambda done, total: update(model, done, total), **options)
    emit(found, lambda: trace_table(found), as_json=as_json, out=out, save=save)
    return COLLAPSED if found.verdict == "collapsed" else 0


def trace_table(trace: Trace) -> RenderableType:
    """Each stream's profile over depth, its verdict, and the events with what they rest on."""
    from rich.console import Group

    return Group(*(part for stream in trace.streams for part in _stream(trace.model, stream)), *_notes(trace))


def _notes(trace: Trace) -> list[str]:
    return [f"note: {warning}" for warning in trace.warnings]


def _stream(model: str, stream: Stream) -> list[RenderableType]:
    from rich.table import Table

    title = f"{model}: {stream.blocks_path}, {stream.tokens} tokens ({stream.tokens_per_dimension:.1f} per dimension)"
    table = Table(title=title, title_justify="left")
    for name in ("block", "sigma_min", "floor", "geomean", "step ratio", "relative", "status"):
        table.add_column(name, justify="left" if name == "status" else "right")
    for node in stream.blocks:
        marked = node.index == stream.worst_block or any(event.block == node.index for event in stream.events)
        cells = [node.sigma_min, node.sigma_floor, node.sigma_geomean, node.step_ratio, node.relative_step_ratio]
        table.add_row(
            "in" if node.index < 0 else str(node.index),
            *("-" if value is None else f"{value:.3g}" for value in cells),
            node.status,
            style="bold" if marked else None,
        )
    lines: list[RenderableType] = [
        table,
        f"sigma_min over depth  {_sparkline([node.sigma_min for node in stream.blocks])}",
        f"verdict: {stream.verdict}: {stream.why}",
    ]
    for event in stream.events:
        lines += _event(event)
    return lines


def _event(event: Event) -> list[str]:
    top = ", ".join(f"{c.coordinate} ({c.weight:.2f})" for c in event.direction.top[:4])
    return [
        f"block {event.block} ({event.module}): {event.kind}, {event.cause}: {event.says}",
        f"  direction: participation ratio {event.direction.participation_ratio:.1f}, coordinates {top}",
        *(f"  {line}" for line in _evidence(event.evidence)),
    ]


def _evidence(found: StreamEvidence) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    lines = [
        f"along it {number(found.before)} before, {number(found.after)} after, floor {number(found.floor)}; "
        f"its parts write {number(found.write_ratio)} times that, correlation {number(found.correlation)}, and leave "
        f"{number(found.remainder)} unaccounted for"
    ]
    lines += [
        f"{write.module} cancels {write.share:.2f} of it (correlation {write.correlation:.2f})"
        for write in found.writes
    ]
    lines.append(
        f"block scalar {number(found.scalar)}, dead coordinates hold {number(found.dead_weight)}, "
        f"{number(found.carriers)} of the tokens hold 99 % of it, norm alignment {number(found.norm_alignment)}"
    )
    lines.append(
        f"it stays lost up to block {found.survives_to} ({number(found.last)} after the last, "
        f"{number(found.after_final_norm)} through the final norm)"
    )
    return lines


def _sparkline(values: list[float]) -> str:
    """The logarithms of values as bars."""
    import math

    logs = [math.log10(value) if value > 0 else None for value in values]
    known = [value for value in logs if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(
        " " if value is None else _BARS[round((len(_BARS) - 1) * ((value - low) / span if span else 0.5))]
        for value in logs
    )
