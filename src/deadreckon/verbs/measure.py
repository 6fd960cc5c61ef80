"""``measure``: verify in one forward pass what the parameters say, and compare it with random-init twins."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from deadreckon.forward import distributed
from deadreckon.forward.collect import Collected, Progress
from deadreckon.forward.conclude import Conclusion, conclude
from deadreckon.forward.gap import init_gap
from deadreckon.forward.kfac import kfac_view
from deadreckon.forward.placement import input_device, placement
from deadreckon.forward.share import WHOLE
from deadreckon.forward.spectrum import Eigensolver, eigensolver
from deadreckon.kernel.subspace import DEFAULT_TAU
from deadreckon.results.measurement import Measurement, Twin
from deadreckon.verbs.subjects import Options, Subjects


def measure(
    model: str | Path | nn.Module,
    *,
    tokens: int | None = None,
    batches: Iterable[Mapping[str, Any]] | None = None,
    twin: int = 0,
    seed: int = 0,
    data: str = "auto",
    text: Sequence[str | Path] = (),
    images: Sequence[str | Path] = (),
    audio: Sequence[str | Path] = (),
    skip_bad: bool = False,
    tokenizer: Any = None,
    processor: Any = None,
    norm: str | None = None,
    affine: str | None = None,
    solver: str = "eigh",
    tau: float = DEFAULT_TAU,
    kfac: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: str | Mapping[Any, int | str] | None = None,
    batch_size: int | None = None,
    distribute: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Second-order statistics of a norm's output over one forward pass, against what its parameters predict.

    Args:
        model: a MODEL name (directory, file, model on the hub, which is downloaded, ``random:NAME``, ``demo:NAME``) or
            a loaded module, which is left as it was.
        tokens: how many unmasked tokens to measure; by default 8 d, or all that `batches` hold. Must exceed d + 1.
        batches: the caller's own keyword inputs, e.g. a DataLoader; by default `data` decides.
        twin: how many random-init twins to measure on the same inputs.
        seed: seed of random weights and inputs; the k-th twin uses seed + k.
        data: ``text``, ``images``, ``audio``, ``random``, or ``auto``: what files are given for, else text where the
            model reads text and has a tokenizer, else random inputs of its shape.
        text: text files to use instead of the English text that Python ships.
        images: images to use: files, folders, directories that the package datasets saved, or ``hf:NAME[:SPLIT]`` for a
            data set on the Hugging Face hub. Successive ones make the clips of a model of videos; a model that puts
            images among its tokens gets each of them with text around it.
        audio: sounds to use, likewise.
        skip_bad: leave out images and sounds that cannot be decoded, instead of refusing.
        tokenizer: for a loaded module, what turns text into ids.
        processor: for a loaded module, what turns images or sound into its inputs.
        norm: module path or gain tensor of the norm; by default the one that makes the last hidden state.
        affine: ``lognormal:SIGMA`` redraws gains and shifts of a ``random:`` model and of the twins.
        solver: eigensolver: ``eigh`` for the whole spectrum, ``bottom`` for its certified bottom end alone (large
            models, repeated measurements), or ``svd`` of the centred outputs themselves.
        tau: tolerance of the predicted dead subspace, relative to the mean eigenvalue.
        kfac: whether to conclude on the readers' Kronecker factor, too; it takes one more eigendecomposition.
        dtype: dtype to load in; ``auto`` keeps the stored one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; a loaded module stays where it is.
        device_map: spread the model over devices: ``auto`` and transformers' other policies, or module path -> device.
        max_memory: most weights a device may hold, e.g. ``cpu=8GB,0=40GB``; the rest waits on disk.
        batch_size: sequences or images a forward; None lets memory decide, also after it ran out once.
        distribute: share the tokens with the other processes of ``torchrun``; each returns the same figures.
        trust_remote_code: whether code that comes with a checkpoint may run.
        progress: called with tokens done and wanted after every forward.

    Returns:
        The measurement; its protocol says whether the module that ran is the norm that was read. `vectors` holds the
        tested directions, the predicted dead subspace and both spectra.

    Raises:
        UsageError: too few tokens, too little memory, an option that does not fit the model, or no norm at its end.
        InputError: the checkpoint or an input file is damaged, activations are not finite, or processes differ.
        UnreachableError: a file, package or other process is missing.
    """
    started = time.perf_counter()
    engine = eigensolver(solver)
    if distribute and device_map is None and max_memory is None:
        device = distributed.local_device(device)
    options = Options(
        tokens=tokens,
        batches=batches,
        twin=twin,
        seed=seed,
        data=data,
        text=text,
        images=images,
        audio=audio,
        skip_bad=skip_bad,
        tokenizer=tokenizer,
        processor=processor,
        norm=norm,
        affine=affine,
        dtype=dtype,
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    if not distribute:
        subjects = Subjects.of(model, options)
        collected = (subjects.collect(s, WHOLE, keep_tokens=engine.needs_tokens) for s in subjects.each())
        return _record(subjects, [_concluded(subjects, c, engine, tau, kfac=kfac) for c in collected], solver, started)
    where = input_device(model) if isinstance(model, nn.Module) else placement(device, device_map, max_memory).device
    with distributed.together(where) as share:
        subjects = Subjects.of(model, options)
        distributed.agree("the model", distributed.fingerprint_of_model(subjects.loaded.model))
        decisive = (subjects.tokens, subjects.site.path, subjects.seed, twin, affine, solver, tau)
        distributed.agree("the inputs or options", distributed.fingerprint_of_inputs(subjects.inputs, *decisive))
        conclusions = []
        for subject in subjects.each():
            found = subjects.collect(subject, share)
            distributed.add_up(found.statistics)
            whole = Collected(found.statistics, distributed.union(found.ids))
            conclusions.append(_concluded(subjects, whole, engine, tau, kfac=kfac))
        return _record(subjects, conclusions, solver, started)


def _concluded(subjects: Subjects, collected: Collected, solver: Eigensolver, tau: float, *, kfac: bool) -> Conclusion:
    return concluded(collected, solver, tau, path=subjects.site.path, wanted=subjects.tokens, kfac=kfac)


def concluded(
    collected: Collected, solver: Eigensolver, tau: float, *, path: str, wanted: int | None, kfac: bool
) -> Conclusion:
    """The figures of one model, complete with what only the pass knows.

    Args:
        collected: over all shares.
        solver: for the spectra.
        tau: tolerance.
        path: of the norm.
        wanted: tokens that were asked for; None for all there were.
        kfac: whether the readers' Kronecker factor was asked for.

    Returns:
        The conclusion.
    """
    figures, vectors = conclude(collected.statistics, solver, tau)
    if wanted is not None and figures["tokens"] < wanted:
        shortage = f"the inputs held only {figures['tokens']} of the {wanted} tokens asked for"
        figures["warnings"] = [*figures["warnings"], shortage]
    distinct = None if collected.ids is None else len(collected.ids)
    view = kfac_view(collected.statistics) if kfac else None
    return Conclusion({**figures, "norm": path, "distinct_inputs": distinct, "kfac": view}, vectors)


def _record(subjects: Subjects, conclusions: list[Conclusion], solver: str, started: float) -> Measurement:
    return record(subjects.provenance(), subjects.warnings, conclusions, subjects.twin_seeds, solver, started)


def record(
    provenance: Mapping[str, Any],
    warnings: Sequence[str],
    conclusions: Sequence[Conclusion],
    seeds: Sequence[int],
    solver: str,
    started: float,
) -> Measurement:
    """The measurement of a model and its twins.

    Args:
        provenance: what was run.
        warnings: of loading it.
        conclusions: of the model, then of the twins.
        seeds: of the twins.
        solver: name of the eigensolver.
        started: when, by time.perf_counter.

    Returns:
        The record, with the model's vectors.
    """
    figures, vectors = conclusions[0]
    twins = [Twin(seed=seed, **found.figures) for seed, found in zip(seeds, conclusions[1:], strict=True)]
    measurement = Measurement(
        **{**figures, "warnings": [*warnings, *figures["warnings"]]},
        **provenance,
        solver=solver,
        seconds=0.0,
        twins=twins,
        gap=None,
    )
    gap = init_gap(measurement, twins) if twins else None
    return replace(measurement, gap=gap, seconds=time.perf_counter() - started).with_vectors(lambda: vectors)
