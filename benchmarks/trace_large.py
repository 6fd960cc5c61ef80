"""The residual trace of full-size models at random init on one accelerator: profile, verdict, time and memory.

python benchmarks/trace_large.py [NAME...] [--per-dimension 4] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import common
import torch

import deadreckon

NAMES = (
    "pythia-6.9b",
    "opt-13b",
    "dinov2-giant",
    "llama-3.1-8b",
    "qwen3.5-35b-a3b",
    "gemma-4-31b",
    "gemma-4-31b-multimodal",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--per-dimension", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", default="trace_large")
    options = parser.parse_args()
    if torch.cuda.is_available():
        torch.cuda.init()
    rows = []
    for name in options.names:
        rows.append(traced(name, options.per_dimension, options.dtype))
        print({key: value for key, value in rows[-1].items() if key != "streams"}, flush=True)
        for stream in rows[-1]["streams"]:
            print("  ", {key: value for key, value in stream.items() if not isinstance(value, list)}, stream["events"])
        common.write(options.out, rows)


def traced(name: str, per_dimension: int, dtype: str) -> dict[str, Any]:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    tokens = per_dimension * deadreckon.read(f"random:{name}").hidden_size
    try:
        found = deadreckon.trace(f"random:{name}", tokens=tokens, dtype=dtype)
    except deadreckon.DeadreckonError as error:
        return {"model": name, "error": str(error), "streams": []}
    return {
        "model": name,
        "dtype": dtype,
        "seconds_with_building": time.perf_counter() - started,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if torch.cuda.is_available() else None,
        "passes": found.passes,
        "data": found.data,
        "streams": [summary(stream) for stream in found.streams],
    }


def summary(stream: Any) -> dict[str, Any]:
    ratios = [(node.step_ratio, node.index) for node in stream.blocks if node.step_ratio is not None]
    return {
        "role": stream.role,
        "hidden_size": stream.hidden_size,
        "tokens": stream.tokens,
        "verdict": stream.verdict,
        "smallest_step_ratio": min(ratios)[0] if ratios else None,
        "at_block": min(ratios)[1] if ratios else None,
        "rank_limited": sum(node.status == "rank_limited" for node in stream.blocks),
        "distinct_inputs": stream.distinct_inputs,
        "events": [(event.block, event.kind, event.cause) for event in stream.events],
        "sigma_min": [float(f"{node.sigma_min:.4g}") for node in stream.blocks],
        "sigma_geomean": [float(f"{node.sigma_geomean:.4g}") for node in stream.blocks],
        "sigma_floor": [float(f"{node.sigma_floor:.2g}") for node in stream.blocks],
    }


if __name__ == "__main__":
    main()
