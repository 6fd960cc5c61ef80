"""The claims that results bear on, each with a verdict and the figure it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from deadreckon.render.gather import Findings
from deadreckon.render.words import NONE, cosine, counted, number, of, span
from deadreckon.results.fisher import Fisher
from deadreckon.results.measurement import Figures, Measurement
from deadreckon.results.reading import Classifications
from deadreckon.results.trace import Trace

ALIGNED = 0.9999
"""|cos| from which on two directions count as the same: the level that was published."""
_APART = 0.999
_ABSENT = 0.5
_WEIGHTS = ("set of weights", "sets of weights")


@dataclass(frozen=True)
class Claim:
    """A claim, and what became of it.

    Attributes:
        claim: in words.
        verdict: holds | in part | fails.
        ours: the figure it rests on.
        theirs: the published figure; a dash where there is none.
    """

    claim: str
    verdict: str
    ours: str
    theirs: str = NONE


@dataclass(frozen=True)
class Weights:
    """One set of weights that was measured: a model's own, or those of a random-init twin."""

    figures: Figures
    random: bool
    redrawn: bool


def weights(findings: Findings) -> list[Weights]:
    """Every set of weights that was measured, twins included."""
    found = []
    for entry in findings.of(Measurement):
        record = entry.record
        redrawn = record.affine is not None
        found.append(Weights(record, record.model.startswith("random:"), redrawn))
        found += [Weights(twin, True, redrawn) for twin in record.twins]
    return found


def aligned(figures: Figures) -> bool:
    """Whether the predicted dead subspace is the measured bottom, as closely as was published for single directions."""
    return figures.subspace_alignment >= ALIGNED


def claims(findings: Findings) -> list[Claim]:
    """The claims that the results bear on.

    Args:
        findings: the results.

    Returns:
        Those with at least one result, in the order of the theory.
    """
    measured = weights(findings)
    kernel = [w for w in measured if w.figures.kernel_dim]
    control = [w for w in measured if not w.figures.kernel_dim]
    return [
        *_kernel_at_init([w.figures for w in kernel if w.random and not w.redrawn]),
        *_no_kernel([w.figures for w in control if w.random]),
        *_gain_decides([w.figures for w in kernel if w.redrawn]),
        *_exact([w.figures for w in kernel]),
        *_after_training([w.figures for w in kernel if not w.random]),
        *_deepening(findings),
        *_stream(findings),
        *_classified(findings),
        *_fisher(findings),
    ]


def verdict(held: int, of_all: int) -> str:
    """All, some or none."""
    return "holds" if held == of_all else "in part" if held else "fails"


def _kernel_at_init(found: Sequence[Figures]) -> Iterator[Claim]:
    if found:
        held = sum(aligned(f) for f in found)
        mean = fmean(f.subspace_alignment for f in found)
        yield Claim(
            "At random initialisation the direction γ⁻¹ of a LayerNorm is dead",
            verdict(held, len(found)),
            f"{of(held, len(found), *_WEIGHTS)} at |cos| ≥ {ALIGNED}, mean {cosine(mean)}",
            f"9 of 9 models at |cos| ≥ {ALIGNED}, mean 0.99999",
        )


def _no_kernel(found: Sequence[Figures]) -> Iterator[Claim]:
    if found:
        held = sum(f.alignment < _ABSENT and not f.lambda_dead_at_floor for f in found)
        mean = fmean(f.alignment for f in found)
        yield Claim(
            "An RMSNorm has no such direction",
            verdict(held, len(found)),
            f"{of(held, len(found), *_WEIGHTS)}: variance along γ⁻¹ is no rounding; mean |cos| {number(mean, 2)}",
            "5 of 5 models, mean |cos| 0.015",
        )


def _gain_decides(found: Sequence[Figures]) -> Iterator[Claim]:
    if found:
        held = sum(aligned(f) and f.alignment_uniform < _APART for f in found)
        yield Claim(
            "It is the gain that names it: with gains redrawn, γ⁻¹ is dead and 1/√d is not",
            verdict(held, len(found)),
            f"{of(held, len(found), *_WEIGHTS)}; |cos| of γ⁻¹ {span([f.subspace_alignment for f in found], cosine)}, "
            f"of 1/√d {span([f.alignment_uniform for f in found], lambda v: f'{v:.3f}')}",
        )


