"""Every node of the residual stream on a CPU, against keeping all activations and numpy's svd: time and memory.

python benchmarks/host.py [--model pythia-160m] [--tokens 8192] [--long 65536]

Each way runs in a process of its own with the model loaded; memory is the peak above what was resident then. The same
random ids, float32, 2 sequences of 512 a batch. "ends" is what both want to know: the smallest and largest singular
value of every node.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common

ROWS, LENGTH = 2, 512
WAYS = ("forward", "ours", "naive")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="pythia-160m")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--long", type=int, default=65536)
    parser.add_argument("--way", choices=WAYS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options.way, options.model, options.tokens)))
        return
    rows = {way: apart(way, options.model, options.tokens) for way in WAYS}
    rows["ours, long"] = apart("ours", options.model, options.long)
    ours, naive, forward = (rows[way] for way in ("ours", "naive", "forward"))
    summary = {
        "naive_over_ours": naive["seconds"] / ours["seconds"],
        "naive_over_ours_without_forward": (naive["seconds"] - forward["seconds"])
        / (ours["seconds"] - forward["seconds"]),
        "memory_ours_over_naive": ours["peak_mb"] / naive["peak_mb"],
        "memory_long_over_short": rows["ours, long"]["peak_mb"] / ours["peak_mb"],
        "largest_difference": max(abs(a / b - 1) for a, b in zip(ours["sigma_min"], naive["sigma_min"], strict=True)),
    }
    common.write("host", {"model": options.model, "dtype": "float32", **rows, **summary})
    for name, row in rows.items():
        print(f"{name:12} {row['tokens']:6} tokens {row['seconds']:8.2f} s {row['peak_mb']:8.0f} MB above the model")
    for name, value in summary.items():
        print(f"{name:35} {value:.3g}")


def apart(way: str, model: str, tokens: int) -> dict[str, Any]:
    """One way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--model", model, "--tokens", str(tokens)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run(way: str, name: str, tokens: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from deadreckon.checkpoint.zoo import zoo_entry
    from deadreckon.forward.blocks import find_block_stacks
    from deadreckon.forward.load import random_model
    from deadreckon.forward.random_inputs import random_inputs
    from deadreckon.forward.stream import StreamMoments, node_spectra

    entry = zoo_entry(name)
    weights = {"seed": 0, "dtype": torch.float32, "device": torch.device("cpu")}
    model = random_model(entry.model_class, entry.config_class, entry.config_kwargs, **weights)
    stream = random_inputs(model, seed=0, batch_size=ROWS).batches()
    batches = [next(stream) for _ in range(tokens // (ROWS * LENGTH))]
    # This also warms up.
    stack = find_block_stacks(model, {"input_ids": batches[0]["input_ids"][:1, :16], "use_cache": False})[-1]
    resident, started = memory("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    sigma_min: list[float] = []
    if way == "ours":
        moments = StreamMoments(stack)
        with moments.watching():
            for batch in batches:
                model(**batch, use_cache=False)
        sigma_min = [node.sigma_min for node in node_spectra(moments.nodes, moments.dtypes)]
    else:
        kept: list[list[np.ndarray]] = [[] for _ in range(len(stack.blocks) + 1)]
        if way == "naive":  # hooks, not output_hidden_states: its last entry has been through the final norm
            stack.blocks[0][1].register_forward_pre_hook(lambda _m, args: keep(kept[0], args[0]))
            for node, (_, block) in zip(kept[1:], stack.blocks, strict=True):
                block.register_forward_hook(lambda _m, _a, output, node=node: keep(node, output))
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)
        if way == "naive":
            for node in kept:
                stacked = np.concatenate(node).astype(np.float64)
                sigma_min.append(float(np.linalg.svd(stacked, full_matrices=False)[1][-1]) / tokens**0.5)
    return {
        "tokens": tokens,
        "seconds": time.perf_counter() - started,
        "peak_mb": (memory("VmHWM") - resident) / 1e3,
        "sigma_min": sigma_min,
    }


def keep(node: list[Any], output: Any) -> None:
    node.append((output[0] if isinstance(output, tuple) else output).flatten(0, 1).numpy().copy())


def memory(what: str) -> int:
    """A figure of this process's memory, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    main()
