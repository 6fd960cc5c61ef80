"""What every benchmark records beside its figures: where, with what, and by which command they were made."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import deadreckon

RESULTS = Path(os.environ.get("OUT", Path(__file__).parent / "results"))


def write(name: str, figures: Any) -> None:
    """Write ``results/NAME.json``: environment, command, figures. ``$OUT`` names another folder."""
    libraries = {}
    for package in (
        "numpy",
        "torch",
        "transformers",
        "safetensors",
        "gguf",
        "altair",
        "vl-convert-python",
        "playwright",
    ):
        try:
            libraries[package] = version(package)
        except PackageNotFoundError:
            continue
    environment = {
        "command": shlex.join(["python", *sys.argv]),
        "deadreckon": deadreckon.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "accelerator": _accelerator(),
        "libraries": libraries,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment, "figures": figures}, indent=1, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _accelerator() -> str | None:
    if "torch" not in sys.modules:
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
