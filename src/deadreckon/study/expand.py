"""A specification written out: every task that it stands for, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import has_magic
from os.path import lexists
from pathlib import Path
from typing import Any

from deadreckon.checkpoint.source import parse_model
from deadreckon.errors import DeadreckonError
from deadreckon.study.document import Document, Place
from deadreckon.study.options import ForwardOptions, VerbOptions
from deadreckon.study.plan import Planned
from deadreckon.study.spec import Data, Models, Spec
from deadreckon.study.steps import fill_steps, step_of
from deadreckon.verbs.classify import matching

Point = tuple[str, str | None, int | None]
"""A model, its revision, and the training step of that."""


def expand(spec: Spec, document: Document) -> list[Planned]:
    """Every task of a specification.

    Args:
        spec: what to write out. Folders and patterns are looked at now, models are not.
        document: where its parts stand.

    Returns:
        Model by model, by revision, by verb, by seed, by data.

    Raises:
        InputError: a pattern or folder holds no checkpoint, or a list of steps does not come out.
    """
    points: dict[Point, None] = {}
    for index, entry in enumerate(spec.models):
        points |= dict.fromkeys(_points(entry, ("models", index), document))
    return [
        Planned(verb, model, revision, step, options, resources=given.resources or spec.resources)
        for model, revision, step in points
        for verb, _, given in spec.calls()
        for options in _options(spec, model, given)
    ]


def _points(entry: str | Models, place: Place, document: Document) -> list[Point]:
    if isinstance(entry, str):
        entry, given = Models(model=entry), []
    else:
        given = [name for name in ("checkpoints", "steps", "revisions", "model") if getattr(entry, name) is not None]
    try:
        if entry.checkpoints is not None:
            return _checkpoints(entry.checkpoints)
        model = str(entry.model)
        parse_model(model)
        if entry.revisions is None and entry.steps is None:
            return _matched(model) if has_magic(model) and not lexists(model) else [(model, None, None)]
        _check_has_revisions(model)
        if entry.revisions is not None:
            return [(model, str(name), step_of(str(name))) for name in entry.revisions]
        return [(model, entry.template.replace("{step}", str(n)), n) for n in fill_steps(entry.steps or ())]
    except (DeadreckonError, ValueError) as error:
        raise document.error((*place, *given[:1]), str(error)) from None


def _checkpoints(folder: str) -> list[Point]:
    """The checkpoint folders in a folder, by step."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder")
    steps = {path.name: step_of(path.name) for path in Path(folder).iterdir() if path.is_dir()}
    found = [(folder, name, step) for name, step in steps.items() if step is not None]
    if not found:
        raise ValueError(f"{folder}: holds no folder whose name ends in a step, such as checkpoint-500")
    return sorted(found, key=lambda point: (point[2], point[1]))


def _matched(pattern: str) -> list[Point]:
    """The checkpoints that a pattern stands for; one whose name tells a step is a revision of what it lies in."""
    points: list[Point] = []
    for found in matching(pattern):
        path = Path(str(found))
        step = step_of(path.name) if path.is_dir() else None
        points.append((str(path), None, None) if step is None else (str(path.parent), path.name, step))
    return sorted(points, key=lambda point: (point[0], -1 if point[2] is None else point[2], point[1] or ""))


def _check_has_revisions(model: str) -> None:
    source = parse_model(model)
    if source.scheme not in {"hub", "file"} or (source.scheme == "file" and Path(model).is_file()):
        raise ValueError(f"{model}: only models on the hub and folders have revisions")


def _options(spec: Spec, model: str, given: VerbOptions) -> Iterator[dict[str, Any]]:
    """Keyword arguments for each seed and data, where the verb takes them."""
    if not isinstance(given, ForwardOptions):
        yield given.given()
        return
    own_seed = parse_model(model).seed is not None
    seeds: Sequence[int | None] = [None] if spec.seeds is None or own_seed else spec.seeds
    inputs: Sequence[str | Data | None] = [None] if spec.data is None else spec.data
    for seed in seeds:
        for data in inputs:
            yield {**given.given(), **_seed(seed), **_data(data)}


def _seed(seed: int | None) -> dict[str, int]:
    return {"seed": seed} if seed else {}


def _data(data: str | Data | None) -> dict[str, Any]:
    """What differs from the verbs' own default, auto."""
    if isinstance(data, Data):
        return {name: files for name in ("text", "images", "audio") if (files := getattr(data, name))}
    return {"data": data} if data not in {None, "auto"} else {}
