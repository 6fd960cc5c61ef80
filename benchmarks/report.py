"""Size of a report on 14 models and the time it takes to write and to open.

    python benchmarks/report.py

One real measurement with a twin and one real trace are taken and given the hidden sizes and depths of 14 published
models, each measured twice (plain, gains redrawn) and traced: what is timed is the page, not the models. It is opened
in headless Chromium in fresh contexts; open means that the last chart is drawn.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from playwright.sync_api import sync_playwright

import deadreckon
from deadreckon.forward.conclude import kept_ranks
from deadreckon.results.measurement import Eigenvalues, Measurement
from deadreckon.results.trace import Trace

RUNS = 5
MODELS = {
    "pythia-160m": (768, 12),
    "pythia-1.4b": (2048, 24),
    "pythia-6.9b": (4096, 32),
    "pythia-12b": (5120, 36),
    "opt-13b": (5120, 40),
    "falcon-7b": (4544, 32),
    "gpt-neox-20b": (6144, 44),
    "dinov2-giant": (1536, 40),
    "vjepa2-giant": (1408, 40),
    "llama-3.1-8b": (4096, 32),
    "mistral-7b": (4096, 32),
    "qwen3-8b": (4096, 36),
    "gemma-4-31b": (5376, 60),
    "qwen3.5-35b-a3b": (2048, 40),
}


def main() -> None:
    measured = deadreckon.measure("random:pythia-160m", tokens=1600, twin=1)
    traced = deadreckon.trace("random:pythia-160m", tokens=1600)
    records: list[Any] = [
        resized(measured, name, size, affine)
        for name, (size, _) in MODELS.items()
        for affine in (None, "lognormal:0.5")
    ]
    records += [deepened(traced, name, depth) for name, (_, depth) in MODELS.items()]
    records += [deadreckon.classify("random:pythia-160m")]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        started = time.perf_counter()
        report = deadreckon.report(*records)
        report.save(page)
        writing = time.perf_counter() - started
        opened = open_page(page)
        figures = {
            "models": len(MODELS),
            "records": len(records),
            "charts": len(report.figures),
            "bytes": page.stat().st_size,
            "seconds_to_write": round(writing, 2),
            **opened,
        }
        started = time.perf_counter()
        small = deadreckon.report(measured)
        small.save(page)
        alone = {
            "charts": len(small.figures),
            "bytes": page.stat().st_size,
            "seconds_to_write": round(time.perf_counter() - started, 2),
            **open_page(page),
        }
    common.write("report", {"fourteen_models": figures, "one_measurement": alone, "load_average": os.getloadavg()[0]})


def resized(measured: Measurement, name: str, size: int, affine: str | None) -> Measurement:
    """The measurement with the ranks that one of that size would have kept."""
    kept = measured.spectrum
    assert kept is not None
    ranks = kept_ranks(size)
    rng = random.Random(size)
    at = [round((rank - 1) / (size - 1) * (len(kept.ranks) - 1)) for rank in ranks]
    spectrum = Eigenvalues(
        ranks=ranks,
        native=[kept.native[k] * rng.uniform(1, 1.1) for k in at],
        float64=[kept.float64[k] * rng.uniform(1, 1.1) for k in at],
        native_floor=[kept.native_floor[k] for k in at],
        float64_floor=kept.float64_floor,
    )
    twins = [replace(twin, hidden_size=size, spectrum=spectrum) for twin in measured.twins]
    return replace(
        measured,
        model=f"random:{name}",
        hidden_size=size,
        affine=affine,
        spectrum=spectrum,
        twins=twins,
        gap=measured.gap,
    )


def deepened(traced: Trace, name: str, depth: int) -> Trace:
    """The trace with as many blocks."""
    blocks = [replace(traced.blocks[min(k, len(traced.blocks) - 1)], index=k - 1) for k in range(depth + 1)]
    streams = [replace(stream, blocks=blocks) for stream in traced.streams]
    return replace(traced, model=f"random:{name}", blocks=blocks, streams=streams)


def open_page(page: Path) -> dict[str, float | str]:
    """Medians over fresh contexts: to the first paint, which shows words, to the first chart, and to the last."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    paints, first, drawn = [], [], []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(RUNS):
            context = chromium.new_context(viewport={"width": 1200, "height": 900})
            shown = context.new_page()
            started = time.perf_counter()
            shown.goto(page.as_uri(), wait_until="commit")
            shown.wait_for_selector(".chart svg", timeout=120_000)
            first.append(time.perf_counter() - started)
            shown.wait_for_selector("html[data-drawn]", timeout=120_000)
            drawn.append(time.perf_counter() - started)
            paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
            paints.append(shown.evaluate(paint) / 1000)
            context.close()
        version = chromium.version
        chromium.close()
    return {
        "browser": f"Chromium {version}, headless",
        "seconds_to_first_paint": round(statistics.median(paints), 2),
        "seconds_to_first_chart": round(statistics.median(first), 2),
        "seconds_to_last_chart": round(statistics.median(drawn), 2),
    }


if __name__ == "__main__":
    main()
