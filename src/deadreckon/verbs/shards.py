"""A measurement in parts: each shard measures its share of the tokens and saves its moments, a merge concludes.

For machines that cannot talk to each other, or not at the same time (job arrays).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deadreckon.errors import DeadreckonError, InputError, UnreachableError, UsageError
from deadreckon.forward.collect import Collected
from deadreckon.forward.share import Share
from deadreckon.forward.spectrum import eigensolver
from deadreckon.forward.statistics import NormStatistics
from deadreckon.kernel.norm import Norm, norm_kind
from deadreckon.kernel.subspace import DEFAULT_TAU
from deadreckon.results.measurement import Measurement, Shard
from deadreckon.verbs.measure import concluded, record
from deadreckon.verbs.subjects import Options, Subject, Subjects

if TYPE_CHECKING:
    from torch import nn

_DIFFERS = frozenset({"shard", "tokens", "seconds", "environment", "warnings", "distinct_inputs"})
"""Fields of a shard in which the shards of one measurement may differ."""


def measure_shard(model: str | Path | nn.Module, shard: str, **options: Any) -> Shard:
    """Measure one share of the tokens.

    Args:
        model: as in `measure`.
        shard: ``i/n``, i from 1 to n: which of n shares. Rows are dealt to them in turn.
        options: those of `measure` that decide what is run: not `solver`, `tau` and `distribute`.

    Returns:
        The shard; its `vectors` are the moments, and a file of them with the record, as ``--save`` writes it, is what
        `merge_shards` reads.

    Raises:
        UsageError: as in `measure`, or a malformed share.
        InputError: likewise.
        UnreachableError: likewise.
    """
    started = time.perf_counter()
    share = Share.parse(shard)
    subjects = Subjects.of(model, Options(**options))
    state: dict[str, Tensor] = {}
    tokens, dtype, distinct = 0, torch.float64, None
    for subject in subjects.each():
        found = subjects.collect(subject, share)
        tokens, dtype = found.statistics.count, found.statistics.dtype
        distinct = None if found.ids is None else len(found.ids)
        state |= {f"{_prefix(subject)}.{name}": tensor for name, tensor in _state_of(found).items()}
    norm = subjects.site.norm
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    return Shard(
        **subjects.provenance(),
        norm=subjects.site.path,
        kind=norm.kind.name,
        groups=norm.groups,
        eps=norm.eps,
        gain_offset=norm.gain_offset,
        hidden_size=norm.hidden_size,
        dtype=str(dtype).removeprefix("torch."),
        shard=str(share),
        tokens=tokens,
        wanted_tokens=subjects.tokens,
        distinct_inputs=distinct,
        twins=subjects.twin_seeds,
        warnings=subjects.warnings,
        seconds=time.perf_counter() - started,
    ).with_vectors(lambda: arrays)


def merge_shards(
    files: Sequence[str | Path], *, solver: str = "eigh", tau: float = DEFAULT_TAU, kfac: bool = False
) -> Measurement:
    """The measurement that shards add up to.

    Args:
        files: what ``--save`` wrote of each shard, in any order; all n of them.
        solver: as in `measure`; not one that needs the tokens themselves.
        tau: as in `measure`.
        kfac: as in `measure`.

    Returns:
        What one process would have measured, to rounding.

    Raises:
        InputError: a file is not a shard, or not one of the same measurement.
        UsageError: a shard is missing or was given twice.
        UnreachableError: a file cannot be read.
    """
    started = time.perf_counter()
    engine = eigensolver(solver)
    if engine.needs_tokens:
        raise UsageError(f"the {solver} solver needs the tokens themselves, shards hold moments: choose eigh or bottom")
    shards = [(Path(file), _record_of(Path(file))) for file in files]
    first = _complete(shards)
    conclusions = []
    for prefix in ("model", *(f"twin.{seed}" for seed in first.twins)):
        merged = _merged(shards, prefix)
        conclusions.append(concluded(merged, engine, tau, path=first.norm, wanted=first.wanted_tokens, kfac=kfac))
    provenance = {name: getattr(first, name) for name in _PROVENANCE}
    return record(provenance, first.warnings, conclusions, first.twins, solver, started)


_PROVENANCE = ("model", "revision", "described_by", "files", "data", "skipped_inputs", "seed", "affine", "environment")


def _prefix(subject: Subject) -> str:
    return "model" if subject.seed is None else f"twin.{subject.seed}"


def _state_of(collected: Collected) -> dict[str, Tensor]:
    statistics = collected.statistics
    state = {**statistics.state(), "gain": statistics.reference.gain.cpu(), "shift": statistics.reference.shift.cpu()}
    if collected.ids is not None:
        state["ids"] = torch.tensor(sorted(collected.ids), dtype=torch.int64)
    return state


def _record_of(path: Path) -> Shard:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        found = json.loads(metadata.get("record", "null"))
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror or error}; name the file that --save wrote") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged, or not a file that --save wrote of a shard: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != Shard.kind_of_record:
        raise InputError(f"{path}: not a shard: name files that `deadreckon measure --shard i/n --save FILE` wrote")
    try:
        shard = Shard.from_dict(found)
        Share.parse(shard.shard)
    except DeadreckonError as error:
        raise InputError(f"{path}: {error}") from None
    return shard


def _complete(shards: Sequence[tuple[Path, Shard]]) -> Shard:
    """The first of the shards, once they are known to be all of one measurement."""
    if not shards:
        raise UsageError("no shards were given: name the files that `measure --shard i/n --save FILE` wrote")
    # One without tokens has seen no dtype.
    path, first = next((pair for pair in shards if pair[1].tokens), shards[0])
    wanted = Share.parse(first.shard).count
    seen: dict[str, Path] = {}
    for other, shard in shards:
        differs = _DIFFERS if shard.tokens else _DIFFERS | {"dtype"}
        for name, value in first.to_dict().items():
            if name not in differs and shard.to_dict()[name] != value:
                raise InputError(
                    f"{other}: not of the same measurement as {path}: {name} is {shard.to_dict()[name]!r} there and "
                    f"{value!r} here"
                )
        if Share.parse(shard.shard).count != wanted:
            raise InputError(f"{other}: shard {shard.shard}, but {path} is shard {first.shard}")
        if shard.shard in seen:
            raise UsageError(f"{other}: shard {shard.shard} was given already, as {seen[shard.shard]}")
        seen[shard.shard] = other
    missing = [f"{i}/{wanted}" for i in range(1, wanted + 1) if f"{i}/{wanted}" not in seen]
    if missing:
        raise UsageError(
            f"shard {', '.join(missing)} is missing: a part of the tokens would be left out; name them all"
        )
    return first


def _merged(shards: Sequence[tuple[Path, Shard]], prefix: str) -> Collected:
    """What all shards collected of one model, one of them in memory at a time."""
    whole = _restored(*shards[0], prefix)
    statistics, ids = whole.statistics, whole.ids
    for path, shard in shards[1:]:
        part = _restored(path, shard, prefix)
        if not statistics.same_norm(part.statistics):
            raise InputError(f"{path}: its norm has other parameters than that of {shards[0][0]}")
        statistics.merge(part.statistics)
        ids = None if ids is None or part.ids is None else ids | part.ids
    return Collected(statistics, ids)


def _restored(path: Path, shard: Shard, prefix: str) -> Collected:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in list(file.keys()) if name.startswith(f"{prefix}.")]
            state = {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in names}
        norm = Norm(
            shard.norm,
            norm_kind(shard.kind),
            state["gain"].numpy(),
            state["shift"].numpy(),
            gain_offset=shard.gain_offset,
            groups=shard.groups,
            eps=shard.eps,
        )
        statistics = NormStatistics(norm, torch.device("cpu"))
        for name, empty in statistics.state().items():
            _check(f"{prefix}.{name}", state[name], empty, shard.tokens)
        dtype = getattr(torch, shard.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f"{shard.dtype!r} is not a dtype of activations")
        statistics.restore(state, dtype)
    except (SafetensorError, KeyError, TypeError, DeadreckonError) as error:
        raise InputError(f"{path}: not as --save wrote it ({error}): measure this shard again") from None
    return Collected(statistics, frozenset(state["ids"].tolist()) if "ids" in state else None)


def _check(name: str, tensor: Tensor, expected: Tensor, tokens: int) -> None:
    """Refuse what no measurement can have saved under that name."""
    if (tensor.shape, tensor.dtype) != (expected.shape, expected.dtype):
        raise InputError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{name} is not finite")
    if name.endswith(".count") and int(tensor) != tokens:
        raise InputError(f"{name} is {int(tensor)} and the record says {tokens} tokens")
