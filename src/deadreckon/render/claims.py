"""The claims that results bear on, each with a verdict and the figure it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deadreckon.render.gather import Findings
from deadreckon.render.runs import last_steps
from deadreckon.render.words import counted, number, of
from deadreckon.results.claims import ALIGNED, Rows, judge, share
from deadreckon.results.fisher import Fisher
from deadreckon.results.measurement import Figures, Measurement
from deadreckon.results.reading import Classifications
from deadreckon.results.record import Record
from deadreckon.results.reproduction import Claim, Reproduction
from deadreckon.results.rows import fisher_rows, random_rows, trained_rows
from deadreckon.results.trace import Trace

_DTYPES = {"float64", "float32", "float16", "bfloat16"}
_STREAMS = {"preserved", "eased", "rescaled", "collapsed", "not_applicable"}


def aligned(figures: Figures) -> bool:
    """Whether the predicted dead subspace is the measured bottom, as closely as was published for single directions."""
    return figures.subspace_alignment >= ALIGNED


def claims(findings: Findings) -> list[Claim]:
    """The claims that the results bear on.

    Args:
        findings: the results; of a training run the last checkpoint is judged.

    Returns:
        Those of a reproduction, if there is one; else those that the results themselves test, and what they say of the
        variance along the kernel and of dead subspaces after training, which the paper makes no claim of.
    """
    reproductions = [entry.record for entry in findings.of(Reproduction)]
    if reproductions:
        return [claim for record in reproductions for claim in record.claims]
    last = [entry.record for _, entry in last_steps([("", entry) for entry in findings.entries])]
    records = [_promised(record) for record in last if _can_be_judged(record)]
    rows = Rows(random_rows(records), trained_rows(records), fisher_rows(records))
    judged = [claim for claim in judge(rows) if claim.verdict != "not_tested"]
    measured = [record for record in records if isinstance(record, Measurement)]
    kernels = [f for m in measured for f in (m, *m.twins) if f.kernel_dim]
    trained = [m for m in measured if m.kernel_dim and not m.model.startswith("random:")]
    if not any(claim.name == "classification" for claim in judged):
        judged += _classified(records)
    return [*judged, *_exact(kernels), *_after_training(trained)]


def _can_be_judged(record: Record) -> bool:
    """Whether its figures are there to be compared with others: something varies, and names are known ones."""
    if isinstance(record, Measurement):
        return (
            record.lambda_mean > 0
            and record.environment.dtype in _DTYPES
            and (record.gap is None or bool(record.twins))
        )
    if isinstance(record, Trace):
        return record.environment.dtype in _DTYPES and all(stream.verdict in _STREAMS for stream in record.streams)
    return bool(getattr(record, "norms", True))


def _promised(record: Record) -> Record:
    """Without readers of a kernel at which nothing is promised: they have no way to take its constant away."""
    if not isinstance(record, Fisher):
        return record
    return replace(record, sites=[site for site in record.sites if not site.has_kernel or site.remedy != "none"])


def _classified(records: Sequence[Record]) -> Iterator[Claim]:
    """The kinds that `classify` concluded, beside what ran."""
    results = [result for record in records if isinstance(record, Classifications) for result in record.results]
    ran = {m.model: m.kind for m in records if isinstance(m, Measurement) and m.protocol.status == "ok"}
    compared = [result for result in results if result.model in ran]
    if compared:
        agree = sum(ran[result.model] == result.kind for result in compared)
        yield Claim(
            name="classification",
            says="The parameters alone tell which of the two a model is",
            theirs="all models",
            ours=f"{of(agree, len(compared), 'model')}: kind by the parameters = kind by the forward pass",
            verdict=share(agree, len(compared)),
        )


def _exact(found: Sequence[Figures]) -> Iterator[Claim]:
    if found:
        held = sum(f.protocol.status == "ok" for f in found)
        ratios = [f.lambda_dead_float64 / f.lambda_mean for f in found if f.lambda_mean > 0]
        worst = f": in float64 {number(max(ratios))} of the mean variance at most" if ratios else ""
        yield Claim(
            name="exact",
            says="The variance along a kernel is zero: what is measured there is rounding",
            theirs="",
            ours=f"{of(held, len(found), 'set of weights', 'sets of weights')}, twins included{worst}",
            verdict=share(held, len(found)),
        )


def _after_training(found: Sequence[Measurement]) -> Iterator[Claim]:
    if found:
        held = sum(map(aligned, found))
        further = sum(m.algebraic_dead + m.learned_dead - m.kernel_dim for m in found)
        explained = sum(m.algebraic_dead - m.kernel_dim for m in found)
        more = f"; {counted(further, 'further dead direction')}, {explained} of them read from the gains"
        yield Claim(
            name="after_training",
            says="After training the parameters still name the dead subspace",
            theirs="",
            ours=f"{of(held, len(found), 'model')} at subspace |cos| >= {ALIGNED}{more if further > 0 else ''}",
            verdict=share(held, len(found)),
        )
