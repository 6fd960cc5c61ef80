"""A report on saved results: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.render.gather import Findings, gather
from deadreckon.results.record import Record
from deadreckon.results.writing import write_file

if TYPE_CHECKING:
    from deadreckon.render.parts import Figure, Section

# In the order of the page. To show one more kind of result, add its section here.
_SECTIONS = (
    "claims",
    "reproduction",
    "alignment",
    "spectrum",
    "gap",
    "stream",
    "trajectory",
    "reading",
    "evidence",
    "fisher",
    "census",
    "others",
    "failed",
    "provenance",
)


_NEEDED = {"altair": "altair", "vl_convert": "vl-convert-python"}


@dataclass(frozen=True)
class Report:
    """Results as a page.

    Attributes:
        title: of the page.
        headline: what the results say, in words.
        sections: its parts, in order.
        command: what made it.
    """

    title: str
    headline: str
    sections: Sequence[Section]
    command: str

    def to_html(self) -> str:
        """The page: one document that needs no other and asks for none."""
        from deadreckon.render.page import page

        return page(self.title, self.headline, self.sections, self.command)

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Args:
            path: the file; one that is there is replaced.

        Returns:
            The path.
        """
        write_file(Path(path), self.to_html().encode())
        return Path(path)

    def save_images(self, folder: str | Path, kind: str = "png") -> list[Path]:
        """Write each chart as an image.

        Args:
            folder: where to; made where it is missing.
            kind: png | svg.

        Returns:
            The files, in the order of the page.

        Raises:
            UnreachableError: the folder cannot be made.
            UsageError: there is no such kind.
        """
        from deadreckon.render.images import images

        if kind not in {"png", "svg"}:
            raise UsageError(f"no images of kind {kind!r}: choose png or svg")
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnreachableError(f"{folder}: {error.strerror}; name a folder that can be made") from None
        written = []
        for name, data in images(self.figures, kind):
            written.append(Path(folder) / name)
            write_file(written[-1], data)
        return written

    @property
    def figures(self) -> list[Figure]:
        """The charts, in order."""
        from deadreckon.render.parts import Figure

        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def report(*results: str | Path | Record, title: str = "Dead directions", command: str = "report()") -> Report:
    """A report on saved results: what they say in words, a verdict per claim, charts, tables and provenance.

    Args:
        *results: files that ``--out`` wrote, folders of them or of a sweep, or the records themselves.
        title: of the page.
        command: what the page says it was made by.

    Returns:
        The report: `save` writes the page, `save_images` the charts.

    Raises:
        UnreachableError: a file cannot be read, or the charts' packages are not installed.
    """
    if missing := missing_package():
        raise UnreachableError(f"charts need {missing}, which is not installed: pip install 'deadreckon[report]'")
    findings = gather(results)
    sections = [section for make in _makers() if (section := make(findings)) is not None]
    headline = " ".join(section.digest for section in sections if section.digest)
    return Report(title, headline or "What these results say, in tables.", sections, command)


def missing_package() -> str | None:
    """What charts need and this Python lacks, by the name that pip knows; None if nothing."""
    return next((name for module, name in _NEEDED.items() if find_spec(module) is None), None)


def _makers() -> list[Callable[[Findings], Section | None]]:
    return [import_module(f"deadreckon.render.sections.{name}").section for name in _SECTIONS]
