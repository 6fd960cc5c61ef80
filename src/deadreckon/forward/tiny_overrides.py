"""Values that a model type needs besides the small sizes, each because a default contradicts them."""

from __future__ import annotations

from typing import Any

from deadreckon.forward.tiny_sizes import LAYERS

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_SECTIONS: dict[str, Any] = {"rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}}

# Values that a model type needs besides, each because a default contradicts the small sizes.
OVERRIDES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "distilbert": {"hidden_dim": 96},
    "gemma3": {"mm_tokens_per_image": 4},
    "helium": {"head_dim": 16},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds_dim": [32, 32]},
    **dict.fromkeys(("glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_vl_text", "qwen2_5_vl_text"), _SECTIONS),
    "glm4v_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
    "nemotron": {"num_key_value_heads": 2},
    "wav2vec2": {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}
