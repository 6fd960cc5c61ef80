"""``reproduce``: the paper's table and claims, from one run of every model in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deadreckon.checkpoint.source import parse_model
from deadreckon.checkpoint.zoo import zoo_entry
from deadreckon.errors import UsageError
from deadreckon.results.fisher import Fisher
from deadreckon.results.measurement import Measurement
from deadreckon.results.reading import Reading
from deadreckon.results.record import Record
from deadreckon.results.reproduction import Failure, FisherRow, ModelRow, Reproduction, TrainedRow
from deadreckon.results.saved import record_of
from deadreckon.results.task import Task
from deadreckon.results.trace import Trace
from deadreckon.study import paper
from deadreckon.study.claims import Rows, judge, worst_verdict
from deadreckon.study.plan import Planned
from deadreckon.study.run import Progress, run_all
from deadreckon.study.store import Store

_REDRAWN = "lognormal:0.5"
_KERNEL = 1e-20  # of the mean variance, in float64: rounding makes 1e-30, and what is no kernel 1e-6
_TWINS = 2
_TOKENS_PER_DIMENSION = 4
_SHARE_OF_MEMORY = 0.7  # for weights; the rest is for activations
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

Kind = TypeVar("Kind", bound=Record)


SCALES = {"full": ("", ("bfloat16", "float32")), "small": ("-shrunk", ("float32",))}
"""What the models' names end in, and the dtypes that they run in."""


def reproduce(
    *,
    scale: str = "full",
    store: str | Path | None = None,
    models: Sequence[str] | None = None,
    seeds: int = 3,
    dtypes: Sequence[str] | None = None,
    trained: Sequence[str | Path] | Mapping[str, Mapping[str, Any]] = (),
    device: str = "auto",
    progress: Progress | None = None,
) -> Reproduction:
    """The paper's claims, each with what it reports, what is measured here, and a verdict.

    Every model is built with random weights and measured at its final norm, with the gains of its initialiser and with
    gains redrawn, and its residual stream is traced over all blocks; directional Fisher information is taken at two
    heads; trained models are measured beside random-init twins.

    Args:
        scale: ``full``, the published sizes, each built on the device in its turn, or ``small``, the same models
            shrunk, for a laptop.
        store: folder that keeps the record of every task, and is gone on from; ``deadreckon-reproduce-SCALE`` by
            default.
        models: some of the fourteen; all by default.
        seeds: how many draws of weights and inputs.
        dtypes: that models run in, the first of them with every seed and traced, the others where there is room; those
            of the scale by default, bfloat16 and float32, or float32 alone.
        trained: trained models to go with them, by MODEL name; a mapping gives each the inputs that ``measure`` and
            ``trace`` take.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called with tasks done, tasks in all, and the task that was done last.

    Returns:
        Claims, rows and failures. The store holds what they were made from.

    Raises:
        UsageError: an unknown scale, model or dtype, or no accelerator for the full size.
        UnreachableError: torch is missing, or the store cannot be written.
    """
    if scale not in SCALES:
        raise UsageError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    if seeds < 1:
        raise UsageError(f"{seeds} seeds: ask for at least 1")
    chosen = list(paper.MODELS) if models is None else list(models)
    for name in chosen:
        if name not in paper.MODELS:
            raise UsageError(f"{name!r} is not in the table: choose from {', '.join(paper.MODELS)}")
    given = trained if isinstance(trained, Mapping) else {str(name): {} for name in trained}
    folder = Path(store or f"deadreckon-reproduce-{scale}")
    suffix, usual = SCALES[scale]
    for dtype in dtypes or ():
        if dtype not in _BYTES:
            raise UsageError(f"unknown dtype {dtype!r}: choose from {', '.join(_BYTES)}")
    room = _room(scale, device)
    plans = [
        *plan_random(chosen, suffix, dtypes or usual, seeds=seeds, device=device, room=room),
        *plan_trained(given, device=device),
    ]
    tasks = run_all(plans, Store(folder), progress=progress)
    return conclude(tasks, model=f"{scale} scale", store=str(folder))


def plan_random(
    models: Iterable[str],
    suffix: str,
    dtypes: Sequence[str],
    *,
    seeds: int,
    device: str = "auto",
    room: int | None = None,
) -> list[Planned]:
    """The tasks for models at random initialisation.

    Args:
        models: names in the paper's table.
        suffix: of the models' names.
        dtypes: that they run in; only the first is run with every seed, and traced.
        seeds: how many.
        device: where to run.
        room: bytes that weights may take; None for any number. A finer dtype that does not fit is left out.

    Returns:
        The tasks, those of a model after one another.
    """
    plans = []
    for name in models:
        entry = zoo_entry(name + suffix)
        model = f"random:{entry.name}"
        tokens = _TOKENS_PER_DIMENSION * entry.hidden_size
        plans.append(Planned("read", model))
        for index, dtype in enumerate(dtypes):
            if index and room is not None and (entry.parameters or 0) * _BYTES[dtype] > room:
                continue
            for seed in range(seeds if index == 0 else 1):
                run = {"tokens": tokens, "seed": seed, "dtype": dtype, "device": device}
                plans.append(Planned("measure", model, options=run))
                plans.append(Planned("measure", model, options={**run, "affine": _REDRAWN}))
                if index == 0:
                    plans.append(Planned("trace", model, options=run))
        if name in paper.HEADS:
            head = {"affine": _REDRAWN, "dtype": "float32", "device": device}
            plans.append(Planned("fisher", model, options=head))
        if paper.SEVERAL_MODALITIES.startswith(name):
            entry = zoo_entry(paper.SEVERAL_MODALITIES + suffix)
            run = {"tokens": tokens, "seed": 0, "dtype": dtypes[0], "device": device}
            plans.append(Planned("read", f"random:{entry.name}"))
            plans += [Planned(verb, f"random:{entry.name}", options=run) for verb in ("measure", "trace")]
    return plans


