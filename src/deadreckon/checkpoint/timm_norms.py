"""The final norm of a checkpoint in timm's layout: config.json names an architecture, tensors have timm's names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deadreckon.checkpoint.atlas import Architecture, NormRow, StackRow

# Families whose norms are LayerNorm or RmsNorm over the channels, by the start of their names. In timm the first has a
# shift and the second has none. Of others a gain and a shift may as well be a GroupNorm's (ResNetV2, PoolFormer).
_FAMILIES = (
    *("vit_", "deit", "beit", "eva", "flexivit_", "samvit_", "aimv2_", "cait_", "xcit_", "volo_", "mixer_", "swin"),
    *("convnext", "davit_", "maxvit_", "coatnet_", "mvitv2_", "nest_", "hiera_", "tiny_vit_", "mambaout"),
)
_NAMES = ("norm", "fc_norm", "head.norm")


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config is one that timm wrote."""
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def timm_architecture(config: Mapping[str, Any], vectors: Collection[str]) -> Architecture | None:
    """What a timm checkpoint says about its final norm.

    Args:
        config: its config.json.
        vectors: the names of its tensors.

    Returns:
        The norms that end it: the one over all positions, else the one over the pooled features. The kind is open where
        the family is not known; None where the file has no such norm, or only a batch norm.
    """
    if not is_timm(config):
        return None
    name = str(config["architecture"])
    known = name.startswith(_FAMILIES)
    stacks = []
    for stem in _NAMES:
        if f"{stem}.weight" in vectors and f"{stem}.running_mean" not in vectors:
            shift = "bias" if f"{stem}.bias" in vectors else None
            kind = ("layernorm" if shift else "rmsnorm") if known else "undetermined"
            norm = NormRow(stem, (stem,), kind, "weight", shift)
            stacks.append(StackRow("final", norm))
    if not stacks:
        return None
    head = stacks[1].norm if len(stacks) > 1 else None
    return Architecture(name, (stacks[0],), head)
