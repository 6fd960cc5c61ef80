"""A model that was named or handed over, loaded, with what a record says of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deadreckon.checkpoint.hub import commit_of
from deadreckon.checkpoint.source import Source, open_model, parse_model, resolve
from deadreckon.errors import UsageError
from deadreckon.forward import load
from deadreckon.forward.affine import parse_affine, redraw_affine
from deadreckon.forward.calibration import Calibration
from deadreckon.forward.collect import Progress
from deadreckon.forward.placement import input_device, placement
from deadreckon.results.measurement import Environment
from deadreckon.results.reading import FileStamp
from deadreckon.verbs.inputs import InputOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions(InputOptions):
    """The options of a verb that decide what is run and where; see `deadreckon.measure`."""

    tokens: int | None = None
    seed: int = 0
    affine: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | Mapping[str, Any] | None = None
    max_memory: str | Mapping[Any, int | str] | None = None
    trust_remote_code: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        tokens, rows = self.tokens, self.batch_size
        if (rows is not None and rows < 1) or (tokens is not None and tokens < 1):
            raise UsageError(f"batch_size is {rows}, tokens {tokens}: ask for at least 1")
        if self.affine is not None:
            parse_affine(self.affine)


@dataclass(frozen=True)
class Opened:
    """A loaded model.

    Attributes:
        name: of the model, for the record.
        seed: of everything random; a model's name may set it.
        loaded: the model.
        affine: how its gains and shifts were redrawn, or None.
        is_random: whether its weights are.
        revision: the commit on the hub that it is of; None for other places.
    """

    name: str
    seed: int
    loaded: load.Loaded
    affine: str | None
    is_random: bool
    revision: str | None = None

    @classmethod
    def of(cls, model: str | Path | nn.Module, options: ModelOptions, *, head: bool = False) -> Opened:
        """Load a model.

        Args:
            model: a MODEL name or a loaded module.
            options: of the verb.
            head: load a named model with its head.

        Returns:
            The model; gains and shifts are redrawn where that was asked for and its weights are random.

        Raises:
            UsageError: an option does not fit the model.
            InputError: the checkpoint is damaged.
            UnreachableError: a file or package is missing.
        """
        seed = options.seed
        if isinstance(model, nn.Module):
            loaded = load.Loaded(model, lambda: options.tokenizer)
            return cls(type(model).__name__, seed, loaded, options.affine, is_random=False)
        source = parse_model(model)
        seed = seed if source.seed is None else source.seed
        loaded, revision = _load(source, seed, options, head=head)
        is_random = source.scheme == "random"
        if options.affine is not None and is_random:
            redraw_affine(loaded.model, options.affine, seed)
        return cls(str(source), seed, loaded, options.affine, is_random, revision)

    def provenance(self, inputs: Calibration) -> dict[str, Any]:
        """The fields of a record that say what was run.

        Args:
            inputs: what it was run on.

        Returns:
            Field names and values.
        """
        parameter = next(self.loaded.model.parameters(), torch.empty(0))
        return {
            "model": self.name,
            "revision": self.revision,
            "files": [FileStamp.of(path) for path in self.loaded.files],
            "data": inputs.describe,
            "skipped_inputs": len(inputs.skipped),
            "seed": self.seed,
            "affine": self.affine,
            "environment": _environment(self.loaded.model, parameter.dtype),
        }

    def warnings(self, inputs: Calibration) -> list[str]:
        """What loading the model and its inputs left open."""
        skipped = inputs.skipped
        left_out = [f"{len(skipped)} inputs cannot be read and were skipped: {', '.join(skipped)}"] if skipped else []
        return [*self.loaded.warnings, *left_out]


def _load(source: Source, seed: int, options: ModelOptions, *, head: bool) -> tuple[load.Loaded, str | None]:
    """The model, and the commit on the hub that it is of."""
    place = placement(options.device, options.device_map, options.max_memory)
    where: dict[str, Any] = {
        "device": place.device,
        "device_map": place.device_map,
        "max_memory": place.max_memory,
        "dtype": load.resolve_dtype(options.dtype),
        "head": head,
    }
    if source.scheme != "random":
        open_model(source)  # its errors name file and tensor; what it refuses is not handed to other loaders
    found = resolve(source)
    if isinstance(found, Path):
        loaded = load.load_checkpoint(found, trust_remote_code=options.trust_remote_code, **where)
        return loaded, commit_of(found) if source.scheme == "hub" else None
    model = load.random_model(found.model_class, found.config_class, found.config_kwargs, seed=seed, **where)
    return load.Loaded(model, lambda: None), None


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
