"""What a model type needs besides the small sizes: values, a class, inputs. All that knows types by name is data, here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deadreckon.forward.tiny_sizes import LAYERS, VOCABULARY, WIDTH

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
    **dict.fromkeys(("glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_vl_text", "qwen2_5_vl_text"), _SECTIONS),
    "glm4v_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
    "nemotron": {"num_key_value_heads": 2},
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), {"prediction_length": 4, "context_length": 24}),
    "blt": {"encoder_config.hidden_size_global": WIDTH, "decoder_config.hidden_size_global": WIDTH},
    "blt_local_decoder": {"hidden_size_global": WIDTH},
    "blt_local_encoder": {"hidden_size_global": WIDTH, "num_hidden_layers": 2, "cross_attn_all_layers": False},
    "chameleon": {"vocabulary_map": {"<image>": VOCABULARY - 1}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    **dict.fromkeys(
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
    "dots3_note_vision_encoder": {"per_layer_config": {}, "num_local_experts": 4},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [48, 16],
        "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]},
    },
    "evolla": {
        "protein_encoder_config": {
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "vocab_size": VOCABULARY,
        }
    },
    "hunyuan_vl_text": {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "llama4_vision_model": {"intermediate_size": 4 * WIDTH, "projector_input_dim": WIDTH, "projector_output_dim": WIDTH},
    "lw_detr": {"backbone_config.out_indices": [1, 2, 3, 4], "projector_scale_factors": [1.0]},
    "lw_detr_vit": {"image_size": 256},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "maskformer": {"backbone_config.num_heads": [2, 4, 8, 16]},
    **dict.fromkeys(("minicpm_ocr_vision", "minicpmv4_6_vision", "minicpmv4_7_vision"), {"insert_layer_id": 1}),
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
    **dict.fromkeys(("t5_gemma_module", "t5gemma2_text", "t5gemma2_encoder", "t5gemma2_decoder"), {"dropout_rate": 0.0}),
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 32,
        "mamba_dt_rank": 4,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8},
    "wav2vec2": {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}


@dataclass(frozen=True)
class Shaped:
    """Numbers of a shape.

    Attributes:
        of: normal (standard) | uniform (0 to 1) | false | ids (of plain tokens) | ones | zeros, the last three whole
            numbers.
        shape: sizes; a name stands for that value of the model's config.
    """

    of: str
    shape: tuple[int | str, ...]


def _normal(*shape: int | str) -> Shaped:
    return Shaped("normal", shape)


def _uniform(*shape: int | str) -> Shaped:
    return Shaped("uniform", shape)


def _ids(*shape: int | str) -> Shaped:
    return Shaped("ids", shape)


def _ones(*shape: int | str) -> Shaped:
    return Shaped("ones", shape)


def _zeros(*shape: int | str) -> Shaped:
    return Shaped("zeros", shape)


# Where transformers' own table names another class or none: module and class.
CLASSES: dict[str, str] = {
    "blip_text_model": "blip.modeling_blip_text.BlipTextModel",
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

_SERIES = {  # a context of 24 steps behind the 7 that the largest lag takes
    "past_values": _normal(1, 31),
    "past_time_features": _normal(1, 31, "num_time_features"),
    "past_observed_mask": _ones(1, 31),
    "future_values": _normal(1, 4),
    "future_time_features": _normal(1, 4, "num_time_features"),
}

# Keyword inputs of classes that no rule finds. A list stands for a tensor of these values, a tuple for a list.
INPUTS: dict[str, dict[str, Any]] = {
    "AudioFlamingo3Encoder": {"input_features": _normal(1, "num_mel_bins", 80), "input_features_mask": _ones(1, 80)},
    **dict.fromkeys(("AutoformerModel", "InformerModel", "TimeSeriesTransformerModel"), _SERIES),
    "BltLocalDecoder": {
        "inputs_embeds": _normal(1, 12, "hidden_size"),
        "patch_embeds": _normal(1, 6, "hidden_size_global"),
    },
    "BltLocalEncoder": {
        "input_ids": _ids(1, 12),
        "num_patches": 4,
        "patch_ids": [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]],
    },
    "BridgeTowerVisionModel": {"image": _normal(1, 3, "image_size", "image_size")},
    "DecisionTransformerModel": {
        "states": _normal(1, 6, "state_dim"),
        "actions": _normal(1, 6, "act_dim"),
        "rewards": _normal(1, 6, 1),
        "returns_to_go": _normal(1, 6, 1),
        "timesteps": _zeros(1, 6),
        "attention_mask": _ones(1, 6),
    },
    "DeepseekOcr2VisionEncoder": {"inputs_embeds": _normal(1, 36, "hidden_size"), "num_patches": 36},
    "DiaDecoder": {"input_ids": _ids(1, 12, "num_channels"), "encoder_hidden_states": _normal(1, 7, "cross_hidden_size")},
    "Dots3NoteAudioModel": {"input_features": _normal(1, "feature_size", 100), "chunk_sample_lengths": [16_000]},
    "Florence2VisionBackbone": {"hidden_states": _normal(1, 3, 128, 128)},
    "FunAsrNanoEncoder": {"input_features": _normal(1, 40, 7 * 80), "input_features_mask": _ones(1, 40)},
    "Gemma3nAudioEncoder": {"audio_mel": _normal(1, 96, "input_feat_size"), "audio_mel_mask": Shaped("false", (1, 96))},
    **dict.fromkeys(
        ("GraniteSpeechCTCEncoder", "GraniteSpeechPlusCTCEncoder"), {"hidden_states": _normal(1, 40, "input_dim")}
    ),
    "IdeficsModel": {
        "input_ids": _ids(1, 12),
        "pixel_values": _normal(1, 1, 3, "vision_config.image_size", "vision_config.image_size"),
        "image_attention_mask": _ones(1, 12, 1),
    },
    "Idefics2PerceiverResampler": {"context": _normal(1, 20, "hidden_size"), "attention_mask": _ones(1, 20)},
    "Inkling2VisionModel": {"pixel_values": _normal(9, 16, 16, 3), "image_grid_thw": [[1, 3, 3]]},
    "InklingVisionModel": {"pixel_values": _normal(3, 2, "patch_size", "patch_size", 3)},
    "InklingAudioModel": {"audio_input_ids": _ids(1, 10, "n_mel_bins")},
    "Kimi_K25VisionModel": {"pixel_values": _normal(36, 3, "patch_size", "patch_size"), "grid_thw": [[1, 6, 6]]},
    "Kosmos2_5VisionModel": {"flattened_patches": _uniform(1, 10, WIDTH + 2)},
    "LxmertModel": {
        "input_ids": _ids(1, 12),
        "visual_feats": _normal(1, 5, "visual_feat_dim"),
        "visual_pos": _normal(1, 5, "visual_pos_dim"),
    },
    **dict.fromkeys(
        ("MiniCPMOcrVisionModel", "MiniCPMV4_6VisionModel", "MiniCPMV4_7VisionModel"),
        {"pixel_values": _normal(1, 3, "patch_size", 36 * 8), "target_sizes": [[6, 6]]},
    ),
    "MllamaVisionModel": {
        "pixel_values": _normal(1, 1, 4, 3, "image_size", "image_size"),
        "aspect_ratio_ids": [[1]],
        "aspect_ratio_mask": _ones(1, 1, 4),
    },
    "Molmo2VisionModel": {"pixel_values": _normal(1, "num_position_embeddings", 3 * 8**2)},
    "MuseGlimmerAssistantModel": {
        "noise_embeds": _normal(1, 4, "hidden_size"),
        "context_hidden_states": _normal(1, 8, 5 * WIDTH),
    },
    **dict.fromkeys(
        ("MuseGlimmerVisionModel", "MuseSparkVisionModel"),
        {"pixel_values": _normal(36, 2 * 3 * 8**2), "grid_thw": [[1, 6, 6]]},
    ),
    "MusicgenModel": {"input_ids": _ids(4, 12)},
    "MusicgenMelodyModel": {"input_ids": _ids(4, 12)},
    "OneFormerModel": {"pixel_values": _normal(1, 3, 64, 64), "task_inputs": _ids(1, "task_seq_len")},
    "PaddleOCRVisionModel": {"pixel_values": _normal(1, 36, 3, "patch_size", "patch_size"), "grid_thw": [[1, 6, 6]]},
    "PerceiverModel": {"inputs": _normal(1, 20, "d_model")},
    "Phi4MultimodalAudioModel": {"hidden_states": _normal(1, 64, "input_size"), "mask": None},
    "Pix2StructVisionModel": {"flattened_patches": _uniform(1, 10, WIDTH + 2)},
    "Qwen2_5OmniAudioEncoder": {"input_features": _normal("num_mel_bins", 80), "feature_lens": [80]},
    "Qwen3ASREncoder": {"input_features": _normal(1, "num_mel_bins", 100), "input_features_mask": _ones(1, 100)},
    "Qwen3OmniMoeAudioEncoder": {"input_features": _normal("num_mel_bins", 80), "feature_lens": [80]},
    "Qwen3OmniMoeTalkerModel": {"inputs_embeds": _normal(1, 12, "hidden_size")},
    "Qwen3OmniMoeTalkerCodePredictorModel": {"inputs_embeds": _normal(1, 12, "hidden_size")},
    "Pix2StructForConditionalGeneration": {
        "flattened_patches": _uniform(1, 10, 768 + 2),
        "decoder_input_ids": _ids(1, 6),
    },
    **dict.fromkeys(
        ("Sam3DetrDecoder", "Sam3LiteTextDetrDecoder"),
        {
            "vision_features": _normal(1, 36, "hidden_size"),
            "text_features": _normal(1, 5, "hidden_size"),
            "vision_pos_encoding": _normal(1, 36, "hidden_size"),
            "spatial_shapes": [[6, 6]],
        },
    ),
    **dict.fromkeys(
        ("Sam3DetrEncoder", "Sam3LiteTextDetrEncoder"),
        {
            "vision_features": (_normal(1, "hidden_size", 6, 6),),
            "text_features": _normal(1, 5, "hidden_size"),
            "vision_pos_embeds": (_normal(1, "hidden_size", 6, 6),),
        },
    ),
    "SegGptModel": {name: _normal(1, 3, 32, 32) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")},
    "SLANeXtBackbone": {"hidden_states": _normal(1, 3, "vision_config.image_size", "vision_config.image_size")},
    "SpeechT5Model": {"input_values": _normal(1, 9, "hidden_size"), "decoder_input_values": _normal(1, 6, "hidden_size")},
    "TimesFm2_5Model": {"past_values": [[0.1 * i for i in range(64)]]},
    "TimesFmModel": {"past_values": _uniform(1, 64), "past_values_padding": _zeros(1, 64), "freq": _zeros(1, 1)},
    "TvpModel": {
        "input_ids": _ids(1, 12),
        "pixel_values": _normal(1, "num_frames", 3, "max_img_size", "max_img_size"),
        "attention_mask": _ones(1, 12),
    },
    "UdopModel": {
        "input_ids": _ids(1, 12),
        "bbox": _uniform(1, 12, 4),
        "pixel_values": _normal(1, 3, "image_size", "image_size"),
        "decoder_input_ids": _ids(1, 6),
    },
    "UnlimitedOcrVisionEncoder": {"patch_embeds": _normal(1, "hidden_size", 4, 4)},
    "VideoLlama3VisionModel": {"pixel_values": _normal(36, 3 * 8**2), "grid_thw": [[1, 6, 6]], "merge_sizes": [1]},
    "VideomtForUniversalSegmentation": {"pixel_values_videos": _normal(1, 2, 3, "image_size", "image_size")},
    "VoxtralRealtimeTextModel": {"input_ids": _ids(1, 12), "t_cond": _normal(1, 1, "hidden_size")},
    "Wav2Vec2BertModel": {"input_features": _normal(1, 40, "feature_projection_input_dim")},
    "XCLIPVisionModel": {"pixel_values": _normal("num_frames", 3, "image_size", "image_size")},
    "XmodModel": {"input_ids": _ids(1, 12), "lang_ids": [0]},
}
