"""The paper's table at full size on one accelerator: every model built there, measured and traced.

python benchmarks/reproduce.py [--seeds N] [--store DIR] [--scale small] [--out NAME]

Writes the record of ``deadreckon reproduce``. `seconds` is that of the tasks; `wall_seconds` that of the whole, imports
included, and means what it says only where the store was empty before.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import common

STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="full")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store")
    parser.add_argument("--model", action="append")
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--out", default="reproduce_h200")
    options = parser.parse_args()

    import deadreckon
    from deadreckon.cli.measure import prepare_torch
    from deadreckon.cli.output import console
    from deadreckon.cli.reproduce import reproduction_table

    prepare_torch()
    spent: dict[str, float] = defaultdict(float)

    def note(done: int, total: int, task: object) -> None:
        if task is not None:
            kind = f"{task.verb} {task.options.get('dtype', '')} {task.options.get('affine') or ''}".strip()
            spent[kind] += task.seconds
            print(f"{done}/{total} {kind} {task.model} {task.seconds:.1f} s {task.why}", flush=True)

    found = deadreckon.reproduce(
        scale=options.scale,
        seeds=options.seeds,
        dtypes=options.dtype,
        store=options.store,
        models=options.model,
        progress=note,
    )
    wall = time.perf_counter() - STARTED
    console().print(reproduction_table(found))
    rounded = {kind: round(seconds, 1) for kind, seconds in sorted(spent.items())}
    print({"wall_seconds": round(wall, 1), **rounded})
    common.write(options.out, {"wall_seconds": wall, "seconds_by_kind": rounded, "record": found.to_dict()})


if __name__ == "__main__":
    main()
