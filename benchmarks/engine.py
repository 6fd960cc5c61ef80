"""What measuring costs beside the forward pass alone, on one accelerator, a 7B shape at random init.

python benchmarks/engine.py [--model pythia-6.9b] [--naive]

Every figure is the median of several runs, the device synchronised before each reading of the clock; forward and
measurement alternate, so that both see the same clocks. Tokens are random ids, 512 a sequence.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch

import deadreckon
from deadreckon.checkpoint.zoo import zoo_entry
from deadreckon.forward.blocks import find_block_stacks
from deadreckon.forward.bottom import bottom
from deadreckon.forward.krylov import largest_eigenvalue
from deadreckon.forward.load import random_model
from deadreckon.forward.moments import Moments
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.smallest import smallest_eigenvalue
from deadreckon.forward.stream import StreamMoments, node_spectra
from deadreckon.verbs.subjects import Options, Subjects

ROWS, LENGTH = 8, 512
DEVICE = torch.device("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pythia-6.9b")
    parser.add_argument("--naive", action="store_true", help="also time keeping the activations and numpy's svd")
    options = parser.parse_args()
    entry = zoo_entry(options.model)
    model = random_model(
        entry.model_class, entry.config_class, entry.config_kwargs, seed=0, dtype=torch.bfloat16, device=DEVICE
    )
    size = model.config.hidden_size
    figures: dict[str, Any] = {"model": options.model, "dtype": "bfloat16", "hidden_size": size}
    for tokens in (8192, 16384, 65536):
        figures[f"{tokens}"] = at(model, tokens, repeat=5 if tokens == 16384 else 2)
    figures["spectrum"] = spectrum(size)
    if options.naive:
        figures["naive"] = naive(model, 16384, figures["16384"]["measure_bottom_s"])
    common.write(f"engine_{options.model}", figures)
    show(figures)


def at(model: torch.nn.Module, tokens: int, repeat: int) -> dict[str, float]:
    """Seconds and peak memory of each job over so many tokens."""
    batches = inputs(model, tokens)

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)

    def measured(solver: str) -> Callable[[], None]:
        return lambda: deadreckon.measure(model, tokens=tokens, solver=solver, batch_size=ROWS, batches=batches)

    subjects = Subjects.of(model, Options(tokens=tokens, batch_size=ROWS, batches=batches))
    stream = StreamMoments(find_block_stacks(model, batches[0])[-1])
    spans: dict[str, list[float]] = {"grams": [], "spectra": []}

    def traced() -> None:
        stream.nodes.clear()
        started = now()
        with stream.watching():
            for batch in batches:
                model(**batch, use_cache=False)
        middle = now()
        solved = node_spectra(stream.nodes, stream.dtypes)
        spans["grams"].append(middle - started)
        spans["spectra"].append(now() - middle)
        assert not any(node.whole for node in solved), "a certificate failed"

    jobs = {
        "forward": forward,
        "collect": lambda: subjects.collect(next(subjects.each())),
        "measure_bottom": measured("bottom"),
        "measure_eigh": measured("eigh"),
        "stream": traced,
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    peaks: dict[str, float] = {}
    for run in range(repeat + 1):
        for name, job in jobs.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, started = torch.cuda.memory_allocated(), now()
            job()
            if run:  # the first run warms up
                times[name].append(now() - started)
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
        stream.nodes.clear()
    found = {f"{name}_s": statistics.median(values) for name, values in times.items()}
    found |= {f"{name}_peak_gb_above_model": peak for name, peak in peaks.items()}
    found |= {f"{name}_over_forward": found[f"{name}_s"] / found["forward_s"] for name in jobs if name != "forward"}
    nodes = len(stream.stack.blocks) + 1
    found["stream_collect_over_forward"] = statistics.median(spans["grams"][1:]) / found["forward_s"]
    found["spectra_ms_per_node"] = 1e3 * statistics.median(spans["spectra"][1:]) / nodes
    return found


def spectrum(size: int) -> dict[str, float]:
    """Milliseconds of the bottom of one covariance, and of many at once, against whole solves."""
    draw = torch.randn(4 * size, size, device=DEVICE, dtype=torch.float64)
    covariance = (draw.T @ draw / len(draw))[None]
    direction = torch.nn.functional.normalize(torch.rand(size, device=DEVICE, dtype=torch.float64) + 0.5, dim=0)
    dead = covariance - torch.outer(direction, covariance[0] @ direction)
    dead = dead - torch.outer(dead[0] @ direction, direction) + 3e-6 * torch.outer(direction, direction)
    many = covariance.expand(33, -1, -1).contiguous()
    two = torch.cat([covariance, dead])
    top = largest_eigenvalue(covariance).value
    ceiling = 1e-2 * two.diagonal(dim1=-2, dim2=-1).mean(-1)
    moments = Moments(size, DEVICE)
    single = draw[:4096].to(torch.bfloat16)
    jobs: dict[str, tuple[Callable[[], Any], int]] = {
        "bottom_8_certified_complete": (lambda: bottom(covariance, 8, complete=True), 1),
        "bottom_8_of_a_dead_direction": (lambda: bottom(dead, 8, complete=True), 1),
        "bottom_of_a_measurements_two": (lambda: bottom(two, 8, ceiling=ceiling, complete=True), 1),
        "smallest_and_log_det_of_33": (lambda: smallest_eigenvalue(many, largest=top.expand(33)), 33),
        "largest_of_33": (lambda: largest_eigenvalue(many, blocks=8), 33),
        "eigh": (lambda: torch.linalg.eigh(covariance), 1),
        "cholesky": (lambda: torch.linalg.cholesky_ex(covariance), 1),
        "svdvals_of_the_tokens": (lambda: torch.linalg.svdvals(draw), 1),
        "moments_of_4096_tokens": (lambda: moments.update(single), 1),
    }
    found = {}
    for name, (job, count) in jobs.items():
        job()
        found[f"{name}_ms"] = 1e3 * statistics.median(timed(job) for _ in range(3)) / count
    assert bool(bottom(covariance, 8, complete=True).certified)
    return found


def naive(model: torch.nn.Module, tokens: int, ours: float) -> dict[str, float]:
    """Keep the final norm's outputs, bring them to the host, centre them, numpy.linalg.svd."""
    kept: list[np.ndarray] = []
    norm = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)][-1]
    handle = norm.register_forward_hook(lambda _m, _a, output: kept.append(output.flatten(0, 1).float().cpu().numpy()))
    started = now()
    with torch.no_grad():
        for batch in inputs(model, tokens):
            model(**batch, use_cache=False)
    stacked = np.concatenate(kept).astype(np.float64)
    np.linalg.svd(stacked - stacked.mean(0), full_matrices=False)
    seconds = now() - started
    handle.remove()
    return {"seconds": seconds, "over_ours": seconds / ours}


def inputs(model: torch.nn.Module, tokens: int) -> list[dict[str, torch.Tensor]]:
    stream = random_inputs(model, seed=0, batch_size=ROWS).batches()
    return [{"input_ids": next(stream)["input_ids"].to(DEVICE)} for _ in range(tokens // (ROWS * LENGTH))]


def now() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(job: Callable[[], Any]) -> float:
    started = now()
    job()
    return now() - started


def show(figures: dict[str, Any]) -> None:
    for name, part in figures.items():
        if isinstance(part, dict):
            print(name)
            for key, value in part.items():
                print(f"  {key:45} {value:10.4f}")


if __name__ == "__main__":
    main()
