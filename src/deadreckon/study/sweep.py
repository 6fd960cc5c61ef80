"""``sweep``: verbs on models at revisions with seeds and data, resumable, in this process or on a Ray cluster."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from deadreckon.errors import UsageError
from deadreckon.results.sweep import FailedTask, Sweep
from deadreckon.results.task import Task
from deadreckon.study.expand import expand
from deadreckon.study.plan import Planned
from deadreckon.study.run import Engine, Progress, in_process, run_all
from deadreckon.study.spec import load_spec
from deadreckon.study.store import Store

ENGINES = ("in-process", "ray")


def sweep(
    spec: str | Path | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    engine: str = "in-process",
    workers: int | None = None,
    address: str | None = None,
    shard: str | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Every task of a specification, carried out and kept; what the folder has already is not done again.

    Args:
        spec: a YAML file, or what it would hold.
        folder: where results are kept; by default named as the file, without its suffix. Several sweeps and shards may
            share one.
        engine: ``in-process``, one task after the other, or ``ray``.
        workers: cores that a Ray cluster started for this may use; by default all.
        address: of a Ray cluster that is there.
        shard: ``i/n``: only the i-th of n shares of the tasks, i from 1.
        progress: called with how many are at their end, how many there are, and the task that was carried out just now;
            None for those that were there already.

    Returns:
        What came of it; the results themselves are in the folder, see `table`.

    Raises:
        UsageError: no such engine or shard, or a task takes more than the machine has.
        InputError: not a specification (the message gives line and field), or the folder holds a newer version's tasks.
        UnreachableError: the specification or Ray is missing, or the folder cannot be written to.
    """
    started = time.perf_counter()
    engine_of = _engine(engine, workers, address)
    if folder is None:
        if isinstance(spec, Mapping):
            raise UsageError("a specification that is no file has no folder by itself: name one")
        folder = Path(spec).with_suffix("")
        if folder == Path(spec):
            raise UsageError(f"{spec}: without a suffix, so the folder cannot be named after it: name one")
    plans = _share(expand(*load_spec(spec)), shard)
    computed = 0

    def count(done: int, total: int, task: Task | None) -> None:
        nonlocal computed
        computed += task is not None
        if progress is not None:
            progress(done, total, task)

    tasks = run_all(plans, Store(folder), engine_of, count)
    failures = [
        FailedTask(key=task.key, verb=task.verb, model=task.model, revision=task.revision, why=task.why)
        for task in tasks
        if task.status == "failed"
    ]
    return Sweep(
        model=", ".join(dict.fromkeys(task.model for task in tasks)),
        folder=str(folder),
        engine=engine,
        shard=shard,
        tasks=len(tasks),
        computed=computed,
        found=len(tasks) - computed,
        failed=len(failures),
        failures=failures,
        seconds=time.perf_counter() - started,
    )


def _engine(name: str, workers: int | None, address: str | None) -> Engine:
    if name == "ray":
        from deadreckon.study.cluster import ray_cluster

        if workers is not None and address is not None:
            raise UsageError("workers are for a cluster that is started here: leave them out where address names one")
        return partial(ray_cluster, address=address, workers=workers)
    if name not in ENGINES:
        raise UsageError(f"{name}: no such engine; there are {', '.join(ENGINES)}")
    if workers is not None or address is not None:
        raise UsageError(f"{'workers' if workers is not None else 'address'} is for the engine ray")
    return in_process


def _share(plans: list[Planned], shard: str | None) -> list[Planned]:
    """Every n-th task, so that the tasks of a large model spread over all shares."""
    if shard is None:
        return plans
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"shard {shard!r}: write i/n with i from 1 to n, e.g. 1/4")
    return plans[int(match[1]) - 1 :: int(match[2])]
