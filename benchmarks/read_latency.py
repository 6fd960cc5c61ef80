"""Whole-process cost of `deadreckon read` beside the usual way to a checkpoint's gain, in one run.

    python benchmarks/read_latency.py

Each command runs in fresh processes, in turn, so that all of them meet the same machine: wall time and peak resident
memory, median of 10. The large checkpoint is 60 GB of sparse files with real headers and real norm tensors.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

from deadreckon.checkpoint.demo import demo_path

RUNS = 10
D, LAYERS, SHARDS, TOTAL = 8192, 80, 30, 60 * 10**9


def large_checkpoint(directory: Path) -> int:
    """A llama-shaped 60 GB checkpoint; only norms hold data. Returns the bytes of its headers, index and config."""
    rng = np.random.default_rng(0)
    per_shard = TOTAL // SHARDS
    norms = {
        f"model.layers.{i}.{n}.weight" for i in range(LAYERS) for n in ("input_layernorm", "post_attention_layernorm")
    }
    shards: list[list[tuple[str, list[int]]]] = [[] for _ in range(SHARDS)]
    for number, name in enumerate(sorted(norms)):
        shards[number * SHARDS // len(norms)].append((name, [D]))
    shards[-1].append(("model.norm.weight", [D]))
    weight_map, small = {}, 0
    for number, tensors in enumerate(shards):
        file_name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        rows = (per_shard - sum(2 * D for _ in tensors)) // (2 * D)
        tensors = [(f"model.layers.{number}.mlp.big.weight", [rows, D]), *tensors]
        header, at = {}, 0
        for name, shape in tensors:
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            weight_map[name], at = file_name, at + size
        raw = json.dumps(header).encode()
        small += 8 + len(raw)
        with (directory / file_name).open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for name, shape in tensors:
                if len(shape) == 1:
                    file.seek(8 + len(raw) + header[name]["data_offsets"][0])
                    gain = (1 + 0.1 * rng.normal(size=D)).astype(np.float32)
                    file.write((gain.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            file.truncate(8 + len(raw) + at)
    index = json.dumps({"metadata": {"total_size": TOTAL}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index)
    config = json.dumps({"model_type": "llama", "hidden_size": D, "num_hidden_layers": LAYERS, "rms_norm_eps": 1e-5})
    (directory / "config.json").write_text(config)
    return small + len(index) + len(config)


def cost(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MB of one fresh process."""
    wrapped = ["/usr/bin/env", "time", "-f", "%M", *command]
    started = time.perf_counter()
    done = subprocess.run(wrapped, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, int(done.stderr.split()[-1]) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder)
        headers = large_checkpoint(large)
        python, minilm = sys.executable, demo_path("minilm")
        load = f"from transformers import AutoModel; AutoModel.from_pretrained({str(minilm)!r})"
        read = [python, "-m", "deadreckon", "read"]
        commands = {
            "deadreckon read, MiniLM (safetensors, 91 MB)": [*read, "demo:minilm"],
            "deadreckon read --json, MiniLM": [*read, "demo:minilm", "--json"],
            "deadreckon read, SmolLM2 (GGUF, 98 MB)": [*read, "demo:smollm2"],
            "deadreckon read, 60 GB in 30 shards": [*read, str(large)],
            "python -c pass": [python, "-c", "pass"],
            "python -c 'import torch'": [python, "-c", "import torch"],
            "AutoModel.from_pretrained, MiniLM": [python, "-c", load],
        }
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, command in commands.items():
                samples[name].append(cost(command))
        reading = json.loads(subprocess.run([*read, str(large), "--json"], capture_output=True, check=True).stdout)
    figures = {
        name: {"seconds": statistics.median(s for s, _ in runs), "peak_mb": statistics.median(m for _, m in runs)}
        for name, runs in samples.items()
    }
    ours = figures["deadreckon read, MiniLM (safetensors, 91 MB)"]
    ratios = {
        name: {key: figures[name][key] / ours[key] for key in ours}
        for name in ("AutoModel.from_pretrained, MiniLM", "python -c 'import torch'")
    }
    large_figures = {"bytes_read": reading["bytes_read"], "headers_index_config": headers, "norm_tensor": 2 * D}
    common.write(
        "read_latency", {"median_of": RUNS, "commands": figures, "ratios_to_read": ratios, "large": large_figures}
    )
    for name, figure in figures.items():
        print(f"{name:48s} {figure['seconds']:7.3f} s {figure['peak_mb']:7.0f} MB")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['seconds']:.1f} times the time, {ratio['peak_mb']:.1f} times the memory of read")
    print(f"60 GB: {large_figures}")


if __name__ == "__main__":
    main()
