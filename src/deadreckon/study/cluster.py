"""The engine that carries tasks out on a Ray cluster: one of this machine, or one that is there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from deadreckon.errors import DeadreckonError, UnreachableError, UsageError
from deadreckon.results.sizes import parse_size
from deadreckon.results.task import Task
from deadreckon.study.plan import Planned
from deadreckon.study.resources import Resources
from deadreckon.study.run import Call, carry_out, finished, run_task
from deadreckon.study.store import Store

_PATIENCE = 10.0  # seconds
_OFFLINE = "HF_HUB_OFFLINE"
ATTEMPTS = 3
"""How often a task is begun whose worker dies."""


def ray_cluster(
    plans: Iterable[Planned],
    store: Store,
    call: Call = run_task,
    *,
    address: str | None = None,
    workers: int | None = None,
) -> Iterator[Task | None]:
    """Tasks carried out by Ray's workers, as many at a time as their resources allow.

    A worker claims the task and keeps its result by itself: what was computed to the end is there, also if this process
    is no more.

    Args:
        plans: what to carry out.
        store: where to keep it, a folder that all nodes see.
        call: what carries one out.
        address: of a cluster that is there, as ray.init takes it; by default one is started on this machine and ended.
        workers: cores that such a cluster may use; by default all.

    Yields:
        Tasks as they come to their end; None for those that another process has. A task whose worker dies is begun
        anew, ATTEMPTS times in all.

    Raises:
        UnreachableError: Ray is not installed, there is no cluster at the address, or the store cannot be written to.
        UsageError: a task takes more than the machine has.
    """
    todo = iter(plans)
    here = Path.cwd(), store.folder.resolve(), os.environ.get(_OFFLINE)
    with _cluster(address, workers) as ray:
        work = ray.remote(max_retries=0)(_work)
        running: dict[Any, tuple[Planned, int]] = {}

        def begin(plan: Planned, attempt: int) -> None:
            demands = _demands(ray, plan, local=address is None)
            running[work.options(**demands).remote(plan, call, *here)] = plan, attempt

        def fail(plan: Planned, why: str) -> Task:
            task = finished(plan, result=None, why=" ".join(why.split()), seconds=0.0)
            store.write(task, {})
            return task

        while True:
            for plan in islice(todo, max(0, _room(ray) - len(running))):
                begin(plan, 1)
            if not running:
                return
            ended, _ = ray.wait(list(running), num_returns=1)
            plan, attempt = running.pop(ended[0])
            try:
                yield ray.get(ended[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DeadreckonError):  # not the verb's, which are the task's: the store's
                    raise error.cause from None
                yield fail(plan, f"the worker cannot carry it out: {error.cause or error}")
            except ray.exceptions.RayError as error:
                if attempt < ATTEMPTS:
                    begin(plan, attempt + 1)
                else:
                    what = "ran out of memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else "died"
                    yield fail(plan, f"its worker {what} {ATTEMPTS} times ({type(error).__name__})")


def _work(plan: Planned, call: Call, directory: Path, folder: Path, offline: str | None) -> Task | None:
    """What a worker does, where and as this process would: names of models may be paths from here."""
    for place in (directory, folder):
        if not place.is_dir():
            raise UnreachableError(f"{place}: a node does not see it; work in a place that all nodes share")
    if offline is not None:
        os.environ[_OFFLINE] = offline
    with chdir(directory):
        return carry_out(plan, Store(folder), call)


def _demands(ray: Any, plan: Planned, *, local: bool) -> dict[str, Any]:
    """What Ray has to set aside for a task."""
    takes = plan.resources or Resources()
    memory = parse_size(takes.memory) if isinstance(takes.memory, str) else takes.memory
    if local:
        there = ray.cluster_resources()
        for name, wanted in (("CPU", takes.cpus), ("GPU", takes.gpus), ("memory", memory or 0)):
            if wanted > there.get(name, 0):
                raise UsageError(
                    f"a task takes {wanted:g} {name} and this machine has {there.get(name, 0):g} for Ray: lower the "
                    "resources, or give the address of a cluster that has more"
                )
    name = f"{plan.verb} {plan.name}"
    return {"num_cpus": takes.cpus, "num_gpus": takes.gpus, "memory": memory, "name": name}


def _room(ray: Any) -> int:
    """Tasks to have begun or waiting at a time: enough that no worker idles."""
    return int(2 * max(1, ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, connected; what was started for this is ended."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported: nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UnreachableError("the engine ray needs Ray: pip install 'deadreckon[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        _check_answers(address)
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UnreachableError(f"no Ray cluster at {address or 'this machine'}: {why}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UnreachableError(
            f"no Ray cluster at {address}: {error}; name its head, or leave the address out"
        ) from None
