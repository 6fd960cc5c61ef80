"""What a measurement runs on: the model and its twins, the norm in each, and the inputs that all of them see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.source import Source, open_model, parse_model
from deadreckon.errors import UsageError
from deadreckon.forward import load
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.anatomy import NormSite, final_norm, named_norm, norms_like
from deadreckon.forward.calibration import Calibration
from deadreckon.forward.collect import Collected, collect
from deadreckon.forward.evaluating import evaluating
from deadreckon.forward.share import WHOLE, Share
from deadreckon.kernel.norm import Norm
from deadreckon.verbs.inputs import choose_inputs
from deadreckon.verbs.opened import ModelOptions, Opened

_TOKENS_PER_DIMENSION = 8


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """The options of ``measure`` that decide what is run; see there."""

    twin: int = 0
    norm: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.twin < 0:
            raise UsageError(f"twin is {self.twin}: ask for at least 0")


class Subject(NamedTuple):
    """One model to run: ``seed`` is None for the model itself, a twin's seed otherwise."""

    seed: int | None
    model: nn.Module
    site: NormSite


@dataclass(frozen=True)
class Subjects:
    """A model with everything that is needed to measure it and its twins.

    Attributes:
        opened: the model.
        site: the norm, as it is to be verified.
        described_by: checkpoint | module.
        inputs: what all of them see.
    """

    opened: Opened
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
        # Before it is loaded: what reading refuses is not handed to other loaders.
        described = None if isinstance(model, nn.Module) else _described(parse_model(model), options.norm)
        opened = Opened.of(model, options)
        if options.affine is not None and not (opened.is_random or options.twin):
            raise UsageError("affine redraws random: models and twins, never a trained model: ask for a twin")
        inputs = choose_inputs(opened.loaded, options, opened.seed)
        site = _site(opened.loaded.model, options.norm, inputs, described)
        return cls(
            opened=opened,
            site=site if described is None else site.described(described),
            described_by="module" if described is None else "checkpoint",
            inputs=inputs,
            options=options,
        )

    @property
    def loaded(self) -> load.Loaded:
        """The model, as it was loaded."""
        return self.opened.loaded

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.opened.seed

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
        return self.opened.warnings(self.inputs)

    def provenance(self) -> dict[str, Any]:
        """The fields of a record that say what was run."""
        return {**self.opened.provenance(self.inputs), "described_by": self.described_by}


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
