"""Measurements, traces and Fisher information of many models, brought together in a row each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from deadreckon.results.claims import worst_verdict
from deadreckon.results.fisher import Fisher
from deadreckon.results.measurement import Measurement
from deadreckon.results.reading import Reading
from deadreckon.results.record import Record
from deadreckon.results.reproduction import FisherRow, ModelRow, TrainedRow
from deadreckon.results.trace import Trace

_RANDOM = "random:"
_KERNEL = 1e-20  # of the mean variance, in float64: rounding makes 1e-30, and what is no kernel 1e-6

Kind = TypeVar("Kind", bound=Record)


def random_rows(records: Iterable[Record], listed: Mapping[str, str] | None = None) -> list[ModelRow]:
    """A row for each model at random initialisation and each dtype that it was measured in.

    Args:
        records: of any kind.
        listed: model -> the kind that a list calls it; by default what its module turned out to be.

    Returns:
        The rows, in the order of the first measurements.
    """
    records = list(records)
    models = dict.fromkeys(m.model for m in _of(records, Measurement) if m.model.startswith(_RANDOM))
    return [row for model in models for row in _rows([r for r in records if r.model == model], listed)]


def trained_rows(records: Iterable[Record]) -> list[TrainedRow]:
    """A row for each model that was measured beside random-init twins and is not random itself.

    Args:
        records: of any kind.

    Returns:
        The rows, in the order of the measurements.
    """
    records = list(records)
    rows = []
    for m in _of(records, Measurement):
        if m.gap is None or m.model.startswith(_RANDOM):
            continue
        same = [r for r in records if r.model == m.model]
        readings, traces = _of(same, Reading), _of(same, Trace)
        rows.append(
            TrainedRow(
                model=m.model,
                kind=m.kind,
                hidden_size=m.hidden_size,
                dtype=m.environment.dtype,
                data=m.data,
                tokens_per_dimension=m.tokens_per_dimension,
                subspace_alignment=m.subspace_alignment,
                depth_decades=m.depth_decades,
                deepening=m.gap.depth_decades.change,
                gain_decades=readings[0].norms[0].gain_depth_decades if readings else None,
                dead=m.algebraic_dead + m.learned_dead,
                dead_twin=max(twin.algebraic_dead + twin.learned_dead for twin in m.twins),
                algebraic_dead=m.algebraic_dead,
                learned_dead=m.learned_dead,
                effective_rank_change=m.gap.effective_rank,
                trace=traces[0].verdict if traces else "",
            )
        )
    return rows


def fisher_rows(records: Iterable[Record]) -> list[FisherRow]:
    """A row for each reader of a norm.

    Args:
        records: of any kind.

    Returns:
        The rows.
    """
    return [
        FisherRow(
            model=record.model,
            kind=site.norm_kind,
            is_dead=site.is_dead,
            ratio=site.naive_ratio if site.ratio is None else site.ratio,
        )
        for record in _of(records, Fisher)
        for site in record.sites
    ]


def _rows(records: Sequence[Record], listed: Mapping[str, str] | None) -> list[ModelRow]:
    readings, measured, traces = _of(records, Reading), _of(records, Measurement), _of(records, Trace)
    rows = []
    for dtype in dict.fromkeys(m.environment.dtype for m in measured):
        same = [m for m in measured if m.environment.dtype == dtype]
        plain, redrawn = ([m for m in same if bool(m.affine) == wanted] for wanted in (False, True))
        if not plain:
            continue
        traced = [t for t in traces if t.environment.dtype == dtype]
        streams = [stream for trace in traced for stream in trace.streams]
        first = plain[0]
        has_kernel = all(m.lambda_dead_float64 <= _KERNEL * m.lambda_mean for m in same)
        furthest = min if first.kind == "layernorm" else max
        ratios = [node.step_ratio for stream in streams for node in stream.blocks if node.step_ratio is not None]
        rows.append(
            ModelRow(
                model=first.model,
                parameters=None,
                listed_as=first.kind if listed is None else listed.get(first.model, ""),
                kind_read=readings[0].kind if readings else "",
                kind_seen="layernorm" if has_kernel else "rmsnorm",
                hidden_size=first.hidden_size,
                blocks=len(traced[0].blocks) - 1 if traced else None,
                dtype=dtype,
                data=first.data.partition(", seed")[0],
                tokens_per_dimension=first.tokens_per_dimension,
                seeds=sorted({m.seed for m in same}),
                alignment=furthest(m.alignment for m in plain),
                alignment_mean=sum(m.alignment for m in plain) / len(plain),
                alignment_redrawn=furthest((m.alignment for m in redrawn), default=None),
                uniform_redrawn=max((m.alignment_uniform for m in redrawn), default=None),
                random_level=math.sqrt(2 / (math.pi * first.hidden_size)),
                dead_share=max(m.lambda_dead / m.lambda_mean for m in plain),
                dead_share_float64=max(m.lambda_dead_float64 / m.lambda_mean for m in plain),
                protocol="ok" if all(m.protocol.status == "ok" for m in same) else "failed",
                trace=worst_verdict([stream.verdict for stream in streams]),
                smallest_step_ratio=min(ratios, default=None),
                events=[f"block {event.block}: {event.says}" for stream in streams for event in stream.events],
                seconds=sum(m.seconds for m in same) + sum(t.seconds for t in traced),
            )
        )
    return rows


def _of(records: Iterable[Record], kind: type[Kind]) -> list[Kind]:
    return [record for record in records if isinstance(record, kind)]
