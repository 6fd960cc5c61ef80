"""What a measurement runs on: the model and its twins, the norm in each, and the inputs that all of them see."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.source import Source, open_model, parse_model, resolve
from deadreckon.errors import UsageError
from deadreckon.forward import load
from deadreckon.forward.affine import parse_affine, redraw_affine
from deadreckon.forward.anatomy import NormSite, final_norm, named_norm, norms_like
from deadreckon.forward.calibration import Calibration
from deadreckon.forward.collect import Collected, Progress, collect
from deadreckon.forward.evaluating import evaluating
from deadreckon.forward.placement import input_device, placement
from deadreckon.forward.share import WHOLE, Share
from deadreckon.kernel.norm import Norm
from deadreckon.results.measurement import Environment
from deadreckon.results.reading import FileStamp
from deadreckon.verbs.inputs import InputOptions, choose_inputs

_TOKENS_PER_DIMENSION = 8


@dataclass(frozen=True, kw_only=True)
class Options(InputOptions):
    """The options of ``measure`` that decide what is run; see there."""

    tokens: int | None = None
    twin: int = 0
    seed: int = 0
    norm: str | None = None
    affine: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | Mapping[str, Any] | None = None
    max_memory: str | Mapping[Any, int | str] | None = None
    trust_remote_code: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        tokens, rows = self.tokens, self.batch_size
        if self.twin < 0 or (rows is not None and rows < 1) or (tokens is not None and tokens < 1):
            raise UsageError(f"twin is {self.twin}, batch_size {rows}, tokens {tokens}: ask for at least 0, 1 and 1")
        if self.affine is not None:
            parse_affine(self.affine)


class Subject(NamedTuple):
    """One model to run: ``seed`` is None for the model itself, a twin's seed otherwise."""

    seed: int | None
    model: nn.Module
    site: NormSite


