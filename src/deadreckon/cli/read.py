"""``deadreckon read``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deadreckon.cli.output import emit, model_argument, offline_option, output_options
from deadreckon.verbs.read import read as read_model

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.reading import Reading, StreamReading


@click.command()
@model_argument
@click.option("--norm", metavar="NAME|all", help="Another norm by tensor or module name, or all of them.")
@click.option("--kind", metavar="KIND", help="layernorm or rmsnorm, where the files do not tell.")
@click.option("--gain-offset", type=float, help="What the module adds to the stored gain, where the files do not tell.")
@click.option(
    "--tau", type=float, default=1e-6, show_default=True, help="Dead below this fraction of the mean variance."
)
@click.option("--stream", is_flag=True, help="Bound the residual stream's coordinates too (reads the embedding).")
@offline_option
@output_options
def read(
    model: str,
    norm: str | None,
    kind: str | None,
    gain_offset: float | None,
    tau: float,
    stream: bool,
    as_json: bool,
    out: Path | None,
    save: Path | None,
    quiet: bool,
) -> None:
    """Dead subspace of MODEL's final norm, from its parameters alone: no forward pass, and no torch."""
    reading = read_model(model, norm=norm, kind=kind, gain_offset=gain_offset, tau=tau, stream=stream)
    emit(reading, lambda: reading_table(reading), as_json=as_json, out=out, save=save)


def reading_table(reading: Reading) -> RenderableType:
    """The norms of a reading as a table, with the dead direction of the first in words."""
    from rich.console import Group
    from rich.table import Table

    table = Table(title=f"{reading.model}: dead directions from parameters", title_justify="left")
    for heading in (
        "norm",
        "role",
        "kind",
        "d",
        "exact kernel",
        f"dead at {reading.tau:g}",
        "gain: smallest",
        "median",
    ):
        table.add_column(heading, justify="left" if heading in {"norm", "role", "kind"} else "right", overflow="fold")
    for norm in reading.norms:
        table.add_row(
            norm.final_norm,
            norm.role,
            norm.kind,
            str(norm.hidden_size),
            str(norm.kernel_dim),
            str(norm.dead_count),
            f"{norm.smallest_gain:.3g}",
            f"{norm.median_gain:.3g}",
        )
    return Group(table, *_in_words(reading), *_of_stream(reading.stream))


def _in_words(reading: Reading) -> list[str]:
    lines = [f"{reading.kind} because {'; '.join(e.value for e in reading.evidence if e.says == reading.kind)}"]
    lines += [f"but {e.value} ({e.says})" for e in reading.evidence if e.says not in {reading.kind, "undetermined"}]
    top = reading.norms[0]
    if top.direction is not None:
        where = ", ".join(f"{c.index} ({c.weight:+.3f})" for c in top.direction.top[:3])
        lines.append(
            f"dead direction: spread over {top.direction.participation_ratio:.1f} coordinates, mostly {where}; "
            f"it reads {top.beta_projection or 0.0:.4g} for every input"
        )
    elif top.kernel_dim == 0:
        lines.append("no exact dead direction: this norm does not subtract the mean and no gain is zero")
    lines.append(f"{reading.bytes_read:,} bytes read in {reading.seconds * 1e3:.0f} ms")
    if reading.revision is not None:
        lines.append(f"at revision {reading.revision}")
    if reading.transfer is not None:
        lines.append(f"{reading.transfer.requests} requests, {reading.transfer.bytes:,} bytes received")
    return lines


def _of_stream(stream: StreamReading | None) -> list[RenderableType]:
    """The bounds of the residual stream: a table, and in words what they hold for."""
    from rich.table import Table

    if stream is None:
        return []
    if not stream.applies:
        return ["", f"residual stream: no bound from parameters: {stream.why}"]
    table = Table(title="residual stream: bounds of its coordinates from parameters", title_justify="left")
    for heading in ("blocks", f"dead at {stream.tolerance:g}", "unwritten", "bound: smallest", "median", "largest"):
        table.add_column(heading, justify="right")
    dead = "-" if stream.dead_coordinates is None else str(stream.dead_coordinates)
    bounds = (f"{bound:.4g}" for bound in (stream.bound_min, stream.bound_median, stream.bound_max))
    table.add_row(str(stream.blocks), dead, str(stream.unwritten_coordinates), *bounds)
    least = ", ".join(f"{c.index} ({c.bound:.4g})" for c in stream.smallest[:4])
    most = ", ".join(f"{c.index} ({c.bound:.4g})" for c in stream.largest[:4])
    lines = [f"after the last block, for {stream.inputs}: least {least}; most {most}"]
    if stream.covers == "writes":
        lines.append(f"of what the blocks add, without the embedding: {stream.why}")
    if stream.block_scalars:
        least_scalar, most_scalar = (
            f"{scalar:.4g}" for scalar in (min(stream.block_scalars), max(stream.block_scalars))
        )
        lines.append(f"block scalars from {least_scalar} to {most_scalar}, their product {stream.scalar_product:.4g}")
    lines.append(f"{stream.bytes_read:,} bytes read for this")
    return ["", table, *lines]
