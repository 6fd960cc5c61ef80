"""Full-size models at random init, built, measured and concluded: time and memory, on one device and spread over two.

python benchmarks/large.py gemma-4-31b qwen3.5-35b-a3b [--device-map balanced]
"""

from __future__ import annotations

import argparse
import time

import common
import torch

import deadreckon


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--device-map")
    parser.add_argument("--per-dimension", type=int, default=4)
    parser.add_argument("--out", default="large")
    options = parser.parse_args()
    torch.cuda.init()
    rows = []
    for name in options.names:
        for gpu in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(gpu)
        started = time.perf_counter()
        found = deadreckon.measure(
            f"random:{name}",
            tokens=options.per_dimension * deadreckon.read(f"random:{name}").hidden_size,
            affine="lognormal:0.5",
            dtype="bfloat16",
            device_map=options.device_map,
        )
        peaks = [torch.cuda.max_memory_allocated(gpu) / 1e9 for gpu in range(torch.cuda.device_count())]
        row = {"seconds_with_building": time.perf_counter() - started, "peak_gb": [round(p, 1) for p in peaks]}
        row |= {key: getattr(found, key) for key in ("kind", "hidden_size", "tokens", "alignment", "effective_rank")}
        row |= {"protocol": found.protocol.status, "device_map": options.device_map}
        rows.append({"model": name, **row})
        print(rows[-1], flush=True)
        torch.cuda.empty_cache()
    common.write(options.out, rows)


if __name__ == "__main__":
    main()
