"""Tasks carried out: each once, whatever happens to the others, its result kept before the next is begun.

An engine is a function that carries out tasks and yields each as it comes to its end, in any order: ``in_process``
here, ``ray_cluster`` in its own file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deadreckon.errors import DeadreckonError
from deadreckon.results.task import Task
from deadreckon.study.plan import Planned, stamped

if TYPE_CHECKING:
    from deadreckon.study.store import Store

Outcome = tuple[Task, Mapping[str, Any]]
Call = Callable[[Planned], Outcome]
Engine = Callable[[Iterable[Planned], "Store"], Iterator[Task | None]]
Progress = Callable[[int, int, Task | None], None]

_WAIT = 0.5  # seconds between two looks at what another process has claimed


def run_task(planned: Planned) -> Outcome:
    """Call a verb on a model.

    Args:
        planned: what to call on what. Its cpus are the threads of torch and NumPy while it runs, so that figures are
            equal to the last bit wherever it runs.

    Returns:
        The task with the verb's record, and its vectors. Whatever the verb raised makes a failed task.
    """
    started = time.perf_counter()
    result, vectors, why = None, {}, ""
    try:
        verb = getattr(import_module(f"deadreckon.verbs.{planned.verb}"), planned.verb)
        with _threads(planned.resources.cpus if planned.resources else None):
            record = verb(planned.name, **planned.options)
            result, vectors = json.loads(record.to_json()), dict(record.vectors)
    except Exception as error:  # one checkpoint's failure never stops the rest
        why = _reason(error)
    return finished(planned, result=result, why=why, seconds=time.perf_counter() - started), vectors


def finished(planned: Planned, *, result: dict[str, Any] | None, why: str, seconds: float) -> Task:
    """The record of a task that came to an end.

    Args:
        planned: what was called on what.
        result: the verb's record; None where it failed.
        why: what failed.
        seconds: wall time.

    Returns:
        The record.
    """
    return Task(
        model=planned.model,
        key=planned.key,
        verb=planned.verb,
        revision=planned.revision,
        step=planned.step,
        options=dict(planned.options),
        status="failed" if result is None else "done",
        why=why,
        result=result,
        seconds=seconds,
    )


def carry_out(plan: Planned, store: Store, call: Call = run_task) -> Task | None:
    """Claim a task, carry it out and keep what came of it: who computes, claims and keeps.

    Args:
        plan: with content.
        store: where it is kept.
        call: what carries it out.

    Returns:
        The task, done or failed; None where another process is at it, or has done it by now.

    Raises:
        UnreachableError: the store cannot be written to.
    """
    claim = store.claim(plan.key)
    if claim is None:
        return None
    try:
        if store.has(plan.key):
            return None
        task, vectors = call(plan)
        store.write(task, vectors)
        return task
    finally:
        claim.release()


def in_process(plans: Iterable[Planned], store: Store, call: Call = run_task) -> Iterator[Task | None]:
    """The engine that carries out one task after the other in this process.

    Args:
        plans: what to carry out.
        store: where to keep it.
        call: what carries one out.

    Yields:
        Each one's task; None for those that another process has.
    """
    for plan in plans:
        yield carry_out(plan, store, call)


def run_all(
    plans: Iterable[Planned], store: Store, engine: Engine = in_process, progress: Progress | None = None
) -> list[Task]:
    """Carry out what a store does not have yet, and keep every task as it comes to its end.

    Tasks that are done are left as they are; those that failed are tried again. What another process is at is waited
    for, and taken over if that process ends without a result.

    Args:
        plans: what to have in the end. Equal ones count once.
        store: where results are kept.
        engine: carries tasks out.
        progress: called with how many are at their end, how many there are, and the task that was carried out just now;
            None for those that were there already.

    Returns:
        All of them, done or failed, in their order.

    Raises:
        InputError: the store holds what a newer version made.
        UnreachableError: the store cannot be written to.
    """
    plans = stamped(plans)
    store.prepare()
    _forget_failures(plans, store)
    waiting = {plan.key: plan for plan in plans}
    ended: dict[str, Task] = {}

    def end(task: Task, *, now: bool) -> None:
        ended[task.key] = task
        del waiting[task.key]
        if progress is not None:
            progress(len(ended), len(plans), task if now else None)

    while True:
        for key in list(waiting):
            if (task := store.get(key)) is not None and task.status == "done":
                end(task, now=False)
        if not waiting:
            return [ended[plan.key] for plan in plans]
        moved = False
        for carried_out in engine(list(waiting.values()), store):
            if carried_out is not None:
                moved = True
                end(carried_out, now=True)
        if not moved:
            time.sleep(_WAIT)


def _forget_failures(plans: Iterable[Planned], store: Store) -> None:
    """Drop failures of these same requests under other keys: the model was not there, or another one was."""
    asked = {(plan.verb, plan.model, plan.revision, _text(plan.options)): plan.key for plan in plans}
    for task in store.tasks():
        key = asked.get((task.verb, task.model, task.revision, _text(task.options)))
        if task.status == "failed" and key not in {None, task.key}:
            store.drop(task.key)


def _text(options: Mapping[str, Any]) -> str:
    return json.dumps(dict(options), sort_keys=True)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, DeadreckonError):
        return text
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'deadreckon[measure]'"
    return f"{type(error).__name__}: {text}"


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Torch's and NumPy's threads for a while."""
    if number is None:
        yield
        return
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")  # a verb that has not imported it does not compute with it
    before = torch.get_num_threads() if torch else None
    try:
        if torch:
            torch.set_num_threads(number)
        with threadpool_limits(number, user_api="blas"):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
