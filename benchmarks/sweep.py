"""A sweep that is killed three times: the same table as one that is not, and no finished task computed again.

Two small models are trained here, one with LayerNorm and one with RMSNorm, and saved at 17 steps each as trainers save
them; with two seeds that makes over 200 tasks of four verbs, the measurements with a random-init twin. They are run in
one process; on a local Ray cluster of two workers; and on such a cluster whose driver and a worker are killed (SIGKILL)
three times at random moments, then started again. Every begin and end of a computation is noted in a file by the worker
itself.

    python benchmarks/sweep.py
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from common import write

from deadreckon.study.cluster import ray_cluster
from deadreckon.study.expand import expand
from deadreckon.study.plan import Planned, stamped
from deadreckon.study.run import Call, Engine, Outcome, finished, in_process, run_all, run_task
from deadreckon.study.spec import load_spec
from deadreckon.study.store import Store
from deadreckon.study.table import table, to_csv

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352)
WORKERS = 2
KILLS = 3
SEED = 7


def models(folder: Path) -> None:
    """Train the two models on the text that Python ships, byte by byte, and save their checkpoints."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    text = " ".join(pydoc_data.topics.topics.values()).encode()
    ids = torch.tensor(list(text[:400_000]))
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 256}
    sizes |= {"intermediate_size": 128, "max_position_embeddings": 128}
    for name, network, config in (
        ("layernorm", GPTNeoXForCausalLM, GPTNeoXConfig(**sizes)),
        ("rmsnorm", LlamaForCausalLM, LlamaConfig(**sizes, num_key_value_heads=4)),
    ):
        torch.manual_seed(SEED)
        model = network(config)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(STEPS[-1] + 1):
            if step in STEPS:
                model.save_pretrained(folder / name / f"checkpoint-{step}")
            rows = torch.randint(len(ids) - 65, (8,))
            batch = torch.stack([ids[row : row + 64] for row in rows])
            optimiser.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimiser.step()


def specification(folder: Path) -> dict[str, Any]:
    """Four verbs on all checkpoints."""
    return {
        "models": [{"checkpoints": str(folder / name)} for name in ("layernorm", "rmsnorm")],
        "verbs": {"read": None, "census": None, "measure": {"tokens": 640, "twin": 1}, "trace": {"tokens": 640}},
        "seeds": [0, 1],
        "resources": {"cpus": 1},
    }


def noting(log: Path, work: Call) -> Call:
    """What carries tasks out, with a line in a file before and after each."""

    def call(plan: Planned) -> Outcome:
        with log.open("a") as file:
            file.write(f"begin {plan.key} {os.getpid()}\n")
        outcome = work(plan)
        with log.open("a") as file:
            file.write(f"end {plan.key} {os.getpid()}\n")
        return outcome

    return call


def drive(engine: str, checkpoints: Path, folder: Path) -> None:
    """One run from beginning to end, as a process of its own; prints what it took."""
    started = time.perf_counter()
    plans = expand(*load_spec(specification(checkpoints)))
    call = noting(folder.with_suffix(".log"), run_task)
    run: Engine = (
        partial(ray_cluster, call=call, workers=WORKERS) if engine == "ray" else partial(in_process, call=call)
    )
    tasks = run_all(plans, Store(folder), run)
    print(json.dumps({"seconds": time.perf_counter() - started, "tasks_seconds": sum(task.seconds for task in tasks)}))


