"""``reproduce``: the paper's table and claims, from one run of every model in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deadreckon.checkpoint.source import parse_model
from deadreckon.checkpoint.zoo import SHRUNK, zoo_entry
from deadreckon.errors import UsageError
from deadreckon.results.claims import Rows, judge
from deadreckon.results.measurement import Measurement
from deadreckon.results.record import Record
from deadreckon.results.reproduction import Failure, Reproduction
from deadreckon.results.rows import fisher_rows, random_rows, trained_rows
from deadreckon.results.saved import record_of
from deadreckon.results.writing import write_file
from deadreckon.study import paper
from deadreckon.study.plan import Planned
from deadreckon.study.run import Progress, run_all
from deadreckon.study.store import Store

_REDRAWN = "lognormal:0.5"
_TWINS = 2
_TOKENS_PER_DIMENSION = 4
_SHARE_OF_MEMORY = 0.7  # for weights; the rest is for activations
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

SCALES = {"full": ("", ("bfloat16", "float32")), "small": (SHRUNK, ("float32",))}
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
    found = conclude(
        (record_of(task.result) for task in tasks if task.result is not None),
        failures=[Failure(model=t.model, verb=t.verb, why=t.why) for t in tasks if t.status == "failed"],
        name=f"{scale} scale",
        store=str(folder),
        seconds=sum(task.seconds for task in tasks),
    )
    write_file(folder / "reproduction.json", (found.to_json() + "\n").encode())
    return found


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


def conclude(
    records: Iterable[Record], *, failures: Sequence[Failure] = (), name: str, store: str = "", seconds: float = 0.0
) -> Reproduction:
    """The table and the claims of everything that was measured.

    Args:
        records: results of `plan_random` and `plan_trained`.
        failures: of those that have none.
        name: of the whole.
        store: where the tasks are kept.
        seconds: wall time of the tasks.

    Returns:
        The record.
    """
    records = list(records)
    entries = {r.model: zoo_entry(parse_model(r.model).name) for r in records if r.model.startswith("random:")}
    listed = {model: paper.MODELS.get(entry.name.removesuffix(SHRUNK), "") for model, entry in entries.items()}
    models = [replace(row, parameters=entries[row.model].parameters) for row in random_rows(records, listed)]
    trained, fisher = trained_rows(records), fisher_rows(records)
    return Reproduction(
        model=name,
        claims=judge(Rows(models, trained, fisher)),
        models=models,
        trained=trained,
        fisher=fisher,
        failures=list(failures),
        environment=next((r.environment for r in records if isinstance(r, Measurement)), None),
        store=store,
        seconds=seconds,
    )


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
