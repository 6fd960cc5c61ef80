"""``classify``: whether models end in a LayerNorm, an RMSNorm or no norm, from their parameters, with the evidence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from glob import glob, has_magic
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING

from deadreckon.checkpoint.conversions import find_conversions
from deadreckon.checkpoint.evidence import gather, of_architecture, of_weights
from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.format import Checkpoint, format_of
from deadreckon.checkpoint.places import RemotePath
from deadreckon.checkpoint.source import open_model, parse_model
from deadreckon.checkpoint.zoo import zoo_entry
from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.kernel.classify import conclude
from deadreckon.kernel.norm import Norm
from deadreckon.results.reading import Classification, Classifications, Evidence
from deadreckon.verbs.read import read

if TYPE_CHECKING:
    from torch import nn


def classify(*models: str | os.PathLike[str] | nn.Module, functional: bool = False) -> Classifications:
    """The kind of each model's final norm: layernorm, rmsnorm, none or undetermined.

    Args:
        models: MODEL names or loaded modules. A name with ``*``, ``?`` or ``[`` that is no file's stands for every
            checkpoint that it matches.
        functional: also load each model and run its norm alone on shifted inputs (needs torch).

    Returns:
        One result a model, in their order. A checkpoint whose architecture is unknown and whose tensors decide nothing
        is "undetermined": that is an answer, not an error.

    Raises:
        UsageError: no model was given, or a name is not of the grammar.
        InputError: a file is damaged.
        UnreachableError: a file is missing, or a pattern matches no checkpoint.
    """
    if not models:
        raise UsageError("no model to classify: name at least one")
    named = [name for model in models for name in matching(model)]
    results = [_classified(model, functional=functional) for model in named]
    return Classifications(model=", ".join(result.model for result in results), results=results)


def matching(model: str | os.PathLike[str] | nn.Module) -> list[str | os.PathLike[str] | nn.Module]:
    """The checkpoints that a pattern stands for, by name; anything else stands for itself."""
    if not isinstance(model, str) or not has_magic(model) or lexists(model) or "://" in model:
        return [model]
    paths = [Path(path) for path in sorted(glob(model, recursive=True))]
    found: list[str | os.PathLike[str] | nn.Module] = [str(path) for path in paths if format_of(path) is not None]
    if not found:
        raise UnreachableError(f"{model}: {len(paths)} files or directories match and none of them is a checkpoint")
    return found


def _classified(model: str | os.PathLike[str] | nn.Module, *, functional: bool) -> Classification:
    if not isinstance(model, str | os.PathLike):
        reading = read(model)
        kind, contradictions = conclude(reading.evidence)
        return Classification(model=reading.model, kind=kind, evidence=reading.evidence, contradictions=contradictions)
    source = parse_model(model)
    probed = [_functional(model)] if functional else []
    if source.scheme == "random":
        evidence = [of_architecture(zoo_entry(source.name).config), *probed]
        kind, contradictions = conclude(evidence)
        return Classification(model=str(source), kind=kind, evidence=evidence, contradictions=contradictions)
    return replace(classify_checkpoint(open_model(source), probed), model=str(source))


def classify_checkpoint(checkpoint: Checkpoint, more: Sequence[Evidence] = ()) -> Classification:
    """The kind of an opened checkpoint's final norm.

    Args:
        checkpoint: an opened checkpoint.
        more: evidence that is not in its files.

    Returns:
        The kind, under the checkpoint's path.

    Raises:
        InputError: a file is damaged.
        UnreachableError: a file is missing.
    """
    whole = _is_whole(checkpoint)
    norms = _norms(checkpoint, whole=whole)
    main = norms[0] if norms else None
    weights = of_weights(checkpoint, main) if whole or isinstance(checkpoint.path, RemotePath) else None
    evidence = [*gather(checkpoint, main), *([weights] if weights else []), *more]
    kind, contradictions = conclude(evidence)
    if whole:
        contradictions += find_conversions(checkpoint, norms, kind)
    return Classification(
        model=str(checkpoint.path),
        kind=kind,
        evidence=evidence,
        contradictions=contradictions,
        revision=checkpoint.revision,
        bytes_read=checkpoint.bytes_read,
    )


def _is_whole(checkpoint: Checkpoint) -> bool:
    """Whether all that a checkpoint consists of is on this machine."""
    if isinstance(checkpoint.path, RemotePath):
        return False
    try:
        list(checkpoint.tensors.values())
    except UnreachableError:  # a shard; the final norm may do without
        return False
    return True


def _norms(checkpoint: Checkpoint, *, whole: bool) -> list[Norm]:
    """All norms of a checkpoint, those that end a stream where the rest is elsewhere or damaged, or none."""
    try:
        # Their kind is what the evidence is for; here any will do.
        ends = find_norms(checkpoint, kind="layernorm")
    except UsageError:  # ends un-normed, or unknown: the evidence says which
        return []
    if not whole:
        return ends
    try:
        return find_norms(checkpoint, "all", kind="layernorm")
    except (UsageError, InputError):
        return ends


def _functional(model: str | os.PathLike[str]) -> Evidence:
    """The kind as the loaded module's norm answers to shifted inputs."""
    from deadreckon.verbs.opened import ModelOptions, Opened

    loaded = Opened.of(model if isinstance(model, str) else Path(model), ModelOptions()).loaded
    return next(e for e in read(loaded.model).evidence if e.name == "functional")
