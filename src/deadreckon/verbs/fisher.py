"""``fisher``: Fisher information along the dead direction in parameter space, and finite steps along it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.calibration import Calibration, first_row, placed
from deadreckon.forward.differentiable import forward_mode
from deadreckon.forward.evaluating import evaluating
from deadreckon.forward.fisher import Evaluate, SiteFisher, at_head, site_fisher, through_model
from deadreckon.forward.gauge import Moved, moved_outputs
from deadreckon.forward.outputs import Portion, portions
from deadreckon.forward.passes import Progress
from deadreckon.forward.placement import input_device
from deadreckon.forward.sites import HEAD, Site, find_sites
from deadreckon.forward.steps import SiteSteps
from deadreckon.results.fisher import Fisher, FisherSite, GaugeStep
from deadreckon.verbs.inputs import choose_inputs
from deadreckon.verbs.opened import ModelOptions, Opened

_TOKENS = 256
_TOKENS_INSIDE = 64
_MOVED_TOKENS = 64  # finite steps say the same of every token
_AT_FLOOR = 10.0


def fisher(
    model: str | Path | nn.Module,
    *,
    site: str | Sequence[str] = HEAD,
    tokens: int | None = None,
    draws: int = 8,
    gauge: bool = True,
    batches: Iterable[Mapping[str, Any]] | None = None,
    seed: int = 0,
    data: str = "auto",
    text: Sequence[str | Path] = (),
    images: Sequence[str | Path] = (),
    audio: Sequence[str | Path] = (),
    skip_bad: bool = False,
    tokenizer: Any = None,
    processor: Any = None,
    affine: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: str | Mapping[Any, int | str] | None = None,
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Fisher:
    """Directional Fisher information E_x Var_p(dz) along steps of the weights that read a norm.

    Three kinds of steps are compared in the same tensors: a w^T along the norm's kernel w with the change of bias (or
    of the norm's shift) that takes the constant w.shift away, the same without it, and Gaussian ones. Where the model
    has no logits its last hidden state is taken for the mean of a Gaussian of unit variance. Every step is also taken
    at finite sizes and the outputs compared. No backward pass is made, and no parameter of the model is changed.

    Args:
        model: a MODEL name (directory, file, model on the hub, which is downloaded, ``random:NAME``, ``demo:NAME``),
            loaded with its head, or a loaded module.
        site: ``head``, ``all``, or dotted parts of module paths, e.g. ``layers.3.mlp``.
        tokens: predictions (tokens, images) that the expectation runs over; by default 256 at the head, and 64 where
            the whole model has to be run for every step.
        draws: random directions a site, at least 8.
        gauge: whether to take finite steps.
        batches: the caller's own keyword inputs, e.g. a DataLoader; by default `data` decides.
        seed: seed of random weights, inputs and directions.
        data: ``text``, ``images``, ``audio``, ``random`` or ``auto``: what files were given, else text where the model
            has a tokenizer, else random inputs.
        text: text files.
        images: files, folders, or ``hf:NAME[:SPLIT]``.
        audio: likewise.
        skip_bad: leave out images and sound that cannot be read, and count them.
        tokenizer: for a loaded module, what turns text into ids.
        processor: for a loaded or random model, what turns images or sound into inputs.
        affine: ``lognormal:SIGMA`` redraws gains and shifts of a ``random:`` model, whose shifts are zero otherwise.
        dtype: dtype to load in; ``auto`` keeps the stored one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; a loaded module stays where it is.
        device_map: spread the model over devices: ``auto`` and transformers' other policies, or module path -> device.
        max_memory: most weights a device may hold, e.g. ``cpu=8GB,0=40GB``; the rest waits on disk.
        batch_size: sequences or images a forward; None for about as many as fill a device.
        trust_remote_code: whether code that comes with a checkpoint may run.
        progress: called with sites done and wanted.

    Returns:
        The record.

    Raises:
        UsageError: no head or no such site, an option that does not fit the model, or a module between the site and
            the outputs that has no forward-mode derivative.
        InputError: the checkpoint is damaged, or the outputs are not finite.
        UnreachableError: a file or package is missing.
    """
    started = time.perf_counter()
    if draws < 8:
        raise UsageError(f"draws is {draws}: a median takes at least 8 random directions")
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
    )
    opened = Opened.of(model, options, head=True)
    if affine is not None and not opened.is_random:
        raise UsageError("affine redraws random: models, never a trained one")
    network = opened.loaded.model
    inputs = choose_inputs(opened.loaded, options, opened.seed)
    found: list[FisherSite] = []
    unseen: list[str] = []
    with evaluating(network):
        sites = _sites(network, inputs, site)
        direct = next((each.norm_path for each in sites if each.direct), None)
        wanted = tokens or (_TOKENS if all(each.direct for each in sites) else _TOKENS_INSIDE)
        parts = list(portions(network, inputs, wanted, batch_size=batch_size, norm=direct))
        with forward_mode(network):
            for number, each in enumerate(sites):
                steps = SiteSteps(each, network, opened.seed + number)
                figures = site_fisher(network, each, steps, draws, _evaluation(network, each, parts))
                if median(figures.random) == 0.0:
                    unseen.append(each.name)
                    continue
                found.append(_site(each, figures, *(_moved(network, each, steps, parts[0]) if gauge else ([], []))))
                if progress:
                    progress(number + 1, len(sites))
    count = sum(part.count for part in parts)
    warnings = opened.warnings(inputs)
    if count < wanted:
        warnings.append(f"the inputs held only {count} of the {wanted} predictions asked for")
    if unseen:
        warnings.append(f"left out, since nothing that is put out depends on it: {', '.join(unseen)}")
    if any(each.has_kernel and each.constant == 0.0 and each.norm_kind == "layernorm" for each in found):
        warnings.append(
            "where the shift is zero along w the step without remedy is dead as well: a random: model has such shifts "
            "unless affine='lognormal:0.5' (--affine lognormal:0.5) redraws them"
        )
    return Fisher(
        **opened.provenance(inputs),
        metric=parts[0].metric,
        tokens=count,
        draws=draws,
        sites=found,
        holds=all(each.holds for each in found),
        warnings=warnings,
        seconds=time.perf_counter() - started,
    )


def _sites(network: nn.Module, inputs: Calibration, wanted: str | Sequence[str]) -> list[Site]:
    first = next(inputs.batches(), None)
    if first is None:
        raise UsageError("no batches were given: there is nothing to run on")
    return find_sites(network, placed(first_row(first), input_device(network)), wanted)


def _evaluation(network: nn.Module, site: Site, parts: Sequence[Portion]) -> Evaluate:
    """How Fisher information is had at a site: in closed form at a head that follows its norm, else by derivatives."""
    if site.direct:
        return at_head(network, site, [part.norm_inputs for part in parts if part.norm_inputs is not None])
    return through_model(network, site, [part.through(network) for part in parts], parts[0].metric)


def _moved(network: nn.Module, site: Site, steps: SiteSteps, part: Portion) -> tuple[list[Moved], list[Moved]]:
    """Finite steps with the remedy and without, over few tokens."""
    run = part.shortened(_MOVED_TOKENS).through(network)
    if site.direct and part.norm_inputs is not None:
        norm, head = network.get_submodule(site.norm_path), network.get_submodule(site.moved[0].path)
        few = part.norm_inputs[:_MOVED_TOKENS]

        def run() -> Tensor:
            made: Tensor = head(norm(few))
            return made

    naive = moved_outputs(network, site, steps.naive, run, part.metric)
    if steps.exact is None or site.remedy == "nothing":
        return naive, naive
    return moved_outputs(network, site, steps.exact, run, part.metric), naive


def _site(site: Site, figures: SiteFisher, exact: Sequence[Moved], naive: Sequence[Moved]) -> FisherSite:
    typical = median(figures.random)
    ratio = None if figures.exact is None else figures.exact / typical
    floor = figures.floor / typical
    is_dead = ratio is not None and ratio <= _AT_FLOOR * floor
    record = FisherSite(
        site=site.name,
        readers=[reader.path for reader in site.moved],
        norm=site.norm_path,
        norm_kind=site.norm.kind.name,
        has_kernel=site.has_kernel,
        constant=site.constant,
        remedy=site.remedy,
        virtual=site.virtual,
        closed_form=site.direct,
        dead=figures.exact,
        naive=figures.naive,
        naive_expected=figures.constant,
        random=figures.random,
        ratio=ratio,
        naive_ratio=figures.naive / typical,
        floor=floor,
        is_dead=is_dead,
        gauge=[_gauge(*pair) for pair in zip(exact, naive, strict=True)] if ratio is not None else [],
        is_gauge=all(step.is_gauge for step in exact) if exact and ratio is not None else None,
        naive_is_gauge=all(step.is_gauge for step in naive) if naive else None,
        says="",
    )
    return replace(record, says=_in_words(record))


def _gauge(exact: Moved, naive: Moved) -> GaugeStep:
    return GaugeStep(
        step=exact.size,
        max_logit_change=exact.change,
        kl=exact.divergence,
        rounding=exact.rounding,
        naive_max_logit_change=naive.change,
        naive_kl=naive.divergence,
    )


_REMEDIES = {"bias": "the bias takes it back", "shift": "the norm's shift and its other readers take it back"}


def _in_words(site: FisherSite) -> str:
    """What is dead here, and what only up to a shift."""
    copy = " (an untied copy of the weight: the tied one has no such step)" if site.virtual else ""
    if not site.has_kernel:
        found = "is not dead" if not site.is_dead else "is at its floor nevertheless"
        return f"{site.norm} has no kernel: the same construction {found}, ratio {site.ratio:.1e}{copy}"
    if site.remedy == "none":
        return (
            f"no dead step of this weight: every token reads {site.constant:.2g} along w, there is no bias to take it "
            f"back, and the norm is seen by more than its readers; the weight alone has ratio {site.naive_ratio:.1e}"
        )
    verdict = "dead" if site.is_dead else "NOT dead, against the theory"
    if site.remedy == "nothing":
        return f"a w^T alone is {verdict}: every token reads exactly zero along w{copy}"
    alone = (
        "without that too, because the shift goes unseen here"
        if site.naive_ratio <= _AT_FLOOR * site.floor
        else f"without that only up to a shift, which the model sees (ratio {site.naive_ratio:.1e})"
    )
    whole = f"a w^T shifts every token by {site.constant:.2g} a; where {_REMEDIES[site.remedy]} it is {verdict}"
    return f"{whole}, {alone}{copy}"
