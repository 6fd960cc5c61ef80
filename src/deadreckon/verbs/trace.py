"""``trace``: the residual stream's smallest singular value block by block, and why it falls where it does."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.evaluating import evaluating
from deadreckon.forward.passes import Progress
from deadreckon.forward.profile import verdict, worst
from deadreckon.forward.trace import Traced, trace_streams
from deadreckon.results.trace import Node, Stream, Trace
from deadreckon.verbs.inputs import choose_inputs
from deadreckon.verbs.opened import ModelOptions, Opened

_WIDE = 1024  # from this width on, text has too few distinct ids to span the embeddings: random ids by default
_FEW_INPUTS = 1.5  # distinct ids a dimension
_FEW_TOKENS = 4


def trace(
    model: str | Path | nn.Module,
    *,
    tokens: int | None = None,
    batches: Iterable[Mapping[str, Any]] | None = None,
    seed: int = 0,
    data: str = "auto",
    text: Sequence[str | Path] = (),
    images: Sequence[str | Path] = (),
    audio: Sequence[str | Path] = (),
    skip_bad: bool = False,
    tokenizer: Any = None,
    processor: Any = None,
    blocks: Collection[int] | None = None,
    blocks_path: str | None = None,
    bottom: int = 1,
    memory: int | None = None,
    collapse_ratio: float = 0.1,
    affine: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: str | Mapping[Any, int | str] | None = None,
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Trace:
    """Singular values of the residual stream before the first block and after every block, over the same tokens.

    Args:
        model: a MODEL name (directory, file, model on the hub, which is downloaded, ``random:NAME``, ``demo:NAME``) or
            a loaded module, which is left as it was.
        tokens: how many unmasked tokens of the main stream to take; by default 8 d. At least d.
        batches: the caller's own keyword inputs, e.g. a DataLoader; by default `data` decides.
        seed: seed of random weights and inputs.
        data: ``text``, ``images``, ``audio``, ``random`` or ``auto``: what files were given, else text where the model
            has a tokenizer and fewer than 1,024 dimensions, else random inputs.
        text: text files.
        images: files, folders, or ``hf:NAME[:SPLIT]``.
        audio: likewise.
        skip_bad: leave out images and sound that cannot be read, and count them.
        tokenizer: for a loaded module, what turns text into ids.
        processor: for a loaded or random model, what turns images or sound into inputs.
        blocks: indices of the blocks to trace; the node before each is taken too. None for all.
        blocks_path: module path of the list of blocks, where it is not found or another is meant.
        bottom: how many of the smallest singular values to keep at every node, with their directions.
        memory: bytes that the Grams of one pass may take; more passes are made where that is too little for all.
        collapse_ratio: step ratios below it are events.
        affine: ``lognormal:SIGMA`` redraws gains and shifts of a ``random:`` model.
        dtype: dtype to load in; ``auto`` keeps the stored one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; a loaded module stays where it is.
        device_map: spread the model over devices: ``auto`` and transformers' other policies, or module path -> device.
        max_memory: most weights a device may hold, e.g. ``cpu=8GB,0=40GB``; the rest waits on disk.
        batch_size: sequences or images a forward; None for as many as fill the device.
        trust_remote_code: whether code that comes with a checkpoint may run.
        progress: called with tokens done and wanted after every forward.

    Returns:
        The trace. `vectors` holds ``directions``, shape (nodes, bottom, d), their singular values ``sigma``, shape
        (nodes, bottom), and of further streams the same under their role.

    Raises:
        UsageError: no residual stream was found, too few tokens, or an option that does not fit the model.
        InputError: the checkpoint is damaged, or the stream is not finite.
        UnreachableError: a file or package is missing.
    """
    started = time.perf_counter()
    if bottom < 1 or not 0 < collapse_ratio < 1:
        raise UsageError(f"bottom is {bottom}, collapse_ratio {collapse_ratio:g}: at least 1, and between 0 and 1")
    options = ModelOptions(
        tokens=tokens,
        batches=batches,
        seed=seed,
        data=data,
        text=text,
        images=images,
        audio=audio,
        skip_bad=skip_bad,
        tokenizer=tokenizer,
        processor=processor,
        affine=affine,
        dtype=dtype,
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    opened = Opened.of(model, options)
    if affine is not None and not opened.is_random:
        raise UsageError("affine redraws random: models, never a trained one")
    network = opened.loaded.model
    if options.chosen == "auto" and batches is None and _width(network) >= _WIDE:
        options = replace(options, data="random")
    inputs = choose_inputs(opened.loaded, options, opened.seed)
    with evaluating(network):
        traced, passes = trace_streams(
            network,
            inputs,
            tokens=tokens,
            batch_size=batch_size,
            blocks=blocks,
            blocks_path=blocks_path,
            count=bottom,
            memory=memory,
            collapse_ratio=collapse_ratio,
            progress=progress,
        )
    streams = [_stream(each) for each in reversed(traced)]
    main = streams[0]
    warnings = [*opened.warnings(inputs), *main.warnings]
    if tokens is not None and main.tokens < tokens:
        warnings.append(f"the inputs held only {main.tokens} of the {tokens} tokens asked for")
    record = Trace(
        **{**vars(main), "warnings": warnings},
        **opened.provenance(inputs),
        collapse_ratio=collapse_ratio,
        streams=streams,
        passes=passes,
        seconds=time.perf_counter() - started,
    )
    return record.with_vectors(lambda: _vectors(traced))


def _width(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    width = getattr(config.get_text_config(), "hidden_size", 0) if hasattr(config, "get_text_config") else 0
    return width if isinstance(width, int) else 0


def _stream(traced: Traced) -> Stream:
    stack = traced.stack
    size = stack.hidden_size
    nodes = [
        Node(
            index=step.spectrum.index,
            block="" if step.spectrum.index < 0 else stack.blocks[step.spectrum.index][0],
            sigma_min=step.spectrum.sigma_min,
            sigma_min_error=step.spectrum.sigma_min_error,
            sigma_floor=step.spectrum.sigma_floor,
            sigma_min_centred=traced.centred.get(step.spectrum.index),
            sigma_geomean=step.spectrum.sigma_geomean,
            sigma_max=step.spectrum.sigma_max,
            step_ratio=step.ratio,
            relative_step_ratio=step.relative,
            cumulative_ratio=step.cumulative,
            status=step.status,
        )
        for step in traced.steps
    ]
    judged, why = verdict(traced.steps, traced.falls)
    if stack.post_norm:
        judged = "not_applicable"
        why = "every block ends in a norm, so no identity path carries the stream from block to block"
    return Stream(
        role=stack.role,
        blocks_path=stack.path,
        hidden_size=size,
        tokens=traced.tokens,
        tokens_per_dimension=traced.tokens / size,
        distinct_inputs=traced.distinct,
        blocks=nodes,
        worst_block=worst(traced.steps),
        verdict=judged,
        why=why,
        events=traced.events,
        warnings=_warnings(traced),
    )


def _warnings(traced: Traced) -> list[str]:
    size, found = traced.stack.hidden_size, []
    if traced.tokens < _FEW_TOKENS * size:
        found.append(f"only {traced.tokens / size:.1f} tokens per dimension: small singular values are biased low")
    if traced.distinct is not None and traced.distinct < _FEW_INPUTS * size:
        found.append(
            f"only {traced.distinct} distinct ids for {size} dimensions, so the inputs may not span the stream: "
            "random ids (--data random) do"
        )
    return found


def _vectors(traced: Sequence[Traced]) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for each in traced:
        prefix = "" if each is traced[-1] else f"{each.stack.path}."
        for name, key in (("directions", "directions"), ("bottom", "sigma")):
            parts = [getattr(step.spectrum, name).cpu() for step in each.steps]
            found[f"{prefix}{key}"] = torch.stack(parts).numpy()
    return found
