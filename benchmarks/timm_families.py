"""Every architecture of timm against what reading says of a checkpoint of it: the final norm, and its kind.

    python benchmarks/timm_families.py            # where timm is installed; models are built without memory, minutes

What reading sees of a checkpoint are the architecture's name and the names and shapes of its tensors; here they are
those of the model that timm builds. The truth is the class of the module that reading names: LayerNorm and its
subclasses, RMSNorm likewise, else another kind.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from typing import Any

import common
import timm
import torch
from timm.layers import norm as timm_norms
from torch import nn

from deadreckon.checkpoint.timm_norms import timm_architecture

RMSNORMS = tuple(
    getattr(timm_norms, name) for name in dir(timm_norms) if name.lower().startswith(("rmsnorm", "simplenorm"))
)


def kind_of(module: nn.Module) -> str:
    """What the module is, by its class."""
    if isinstance(module, nn.LayerNorm):
        return "layernorm"
    classes = tuple(c for c in RMSNORMS if isinstance(c, type)) + ((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ())
    return "rmsnorm" if isinstance(module, classes) else type(module).__name__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="timm_families")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    kinds: Counter[str] = Counter()
    for name in options.names or timm.list_models():
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except Exception as error:  # whatever timm's builders raise without memory or without what they need
            failed[name] = f"{type(error).__name__}: {str(error)[:100]}"
            continue
        vectors = {key for key, tensor in model.state_dict().items() if tensor.dim() == 1}
        found = timm_architecture({"architecture": name}, vectors)
        if found is None:
            counts["no final norm is named"] += 1
            continue
        row = found.stacks[0].norm
        truth = kind_of(model.get_submodule(row.module))
        kinds[truth] += 1
        if row.kind == "undetermined":
            counts["its kind is left open"] += 1
        elif row.kind == truth:
            counts["right"] += 1
        else:
            counts["wrong"] += 1
            wrong.append({"model": name, "norm": row.module, "read": row.kind, "truth": truth})
    figures = {
        "timm": timm.__version__,
        "models": sum(counts.values()),
        "counts": dict(counts),
        "kinds_of_named_norms": dict(kinds),
        "wrong": wrong,
        "not_built": failed,
    }
    common.write(options.out, figures)
    print(
        {key: value for key, value in figures.items() if key != "not_built"},
        len(failed),
        dict(list(failed.items())[:5]),
    )


if __name__ == "__main__":
    main()
