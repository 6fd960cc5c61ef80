"""Inputs of classes that no rule finds, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deadreckon.forward.tiny_facts import each
from deadreckon.forward.tiny_sizes import WIDTH


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
    **each(("AutoformerModel", "InformerModel", "TimeSeriesTransformerModel"), _SERIES),
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
    "DiaDecoder": {
        "input_ids": _ids(1, 12, "num_channels"),
        "encoder_hidden_states": _normal(1, 7, "cross_hidden_size"),
    },
    "Dots3NoteAudioModel": {"input_features": _normal(1, "feature_size", 100), "chunk_sample_lengths": [16_000]},
    "Florence2VisionBackbone": {"hidden_states": _normal(1, 3, 128, 128)},
    "FunAsrNanoEncoder": {"input_features": _normal(1, 40, 7 * 80), "input_features_mask": _ones(1, 40)},
    "Gemma3nAudioEncoder": {"audio_mel": _normal(1, 96, "input_feat_size"), "audio_mel_mask": Shaped("false", (1, 96))},
    **each(("GraniteSpeechCTCEncoder", "GraniteSpeechPlusCTCEncoder"), {"hidden_states": _normal(1, 40, "input_dim")}),
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
    **each(
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
    **each(
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
    **each(
        ("Sam3DetrDecoder", "Sam3LiteTextDetrDecoder"),
        {
            "vision_features": _normal(1, 36, "hidden_size"),
            "text_features": _normal(1, 5, "hidden_size"),
            "vision_pos_encoding": _normal(1, 36, "hidden_size"),
            "spatial_shapes": [[6, 6]],
        },
    ),
    **each(
        ("Sam3DetrEncoder", "Sam3LiteTextDetrEncoder"),
        {
            "vision_features": (_normal(1, "hidden_size", 6, 6),),
            "text_features": _normal(1, 5, "hidden_size"),
            "vision_pos_embeds": (_normal(1, "hidden_size", 6, 6),),
        },
    ),
    "SegGptModel": {name: _normal(1, 3, 32, 32) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")},
    "SLANeXtBackbone": {"hidden_states": _normal(1, 3, "vision_config.image_size", "vision_config.image_size")},
    "SpeechT5Model": {
        "input_values": _normal(1, 9, "hidden_size"),
        "decoder_input_values": _normal(1, 6, "hidden_size"),
    },
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
