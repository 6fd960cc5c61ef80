"""What a model type needs besides the small sizes: values and a class, as data."""

from __future__ import annotations

from typing import Any

from deadreckon.forward.tiny_sizes import LAYERS, VOCABULARY, WIDTH


def each(names: tuple[str, ...], value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same facts for several names.

    Args:
        names: of model types or classes.
        value: the facts.

    Returns:
        Name -> facts.
    """
    return dict.fromkeys(names, value)


_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_SECTIONS: dict[str, Any] = {"rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}}

_RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
}

# Values that a model type needs besides, each because a default contradicts the small sizes.
OVERRIDES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "distilbert": {"hidden_dim": 96},
    "gemma3": {"mm_tokens_per_image": 4},
    "helium": {"head_dim": 16},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds_dim": [32, 32]},
    **each(("glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_vl_text", "qwen2_5_vl_text"), _SECTIONS),
    "glm4v_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
    "nemotron": {"num_key_value_heads": 2},
    **each(("autoformer", "informer", "time_series_transformer"), {"prediction_length": 4, "context_length": 24}),
    "blt": {
        "encoder_hash_byte_group_vocab": 1000,
        "encoder_config.hidden_size_global": WIDTH,
        "decoder_config.hidden_size_global": WIDTH,
    },
    "blt_local_decoder": {"hidden_size_global": WIDTH},
    "blt_local_encoder": {"hidden_size_global": WIDTH, "num_hidden_layers": 2, "cross_attn_all_layers": False},
    "chameleon": {"vocabulary_map": {"<image>": VOCABULARY - 1}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    **each(
        ("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer"),
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_kwargs": None,
            "backbone_config": {**_RESNET, "out_features": ["stage4"]},
        },
    ),
    "deepseek_ocr2_vision": {"sam_config.downsample_channels": [32, WIDTH]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_audio_encoder": {"adapter_input_size": WIDTH},
    "dots3_note_vision_encoder": {"adapter_in_dim": WIDTH, "per_layer_config": {}, "num_local_experts": 4},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [48, 16],
        "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]},
    },
    **each(
        ("evolla", "EvollaModel"),
        {
            "protein_encoder_config": {
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 96,
                "vocab_size": VOCABULARY,
            }
        },
    ),
    "florence_vision": {
        "embed_dim": [32, 32, WIDTH, WIDTH],
        "num_heads": [2, 2, 4, 4],
        "num_groups": [2, 2, 4, 4],
        "depths": [1, 1, 2, 2],
    },
    "hgnet_v2": {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 16, 32, 32],
        "stage_mid_channels": [16, 16, 16, 16],
        "stage_out_channels": [16, 32, 32, WIDTH],
        "hidden_sizes": [16, 32, 32, WIDTH],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
    },
    "hunyuan_vl_text": {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "llama4_vision_model": {
        "intermediate_size": 4 * WIDTH,
        "projector_input_dim": WIDTH,
        "projector_output_dim": WIDTH,
    },
    "lw_detr": {"backbone_config.out_indices": [1, 2, 3, 4], "projector_scale_factors": [1.0]},
    "lw_detr_vit": {"image_size": 256},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    **each(
        ("mask2former", "maskformer", "oneformer"),
        {"backbone_config.num_heads": [2, 4, 8, 16], "backbone_config.depths": [1, 1, 2, 2]},
    ),
    **each(("minicpm_ocr_vision", "minicpmv4_6_vision", "minicpmv4_7_vision"), {"insert_layer_id": 1}),
    "mllama_vision_model": {
        "num_global_layers": 2,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 3 * WIDTH,
    },
    "moonshine_streaming": {"num_key_value_heads": 4},
    "perceiver": {"d_latents": WIDTH, "num_latents": 16, "num_self_attends_per_block": LAYERS},
    "phi4_multimodal_audio": {
        "ext_pw_out_channel": WIDTH,
        "depthwise_separable_out_channel": WIDTH,
        "nemo_conv_channels": WIDTH,
    },
    "pix2struct_text_model": {"initializer_range": 0.02},
    **each(("pp_doclayout_v3", "pp_doclayout_v4"), {"x4_feat_dim": 16}),
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 1000,
    },
    "rf_detr": {"backbone_config.out_indices": [1, 2, 3, 4], "num_queries": 4, "group_detr": 1},
    "rt_detr_resnet": {"embedding_size": 16, "hidden_sizes": [32, 32, WIDTH, WIDTH], "depths": [1, 1, 1, 1]},
    "seggpt": {"image_size": [64, 32], "merge_index": 0, "intermediate_hidden_state_indices": [1, 2, 3, 3]},
    "step3p5": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        "sliding_window": 8,
    },
    **each(("t5_gemma_module", "t5gemma2_text", "t5gemma2_encoder", "t5gemma2_decoder"), {"dropout_rate": 0.0}),
    "swin2sr": {"depths": [2, 2], "num_heads": [4, 4]},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 32,
        "mamba_dt_rank": 4,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "tvp": {"backbone_config": {**_RESNET, "out_features": ["stage4"]}, "max_img_size": 64, "visual_prompt_size": 8},
    "wav2vec2": {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}


# Where transformers' own table names another class or none: module and class.
CLASSES: dict[str, str] = {
    "blip_text_model": "blip.modeling_blip_text.BlipTextModel",
    "idefics_vision": "idefics.vision.IdeficsVisionTransformer",
    "kosmos_2_5_vision_model": "kosmos2_5.modeling_kosmos2_5.Kosmos2_5VisionModel",
    "lw_detr_vit": "lw_detr.modeling_lw_detr.LwDetrViTBackbone",
    "mgp-str": "mgp_str.modeling_mgp_str.MgpstrModel",
    "musicgen_decoder": "musicgen.modeling_musicgen.MusicgenModel",
    "musicgen_melody_decoder": "musicgen_melody.modeling_musicgen_melody.MusicgenMelodyModel",
    "paddleocr_vl_vision": "paddleocr_vl.modeling_paddleocr_vl.PaddleOCRVisionModel",
    "pp_chart2table_vision": "got_ocr2.modeling_got_ocr2.GotOcr2VisionEncoder",
    "pp_doclayout_v2": "pp_doclayout_v2.modeling_pp_doclayout_v2.PPDocLayoutV2Model",
    "rf_detr_dinov2": "rf_detr.modeling_rf_detr.RfDetrDinov2Backbone",
    "t5_gemma_module": "t5gemma.modeling_t5gemma.T5GemmaEncoder",
    "vitpose_backbone": "vitpose_backbone.modeling_vitpose_backbone.VitPoseBackbone",
    "voxtral_realtime_text": "voxtral_realtime.modeling_voxtral_realtime.VoxtralRealtimeTextModel",
}
