"""Ray, a real cluster of this machine: the same results, and tasks that outlive the workers they kill."""

import os
import time
from functools import partial

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'deadreckon[ray]'")

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.study.cluster import ATTEMPTS, ray_cluster
from deadreckon.study.plan import Planned, stamped
from deadreckon.study.resources import Resources
from deadreckon.study.run import finished, in_process, run_all, run_task
from deadreckon.study.store import Store
from deadreckon.study.sweep import sweep
from deadreckon.study.table import table

ONE = Resources(cpus=1)


@pytest.fixture(scope="module")
def cluster():
    """Started once for all tests here; the engine uses a cluster that is there."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_results_equal_those_of_this_process_to_the_last_bit(cluster, tmp_path, minilm):
    plans = [
        Planned("read", "demo:minilm", resources=ONE),
        Planned("measure", "demo:minilm", options={"tokens": 400}, resources=ONE),
        Planned("census", "random:pythia-160m", resources=ONE),
        Planned("read", "/nowhere", resources=ONE),
    ]
    run_all(plans, Store(tmp_path / "here"), in_process)
    run_all(plans, Store(tmp_path / "ray"), ray_cluster)
    here, there = (table(tmp_path / name, timings=False) for name in ("here", "ray"))
    assert here == there
    assert [row["status"] for row in here.rows].count("done") == 3
    key = next(row["key"] for row in here.rows if row["verb"] == "measure")
    one, other = (Store(tmp_path / name).vectors(key) for name in ("here", "ray"))
    assert {name: array.tobytes() for name, array in one.items()} == {k: v.tobytes() for k, v in other.items()}


def test_paths_are_those_of_the_directory_that_this_process_is_in(cluster, tmp_path, monkeypatch, minilm):
    """The workers were started elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(minilm)
    found, missing = run_all([Planned("read", "models/mine"), Planned("read", "org/none")], Store("out"), ray_cluster)
    assert (found.status, found.why) == ("done", "")
    assert "offline" in missing.why


def test_a_task_whose_worker_dies_is_begun_again_and_one_that_always_kills_it_fails(cluster, tmp_path):
    log = tmp_path / "log"

    def call(plan):
        with log.open("a") as file:
            file.write(f"{plan.model}\n")
        before = log.read_text().split().count(plan.model)
        if plan.model == "random:always" or (plan.model.startswith("random:llama") and before < ATTEMPTS):
            os.kill(os.getpid(), 9)
        return run_task(plan)

    plans = [Planned("read", f"random:{name}") for name in ("pythia-160m", "llama-3.1-8b", "always")]
    fine, late, never = run_all(plans, Store(tmp_path / "store"), partial(ray_cluster, call=call))
    assert (fine.status, late.status, never.status) == ("done", "done", "failed")
    assert never.why == f"its worker died {ATTEMPTS} times (WorkerCrashedError)"
    counts = [log.read_text().split().count(plan.model) for plan in plans]
    assert counts[1:] == [ATTEMPTS, ATTEMPTS]
    assert counts[0] == 1


def test_tasks_run_side_by_side(cluster, tmp_path):
    def call(plan):
        """Ends only once another task has begun."""
        (begun / plan.key).touch()
        deadline = time.monotonic() + 30
        while len(list(begun.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return finished(plan, result=None, why=str(len(list(begun.iterdir()))), seconds=0.0), {}

    begun, store = tmp_path / "begun", Store(tmp_path / "store")
    begun.mkdir()
    store.prepare()
    plans = stamped([Planned("read", f"random:pythia-160m#{i}", resources=ONE) for i in range(2)])
    assert [task.why for task in ray_cluster(plans, store, call)] == ["2", "2"]


def test_a_worker_that_cannot_carry_a_task_out_fails_it(cluster, tmp_path):
    def call(plan):
        raise ImportError("no such verb on this node")

    (task,) = run_all([Planned("read", "random:pythia-160m")], Store(tmp_path), partial(ray_cluster, call=call))
    assert task.why == "the worker cannot carry it out: no such verb on this node"


def test_more_than_the_machine_has_is_refused(cluster, tmp_path):
    plans = stamped([Planned("read", "random:pythia-160m", resources=Resources(gpus=5))])
    with pytest.raises(UsageError, match="takes 5 GPU and this machine has"):
        list(ray_cluster(plans, Store(tmp_path)))


def test_memory_is_declared(cluster, tmp_path):
    Store(tmp_path).prepare()
    plans = stamped([Planned("read", "random:pythia-160m", resources=Resources(memory="100MB"))])
    assert [task.status for task in ray_cluster(plans, Store(tmp_path))] == ["done"]
    plans = stamped([Planned("read", "random:pythia-160m", resources=Resources(memory="900TB"))])
    with pytest.raises(UsageError, match="memory"):
        list(ray_cluster(plans, Store(tmp_path)))


def test_from_a_specification(cluster, tmp_path):
    spec = {"models": ["random:pythia-160m", "random:none"], "verbs": ["read", "census"]}
    swept = sweep(spec, tmp_path, engine="ray")
    assert (swept.engine, swept.computed, swept.failed) == ("ray", 4, 2)
    swept = sweep(spec, tmp_path)  # what one engine did, another finds
    assert (swept.found, swept.computed) == (2, 2)


def test_a_folder_that_cannot_be_written_to_stops_the_sweep(cluster, tmp_path):
    plans = [Planned("read", f"random:pythia-160m#{i}") for i in range(4)]
    store = Store(tmp_path)

    def call(plan):
        """A file where the store has a folder: the write fails in the worker, as on a full disk."""
        if (tmp_path / "tasks").is_dir():
            (tmp_path / "tasks").rename(tmp_path / "away")
            (tmp_path / "tasks").touch()
        return run_task(plan)

    with pytest.raises(UnreachableError, match="nothing was written there"):
        run_all(plans, store, partial(ray_cluster, call=call))
    with pytest.raises(UnreachableError, match="a node does not see it"):
        list(ray_cluster(stamped(plans[:1]), Store(tmp_path / "elsewhere")))


def test_what_another_process_is_at_is_left_to_it(cluster, tmp_path):
    store = Store(tmp_path)
    store.prepare()
    plans = stamped([Planned("read", "random:pythia-160m"), Planned("read", "random:llama-3.1-8b")])
    claim = store.claim(plans[0].key)
    assert {task and task.key for task in ray_cluster(plans, store)} == {None, plans[1].key}
    claim.release()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch, tmp_path, address):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UnreachableError, match=f"no Ray cluster at {address}: .*refused"):
        run_all([Planned("read", "random:pythia-160m")], Store(tmp_path), partial(ray_cluster, address=address))


def test_without_tasks_no_cluster_is_started(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert run_all([], Store(tmp_path), ray_cluster) == []
    with pytest.raises(UnreachableError, match=r"pip install 'deadreckon\[ray\]'"):
        run_all([Planned("read", "random:pythia-160m")], Store(tmp_path), ray_cluster)
