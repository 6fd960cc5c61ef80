"""What share of transformers' model types the atlas classifies, and why it does not classify the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from deadreckon.checkpoint.atlas import OTHER_CONFIGS, TEXT_CONFIGS
from deadreckon.forward.atlas_builder import Row, committed

CLASSIFIED = ("a norm ends it", "it ends without a norm", "by its text config")

# Model types that have no residual stream of hidden states which a norm over the channels could end. The first pattern
# that matches the whole name counts.
_NO_STREAM: tuple[tuple[str, str], ...] = (
    (
        r"\w*(mask|prompt|geometry)_(de|en)coder|sapiens2_head|tipsv2_dpt|\w*_adapter",
        "a head or adapter of another model",
    ),
    (r"encodec|dac|mimi(_\w+)?|xcodec2?|neucodec|univnet|\w*_tokenizer(_(en|de)coder)?", "an audio codec or vocoder"),
    (
        r"\w*hifigan|\w*bigvgan|\w*token2wav|\w*vq(gan|model)|flava_image_codebook",
        "a codec, vocoder or image tokenizer",
    ),
    (
        r"align_vision_model|bit|convnext(v2)?|efficientnet|regnet|resnet|rt_detr_resnet|mobilenet_v[12]|hgnet_v2",
        "convolutional",
    ),
    (
        r"pp_lcnet(_v\d)?|textnet|uvdoc(_backbone)?|poolformer|superpoint|pp_ocrv\d_(mobile|small|tiny)_(det|rec)",
        "convolutional",
    ),
    (r"pp_ocrv\d_(server|medium)_(det|rec)|slanet|levit|swiftformer|cvt|mobilevit(v2)?", "convolutional in the main"),
    (
        r"depth_anything|prompt_depth_anything|zoedepth|upernet|vitmatte|vitpose|chmv2",
        "a head on a backbone of another type",
    ),
    (r"timm_backbone|timm_wrapper", "whatever model of timm it wraps"),
    (r"(vision-)?encoder-decoder|speech-encoder-decoder|vision-text-dual-encoder|rag", "whatever models it joins"),
    (r"lightglue|superglue|efficientloftr", "a matcher of keypoints"),
    (r"gemma4_unified_(audio|vision)", "an embedder without blocks"),
    (r"patchtsmixer|moshi_depth|blt_patcher|vibevoice_diffusion", "a mixer, sampler or patcher"),
)


def atlas_coverage() -> dict[str, Any]:
    """Every model type of the installed transformers, by what the atlas can say about it.

    Returns:
        ``transformers``, ``command``, ``counts`` by class, ``normed`` (model types with a normed residual stream: all
        but those without any), ``coverage`` (the classified share of these) and ``types``: model type -> class, and
        the reason where it is not a row.
    """
    import transformers
    from transformers import CONFIG_MAPPING

    atlas = committed()
    types = {name: _class(name, CONFIG_MAPPING[name], atlas) for name in sorted(CONFIG_MAPPING.keys())}
    counts = Counter(says["class"] for says in types.values())
    normed = len(types) - counts["no normed residual stream"]
    return {
        "transformers": transformers.__version__,
        "command": "deadreckon atlas coverage --out FILE",
        "counts": dict(counts.most_common()),
        "normed": normed,
        "coverage": sum(counts[name] for name in CLASSIFIED) / normed,
        "types": types,
    }


def _class(name: str, config_class: Any, atlas: Mapping[str, Row]) -> dict[str, str]:
    row = atlas["rows"].get(name)
    if row is not None:
        ended = any(stack["norm"] for stack in row["stacks"])
        return {"class": CLASSIFIED[0] if ended else CLASSIFIED[1]}
    why = next((why for pattern, why in _NO_STREAM if re.fullmatch(pattern, name)), None)
    if why is not None:
        return {"class": "no normed residual stream", "why": why}
    if (part := _part_type(config_class, atlas["rows"])) is not None:
        return {"class": CLASSIFIED[2], "why": part}
    return {"class": "not classified", "why": atlas["absent"].get(name, "not tried")}


def _part_type(config_class: Any, rows: Mapping[str, Row]) -> str | None:
    """The model type of the part of a composite config that the atlas would answer for, by default."""
    declared = getattr(config_class, "sub_configs", {})
    key = next((key for key in (*TEXT_CONFIGS, *OTHER_CONFIGS) if key in declared), None)
    if key is None:
        return None
    try:
        part = getattr(config_class(), key, None)
    except Exception:  # a config without usable defaults: what it declares must do
        part = None
    part_class = declared[key] if part is None else type(part)
    name = getattr(part_class, "model_type", None)
    return name if name in rows else _part_type(part_class, rows)
