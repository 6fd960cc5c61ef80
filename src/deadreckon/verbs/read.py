"""``read``: the dead subspace of a model's norms from their parameters alone, without a forward pass."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from deadreckon.checkpoint.bounded import file_size
from deadreckon.checkpoint.evidence import gather, of_architecture
from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.places import Place, RemotePath
from deadreckon.checkpoint.source import open_model, parse_model
from deadreckon.checkpoint.zoo import zoo_entry, zoo_norms
from deadreckon.errors import UsageError
from deadreckon.kernel.norm import Float64Array, Norm, effective_gain, median, norm_kind
from deadreckon.kernel.subspace import DEFAULT_TAU, DeadSubspace
from deadreckon.results.reading import Coordinate, Direction, Evidence, FileStamp, NormReading, Reading, Transfer

if TYPE_CHECKING:
    from torch import nn

    from deadreckon.kernel.stream_bound import NoBound, StreamParts
    from deadreckon.results.reading import StreamReading

_SHOWN_COORDINATES = 8
_SHOWN_EIGENVALUES = 8


def read(
    model: str | os.PathLike[str] | nn.Module | ArrayLike,
    *,
    norm: str | None = None,
    kind: str | None = None,
    gain_offset: float | None = None,
    tau: float = DEFAULT_TAU,
    stream: bool = False,
) -> Reading:
    """The dead directions that a model's final norm has for every input, read from its gain.

    Args:
        model: a MODEL name (directory, file, model on the hub, https address, ``random:NAME``, ``demo:NAME``), a loaded
            module, or an array of effective gains, shape (d,).
        norm: another norm by the name of its module or gain tensor, or ``all`` for every norm.
        kind: layernorm | rmsnorm, where the files do not tell (always for an array).
        gain_offset: what the module adds to the stored gain, where the files do not tell.
        tau: an eigenvalue of the predicted covariance is dead at or below tau times their mean.
        stream: bound the coordinates of the residual stream too, where all that blocks write passes a norm; this reads
            the embedding.

    Returns:
        The reading; the first of its norms makes the last hidden state. `vectors` holds each norm's exact kernel and
        dead subspace by its name, and with `stream` the bounds before and after every block as ``stream_bound``.

    Raises:
        UsageError: the architecture is unknown or ends without a norm, or an option names nothing.
        InputError: a file is damaged or a gain is not a vector of finite numbers.
        UnreachableError: a file is missing, or a server does not give it.
    """
    started = time.perf_counter()
    if stream:
        _check_has_stream(model)
    checkpoint: Checkpoint | None = None
    if isinstance(model, str | os.PathLike):
        source = parse_model(model)
        name = str(source)
        if source.scheme == "random":
            norms, evidence = _published(source.name, norm)
        else:
            checkpoint = open_model(source)
            norms = find_norms(checkpoint, norm, kind=kind, gain_offset=gain_offset)
            evidence = gather(checkpoint, norms[0])
    elif hasattr(model, "named_modules"):
        name = type(model).__name__
        norms, evidence = _of_module(model, norm)
    else:
        if kind is None:
            raise UsageError("an array of gains does not tell its norm's kind: pass kind='layernorm' or kind='rmsnorm'")
        name, evidence = "gain", []
        norms = [Norm("gain", norm_kind(kind), effective_gain(model, gain_offset or 0.0))]
    if checkpoint is None and evidence and (kind is not None or gain_offset is not None):
        raise UsageError(f"{name}: kind and gain_offset are for files and arrays; this model says what its norms are")
    if kind is not None:
        evidence = [Evidence(name="given", says=kind, strength="decisive", value="the caller said so"), *evidence]

    subspaces = [DeadSubspace.of(n) for n in norms]
    readings = [_reading(n, s, tau, _gain_tensor(checkpoint, n)) for n, s in zip(norms, subspaces, strict=True)]

    parts, stream_reading = _stream(checkpoint, model, tau) if stream else (None, None)

    def vectors() -> dict[str, Float64Array]:
        bases: dict[str, Float64Array] = {}
        for n, subspace in zip(norms, subspaces, strict=True):
            bases[f"{n.name}.kernel"], bases[f"{n.name}.predicted_dead"] = subspace.kernel(), subspace.dead_basis(tau)
        if parts is not None:
            bases["stream_bound"] = parts.bound()
        return bases

    record = Reading(
        **vars(readings[0]),
        model=name,
        revision=checkpoint.revision if checkpoint else None,
        norms=readings,
        evidence=evidence,
        files=_stamps(checkpoint, norms),
        bytes_read=checkpoint.bytes_read if checkpoint else 0,
        transfer=_transfer(checkpoint),
        seconds=time.perf_counter() - started,
        stream=stream_reading,
    )
    return record.with_vectors(vectors)


def _reading(norm: Norm, subspace: DeadSubspace, tau: float, tensor: str) -> NormReading:
    magnitudes = np.abs(norm.gain)
    direction = subspace.direction
    return NormReading(
        role=norm.role,
        kind=norm.kind.name,
        hidden_size=norm.hidden_size,
        final_norm=tensor,
        gain_offset=norm.gain_offset,
        tau=tau,
        kernel_dim=subspace.kernel_dim,
        dead_count=subspace.dead_count(tau),
        zero_gains=int(subspace.zero_gains.size),
        smallest_gain=float(magnitudes.min()),
        median_gain=median(magnitudes),
        largest_gain=float(magnitudes.max()),
        direction=None if direction is None else _direction(direction),
        beta_projection=None if direction is None else float(direction @ _shift(norm)),
        predicted_eigenvalues=subspace.predicted_eigenvalues(_SHOWN_EIGENVALUES).tolist(),
        gain_depth_decades=_gain_depth(magnitudes),
    )


def _gain_depth(magnitudes: Float64Array) -> float | None:
    if not magnitudes.all():
        return None
    least, most = magnitudes.min(), magnitudes.max()  # divided out: squares of 1e-200 are no numbers
    means = np.mean((magnitudes / most) ** 2) * np.mean((least / magnitudes) ** 2)
    return float(np.log10(means) + 2 * (np.log10(most) - np.log10(least)))


def _direction(vector: Float64Array) -> Direction:
    order = np.argsort(-np.abs(vector), kind="stable")[:_SHOWN_COORDINATES]
    return Direction(
        participation_ratio=float(1.0 / np.sum(vector**4)),
        top=[Coordinate(index=int(i), weight=float(vector[i])) for i in order],
    )


def _shift(norm: Norm) -> Float64Array:
    return np.zeros(norm.hidden_size) if norm.shift is None else norm.shift


def _published(zoo_name: str, norm: str | None) -> tuple[list[Norm], list[Evidence]]:
    """The norms of a published configuration at random initialisation: no file, gains at their initial value."""
    entry = zoo_entry(zoo_name)
    norms = zoo_norms(entry)
    if norm not in {None, "all"}:
        norms = [n for n in norms if norm in {n.name, f"{n.name}.weight"}]
        if not norms:
            raise UsageError(f"random:{zoo_name} has no norm {norm!r} at the end of a stream: leave --norm out")
    return norms, [of_architecture(entry.config)]


def _of_module(model: Any, norm: str | None) -> tuple[list[Norm], list[Evidence]]:
    """The norms of a loaded module, probed."""
    from deadreckon.forward.anatomy import norms_of

    norms = norms_of(model, norm)
    value = f"{norms[0].name} was run alone on shifted inputs"
    return norms, [Evidence(name="functional", says=norms[0].kind.name, strength="decisive", value=value)]


def _check_has_stream(model: Any) -> None:
    if isinstance(model, str | os.PathLike):
        if parse_model(model).scheme == "random":
            raise UsageError(
                f"{model}: a published configuration has no tensors to bound its stream by; leave stream out"
            )
    elif not hasattr(model, "named_modules"):
        raise UsageError("an array of gains has no residual stream: leave stream out, or name the model")


def _stream(checkpoint: Checkpoint | None, model: Any, tau: float) -> tuple[StreamParts | None, StreamReading]:
    """The bound of the residual stream, from files or from a loaded module."""
    from deadreckon.verbs.stream import reading_of_stream

    before = checkpoint.bytes_read if checkpoint else 0
    found: StreamParts | NoBound
    if checkpoint is not None:
        from deadreckon.checkpoint.streams import find_stream

        found = find_stream(checkpoint)
    else:
        from deadreckon.forward.stream_bound import stream_of_module

        found = stream_of_module(model)
    return reading_of_stream(found, tau, (checkpoint.bytes_read if checkpoint else 0) - before)


def _gain_tensor(checkpoint: Checkpoint | None, norm: Norm) -> str:
    """Name of the gain's tensor; the norm's own name where it has none."""
    names = () if checkpoint is None else checkpoint.tensors
    return next(
        (f"{norm.name}.{leaf}" for leaf in ("weight", "gamma", "scale") if f"{norm.name}.{leaf}" in names), norm.name
    )


def _transfer(checkpoint: Checkpoint | None) -> Transfer | None:
    """What went over the network."""
    if checkpoint is None or not isinstance(checkpoint.path, RemotePath):
        return None
    requests, received = checkpoint.path.traffic
    return Transfer(requests=requests, bytes=received)


def _stamps(checkpoint: Checkpoint | None, norms: list[Norm]) -> list[FileStamp]:
    """One stamp a file that a norm was read from; the digest is of the parameters, since no more was read."""
    digests: dict[Place, Any] = {}
    for norm in norms if checkpoint else ():
        tensor = _gain_tensor(checkpoint, norm)
        if checkpoint and tensor in checkpoint.tensors:
            digest = digests.setdefault(checkpoint.tensors[tensor].path, hashlib.sha256())
            digest.update(norm.gain.astype("<f8").tobytes() + _shift(norm).astype("<f8").tobytes())
    return [
        FileStamp(name=path.name, bytes=file_size(path), sha256=digest.hexdigest(), covers="gains and shifts")
        for path, digest in digests.items()
    ]
