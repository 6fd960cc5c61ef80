"""``measure``: verify in one forward pass what the parameters say, and compare it with random-init twins."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.source import Source, open_model, parse_model, resolve
from deadreckon.errors import UsageError
from deadreckon.forward import calibration as calibrations
from deadreckon.forward import load
from deadreckon.forward.affine import parse_affine, redraw_affine
from deadreckon.forward.anatomy import NormSite, evaluating, final_norm, named_norm
from deadreckon.forward.calibration import Calibration
from deadreckon.forward.collect import Progress, collect
from deadreckon.forward.gap import init_gap
from deadreckon.forward.spectrum import Eigensolver, eigensolver
from deadreckon.forward.statistics import Conclusion
from deadreckon.kernel.norm import Norm
from deadreckon.kernel.subspace import DEFAULT_TAU
from deadreckon.results.measurement import Environment, Measurement, Twin
from deadreckon.results.reading import FileStamp

_TOKENS_PER_DIMENSION = 8


def measure(
    model: str | Path | nn.Module,
    *,
    tokens: int | None = None,
    batches: Iterable[Mapping[str, Any]] | None = None,
    twin: int = 0,
    seed: int = 0,
    data: str = "auto",
    text: Sequence[str | Path] = (),
    tokenizer: Any = None,
    norm: str | None = None,
    affine: str | None = None,
    solver: str = "eigh",
    tau: float = DEFAULT_TAU,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 8,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Second-order statistics of a norm's output over one forward pass, against what its parameters predict.

    Args:
        model: a MODEL name (directory, file, ``random:NAME``, ``demo:NAME``) or a loaded module, which is left as it
            was.
        tokens: how many unmasked tokens to measure; by default 8 d, or all that `batches` hold. Must exceed d + 1.
        batches: the caller's own keyword inputs, e.g. a DataLoader; by default `data` decides.
        twin: how many random-init twins to measure on the same inputs.
        seed: seed of random weights and inputs; the k-th twin uses seed + k.
        data: ``text``, ``random`` or ``auto`` (text where the model has a tokenizer).
        text: text files to use instead of the English text that Python ships.
        tokenizer: for a loaded module, what turns text into ids.
        norm: module path or gain tensor of the norm; by default the one that makes the last hidden state.
        affine: ``lognormal:SIGMA`` redraws gains and shifts of a ``random:`` model and of the twins.
        solver: eigensolver: ``eigh``, or ``svd`` of the centred outputs themselves.
        tau: tolerance of the predicted dead subspace, relative to the mean eigenvalue.
        dtype: dtype to load in; ``auto`` keeps the stored one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; a loaded module stays where it is.
        batch_size: sequences or images a batch.
        trust_remote_code: whether code that comes with a checkpoint may run.
        progress: called with tokens done and wanted after every batch.

    Returns:
        The measurement; its protocol says whether the module that ran is the norm that was read. `vectors` holds the
        tested directions, the predicted dead subspace and both spectra.

    Raises:
        UsageError: too few tokens, an option that does not fit the model, or no norm at its end.
        InputError: the checkpoint or a text is damaged.
        UnreachableError: a file or package is missing.
    """
    started = time.perf_counter()
    engine = eigensolver(solver)
    if twin < 0 or batch_size < 1 or (tokens is not None and tokens < 1):
        raise UsageError(f"twin is {twin}, batch_size {batch_size}, tokens {tokens}: ask for at least 0, 1 and 1")
    if affine is not None:
        parse_affine(affine)
    if isinstance(model, nn.Module):
        source, described, loaded = None, None, load.Loaded(model, lambda: tokenizer)
    else:
        source = parse_model(model)
        seed = seed if source.seed is None else source.seed
        described = _described(source, norm)  # first: what reading refuses is not handed to other loaders
        loaded = _load(source, seed=seed, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    is_random = source is not None and source.scheme == "random"
    if affine is not None and not (is_random or twin):
        raise UsageError("affine redraws random: models and twins, never a trained model: ask for a twin")
    if affine is not None and is_random:
        redraw_affine(loaded.model, affine, seed)

    inputs = _calibration(loaded, batches, data=data, text=text, seed=seed, batch_size=batch_size)
    wanted = tokens if tokens is not None or batches is None else -1
    run = _Run(inputs, wanted, engine, tau, progress)
    site = _site(loaded.model, norm, inputs)
    if described is not None:
        site = site.described(described)
    figures, vectors = run(loaded.model, site)
    twins = []
    for twin_seed in range(seed + 1, seed + 1 + twin):
        copy = load.twin(loaded.model, twin_seed)
        if affine is not None:
            redraw_affine(copy, affine, twin_seed)
        twins.append(Twin(seed=twin_seed, **run(copy, named_norm(copy, site.path)).figures))
    parameter = next(loaded.model.parameters(), torch.empty(0))
    record = Measurement(
        **{**figures, "warnings": [*loaded.warnings, *figures["warnings"]]},
        model=type(loaded.model).__name__ if source is None else str(source),
        revision=None,
        described_by="module" if described is None else "checkpoint",
        files=[FileStamp.of(path) for path in loaded.files],
        data=inputs.describe,
        seed=seed,
        affine=affine,
        solver=solver,
        environment=environment(parameter.device, parameter.dtype),
        seconds=0.0,
        twins=twins,
        gap=None,
    )
    gap = init_gap(record, twins) if twins else None
    return replace(record, gap=gap, seconds=time.perf_counter() - started).with_vectors(lambda: vectors)


@dataclass(frozen=True)
class _Run:
    """What the model and its twins share: the same inputs, the same number of tokens, the same solver."""

    inputs: Calibration
    tokens: int | None  # None: 8 d; -1: all there are
    solver: Eigensolver
    tau: float
    progress: Progress | None

    def __call__(self, model: nn.Module, site: NormSite) -> Conclusion:
        size = site.norm.hidden_size
        tokens = _TOKENS_PER_DIMENSION * size if self.tokens is None else self.tokens
        if 0 <= tokens <= size + 1:
            raise UsageError(
                f"{tokens} tokens in {size} dimensions: with N - 1 <= d the covariance is singular by counting alone; "
                f"ask for at least {4 * size}"
            )
        collected = collect(
            model,
            site,
            self.inputs,
            tokens=None if tokens < 0 else tokens,
            keep_tokens=self.solver.needs_tokens,
            progress=self.progress,
        )
        figures, vectors = collected.statistics.conclude(self.solver, self.tau)
        if figures["tokens"] < tokens:
            shortage = f"the inputs held only {figures['tokens']} of the {tokens} tokens asked for"
            figures["warnings"] = [*figures["warnings"], shortage]
        extra = {"norm": site.path, "distinct_inputs": collected.distinct_inputs}
        return Conclusion({**figures, **extra}, vectors)


def _load(source: Source, *, seed: int, dtype: str, device: str, trust_remote_code: bool) -> load.Loaded:
    where, what = load.resolve_device(device), load.resolve_dtype(dtype)
    found = resolve(source)
    if isinstance(found, Path):
        open_model(source)  # its errors name file and tensor; what it refuses is not handed to other loaders
        return load.load_checkpoint(found, dtype=what, device=where, trust_remote_code=trust_remote_code)
    model = load.random_model(
        found.model_class,
        found.config_class,
        found.config_kwargs,
        seed=seed,
        dtype=what,
        device=where,
    )
    return load.Loaded(model, lambda: None)


def _described(source: Source, norm: str | None) -> Norm | None:
    """The norm as the checkpoint's files describe it, for the forward pass to verify; None where they do not tell."""
    if source.scheme == "random":
        return None
    try:
        return find_norms(open_model(source), norm)[0]
    except UsageError:
        return None


def _calibration(
    loaded: load.Loaded,
    batches: Iterable[Mapping[str, Any]] | None,
    *,
    data: str,
    text: Sequence[str | Path],
    seed: int,
    batch_size: int,
) -> Calibration:
    if batches is not None:
        return calibrations.given(batches)
    if data not in {"auto", "text", "random"}:
        raise UsageError(f"unknown data {data!r}: choose auto, text or random")
    tokenizer = loaded.tokenizer() if data != "random" else None
    if tokenizer is None and (data == "text" or text):
        raise UsageError("this model has no tokenizer for text: leave text out, or ask for random data")
    if tokenizer is None:
        return calibrations.random_inputs(loaded.model, seed=seed, batch_size=batch_size)
    texts = calibrations.read_texts([Path(path) for path in text]) if text else [calibrations.english_text()]
    describe = ", ".join(Path(path).name for path in text) if text else "English text of pydoc_data.topics"
    return calibrations.text(tokenizer, texts, loaded.model.config, describe=describe, batch_size=batch_size)


def _site(model: nn.Module, norm: str | None, inputs: Calibration) -> NormSite:
    if norm is not None:
        return named_norm(model, norm)
    first = next(inputs.batches(), None)
    if first is None:
        raise UsageError("no batches were given: there is nothing to measure")
    with evaluating(model):
        return final_norm(model, first)


def environment(device: torch.device, dtype: torch.dtype) -> Environment:
    """The machine and library versions of a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    libraries = {}
    for package in ("numpy", "torch", "transformers", "gguf"):
        try:
            libraries[package] = version(package)
        except PackageNotFoundError:
            continue
    return Environment(
        device=f"{device} ({name})",
        dtype=str(dtype).removeprefix("torch."),
        python=platform.python_version(),
        platform=platform.system(),
        libraries=libraries,
    )
