"""gain^-1 against 1/sqrt(d) at random initialisation, with plain and with redrawn gains, at published sizes.

    python benchmarks/random_init.py pythia-160m vit-large            # two cores, minutes
    python benchmarks/random_init.py --device cuda pythia-6.9b llama-3.1-8b

At plain init every gain is 1, so both directions pass; with log-normal gains only gain^-1 may.
"""

from __future__ import annotations

import argparse

import common

import deadreckon

COLUMNS = ("kind", "alignment", "alignment_uniform", "lambda_dead/mean", "float64/mean", "protocol", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--per-dimension", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", default="random_init")
    options = parser.parse_args()
    rows = []
    for name in options.names:
        size = deadreckon.read(f"random:{name}").hidden_size
        for affine in (None, "lognormal:0.5"):
            found = deadreckon.measure(
                f"random:{name}",
                tokens=options.per_dimension * size,
                affine=affine,
                dtype=options.dtype,
                device=options.device,
                batch_size=options.batch_size,
            )
            rows.append(found.to_dict())
            row = {
                "kind": found.kind,
                "alignment": f"{found.alignment:.6f}",
                "alignment_uniform": f"{found.alignment_uniform:.6f}",
                "lambda_dead/mean": f"{found.lambda_dead / found.lambda_mean:.1e}",
                "float64/mean": f"{found.lambda_dead_float64 / found.lambda_mean:.1e}",
                "protocol": found.protocol.status,
                "seconds": f"{found.seconds:.1f}",
            }
            print(
                f"{name:16s} {affine or 'plain':14s} d={size:<6d} " + "  ".join(f"{c} {row[c]}" for c in COLUMNS),
                flush=True,
            )
    common.write(options.out, rows)


if __name__ == "__main__":
    main()
