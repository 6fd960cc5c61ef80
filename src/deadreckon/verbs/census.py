"""``census``: how many parameter dimensions of a model are exactly dead, from shapes, ties and norms alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from deadreckon.checkpoint.anatomy_table import anatomy_of, model_types, zoo_shapes
from deadreckon.checkpoint.columns import columns_readable
from deadreckon.checkpoint.elements import decode
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.source import open_model, parse_model
from deadreckon.checkpoint.zoo import zoo_entry
from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.anatomy import Anatomy, NormSite
from deadreckon.kernel.census import KERNEL_REASONS, DeadParameters, dead_parameters
from deadreckon.kernel.norm import Float64Array, Norm, check_parameter, effective_gain, norm_kind
from deadreckon.results.census import Census, EmittedDirection, TensorCount

if TYPE_CHECKING:
    from torch import nn

_SHOWN_TENSORS = 12


@dataclass(frozen=True)
class Subject:
    """A model to count: its anatomy, its tensors as far as they can be had, and what to say about it.

    Attributes:
        name: how to name it to the user.
        model_class: the class whose outputs are meant.
        anatomy: its norms, readers and writers.
        vector: a norm's tensor by name, in float64; None: there are only shapes.
        tensor: any tensor by name, in float64; None: there are only shapes.
        notes: what a reader of its numbers has to know.
        checkpoint: the files, where it came from files.
    """

    name: str
    model_class: str
    anatomy: Anatomy
    vector: Callable[[str], Float64Array] | None
    tensor: Callable[[str], Float64Array] | None
    notes: list[str]
    checkpoint: Checkpoint | None = None


def census(model: str | os.PathLike[str] | nn.Module, *, emit: str | None = None) -> Census:
    """The number of exactly dead parameter dimensions, by family, and the bound that follows.

    Args:
        model: a MODEL name (directory, safetensors file, model on the hub, ``random:NAME``, ``demo:NAME``) or a loaded
            module.
        emit: ``FAMILY:INDEX``, a direction to put into the record's `vectors`, by tensor: the derivative at which the
            dead curve sets off (for all families but gain_scaling and joint_weight_beta the curve is that line).

    Returns:
        The census. No tensor but those of norms is read, save for `emit`.

    Raises:
        UsageError: no anatomy is known for the model, or `emit` names no direction.
        InputError: a file is damaged.
        UnreachableError: a file is missing.
    """
    started = time.perf_counter()
    subject = subject_of_module(model) if not isinstance(model, str | os.PathLike) else _of_name(model)
    anatomy = subject.anatomy
    if subject.checkpoint is not None:
        parameters = (name for site in anatomy.norms for name in (site.gain, site.shift))
        subject.checkpoint.prefetch([name for name in parameters if name is not None])
    norms = {site.name: norm_of(subject, site) for site in anatomy.norms}
    found = dead_parameters(anatomy, norms)
    generic = dead_parameters(anatomy, {name: _in_general_position(norm) for name, norm in norms.items()})
    emitted, vectors = _emitted(subject, found, emit) if emit is not None else (None, {})
    kernel = sum(found.by_reason[reason] for reason in KERNEL_REASONS)
    record = Census(
        model=subject.name,
        model_class=subject.model_class,
        output=anatomy.output,
        parameters=found.parameters,
        dead_dimensions=found.dimensions,
        share=found.dimensions / found.parameters,
        by_reason=found.by_reason,
        by_tensor=[
            TensorCount(tensor=name, dead=dead, parameters=prod(anatomy.tensors[name]))
            for name, dead in list(found.by_tensor.items())[:_SHOWN_TENSORS]
        ],
        layernorm_kernel_share=kernel / found.parameters,
        rlct_upper_bound=(found.parameters - found.dimensions) / 2,
        generic_dead_dimensions=generic.dimensions,
        norms=len(anatomy.norms),
        emitted=emitted,
        notes=subject.notes,
        bytes_read=subject.checkpoint.bytes_read if subject.checkpoint else 0,
        seconds=time.perf_counter() - started,
        revision=subject.checkpoint.revision if subject.checkpoint else None,
    )
    return record.with_vectors(lambda: vectors)


def _of_name(model: str | os.PathLike[str]) -> Subject:
    source = parse_model(model)
    if source.scheme == "random":
        entry = zoo_entry(source.name)
        if entry.model_type not in model_types():
            raise UsageError(f"{source}: no anatomy known for {entry.model_type!r}; {_known()}")
        anatomy = anatomy_of(
            entry.model_type, entry.model_class, entry.config, zoo_shapes(entry.name), f"random:{entry.name}"
        )
        notes = ["gains and shifts as the initialiser leaves them: shifts are zero"]
        return Subject(str(source), entry.model_class, anatomy, None, None, notes)
    checkpoint = open_model(source)
    where = str(source)
    if checkpoint.format in ("gguf", "onnx"):
        raise UsageError(
            f"{where}: no anatomy known for {checkpoint.format.upper()} files; name the model's checkpoint"
        )
    config = checkpoint.config
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UsageError(f"{where}: there is no config naming the architecture; put config.json beside the file")
    classes = config.get("architectures")
    class_name = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None
    checkpoint.prefetch(list(checkpoint.tensors), entries_only=True)
    shapes = {name: checkpoint.tensors[name].shape for name in checkpoint.tensors}
    anatomy = anatomy_of(model_type, class_name, config, shapes, where)
    extra = [name for name in shapes if name not in anatomy.tensors and name not in (anatomy.ties or {})]
    notes = [f"{len(extra)} tensor(s) of the file are not counted: {', '.join(extra[:3])}"] if extra else []

    def tensor(name: str) -> Float64Array:
        return _whole(checkpoint, name)

    return Subject(where, class_name or model_type, anatomy, checkpoint.vector, tensor, notes, checkpoint)


def subject_of_module(model: Any) -> Subject:
    """A loaded module as the census sees it.

    Args:
        model: the module; it is left as it was.

    Returns:
        Its anatomy, and its parameters as they are whenever they are asked for.

    Raises:
        UsageError: it is no module, has no parameters, or no anatomy is known for it.
        InputError: later, when a parameter without numbers is asked for.
    """
    if not hasattr(model, "named_parameters"):
        raise UsageError(f"census takes a model's name or a loaded module, not {type(model).__name__}")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UsageError(f"{type(model).__name__} has no parameters to count")
    config = getattr(model, "config", None)
    name, shapes = type(model).__name__, {n: tuple(p.shape) for n, p in parameters.items()}
    model_type = getattr(config, "model_type", None)

    def tensor(which: str) -> Float64Array:
        parameter = parameters[which].detach()
        if parameter.is_meta:
            raise InputError(f"{name}: {which} is on the meta device: it has no numbers; load the weights")
        values: Float64Array = parameter.double().cpu().numpy()
        return values

    if model_type in model_types():
        anatomy = anatomy_of(model_type, name, config.to_dict(), shapes, name)  # type: ignore[union-attr]
    else:
        anatomy = _watched(model, name)
    return Subject(name, name, anatomy, tensor, tensor, [])


def _watched(model: Any, name: str) -> Anatomy:
    """The anatomy of a module that the table does not have, if it is small."""
    from deadreckon.forward.anatomy_watch import watch_anatomy
    from deadreckon.forward.random_inputs import random_inputs

    try:
        return watch_anatomy(model, next(random_inputs(model, seed=0, batch_size=1).batches()))
    except UsageError as error:
        raise UsageError(f"{name}: no anatomy known, and it cannot be watched ({error}); {_known()}") from None


def _known() -> str:
    return f"there is one for {', '.join(model_types())}"


def norm_of(subject: Subject, site: NormSite) -> Norm:
    """A norm's parameters: from the model, or as an initialiser leaves them.

    Args:
        subject: the model.
        site: which of its norms.

    Returns:
        The norm.
    """
    gain, shift = np.ones(site.hidden_size), np.zeros(site.hidden_size) if site.shift else None
    if subject.vector is not None:
        if site.gain is not None:
            what = f"{subject.name}: {site.gain}"
            gain = effective_gain(subject.vector(site.gain), site.offset, what=what)
        if site.shift is not None:
            shift = check_parameter(subject.vector(site.shift), f"{subject.name}: {site.shift}")
    return Norm(site.name, norm_kind(site.kind), gain, shift, "block", site.offset, site.groups)


def _in_general_position(norm: Norm) -> Norm:
    return replace(norm, gain=np.ones_like(norm.gain), shift=None if norm.shift is None else np.ones_like(norm.gain))


def _emitted(subject: Subject, found: DeadParameters, emit: str) -> tuple[EmittedDirection, Mapping[str, Float64Array]]:
    reason, colon, index = emit.rpartition(":")
    if not colon or not (index.isascii() and index.isdigit()):
        raise UsageError(f"--emit {emit}: write FAMILY:INDEX, for example writer_mean:0")
    family, _ = found.locate(reason, int(index))

    def tensor(name: str) -> Float64Array:
        if subject.tensor is None:
            raise UsageError(f"{subject.name} has no weights, which a direction of {reason} needs; name a checkpoint")
        return subject.tensor(name)

    direction = found.direction(reason, int(index), tensor)
    head = EmittedDirection(family=reason, index=int(index), counted_under=family.tensor, tensors=list(direction))
    return head, direction


def _whole(checkpoint: Checkpoint, name: str) -> Float64Array:
    """Any tensor of a checkpoint in float64."""
    from deadreckon.checkpoint.bounded import read_range

    entry = checkpoint.tensors[name]
    if not columns_readable(entry):
        raise InputError(f"{entry.path}: tensor {name!r} is stored as {entry.dtype}: it does not hold plain numbers")
    raw = read_range(entry.path, entry.start, entry.stop - entry.start, f"tensor {name!r}")
    checkpoint.bytes_read += len(raw)
    return decode(entry.dtype, raw).reshape(entry.shape)
