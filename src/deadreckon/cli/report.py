"""``deadreckon report``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

REPORT_FILE = Path("deadreckon-report.html")
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("places", nargs=-1, required=True, type=_PATH, metavar="DIR|FILE...")
@click.option("--out", "-o", type=_PATH, default=REPORT_FILE, show_default=True, metavar="FILE", help="The page.")
@click.option("--png", type=_PATH, metavar="DIR", help="Also write each chart as a PNG image into DIR.")
@click.option("--svg", type=_PATH, metavar="DIR", help="Likewise as SVG.")
@click.option("--title", default="Dead directions", show_default=True, help="Title of the page.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing.")
def report(places: tuple[Path, ...], out: Path, png: Path | None, svg: Path | None, title: str, quiet: bool) -> None:
    """Write saved results as one HTML page: verdicts, charts, tables and provenance.

    A FILE is what --out of a verb wrote; a DIR holds such files, or is the store of a sweep. The page needs no network
    and no other file.
    """
    from deadreckon.render.report import report as make

    command = shlex.join(["deadreckon", "report", *map(str, places)])
    made = make(*places, title=title, command=command)
    made.save(out)
    folders = {kind: folder for kind, folder in (("png", png), ("svg", svg)) if folder is not None}
    images = [path for kind, folder in folders.items() for path in made.save_images(folder, kind)]
    if not quiet:
        click.echo(made.headline)
        click.echo(f"report: {out}")
        if folders:
            where = ", ".join(dict.fromkeys(map(str, folders.values())))
            click.echo(f"charts: {len(images)} {'image' if len(images) == 1 else 'images'} in {where}")
