"""Data parallel measuring, 1, 2 and 4 accelerators: the same 65,536 tokens of one model, shared by as many processes.

python benchmarks/data_parallel.py [--model pythia-6.9b] [--processes 1,2,4]

Each count is one ``torchrun`` of this file. "pass" is collecting and adding up the statistics; "all" is that with
finding the norm and solving for the spectrum, which every process does alike. Medians of three; efficiency is the time
of one process over n times that of n.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import common
import torch

ROWS, REPEAT = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="pythia-6.9b")
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker:
        worker(options.model, options.tokens, options.worker)
        return
    rows = []
    for count in map(int, options.processes.split(",")):
        answer = Path(f"data_parallel_{count}.tmp")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), __file__]
        same = ["--model", options.model, "--tokens", str(options.tokens)]
        subprocess.run([*command, *same, "--worker", str(answer)], check=True)
        rows.append({"processes": count, **json.loads(answer.read_text())})
        answer.unlink()
        for kind in ("pass", "all"):
            rows[-1][f"{kind}_efficiency"] = rows[0][f"{kind}_s"] / (
                count / rows[0]["processes"] * rows[-1][f"{kind}_s"]
            )
        print(rows[-1], flush=True)
    common.write("data_parallel", {"model": options.model, "dtype": "bfloat16", "tokens": options.tokens, "runs": rows})


def worker(name: str, tokens: int, answer: Path) -> None:
    from deadreckon.checkpoint.zoo import zoo_entry
    from deadreckon.forward import distributed
    from deadreckon.forward.anatomy import final_norm
    from deadreckon.forward.collect import collect
    from deadreckon.forward.conclude import conclude
    from deadreckon.forward.load import random_model
    from deadreckon.forward.placement import resolve_device
    from deadreckon.forward.random_inputs import random_inputs
    from deadreckon.forward.spectrum import eigensolver

    device = resolve_device(distributed.local_device("auto"))
    entry = zoo_entry(name)
    weights = {"seed": 0, "dtype": torch.bfloat16, "device": device}
    with distributed.together(device) as share:
        model = random_model(entry.model_class, entry.config_class, entry.config_kwargs, **weights)
        inputs = random_inputs(model, seed=0, batch_size=4 * ROWS)
        times: dict[str, list[float]] = {"pass": [], "all": []}
        for run in range(REPEAT + 1):
            torch.distributed.barrier()
            started = now()
            site = final_norm(model, next(inputs.batches()))
            found = now()
            collected = collect(model, site, inputs, tokens=tokens, batch_size=ROWS, share=share)
            distributed.add_up(collected.statistics)
            passed = now()
            figures = conclude(collected.statistics, eigensolver("bottom"), 1e-6).figures
            if run:  # the first run warms up
                times["pass"].append(passed - found)
                times["all"].append(time.perf_counter() - started)
        if share.index == 0:
            kept = {key: figures[key] for key in ("tokens", "alignment", "lambda_mean", "lambda_min", "lambda_max")}
            answer.write_text(json.dumps({f"{k}_s": statistics.median(v) for k, v in times.items()} | kept))


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
