"""``deadreckon measure``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deadreckon.cli.output import emit, offline_option, output_options, progress
from deadreckon.errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deadreckon.results.measurement import Figures, Gap, GapFigure, Measurement, Shard

_Command = TypeVar("_Command", bound=Callable[..., Any])

PROTOCOL_FAILED = 1
_CONCLUDING = {"solver", "tau", "kfac"}


def _batch_size(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """Rows, or None where memory decides."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is not a number of sequences: give auto or at least 1", ctx, param)
    return int(value)


def input_options(command: _Command) -> _Command:
    """Add the options that say what a model is run on."""
    options: list[Callable[[_Command], _Command]] = [
        click.option(
            "--text", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help="Text to run on; repeatable."
        ),
        click.option(
            "--images", multiple=True, metavar="PATH", help="Images to run on: files, folders, hf:NAME[:SPLIT]."
        ),
        click.option("--audio", multiple=True, metavar="PATH", help="Sound to run on, likewise; both repeatable."),
        click.option("--skip-bad", is_flag=True, help="Skip images and sound that cannot be read, and count them."),
        click.option(
            "--data",
            type=click.Choice(["auto", "text", "images", "audio", "random"]),
            default="auto",
            show_default=True,
            metavar="KIND",
            help="Inputs: auto (the files named; text, where there is a tokenizer), text, images, audio or random.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def place_options(command: _Command) -> _Command:
    """Add the options that say where, in which dtype and portions, and whose code may run."""
    options: list[Callable[[_Command], _Command]] = [
        click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16, float16 or float64."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--device-map",
            metavar="POLICY",
            help="Spread the model over devices: auto, balanced, balanced_low_0, sequential.",
        ),
        click.option(
            "--max-memory", metavar="cpu=8GB,0=40GB", help="Most weights a device may hold; the rest waits on disk."
        ),
        click.option(
            "--batch-size",
            metavar="auto|N",
            callback=_batch_size,
            default="auto",
            show_default=True,
            help="Sequences a forward; auto lets the device decide.",
        ),
        click.option("--trust-remote-code", is_flag=True, help="Let code that comes with a checkpoint run."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(epilog="Under torchrun the processes share the tokens, and the first one reports.")
@click.argument("models", nargs=-1, metavar="MODEL | --merge FILE...")
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens to measure.  [default: 8 d]")
@click.option(
    "--twin", type=click.IntRange(min=0), default=0, show_default=True, help="Random-init twins to measure too."
)
@input_options
@click.option("--norm", metavar="NAME", help="Another norm, by module path or gain tensor.")
@click.option("--affine", metavar="lognormal:SIGMA", help="Redraw gains and shifts of random: models and twins.")
@click.option(
    "--solver",
    default="eigh",
    show_default=True,
    help="eigh: whole spectrum; bottom: its certified bottom end, fast; svd: of the outputs themselves.",
)
@click.option(
    "--tau", type=float, default=1e-6, show_default=True, help="Dead below this fraction of the mean variance."
)
@click.option("--kfac", is_flag=True, help="Conclude on the Kronecker factor of the norm's readers, too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights and inputs.")
@place_options
@click.option("--shard", metavar="i/n", help="Measure one of n shares of the tokens and --save its moments.")
@click.option("--merge", is_flag=True, help="Conclude from the files that all shards saved.")
@offline_option
@output_options
def measure(
    models: tuple[str, ...],
    shard: str | None,
    merge: bool,
    as_json: bool,
    out: Path | None,
    save: Path | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Verify MODEL's dead subspace in one forward pass, and compare it with random-init twins."""
    _check(models, shard=shard, merge=merge, save=save)
    prepare_torch()
    from deadreckon.forward.distributed import launched, leads

    if merge:
        from deadreckon.verbs.shards import merge_shards

        measurement = merge_shards(models, solver=options["solver"], tau=options["tau"], kfac=options["kfac"])
    else:
        model = models[0]
        together = launched() and shard is None
        with progress(model, quiet=quiet or (together and not leads())) as update:
            options["progress"] = lambda done, total: update(model, done, total)
            if shard is not None:
                from deadreckon.verbs.shards import measure_shard

                part = measure_shard(model, shard, **{k: v for k, v in options.items() if k not in _CONCLUDING})
                emit(part, lambda: shard_table(part), as_json=as_json, out=out, save=save)
                return 0
            from deadreckon.verbs.measure import measure as run

            measurement = run(model, distribute=together, **options)
        if together and not leads():
            return 0
    emit(measurement, lambda: measurement_table(measurement), as_json=as_json, out=out, save=save)
    return 0 if measurement.protocol.status == "ok" else PROTOCOL_FAILED


def _check(models: tuple[str, ...], *, shard: str | None, merge: bool, save: Path | None) -> None:
    """Refuse options that exclude each other."""
    ctx = click.get_current_context()
    given = {
        name for name in ctx.params if ctx.get_parameter_source(name) not in {click.core.ParameterSource.DEFAULT, None}
    }
    if merge:
        extra = sorted(given - _CONCLUDING - {"merge", "models", "as_json", "out", "save", "quiet"})
        if extra:
            raise UsageError(f"--merge concludes from what was measured: leave out --{extra[0].replace('_', '-')}")
        return
    if len(models) != 1:
        raise UsageError(f"{len(models)} models were named: measure takes one (or files after --merge)")
    if shard is not None:
        if save is None:
            raise UsageError("--shard needs --save FILE.safetensors: its moments are what --merge concludes from")
        if extra := sorted(given & _CONCLUDING):
            raise UsageError(f"--{extra[0]} is for the conclusion: give it to --merge")


def prepare_torch() -> None:
    """Import torch and transformers, with third parties' warnings and progress bars silenced.

    Raises:
        UnreachableError: one of them is not installed.
    """
    import os
    import warnings
    from logging import getLogger

    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    try:
        import torch  # noqa: F401
        import transformers
    except ModuleNotFoundError as error:
        raise UnreachableError(
            f"measuring needs {error.name}, which is not installed: pip install 'deadreckon[measure]'"
        ) from None
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("accelerate").setLevel("ERROR")


def measurement_table(measurement: Measurement) -> RenderableType:
    """The figures of the model beside those of its twins."""
    from rich.console import Group
    from rich.table import Table

    columns: list[Figures] = [measurement, *measurement.twins]
    table = Table(
        title=f"{measurement.model}: {measurement.norm} over {measurement.tokens} tokens", title_justify="left"
    )
    table.add_column("")
    table.add_column("random init" if measurement.model.startswith("random:") else "model", justify="right")
    for twin in measurement.twins:
        table.add_column(f"twin, seed {twin.seed}", justify="right")
    for label, row in _rows(columns):
        table.add_row(label, *row)
    lines = [f"protocol: {measurement.protocol.why or measurement.protocol.status}"]
    lines += [f"note: {warning}" for warning in measurement.warnings]
    if measurement.gap:
        lines += [f"init to trained: {text}" for text in _gap_lines(measurement.gap)]
    return Group(table, *lines)


def _rows(columns: list[Figures]) -> list[tuple[str, list[str]]]:
    tau = f"{columns[0].tau:g}"
    rows: list[tuple[str, list[str]]] = [
        ("norm kind", [f.kind for f in columns]),
        ("protocol check", [f.protocol.status for f in columns]),
        ("exact kernel, from parameters", [str(f.kernel_dim) for f in columns]),
        (f"dead at {tau}, from parameters", [str(f.predicted_dead) for f in columns]),
        (f"dead at {tau}, measured", [dead_measured(f) for f in columns]),
        ("  of these not explained by the gain", [str(f.learned_dead) for f in columns]),
        ("angle, predicted to measured (rad)", [_small(f.largest_principal_angle) for f in columns]),
        ("alignment of gain^-1, one vector", [f"{f.alignment:.6f}" for f in columns]),
        ("alignment of gain^-1, subspace", [f"{f.subspace_alignment:.6f}" for f in columns]),
        ("alignment of 1/sqrt(d)", [f"{f.alignment_uniform:.6f}" for f in columns]),
        ("variance along it / mean, as run", [share_of_mean(f, f.lambda_dead) for f in columns]),
        ("  the same in float64", [share_of_mean(f, f.lambda_dead_float64) for f in columns]),
        ("effective rank", [_rank(f) for f in columns]),
    ]
    views = [f.kfac for f in columns if f.kfac is not None]
    if views:
        rows += [
            ("K-FAC factor along (w, -c) / mean", [_small(k.homogeneous_quotient / k.eigenvalue_mean) for k in views]),
            ("  its smallest eigenvalue / mean", [_small(k.eigenvalue_min / k.eigenvalue_mean) for k in views]),
            ("  without the bias: along w / mean", [_small(k.bias_free_quotient / k.eigenvalue_mean) for k in views]),
        ]
    return rows


def shard_table(shard: Shard) -> RenderableType:
    """What a shard measured, and what is left to do."""
    from rich.console import Group
    from rich.table import Table

    table = Table(show_header=False, title="Shard", title_justify="left")
    for label, value in shard.headline():
        table.add_row(label, value)
    return Group(table, "next: deadreckon measure --merge FILE... with the files of all shards")


def _rank(figures: Figures) -> str:
    rank = figures.effective_rank
    return "-" if rank is None else f"{rank:.1f} of {figures.hidden_size}"


def dead_measured(figures: Figures) -> str:
    """The measured dead count; a dash where the protocol failed, since it is then about another norm."""
    return str(figures.algebraic_dead + figures.learned_dead) if figures.protocol.status == "ok" else "-"


def share_of_mean(figures: Figures, variance: float) -> str:
    """A variance relative to the mean eigenvalue; a dash where nothing varies at all."""
    return _small(variance / figures.lambda_mean if figures.lambda_mean > 0 else None)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _gap_lines(gap: Gap) -> list[str]:
    def span(figure: GapFigure, unit: str) -> str:
        if figure.change is None:
            return "not defined: one side has no variance at all along it"
        return f"{figure.change:+.2f} {unit} ({figure.smallest:+.2f} to {figure.largest:+.2f} over twins)"

    return [f"depth {span(gap.depth_decades, 'decades')}", f"effective rank {span(gap.effective_rank, '')}"]
