"""A published configuration made small, for a laptop: the same parts in the same order, fewer and narrower of each.

Heads keep their size and become fewer, because rotary embeddings split a head in ways that no factor respects; widths
follow them; so many blocks are left that a hybrid shows all its kinds of block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_WIDTH = 256  # where the size of heads does not decide it
_WIDEST = 384
_ROUND = 8
_VOCABULARY = "vocab_size"
_AT_MOST = {
    _VOCABULARY: 4096,
    r"sliding_window": 128,
    r"num_experts": 16,
    r"num_frames|frames_per_clip": 8,
}
_BLOCKS = re.compile(r"(\w+_)?num_hidden_layers|n_layers?")
_PATCHES = 8  # along a side of an image
_SIDE = re.compile(r"image_size|crop_size")
_HEADS = re.compile(r"(?P<stack>\w+_)?num_attention_heads|n_heads?")
_WIDTHS = "hidden_size", "n_embd", "d_model"
_MORE_HEADS = re.compile(r"\w*num_(global_)?(key_value|key|value)_heads")
_MORE_WIDTHS = re.compile(
    r"intermediate_size|(moe|shared_expert)_intermediate_size|ffn_dim|word_embed_proj_dim|projection_dim"
)


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a small model of the same build.

    Args:
        config: keyword arguments of a transformers config, parts within it as dictionaries.

    Returns:
        New keyword arguments.
    """
    small: dict[str, Any] = {
        key: shrunk(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    if "vision_config" in config:  # the ids that stand for images keep their places
        small["text_config"][_VOCABULARY] = config["text_config"][_VOCABULARY]
    for pattern, most in _AT_MOST.items():
        for key in [k for k, v in small.items() if isinstance(v, int) and re.fullmatch(pattern, k)]:
            small[key] = min(small[key], most)
    for key in filter(_BLOCKS.fullmatch, config):
        small[key] = min(config[key], 4 + config[key] // 12)  # so that the smallest hybrid's full turn of six is in it
    for key in filter(_SIDE.fullmatch, config):
        small[key] = min(small[key], _PATCHES * small["patch_size"])
    for match in filter(None, map(_HEADS.fullmatch, config)):
        _narrow(config, small, match[0], match["stack"] or "")
    return small


def _narrow(config: Mapping[str, Any], small: dict[str, Any], heads: str, stack: str) -> None:
    """Give a stack fewer heads, and a width that goes with them."""
    width = next((stack + name for name in _WIDTHS if stack + name in config), None)
    if width is None:
        return
    if f"{stack}head_dim" in config:  # the width is then independent of it
        small[heads] = max(2, _WIDTH // config[f"{stack}head_dim"])
        small[width] = _WIDTH
    else:
        size = config[width] // config[heads]
        small[heads] = max(2, min(config[heads] // 8, _WIDEST // size))
        small[width] = size * small[heads]
    for key, value in config.items():
        if not stack and _MORE_HEADS.fullmatch(key):
            small[key] = max(1, value * small[heads] // config[heads])
        elif not stack and _MORE_WIDTHS.fullmatch(key):
            small[key] = -(-value * small[width] // config[width] // _ROUND) * _ROUND
