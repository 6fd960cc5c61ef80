"""Tasks carried out: one's failure never stops the rest, nothing done is done again, nothing is done twice."""

import dataclasses
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from deadreckon.study import run
from deadreckon.study.plan import Planned, stamped
from deadreckon.study.resources import Resources
from deadreckon.study.run import finished, in_process, run_all, run_task
from deadreckon.study.store import Store

MODELS = ("random:pythia-160m", "random:llama-3.1-8b", "random:gpt-neox-20b")
PLANS = [Planned(verb, model) for model in MODELS for verb in ("read", "census")]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def counting(calls):
    """An engine that notes what it is given."""

    def call(plan):
        calls.append(plan.key)
        return run_task(plan)

    return partial(in_process, call=call)


def timeless(task):
    def less(part):
        if isinstance(part, dict):
            return {key: less(value) for key, value in part.items() if key != "seconds"}
        return [less(value) for value in part] if isinstance(part, list) else part

    return less(task.to_dict())


def test_every_task_is_carried_out_once_and_kept_and_found_the_next_time(store):
    calls, seen = [], []
    tasks = run_all(
        [*PLANS, *PLANS], store, counting(calls), lambda done, total, task: seen.append((done, total, task))
    )
    assert [(t.verb, t.model, t.status) for t in tasks] == [(p.verb, p.model, "done") for p in PLANS]
    assert len(calls) == len(PLANS)
    assert [done for done, *_ in seen] == list(range(1, len(PLANS) + 1))
    assert {total for _, total, _ in seen} == {len(PLANS)}
    again = run_all(PLANS, store, counting(calls), lambda done, total, task: seen.append(task))
    assert len(calls) == len(PLANS)
    assert again == tasks
    assert seen[len(PLANS) :] == [None] * len(PLANS)


def test_a_failure_says_why_and_stops_nothing_and_is_tried_again(store, tmp_path):
    missing = tmp_path / "model.safetensors"
    plans = [Planned("read", str(missing)), PLANS[0]]
    failed, done = run_all(plans, store)
    assert (failed.status, failed.result, done.status) == ("failed", None, "done")
    assert failed.why == f"{missing}: no such file or directory"
    calls = []
    run_all(plans, store, counting(calls))
    assert calls == [failed.key]


def test_a_failure_is_forgotten_once_its_model_is_there(store, tmp_path, minilm):
    plan = Planned("read", str(tmp_path / "late"))
    run_all([plan, Planned("read", str(tmp_path / "never"))], store)
    (tmp_path / "late").symlink_to(minilm)
    (task,) = run_all([plan], store)
    assert task.status == "done"
    assert [t.status for t in store.tasks()] == ["done", "failed"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of\nmemory"), MemoryError(), ValueError("NaN")])
def test_whatever_a_verb_raises_is_a_reason_in_one_line(monkeypatch, error):
    def census(model):
        raise error

    monkeypatch.setattr("deadreckon.verbs.census.census", census)
    task, vectors = run_task(PLANS[1])
    assert task.why == f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert (task.status, vectors) == ("failed", {})


def test_an_interrupt_is_no_failure(monkeypatch, store):
    def census(model):
        raise KeyboardInterrupt

    monkeypatch.setattr("deadreckon.verbs.census.census", census)
    with pytest.raises(KeyboardInterrupt):
        run_all(PLANS[:2], store)
    assert [task.verb for task in store.tasks()] == ["read"]  # what came before is kept
    assert store.claim(stamped(PLANS[1:2])[0].key) is not None  # and what was begun is free again


def test_a_record_that_json_cannot_hold_is_a_failure_of_that_task(monkeypatch):
    class Odd:
        def to_json(self):
            raise ValueError("Out of range float values are not JSON compliant")

    monkeypatch.setattr("deadreckon.verbs.census.census", lambda model: Odd())
    assert run_task(PLANS[1])[0].status == "failed"


def test_threads_are_set_for_a_task_and_put_back(monkeypatch):
    import torch
    from threadpoolctl import threadpool_info

    seen = []

    def census(model):
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        seen.append((torch.get_num_threads(), set(blas)))
        raise RuntimeError

    monkeypatch.setattr("deadreckon.verbs.census.census", census)
    before = torch.get_num_threads()
    run_task(dataclasses.replace(PLANS[1], resources=Resources(cpus=3)))
    assert seen[0][0] == 3
    assert seen[0][1] <= {3, 1}  # a BLAS that was built or told to have one has one
    assert torch.get_num_threads() == before


def test_two_runs_at_once_share_the_work(store):
    calls = []

    def slow(plan):
        calls.append(plan.key)
        time.sleep(0.02)
        return finished(plan, result=None, why="", seconds=0.0), {}

    def done(plan):
        slow(plan)
        return run_task(plan)

    runs = [threading.Thread(target=run_all, args=(PLANS, store, partial(in_process, call=done))) for _ in "ab"]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert sorted(calls) == sorted(plan.key for plan in stamped(PLANS))


def test_what_another_process_has_is_waited_for_and_taken_over_when_it_ends(store, monkeypatch):
    monkeypatch.setattr(run, "_WAIT", 0.02)
    store.prepare()
    key = stamped(PLANS[:1])[0].key
    claim = store.claim(key)
    threading.Timer(0.2, claim.release).start()
    started = time.perf_counter()
    (task,) = run_all(PLANS[:1], store)
    assert task.status == "done"
    assert time.perf_counter() - started > 0.15


_KILLED = """
import os, sys, time
from functools import partial
from deadreckon.study.plan import Planned
from deadreckon.study.run import in_process, run_all, run_task
from deadreckon.study.store import Store

folder, log = sys.argv[1:]

def call(plan):
    outcome = run_task(plan)
    time.sleep(0.005)
    with open(log, "a") as file:
        file.write(plan.key + "\\n")
    return outcome

models = [f"random:pythia-160m#{i}" for i in range(60)]
run_all([Planned("read", model) for model in models], Store(folder), partial(in_process, call=call))
"""


def test_killed_at_any_moment_nothing_is_lost_and_nothing_that_was_kept_is_done_again(store, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", _KILLED, str(store.folder), str(log)]
    kept = set()
    for kill in range(3):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        enough = len(kept) + 5 + 4 * kill
        while time.monotonic() < deadline and len(list(store.folder.glob("tasks/[!.]*.json"))) < enough:
            time.sleep(0.001)
        process.kill()
        process.wait()
        now = {task.key for task in store.tasks()}
        assert kept < now
        assert all(store.get(key).status == "done" for key in now)
        kept = now
    subprocess.run(command, check=True)
    computed = log.read_text().split()
    assert len(store.tasks()) == 60
    assert len(set(computed)) == 60
    assert len(computed) <= 60 + 3  # the one that each kill interrupted after it was computed and before it was kept
    other = Store(tmp_path / "other")
    run_all([Planned("read", f"random:pythia-160m#{i}") for i in range(60)], other)
    assert [timeless(task) for task in other.tasks()] == [timeless(task) for task in store.tasks()]
    assert not list((store.folder / "tasks").glob(".*"))