def start(engine: str, checkpoints: Path, folder: Path) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    command = [sys.executable, __file__, "--drive", engine, str(checkpoints), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole(engine: str, checkpoints: Path, folder: Path) -> dict[str, float]:
    """A run that nothing interrupts."""
    process = start(engine, checkpoints, folder)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the {engine} run ended with {process.returncode}")
    begun, ended = counted(folder)
    figures: dict[str, float] = json.loads(out)
    return figures | {"begun": begun.total(), "ended": ended.total()}


def kept(folder: Path) -> set[str]:
    """Keys of the tasks that are in a store."""
    return {path.stem for path in (folder / "tasks").glob("[!.]*.json")}


def noted(folder: Path) -> list[list[str]]:
    """What workers wrote down: begin or end, key, process."""
    log = folder.with_suffix(".log")
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def busy(folder: Path) -> list[int]:
    """Processes that have begun a task and not ended it."""
    open_tasks: dict[str, str] = {}
    for what, key, process in noted(folder):
        if what == "begin":
            open_tasks[process] = key
        else:
            open_tasks.pop(process, None)
    return [int(process) for process in open_tasks if Path(f"/proc/{process}").exists()]


def killed(checkpoints: Path, folder: Path, tasks: int) -> dict[str, Any]:
    """Runs whose worker and then whose driver are killed at random moments, and one that comes to the end."""
    chance = random.Random(SEED)
    rounds = []
    for _ in range(KILLS):
        before = kept(folder)
        process = start("ray", checkpoints, folder)
        moments = sorted(chance.sample(range(len(before) + 5, len(before) + tasks // (KILLS + 1)), 2))
        victims = 0
        for moment, victim in zip(moments, ("worker", "driver"), strict=True):
            while len(kept(folder)) < moment or (victim == "worker" and not busy(folder)):
                time.sleep(0.003)
            if victim == "driver":
                process.kill()
                process.wait()
            else:
                os.kill(chance.choice(busy(folder)), signal.SIGKILL)
                victims += 1
        in_store, at_kill = kept(folder), len(noted(folder))
        gone = time.perf_counter()
        while busy(folder) and time.perf_counter() - gone < 60:  # orphaned workers end by themselves
            time.sleep(0.05)
        rounds.append(
            {
                "worker_killed_at": moments[0],
                "driver_killed_at": len(in_store),
                "workers_killed": victims,
                "seconds_until_the_workers_were_gone": round(time.perf_counter() - gone, 2),
                "in_store": in_store,
                "noted": at_kill,
            }
        )
    last = whole("ray", checkpoints, folder)
    notes = noted(folder)
    again = sum(
        what == "begin" and key in each["in_store"] for each in rounds for what, key, _ in notes[each["noted"] :]
    )
    begun, ended = counted(folder)
    shown = [{k: v for k, v in each.items() if k not in {"in_store", "noted"}} for each in rounds]
    return {
        "kills": shown,
        "last_run": last,
        "begun": begun.total(),
        "ended": ended.total(),
        "interrupted_and_begun_again": begun.total() - len(begun),
        "computed_to_the_end_twice_because_killed_before_it_was_kept": ended.total() - len(ended),
        "kept_and_computed_again": again,
    }


def counted(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each task was begun, and how often computed to its end."""
    notes = noted(folder)
    begun = Counter(key for what, key, _ in notes if what == "begin")
    return begun, Counter(key for what, key, _ in notes if what == "end")


def overhead(folder: Path, count: int = 200) -> dict[str, float]:
    """Milliseconds a task that has nothing to compute takes, claiming, sending and keeping it included."""
    plans = stamped([Planned("read", f"random:pythia-160m#{i}") for i in range(count)])

    def nothing(plan: Planned) -> Outcome:
        return finished(plan, result=None, why="nothing was asked", seconds=0.0), {}

    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    run_all(plans[:20], Store(folder / "warm"), partial(ray_cluster, call=nothing))  # workers are started
    found = {}
    for name, engine in (("in-process", in_process), ("ray", ray_cluster)):
        started = time.perf_counter()
        run_all(plans, Store(folder / name), partial(engine, call=nothing))
        found[name] = 1000 * (time.perf_counter() - started) / count
    ray.shutdown()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        models(root / "models")
        tasks = len(stamped(expand(*load_spec(specification(root / "models")))))
        here = whole("in-process", root / "models", root / "here")
        spread = whole("ray", root / "models", root / "spread")
        interrupted = killed(root / "models", root / "killed", tasks)
        tables = {name: to_csv(table(root / name, timings=False)) for name in ("here", "spread", "killed")}
        vectors = {
            name: [
                (key, sorted((k, v.tobytes()) for k, v in Store(root / name).vectors(key).items()))
                for key in sorted(kept(root / name))
            ]
            for name in tables
        }
        rows = table(root / "here").rows
        write(
            "sweep",
            {
                "tasks": tasks,
                "failed": sum(row["status"] == "failed" for row in rows),
                "by_verb": Counter(str(row["verb"]) for row in rows),
                "checkpoints": 2 * len(STEPS),
                "workers": WORKERS,
                "in_process": here,
                "ray": spread,
                "killed": interrupted,
                "ray_table_equals_in_process": tables["spread"] == tables["here"],
                "killed_table_equals_in_process": tables["killed"] == tables["here"],
                "vectors_equal": vectors["here"] == vectors["spread"] == vectors["killed"],
                "table_bytes": len(tables["here"]),
                "overhead_milliseconds_a_task": overhead(root / "overhead"),
            },
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--drive", nargs=3, metavar=("ENGINE", "CHECKPOINTS", "FOLDER"))
    driven = parser.parse_args().drive
    if driven:
        drive(driven[0], Path(driven[1]), Path(driven[2]))
    else:
        main()
