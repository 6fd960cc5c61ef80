"""The store: a task that is there is complete, whatever was killed or ran out of room while it was written."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from deadreckon.errors import InputError, UnreachableError
from deadreckon.study.plan import Planned
from deadreckon.study.run import finished
from deadreckon.study.store import Store

PLAN = Planned("census", "random:pythia-160m", content="")


def task_of(plan=PLAN, *, why="a reason", result=None):
    return finished(plan, result=result, why=why, seconds=0.5)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "deep" / "store")
    store.prepare()
    return store


def files(store):
    return sorted(path.name for path in (store.folder / "tasks").iterdir())


def test_a_task_comes_back_with_its_vectors(store):
    task, vectors = task_of(), {"w": np.arange(6.0).reshape(2, 3).T, "u": np.ones(2)}
    assert store.get(task.key) is None
    store.write(task, vectors)
    assert store.tasks() == [store.get(task.key)] == [task]
    back = store.vectors(task.key)
    assert {name: array.tolist() for name, array in back.items()} == {k: v.tolist() for k, v in vectors.items()}
    assert store.vectors("0" * 40) == {}


def test_failed_tasks_are_there_and_are_not_had(store):
    store.write(task_of(), {})
    assert not store.has(PLAN.key)
    assert store.get(PLAN.key).why == "a reason"
    store.drop(PLAN.key)
    assert store.tasks() == []


def test_tasks_are_sorted_whatever_order_they_were_written_in(store):
    plans = [Planned("read", "m", f"s{step}", step, content="") for step in (1000, 2, 30)]
    for plan in plans:
        store.write(task_of(plan), {})
    assert [task.step for task in store.tasks()] == [2, 30, 1000]


def test_a_full_disk_is_one_error_and_leaves_the_store_as_it_was(store, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnreachableError, match="No space left on device"):
        store.write(task_of(), {"w": np.ones(3)})
    assert files(store) == []
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(number) if not calls else full(number))
    with pytest.raises(UnreachableError, match="No space left on device"):  # the vectors fit, the record does not
        store.write(task_of(), {"w": np.ones(3)})
    assert files(store) == []


def test_a_file_that_may_not_grow_is_refused_for_real(tmp_path):
    code = (
        "import resource, sys, numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "from deadreckon.study.store import Store\n"
        "from deadreckon.study.plan import Planned\n"
        "from deadreckon.study.run import finished\n"
        "store = Store(sys.argv[1])\n"
        "store.prepare()\n"
        "store.write(finished(Planned('read', 'm'), result=None, why='', seconds=0.0), {'w': np.ones(10_000)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "UnreachableError" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert files(Store(tmp_path)) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no folder here that nobody may write to")
def test_a_folder_that_cannot_be_written_to_is_one_error():
    with pytest.raises(UnreachableError, match="name a writable folder"):
        Store("/proc/self/store").prepare()
    store = Store("/proc/self")
    with pytest.raises(UnreachableError):
        store.claim("k")


def test_what_a_killed_run_left_is_no_task_and_is_cleaned_away_with_the_next_claim(store):
    folder = store.folder / "tasks"
    (folder / f".{PLAN.key}.json.x7").write_text('{"schema": ')
    (folder / f".{PLAN.key}.safetensors.x7").write_bytes(b"12")
    (folder / f"{PLAN.key}.safetensors").write_bytes(b"vectors without a record")
    assert store.tasks() == []
    assert not store.has(PLAN.key)
    store.claim(PLAN.key).release()
    assert files(store) == [f"{PLAN.key}.safetensors"]


def test_a_claim_is_for_one_and_ends_with_its_process(store):
    claim = store.claim(PLAN.key)
    assert store.claim(PLAN.key) is None
    assert store.claim("other") is not None
    claim.release()
    code = (
        "import sys, time\nfrom deadreckon.study.store import Store\n"
        "claim = Store(sys.argv[1]).claim(sys.argv[2])\nprint(claim is not None, flush=True)\ntime.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(store.folder), PLAN.key], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"True\n"
        assert store.claim(PLAN.key) is None
    finally:
        other.kill()
        other.communicate()
    assert store.claim(PLAN.key) is not None


def test_a_newer_task_is_refused_with_the_version_to_install(store):
    newer = {**task_of().to_dict(), "schema": "deadreckon.task/9", "deadreckon": "7.7.7"}
    (store.folder / "tasks" / f"{PLAN.key}.json").write_text(json.dumps(newer))
    for look in (store.tasks, lambda: store.has(PLAN.key)):
        with pytest.raises(InputError, match=r"task/9 .* deadreckon 7\.7\.7, install"):
            look()


def test_a_newer_result_in_a_task_is_refused_too(store):
    store.write(task_of(result={"schema": "deadreckon.census/9", "deadreckon": "7.7.7"}), {})
    with pytest.raises(InputError, match=r"json: its schema is deadreckon.census/9 .* install"):
        store.tasks()


def test_no_store(tmp_path):
    with pytest.raises(UnreachableError, match="deadreckon sweep"):
        Store(tmp_path / "none").tasks()
    assert list(tmp_path.iterdir()) == []
