"""``classify``: whether models end in a LayerNorm, an RMSNorm or no norm, from their parameters, with the evidence."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from deadreckon.checkpoint.evidence import gather, of_architecture
from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.source import open_model, parse_model
from deadreckon.checkpoint.zoo import zoo_entry
from deadreckon.errors import UsageError
from deadreckon.kernel.classify import conclude
from deadreckon.results.reading import Classification, Classifications, Evidence
from deadreckon.verbs.read import read

if TYPE_CHECKING:
    from torch import nn


def classify(*models: str | os.PathLike[str] | nn.Module) -> Classifications:
    """The kind of each model's final norm: layernorm, rmsnorm, none or undetermined.

    Args:
        models: MODEL names or loaded modules.

    Returns:
        One result a model, in their order. A checkpoint whose architecture is unknown and whose tensors decide nothing
        is "undetermined": that is an answer, not an error.

    Raises:
        UsageError: no model was given, or a name is not of the grammar.
        InputError: a file is damaged.
        UnreachableError: a file is missing.
    """
    if not models:
        raise UsageError("no model to classify: name at least one")
    results = []
    for model in models:
        name, revision, evidence = _evidence(model)
        kind, contradictions = conclude(evidence)
        results.append(
            Classification(model=name, kind=kind, evidence=evidence, contradictions=contradictions, revision=revision)
        )
    return Classifications(model=", ".join(result.model for result in results), results=results)


def _evidence(model: str | os.PathLike[str] | nn.Module) -> tuple[str, str | None, list[Evidence]]:
    """Name, revision and evidence of one model."""
    if not isinstance(model, str | os.PathLike):
        reading = read(model)
        return reading.model, None, reading.evidence
    source = parse_model(model)
    if source.scheme == "random":
        return str(source), None, [of_architecture(zoo_entry(source.name).config)]
    checkpoint = open_model(source)
    try:
        norm = find_norms(checkpoint, kind="layernorm")[0]  # its kind is what the evidence is for; here any will do
    except UsageError:  # ends un-normed, or unknown: the evidence says which
        norm = None
    return str(source), checkpoint.revision, gather(checkpoint, norm)
