"""What `deadreckon read` asks of a hub for 60 and 70 GB models, beside other ways to what it needs, in one run.

    python benchmarks/hub.py

A small server on this machine speaks the hub's file API, redirects included, and counts requests and bytes; every
answer waits 50 ms, as one over the internet might. The models are sparse files with the layout of published ones:
headers, index, config and norms are real. `get_safetensors_metadata` of huggingface_hub reads the headers alone: it
tells shapes, and no gain. `snapshot_download` is timed on 1 GB without that wait and extrapolated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hub_server import Asked, HubServer, Repository, write_shards

LATENCY, SHARD, DOWNLOAD = 0.05, 5 * 10**9, 10**9
NORMS = ("norm", "ln_f")
MODELS = {"opt-30b": "60 GB, LayerNorm", "qwen3.5-35b-a3b": "70 GB, RMSNorm"}


def publish(name: str, folder: Path) -> Repository:
    """A zoo entry as it would lie on the hub."""
    import torch
    import transformers

    from deadreckon.checkpoint.zoo import zoo_entry

    entry = zoo_entry(name)
    config = getattr(transformers, entry.config_class)(**entry.config_kwargs)
    with torch.device("meta"):
        model = getattr(transformers, entry.model_class)(config)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    rng = np.random.default_rng(0)
    values = {}
    for tensor, shape in shapes.items():
        if len(shape) == 1 and any(part in tensor for part in NORMS):
            gain = rng.normal(1, 0.1, shape).astype(np.float32)
            values[tensor] = (gain.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    folder.mkdir()
    return Repository(write_shards(folder, config.to_dict(), shapes, values, SHARD))


def figures(asked: list[Asked], started: float, ended: float) -> dict[str, Any]:
    """Requests, bytes and seconds, in all and after the index."""
    index = next((i for i, a in enumerate(asked) if a.method == "GET" and "index.json" in a.path), 0)
    after = asked[index + 1 :]
    return {
        "requests": len(asked),
        "bytes": sum(a.sent for a in asked),
        "seconds": ended - started,
        "after_index": {
            "requests": len(after),
            "bytes": sum(a.sent for a in after),
            "seconds": ended - after[0].at if after else 0.0,
        },
    }


def timed(server: HubServer, work: Any) -> tuple[Any, dict[str, Any]]:
    """The result of one piece of work, and what it asked of the server."""
    server.asked.clear()
    started = time.perf_counter()
    result = work()
    return result, figures(list(server.asked), started, time.perf_counter())


def compare(server: HubServer, name: str) -> dict[str, Any]:
    import huggingface_hub

    import deadreckon

    repository = server.repositories[name]
    weights = [file for file in repository.files if file.endswith(".safetensors")]
    reading, ours = timed(server, lambda: deadreckon.read(name))
    assert (reading.transfer.requests, reading.transfer.bytes) == (ours["requests"], ours["bytes"])
    assert reading.revision == repository.commit
    _, theirs = timed(server, lambda: huggingface_hub.get_safetensors_metadata(name))
    command = [sys.executable, "-m", "deadreckon", "read", name, "--json"]
    _, process = timed(server, lambda: subprocess.run(command, check=True, capture_output=True))
    return {
        "what": MODELS[name],
        "bytes_of_weights": sum(repository.size(file) for file in weights),
        "shards": len(weights),
        "final_norm": reading.final_norm,
        "kind": reading.kind,
        "hidden_size": reading.hidden_size,
        "read": ours,
        "read_whole_process_seconds": process["seconds"],
        "get_safetensors_metadata": theirs,
        "bar": {"requests": 4, "bytes": 300_000},
        "within_bar": ours["after_index"]["requests"] <= 4 and ours["after_index"]["bytes"] <= 300_000,
    }


def of_gguf(server: HubServer) -> dict[str, Any]:
    """A small trained GGUF file: its header holds the vocabulary."""
    import deadreckon
    from deadreckon.checkpoint.demo import demo_path

    path = demo_path("smollm2")
    server.repositories["org/smollm2"] = Repository({path.name: path})
    reading, ours = timed(server, lambda: deadreckon.read(f"org/smollm2/{path.name}"))
    ours.pop("after_index")
    return {
        "file": path.name,
        "bytes_of_file": path.stat().st_size,
        "bytes_of_header_and_norm": reading.bytes_read,
        **ours,
    }


def download(server: HubServer, folder: Path) -> dict[str, Any]:
    """Seconds for 1 GB from this machine to itself: the fastest network there is."""
    import huggingface_hub

    from deadreckon.checkpoint.zoo import zoo_entry

    path = folder / "gigabyte.safetensors"
    with path.open("wb") as file:
        file.truncate(DOWNLOAD)
    server.repositories["gigabyte"] = Repository({"model.safetensors": path, "config.json": b"{}"})
    server.latency = 0.0
    _, found = timed(server, lambda: huggingface_hub.snapshot_download("gigabyte"))
    server.latency = LATENCY
    found.pop("after_index")
    sizes = {name: 2 * zoo_entry(name).parameters for name in MODELS}
    found["extrapolated_seconds"] = {name: found["seconds"] * size / DOWNLOAD for name, size in sizes.items()}
    found["extrapolation"] = "seconds of 1 GB over the loopback, times the model's bytes in bfloat16 over 1 GB"
    return found


def main() -> None:
    server = HubServer(latency=LATENCY)
    with tempfile.TemporaryDirectory() as folder, server.running():
        home = Path(folder)
        os.environ |= {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(home / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        os.environ.pop("HF_TOKEN", None)
        import huggingface_hub

        import deadreckon  # imported before the clock starts, as the other is

        for name in MODELS:
            server.repositories[name] = publish(name, home / name)
        huggingface_hub.get_safetensors_metadata  # noqa: B018
        deadreckon.read  # noqa: B018
        results = {name: compare(server, name) for name in MODELS}
        gguf = of_gguf(server)
        downloaded = download(server, home)
    common.write(
        "hub",
        {
            "latency_seconds": LATENCY,
            "shard_bytes": SHARD,
            "huggingface_hub": huggingface_hub.__version__,
            "models": results,
            "gguf": gguf,
            "snapshot_download_1_gb": downloaded,
        },
    )
    for name, result in results.items():
        print(f"{name}: {result['what']}, {result['bytes_of_weights']:,} bytes in {result['shards']} shards")
        for tool in ("read", "get_safetensors_metadata"):
            whole, after = result[tool], result[tool]["after_index"]
            print(
                f"  {tool:26s} {whole['requests']:4d} requests {whole['bytes']:10,} bytes {whole['seconds']:6.2f} s; "
                f"after the index {after['requests']:3d}, {after['bytes']:,}, {after['seconds']:.2f} s"
            )
        seconds = downloaded["extrapolated_seconds"][name]
        print(f"  snapshot_download, extrapolated from 1 GB in {downloaded['seconds']:.2f} s: {seconds:.0f} s")
    print(f"{gguf['file']}: {gguf['requests']} requests, {gguf['bytes']:,} of {gguf['bytes_of_file']:,} bytes")


if __name__ == "__main__":
    main()