def _exact(found: Sequence[Figures]) -> Iterator[Claim]:
    if found:
        held = sum(f.protocol.status == "ok" for f in found)
        ratios = [f.lambda_dead_float64 / f.lambda_mean for f in found if f.lambda_mean > 0]
        worst = f"; in float64 at most {number(max(ratios))} of the mean variance" if ratios else ""
        yield Claim(
            "The variance along it is zero: what is measured is rounding",
            verdict(held, len(found)),
            f"{of(held, len(found), *_WEIGHTS)}{worst}",
        )


def _after_training(found: Sequence[Figures]) -> Iterator[Claim]:
    if found:
        held = sum(aligned(f) for f in found)
        further = sum(f.algebraic_dead + f.learned_dead - f.kernel_dim for f in found)
        explained = sum(f.algebraic_dead - f.kernel_dim for f in found)
        more = f"; {counted(further, 'further dead direction')}, {explained} of them read from the gains"
        yield Claim(
            "After training the parameters still name the dead subspace",
            verdict(held, len(found)),
            f"{of(held, len(found), 'model')} at subspace |cos| ≥ {ALIGNED}{more if further else ''}",
        )


def _deepening(findings: Findings) -> Iterator[Claim]:
    changes = [
        entry.record.gap.depth_decades.change
        for entry in findings.of(Measurement)
        if entry.record.gap and entry.record.kernel_dim and not entry.record.model.startswith("random:")
    ]
    known = [change for change in changes if change is not None]
    if known:
        held = sum(change > 0 for change in known)
        yield Claim(
            "Training deepens it",
            verdict(held, len(known)),
            f"{of(held, len(known), 'model')}; {span(known, lambda v: f'{v:+.1f}')} decades against random-init twins",
            "about 3 decades",
        )


def _stream(findings: Findings) -> Iterator[Claim]:
    verdicts = [entry.record.verdict for entry in findings.of(Trace) if entry.record.verdict != "not_applicable"]
    if verdicts:
        lost = verdicts.count("collapsed")
        kept = verdicts.count("preserved")
        said = "fails" if lost == len(verdicts) else "holds" if kept == len(verdicts) else "in part"
        counts = [f"{verdicts.count(name)} {name}" for name in _STREAM if name in verdicts]
        yield Claim(
            "The identity path keeps the residual stream's smallest singular value",
            said,
            f"{counted(len(verdicts), 'model')}: {', '.join(counts)}",
            "kept, but for one model under multimodal input",
        )


def _classified(findings: Findings) -> Iterator[Claim]:
    results = [result for entry in findings.of(Classifications) for result in entry.record.results]
    if results:
        told = sum(result.kind in {"layernorm", "rmsnorm"} for result in results)
        ran = {e.record.model: e.record.kind for e in findings.of(Measurement) if e.record.protocol.status == "ok"}
        compared = [result for result in results if result.model in ran]
        agree = sum(ran[result.model] == result.kind for result in compared)
        beside = f"; {of(agree, len(compared))} as the forward pass shows" if compared else ""
        said = verdict(told, len(results))
        yield Claim(
            "The parameters alone tell LayerNorm from RMSNorm",
            said if agree == len(compared) else "in part" if agree else "fails",
            f"{of(told, len(results), 'model')} told{beside}",
        )


def _fisher(findings: Findings) -> Iterator[Claim]:
    sites = [s for e in findings.of(Fisher) for s in e.record.sites if s.has_kernel and s.remedy != "none"]
    if sites:
        held = sum(site.holds for site in sites)
        ratios = [site.ratio for site in sites if site.ratio is not None]
        worst = f"; at most {number(max(ratios))} of a random step's" if ratios else ""
        yield Claim(
            "Steps of the weights along the kernel carry no Fisher information",
            verdict(held, len(sites)),
            f"{of(held, len(sites), 'reader of a norm', 'readers of norms')}{worst}",
        )


_STREAM = ("preserved", "eased", "rescaled", "collapsed")
