"""Names for results: the model's, and beside it only what tells two results of one model apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from deadreckon.render.gather import Entry
from deadreckon.results.record import Record

# In the order in which they say most to a reader; each is told only where it differs within the model.
_TELLING: tuple[tuple[str, Callable[[Entry[Record]], Any]], ...] = (
    ("", lambda e: getattr(e.record, "affine", None) or "plain"),
    ("step ", lambda e: e.step),
    ("", lambda e: getattr(getattr(e.record, "environment", None), "dtype", None)),
    ("", lambda e: getattr(e.record, "norm", None)),
    ("seed ", lambda e: getattr(e.record, "seed", None)),
    ("at ", lambda e: getattr(e.record, "revision", None)),
    ("", lambda e: getattr(e.record, "data", None)),
    ("", lambda e: getattr(e.record, "solver", None)),
)


def labels(entries: Sequence[Entry[Record]]) -> list[str]:
    """A name for each entry, no two the same.

    Args:
        entries: of one kind.

    Returns:
        The names, in order: a model's short name, then what differs among the results of that model.
    """
    by_model: dict[str, list[Entry[Record]]] = {}
    for entry in entries:
        by_model.setdefault(entry.record.model, []).append(entry)
    short = _short_names(list(by_model))
    telling = {
        model: [(prefix, tell) for prefix, tell in _TELLING if len({tell(sibling) for sibling in siblings}) > 1]
        for model, siblings in by_model.items()
    }
    found, used = [], set()
    for entry in entries:
        parts = [short[entry.record.model]]
        parts += [
            f"{prefix}{said}" for prefix, tell in telling[entry.record.model] if (said := tell(entry)) is not None
        ]
        name, count = ", ".join(parts), 1
        while name in used:
            count += 1
            name = f"{', '.join(parts)} ({count})"
        used.add(name)
        found.append(name)
    return found


def _short_names(models: list[str]) -> dict[str, str]:
    """The last part of a path, where that still tells all models apart."""
    last = {model: model if ":" in model else PurePath(model).name or model for model in models}
    alike = {name for name in last.values() if list(last.values()).count(name) > 1}
    return {model: model if name in alike else name for model, name in last.items()}
