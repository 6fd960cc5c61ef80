"""One direction, every input: trained MiniLM under inputs as different as they come, in one run.

    python benchmarks/any_input.py

The direction is read from the gain once; no input may give it any variance beyond rounding.
"""

from __future__ import annotations

import common
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers import logging as transformers_logging

import deadreckon
from deadreckon.checkpoint.demo import demo_path

TOKENS = 16384
ROWS, LENGTH = 16, 256


def embeddings(model: torch.nn.Module, kind: str) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    table = model.get_input_embeddings().weight.detach()
    batches = []
    for _ in range(TOKENS // (ROWS * LENGTH)):
        if kind == "one id with noise":
            values = table[2023] + 0.1 * table.std() * torch.randn(ROWS, LENGTH, table.shape[1], generator=generator)
        else:
            values = table[torch.randint(1000, len(table), (ROWS, LENGTH), generator=generator)]
            values = values * torch.logspace(-3, 3, LENGTH)[:, None]
        batches.append({"inputs_embeds": values})
    return batches


def main() -> None:
    transformers_logging.set_verbosity_error()
    path = demo_path("minilm")
    model, tokenizer = AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    direction = deadreckon.read(path).vectors["encoder.layer.5.output.LayerNorm.kernel"][:, 0]
    runs = {
        "English text": {"tokenizer": tokenizer, "tokens": TOKENS},
        "random ids": {"data": "random", "tokens": TOKENS},
        "one id with noise": {"batches": embeddings(model, "one id with noise")},
        "embeddings scaled 1e-3 to 1e3": {"batches": embeddings(model, "scaled")},
    }
    rows = {}
    for name, inputs in runs.items():
        found = deadreckon.measure(model, **inputs)
        same = bool(np.array_equal(found.vectors["tested"][:, 0], direction))
        rows[name] = {**found.to_dict(), "same_direction": same}
        print(
            f"{name:32s} N {found.tokens}  same direction {same}  float64 variance in its unit "
            f"{found.protocol.kernel_variance:.1e} (tolerance {found.protocol.kernel_tolerance:.0e})  "
            f"angle {found.largest_principal_angle:.1e}  subspace {found.subspace_alignment:.6f}  "
            f"{found.protocol.status}"
        )
    common.write("any_input", rows)


if __name__ == "__main__":
    main()