@dataclass(frozen=True)
class Subjects:
    """A model with everything that is needed to measure it and its twins.

    Attributes:
        name: of the model, for the record.
        seed: of everything random; a model's name may set it.
        loaded: the model.
        site: the norm, as it is to be verified.
        described_by: checkpoint | module.
        inputs: what all of them see.
    """

    name: str
    seed: int
    loaded: load.Loaded
    site: NormSite
    described_by: str
    inputs: Calibration
    options: Options = field(repr=False)

    @classmethod
    def of(cls, model: str | Path | nn.Module, options: Options) -> Subjects:
        """Load a model and find its norm.

        Args:
            model: a MODEL name or a loaded module.
            options: of the verb.

        Returns:
            The subjects.

        Raises:
            UsageError: an option does not fit the model, or no norm is at its end.
            InputError: the checkpoint or a text is damaged.
            UnreachableError: a file or package is missing.
        """
        seed, affine, norm = options.seed, options.affine, options.norm
        if isinstance(model, nn.Module):
            source, described, loaded = None, None, load.Loaded(model, lambda: options.tokenizer)
        else:
            source = parse_model(model)
            seed = seed if source.seed is None else source.seed
            described = _described(source, norm)  # first: what reading refuses is not handed to other loaders
            loaded = _load(source, seed, options)
        is_random = source is not None and source.scheme == "random"
        if affine is not None and not (is_random or options.twin):
            raise UsageError("affine redraws random: models and twins, never a trained model: ask for a twin")
        if affine is not None and is_random:
            redraw_affine(loaded.model, affine, seed)
        inputs = choose_inputs(loaded, options, seed)
        site = _site(loaded.model, norm, inputs, described)
        return cls(
            name=type(loaded.model).__name__ if source is None else str(source),
            seed=seed,
            loaded=loaded,
            site=site if described is None else site.described(described),
            described_by="module" if described is None else "checkpoint",
            inputs=inputs,
            options=options,
        )

    @property
    def tokens(self) -> int | None:
        """How many tokens to measure; None for all that the caller's batches hold.

        Returns:
            The number.

        Raises:
            UsageError: too few for a covariance.
        """
        size, asked = self.site.norm.hidden_size, self.options.tokens
        if asked is None:
            return None if self.options.batches is not None else _TOKENS_PER_DIMENSION * size
        if asked <= size + 1:
            raise UsageError(
                f"{asked} tokens in {size} dimensions: with N - 1 <= d the covariance is singular by counting alone; "
                f"ask for at least {4 * size}"
            )
        return asked

    @property
    def twin_seeds(self) -> list[int]:
        """Seed of each random-init twin."""
        return list(range(self.seed + 1, self.seed + 1 + self.options.twin))

    def each(self) -> Iterator[Subject]:
        """The model, then its twins, each built when it is asked for."""
        model, affine = self.loaded.model, self.options.affine
        yield Subject(None, model, self.site)
        for seed in self.twin_seeds:
            twin = load.twin(model, seed)
            if affine is not None:
                redraw_affine(twin, affine, seed)
            yield Subject(seed, twin, named_norm(twin, self.site.path))

    def collect(self, subject: Subject, share: Share = WHOLE, *, keep_tokens: bool = False) -> Collected:
        """Run one of them over its share of the inputs."""
        return collect(
            subject.model,
            subject.site,
            self.inputs,
            tokens=self.tokens,
            keep_tokens=keep_tokens,
            batch_size=self.options.batch_size,
            share=share,
            progress=self.options.progress,
        )

    @property
    def warnings(self) -> list[str]:
        """What loading the model and its inputs left open."""
        skipped = self.inputs.skipped
        left_out = [f"{len(skipped)} inputs cannot be read and were skipped: {', '.join(skipped)}"] if skipped else []
        return [*self.loaded.warnings, *left_out]

    def provenance(self) -> dict[str, Any]:
        """The fields of a record that say what was run."""
        parameter = next(self.loaded.model.parameters(), torch.empty(0))
        return {
            "model": self.name,
            "revision": None,
            "described_by": self.described_by,
            "files": [FileStamp.of(path) for path in self.loaded.files],
            "data": self.inputs.describe,
            "skipped_inputs": len(self.inputs.skipped),
            "seed": self.seed,
            "affine": self.options.affine,
            "environment": _environment(self.loaded.model, parameter.dtype),
        }


def _load(source: Source, seed: int, options: Options) -> load.Loaded:
    place = placement(options.device, options.device_map, options.max_memory)
    where: dict[str, Any] = {
        "device": place.device,
        "device_map": place.device_map,
        "max_memory": place.max_memory,
        "dtype": load.resolve_dtype(options.dtype),
    }
    found = resolve(source)
    if isinstance(found, Path):
        open_model(source)  # its errors name file and tensor; what it refuses is not handed to other loaders
        return load.load_checkpoint(found, trust_remote_code=options.trust_remote_code, **where)
    return load.Loaded(
        load.random_model(found.model_class, found.config_class, found.config_kwargs, seed=seed, **where), lambda: None
    )


def _described(source: Source, norm: str | None) -> Norm | None:
    """The norm as the checkpoint's files describe it, for the forward pass to verify; None where they do not tell."""
    if source.scheme == "random":
        return None
    try:
        return find_norms(open_model(source), norm)[0]
    except UsageError:
        return None


def _site(model: nn.Module, norm: str | None, inputs: Calibration, described: Norm | None) -> NormSite:
    if norm is not None:
        try:
            return named_norm(model, norm)
        except UsageError:
            # The file may name its tensors otherwise than the model its modules (GGUF does): the values tell.
            same = [] if described is None else norms_like(model, described)
            if len(same) != 1:
                raise
            return same[0]
    first = next(inputs.batches(), None)
    if first is None:
        raise UsageError("no batches were given: there is nothing to measure")
    with evaluating(model):
        return final_norm(model, first)


def _environment(model: nn.Module, dtype: torch.dtype) -> Environment:
    """The machine and library versions of a measurement."""
    device = input_device(model)
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
