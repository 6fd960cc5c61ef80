"""How far a tiny model's sizes are shrunk: what the fields of configs may be at most, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

WIDTH = 64  # every hidden size: a vector of this length is a vector of the residual stream
VOCABULARY = 120
LAYERS = 4  # enough to meet every kind of block of the hybrids that repeat after four

Table = tuple[tuple[str, int], ...]
"""The first pattern that matches a field's whole name gives the most it may be; a field that none matches keeps its
default."""

_COUNTS: Table = (
    (r"(\w+_)?vocab_size(_\w+)?", VOCABULARY),
    (r"(\w+_)?(num_hidden_layers|num_layers)|n_layers?|(en|de)coder_layers|num_blocks|depth|num_pooler_layers", LAYERS),
    (r"num_adapter_layers|num_hidden_groups|num_kv_shared_layers", 1),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts", 4),
    (r"num_experts_per_tok|moe_k|moe_topk|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_groups?", 1),
)
_LENGTHS: Table = (
    (r"(\w+_)?intermediate_size|\w*ffn_dim|ffn_hidden_size|d_ff|n_inner|mlp_dim|d_inner", 96),
    (r"num_frames|frames_per_clip", 4),
    (r"max_source_positions|max_target_positions", 40),
)
_WIDTHS: Table = (
    (r"(\w+_)?num_(global_)?key_value_heads|num_kv_heads", 2),
    (r"(\w+_)?num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads", 4),
    (r"rotary_dim", 8),
    (r"(\w+_)?hidden_size|d_model|n_embd|n_embed|embedding_size|(\w+_)?embed_dim|embed_dims|dim|projection_dim", WIDTH),
    (r"word_embed_proj_dim|out_hidden_size|output_dim|output_proj_dims|model_dim|pooler_output_size", WIDTH),
    (r"hidden_size_per_layer_input|codevector_dim|proj_codevector_dim|classifier_proj_size", 16),
    (r"image_size|crop_size", 32),
    (r"patch_size", 8),
)
_SMALL = (*_COUNTS, *_LENGTHS, *_WIDTHS)
_LOOSE = (*_COUNTS, *_LENGTHS)
_EQUAL_HEADS = ((r"(\w+_)?num_(global_)?key_value_heads|num_kv_heads", 4), *_SMALL)

# Fields that some model types leave unset though their layers need a value.
_UNSET: dict[str, int] = {
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "prediction_length": 4,
    "context_length": 24,
}

FIRST_PLAIN_ID = 5  # ids below are often special (padding, start, end)


@dataclass(frozen=True)
class Sizes:
    """Which of a config's fields are shrunk (the first pattern counts), and values for fields that it leaves unset."""

    table: Table
    unset: Mapping[str, int]

    @property
    def widths_kept(self) -> bool:
        """Whether widths keep their defaults, which may be large."""
        return self.table in (_LOOSE, _COUNTS)

    def shrunk(self, name: str, default: int) -> int | None:
        """What a field becomes; None where nothing is said of it.

        Args:
            name: the field's name.
            default: its value as the config's class has it.

        Returns:
            The value.
        """
        found = (size for pattern, size in self.table if re.fullmatch(pattern, name))
        return next((min(size, default) if default > 0 else default for size in found), None)


# Tried in this order: where small widths contradict a model type's other values, they keep their defaults.
CHOICES = tuple(Sizes(table, unset) for table in (_SMALL, _EQUAL_HEADS, _LOOSE, _COUNTS) for unset in ({}, _UNSET))