def plan_trained(models: Mapping[str, Mapping[str, Any]], *, device: str = "auto") -> list[Planned]:
    """The tasks for trained models.

    Args:
        models: MODEL name -> options of ``measure`` and ``trace``.
        device: where to run.

    Returns:
        The tasks.
    """
    plans = []
    for model, options in models.items():
        run = {"device": device, **options}
        plans.append(Planned("read", model))
        plans.append(Planned("measure", model, options={**run, "twin": _TWINS}))
        plans.append(Planned("trace", model, options=run))
    return plans


def conclude(tasks: Sequence[Task], *, model: str = "", store: str = "") -> Reproduction:
    """The table and the claims of tasks that came to an end.

    Args:
        tasks: of `plan_random` and `plan_trained`.
        model: what to call the whole.
        store: where the tasks are kept.

    Returns:
        The record.
    """
    by_model: dict[str, list[Task]] = {}
    for task in tasks:
        by_model.setdefault(task.model, []).append(task)
    models: list[ModelRow] = []
    trained: list[TrainedRow] = []
    for same in by_model.values():
        if same[0].model.startswith("random:"):
            models += _model_rows(same)
        elif (row := _trained_row(same)) is not None:
            trained.append(row)
    fisher = [
        FisherRow(
            model=record.model,
            kind=site.norm_kind,
            is_dead=site.is_dead,
            ratio=site.naive_ratio if site.ratio is None else site.ratio,
        )
        for record in _records(tasks, Fisher)
        for site in record.sites
    ]
    measured = _records(tasks, Measurement)
    return Reproduction(
        model=model,
        claims=judge(Rows(models, trained, fisher)),
        models=models,
        trained=trained,
        fisher=fisher,
        failures=[Failure(model=t.model, verb=t.verb, why=t.why) for t in tasks if t.status == "failed"],
        environment=measured[0].environment if measured else None,
        store=store,
        seconds=sum(task.seconds for task in tasks),
    )


def _model_rows(tasks: Sequence[Task]) -> list[ModelRow]:
    """A row for each dtype that a random-init model was measured in."""
    readings, measured, traces = _records(tasks, Reading), _records(tasks, Measurement), _records(tasks, Trace)
    rows = []
    for dtype in dict.fromkeys(m.environment.dtype for m in measured):
        same = [m for m in measured if m.environment.dtype == dtype]
        plain, redrawn = ([m for m in same if bool(m.affine) == wanted] for wanted in (False, True))
        if not plain:
            continue
        traced = [t for t in traces if t.environment.dtype == dtype]
        streams = [stream for trace in traced for stream in trace.streams]
        first, entry = plain[0], zoo_entry(parse_model(plain[0].model).name)
        has_kernel = all(m.lambda_dead_float64 <= _KERNEL * m.lambda_mean for m in same)
        furthest = min if first.kind == "layernorm" else max
        ratios = [node.step_ratio for stream in streams for node in stream.blocks if node.step_ratio is not None]
        rows.append(
            ModelRow(
                model=first.model,
                parameters=entry.parameters,
                listed_as=paper.MODELS.get(entry.name.removesuffix("-shrunk"), ""),
                kind_read=readings[0].kind if readings else "",
                kind_seen="layernorm" if has_kernel else "rmsnorm",
                hidden_size=first.hidden_size,
                blocks=entry.layers,
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


def _trained_row(tasks: Sequence[Task]) -> TrainedRow | None:
    readings, measured, traces = _records(tasks, Reading), _records(tasks, Measurement), _records(tasks, Trace)
    if not measured or measured[0].gap is None:
        return None
    m, gap = measured[0], measured[0].gap
    return TrainedRow(
        model=tasks[0].model,
        kind=m.kind,
        hidden_size=m.hidden_size,
        dtype=m.environment.dtype,
        data=m.data,
        tokens_per_dimension=m.tokens_per_dimension,
        subspace_alignment=m.subspace_alignment,
        depth_decades=m.depth_decades,
        deepening=gap.depth_decades.change,
        gain_decades=readings[0].norms[0].gain_depth_decades if readings else None,
        dead=m.algebraic_dead + m.learned_dead,
        dead_twin=max(twin.algebraic_dead + twin.learned_dead for twin in m.twins),
        algebraic_dead=m.algebraic_dead,
        learned_dead=m.learned_dead,
        effective_rank_change=gap.effective_rank,
        trace=traces[0].verdict if traces else "",
    )


def _records(tasks: Iterable[Task], kind: type[Kind]) -> list[Kind]:
    """The results of one kind, in the order of their tasks."""
    records = (record_of(task.result) for task in tasks if task.result is not None)
    return [record for record in records if isinstance(record, kind)]


def _room(scale: str, device: str) -> int | None:
    """Bytes that weights may take on the device."""
    from deadreckon.forward.memory import free_memory
    from deadreckon.forward.placement import resolve_device

    where = resolve_device(device)
    if scale == "full" and device == "auto" and where.type == "cpu":
        raise UsageError(
            "the full size is up to 35B parameters and there is no accelerator here: choose --scale small, or insist "
            "with --device cpu"
        )
    free = free_memory(where)
    return None if free is None else int(_SHARE_OF_MEMORY * free)
