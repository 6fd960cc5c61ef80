"""What is to be called on what, and the key that names it by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deadreckon import __version__
from deadreckon.checkpoint.source import parse_model
from deadreckon.errors import DeadreckonError
from deadreckon.results.census import Census
from deadreckon.results.fisher import Fisher
from deadreckon.results.measurement import Measurement
from deadreckon.results.reading import Classifications, Reading
from deadreckon.results.record import Record
from deadreckon.results.trace import Trace
from deadreckon.study.content import content_of
from deadreckon.study.resources import Resources

VERBS: dict[str, type[Record]] = {
    "read": Reading,
    "classify": Classifications,
    "census": Census,
    "measure": Measurement,
    "trace": Trace,
    "fisher": Fisher,
}
"""What may be called on a model, with the record that comes of it."""


@dataclass(frozen=True)
class Planned:
    """A verb to be called on a model.

    Attributes:
        verb: one of `VERBS`.
        model: a MODEL name without its revision.
        revision: of a model on the hub its revision, of a folder the folder in it; None where nothing is to be added.
        step: training step that this revision is of; None where it has none.
        options: keyword arguments of the verb, such as JSON can hold.
        content: what the model and other files named were when they were looked at; None: not looked at yet.
        resources: what it takes of a machine, which decides no result; None: whatever there is.
    """

    verb: str
    model: str
    revision: str | None = None
    step: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    content: str | None = None
    resources: Resources | None = None

    @property
    def name(self) -> str:
        """The MODEL name with its revision, as the verb is given it."""
        if self.revision is None:
            return self.model
        return f"{self.model}{'@' if parse_model(self.model).scheme == 'hub' else '/'}{self.revision}"

    @property
    def key(self) -> str:
        """The first 40 digits of a SHA-256 of all that decides the result: equal for equal tasks, and for no others."""
        decisive = {
            "verb": self.verb,
            "model": self.model,
            "revision": self.revision,
            "step": self.step,
            "options": dict(self.options),
            "content": self.content,
            "record": VERBS[self.verb].kind_of_record,
            "deadreckon": __version__,
        }
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:40]


def stamped(plans: Iterable[Planned]) -> list[Planned]:
    """The same tasks with the content of their models, each of which is looked at once.

    A model that cannot be reached has none; its tasks will fail by themselves, and be another task once it can be.

    Args:
        plans: with or without content.

    Returns:
        With content, in their order, each only once.
    """
    seen: dict[tuple[str, ...], str] = {}
    unique: dict[str, Planned] = {}
    for plan in plans:
        if plan.content is None:
            files = sorted(str(path) for name in ("text", "images", "audio") for path in plan.options.get(name) or ())
            looked = (plan.model, plan.revision or "", *files)
            if looked not in seen:
                seen[looked] = _content(plan, files)
            plan = replace(plan, content=seen[looked])
        unique.setdefault(plan.key, plan)
    return list(unique.values())


def _content(plan: Planned, files: Iterable[str]) -> str:
    try:
        return content_of(plan.name, files)
    except (DeadreckonError, OSError):
        return "unreachable"
