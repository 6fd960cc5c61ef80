"""A very small random instance of any transformers model type, and inputs that run it.

Sizes are shrunk by the names of the config's fields, recursively, so no model type needs code of its own; the few that
need particular values have them in `OVERRIDES`, as data.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError

WIDTH = 64  # every hidden size: a vector of this length is a vector of the residual stream
VOCABULARY = 120
LAYERS = 4  # enough to meet every kind of block of the hybrids that repeat after four

# The first pattern that matches a field's whole name gives the most it may be; a field that none matches keeps its
# default.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(\w+_)?vocab_size(_\w+)?", VOCABULARY),
    (r"(\w+_)?num_(global_)?key_value_heads|num_kv_heads", 2),
    (r"(\w+_)?num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads", 4),
    (r"(\w+_)?(num_hidden_layers|num_layers)|n_layers?|(en|de)coder_layers|num_blocks|depth|num_pooler_layers", LAYERS),
    (r"num_adapter_layers|num_hidden_groups|num_kv_shared_layers", 1),
    (r"(\w+_)?intermediate_size|\w*ffn_dim|ffn_hidden_size|d_ff|n_inner|mlp_dim|d_inner", 96),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts", 4),
    (r"num_experts_per_tok|moe_k|moe_topk|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_groups?", 1),
    (r"rotary_dim", 8),
    (r"(\w+_)?hidden_size|d_model|n_embd|n_embed|embedding_size|(\w+_)?embed_dim|embed_dims|dim|projection_dim", WIDTH),
    (r"word_embed_proj_dim|out_hidden_size|output_dim|output_proj_dims|model_dim|pooler_output_size", WIDTH),
    (r"hidden_size_per_layer_input|codevector_dim|proj_codevector_dim|classifier_proj_size", 16),
    (r"image_size|crop_size", 32),
    (r"patch_size", 8),
    (r"num_frames|frames_per_clip", 4),
    (r"max_source_positions|max_target_positions", 40),
)

# The same with as many key and value heads as heads.
_EQUAL_HEADS = ((r"(\w+_)?num_(global_)?key_value_heads|num_kv_heads", 4), *_SIZES)

# What stays small where those sizes contradict a model type's other values: the widths keep their defaults.
_LOOSE = tuple(row for row in _SIZES if row[1] in (VOCABULARY, LAYERS, 1, 2, 40, 96) and "head" not in row[0])
_MOST_PARAMETERS = 250_000_000

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

_SMALL_TOKENS = 12
_SHAPES = 5  # layouts of an input that are tried
_EMBEDDED = ("inputs_embeds", "query_embeds", "noise_embeds", "context_hidden_states", "embeddings")
_FIRST_PLAIN_ID = 5  # ids below are often special (padding, start, end)

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

# Tried in this order: the class with an output head of which the base class is a part.
_HEADS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
)


@dataclass(frozen=True)
class Sizes:
    """Which of a config's fields are shrunk (the first pattern counts), and values for fields that it leaves unset."""

    table: tuple[tuple[str, int], ...]
    unset: Mapping[str, int]


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """A transformers config of that type with every size shrunk.

    Args:
        model_type: transformers' name, e.g. ``gpt_neox``.
        overrides: values that win over the small ones; a dotted key reaches into a sub-config
            (``**{"text_config.num_hidden_layers": 5}``).

    Returns:
        The config object.

    Raises:
        UsageError: the installed transformers knows no such model type.
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise UsageError(f"the installed transformers has no model type {model_type!r}")
    return _shrink(CONFIG_MAPPING[model_type], {**OVERRIDES.get(model_type, {}), **overrides}, _sizes(model_type))


def tiny_model(model_type: str, head: bool = False, **overrides: Any) -> nn.Module:
    """A small randomly initialised model, in evaluation mode, the same at every call.

    Args:
        model_type: transformers' name, e.g. ``gpt_neox``.
        head: the first class that exists of sequence-to-sequence, masked, causal and image-text language models and
            image, video and speech classifiers, rather than the base class.
        overrides: config values, as for `tiny_config`.

    Returns:
        The model, on the current default device (``with torch.device("meta")`` builds it without weights).

    Raises:
        UsageError: no such model type, or it has no such class.
    """
    config = tiny_config(model_type, **overrides)
    model_class = head_class(model_type) if head else base_class(model_type)
    if model_class is None:
        raise UsageError(f"transformers has no {'head' if head else 'base'} class for model type {model_type!r}")
    return _build(model_class, config)


def head_class(model_type: str) -> Any | None:
    """The transformers class with an output head for that model type.

    Args:
        model_type: transformers' name.

    Returns:
        The class, or None when the type has a base class only.
    """
    return next((found for mapping in _HEADS if (found := _class_named(model_type, mapping)) is not None), None)


def tiny_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Keyword inputs under which `model` runs: its main input, and as few others as it needs.

    Args:
        model: a transformers model (or one tower of one) built by `tiny_model`.

    Returns:
        Input name -> tensor, batch of one.

    Raises:
        UsageError: no combination of the inputs that this function can make runs the model.
    """
    parameters = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    failure: Exception | None = None
    tried: set[str] = set()
    for shape in range(_SHAPES):
        available = {name: value for name, value in _inputs(model.config, shape).items() if name in parameters}
        if shape == 0 and {"pixel_values", "pixel_position_ids"} <= available.keys():
            available["pixel_values"] = _inputs(model.config, shape)["hidden_states"].unsqueeze(0)
        wanted = [main, *(n for n, p in parameters.items() if p.default is p.empty and n in available)]
        if getattr(model.config, "is_encoder_decoder", False):
            wanted.append("decoder_input_ids")
        first = {name: available[name] for name in dict.fromkeys(wanted) if name in available}
        pixels = {**first, **{n: v for n, v in available.items() if n.startswith("pixel")}}
        one_more = [{**first, name: value} for name, value in available.items()] if shape else []
        for inputs in (first, pixels, available, *one_more):
            try:
                with torch.no_grad():
                    model(**inputs)
            except Exception as error:  # a foreign forward may fail in any way; the next combination may do
                failure = failure or error
            else:
                return inputs
        tried |= available.keys()
    raise UsageError(f"{type(model).__name__} runs on none of the inputs {sorted(tried)}: {failure}")


def _build(model_class: Any, config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would touch the accelerators' generators too
        model: nn.Module = model_class(config)
    return model.eval()


@cache
def _sizes(model_type: str) -> Sizes:
    """The smallest sizes with which the model type's base class runs; the small ones where none do."""
    from transformers import CONFIG_MAPPING

    base = base_class(model_type)
    choices = [Sizes(table, unset) for table in (_SIZES, _EQUAL_HEADS, _LOOSE) for unset in ({}, _UNSET)]
    for sizes in choices if base is not None else ():
        try:
            config = _shrink(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}), sizes)
            if sizes.table is _LOOSE:
                with torch.device("meta"):
                    parameters = sum(p.numel() for p in _build(base, config).parameters())
                if parameters > _MOST_PARAMETERS:
                    continue
            with torch.device("cpu"):
                tiny_inputs(_build(base, config))
        except Exception:  # whatever a foreign class raises: these sizes do not fit it
            continue
        return sizes
    return choices[0]


def base_class(model_type: str) -> Any | None:
    """The base class, or else, for a part of a model, the first class that takes that type's config and can be run."""
    from transformers import CONFIG_MAPPING, PreTrainedModel

    if (named := _class_named(model_type, "MODEL_MAPPING_NAMES")) is not None:
        return named
    config_class = CONFIG_MAPPING[model_type]
    place = config_class.__module__.replace(".configuration_", ".modeling_")
    try:
        classes = vars(importlib.import_module(place)).values()
    except ImportError:
        return None
    return next(
        (
            found
            for found in classes
            if inspect.isclass(found)
            and issubclass(found, PreTrainedModel)
            and found.config_class is config_class
            and "forward" in vars(found)
        ),
        None,
    )


def _inputs(config: Any, shape: int = 0) -> dict[str, Tensor]:
    """Every input this module can make for a model of that config, in one of `_SHAPES` layouts of the same names."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def ids(length: int) -> Tensor:
        return torch.randint(_FIRST_PLAIN_ID, VOCABULARY // 2, (1, length), generator=generator)

    vision = next(
        (c for c in (config, getattr(config, "vision_config", None)) if _has(c, "image_size|crop_size")), None
    )
    size = _first(vision, ("image_size", "crop_size"), 32)
    channels = _first(vision, ("num_channels", "in_channels", "in_chans"), 3)
    frames = _first(vision, ("num_frames", "frames_per_clip"), 0)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    image = (1, frames, channels, height, width) if frames else (1, channels, height, width)
    bins = _deep(config, ("num_mel_bins", "feature_size", "input_feat_dim", "feature_projection_input_dim"), 128)
    time = 2 * _first(config, ("max_source_positions",), bins // 2)
    hidden = _deep(config, ("hidden_size", "d_model", "n_embd"), WIDTH)
    series = (1, _first(config, ("context_length",), 24), _first(config, ("num_input_channels",), 1))
    patches = _patches(config, numbers)
    flat = patches.get("hidden_states", numbers(36, 1))
    layouts: dict[str, list[Callable[[], Tensor]]] = {
        "pixel_values": [
            lambda: numbers(*image),
            lambda: flat,
            lambda: flat.unsqueeze(0),
            lambda: numbers(1, 2, channels, height, width),
            lambda: numbers(1, channels, 64, 256),
        ],
        "input_values": [
            lambda: numbers(1, 4000),
            lambda: numbers(1, _first(config, ("max_length",), 3840), bins),
            lambda: numbers(1, 1, 3840),
            lambda: numbers(1, 3840),
            lambda: numbers(1, 64, bins),
        ],
        "input_features": [
            lambda: numbers(1, bins, time),
            lambda: numbers(1, 128, bins),
            lambda: numbers(1, 1, 128, bins),
            lambda: numbers(bins, 128),
            lambda: numbers(1, 64, 4 * bins),
        ],
        "past_values": [lambda: numbers(*series), lambda: numbers(*series[:2])],
        "hidden_states": [lambda: flat, lambda: numbers(1, _SMALL_TOKENS, hidden)],
    }
    length = layouts["input_features"][shape]().shape[1 if shape else -1]
    always = {
        "decoder_input_ids": ids(_SMALL_TOKENS - 3),
        "pixel_values_videos": numbers(*image),
        "bbox": torch.zeros(1, _SMALL_TOKENS, 4, dtype=torch.long),
        **{name: ids(_SMALL_TOKENS) for name in ("qformer_input_ids",)},
        **{
            name: numbers(1, _SMALL_TOKENS, hidden)
            for name in (*_EMBEDDED, *(("encoder_hidden_states",) if shape else ()))
        },
        **{name: torch.ones(1, length, dtype=torch.long) for name in ("input_features_mask",)},
        "pixel_attention_mask": torch.ones(1, 36, dtype=torch.long),
        "spatial_shapes": torch.tensor([[6, 6]]),
        "image_grid_thw": torch.tensor([[1, 6, 6]]),
        "past_values_padding": torch.zeros(series[:2]),
        "freq": torch.zeros(1, 1, dtype=torch.long),
    }
    made = {name: makers[min(shape, len(makers) - 1)]() for name, makers in layouts.items()}
    extra = always if shape else {name: always[name] for name in ("decoder_input_ids", "pixel_values_videos")}
    return {"input_ids": ids(_SMALL_TOKENS), **patches, **made, **extra}


def _patches(config: Any, numbers: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Inputs of towers that take an image as a list of patches: 6 x 6 of them, with their places."""
    side = _deep(config, ("patch_size", "spatial_patch_size"), 8)
    if not isinstance(side, int):
        return {}
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    features = _deep(config, ("in_channels", "num_channels", "in_chans"), 3) * side**2
    return {
        "hidden_states": numbers(36, features * _deep(config, ("temporal_patch_size",), 1)),
        "grid_thw": torch.tensor([[1, 6, 6]]),
        "pixel_position_ids": torch.stack([columns, rows], -1).reshape(1, 36, 2),
    }


def _shrink(config_class: Any, overrides: Mapping[str, Any], sizes: Sizes) -> Any:
    defaults = config_class()
    values: dict[str, Any] = {}
    for name, default in _fields(config_class):
        if isinstance(default, int) and not isinstance(default, bool):
            values |= _small(name, default, sizes.table)
        elif default is None and name in sizes.unset:
            values[name] = sizes.unset[name]
        elif name == "use_cache":
            values[name] = False  # the caches of some hybrids need a layer of every kind
    values |= dict(_special_ids(config_class))
    layers = getattr(defaults, "num_hidden_layers", None)
    for name, default in _fields(config_class):  # lists with one entry a layer
        if isinstance(default, list | tuple) and isinstance(layers, int) and len(default) == layers:
            values[name] = type(default)(default[:LAYERS])
    nested: dict[str, dict[str, Any]] = {}
    for key, value in overrides.items():
        sub, _, rest = key.partition(".")
        if rest:
            nested.setdefault(sub, {})[rest] = value
        else:
            values[key] = value
    for key, declared in getattr(config_class, "sub_configs", {}).items():
        default = getattr(defaults, key, None)
        sub_class = declared if default is None else type(default)  # towers that are off by default are built too
        model_type = getattr(sub_class, "model_type", "")
        if key not in values and model_type:
            own = {**OVERRIDES.get(model_type, {}), **nested.get(key, {})}
            values[key] = {**_shrink(sub_class, own, sizes).to_dict(), "model_type": model_type}
    return config_class(**values)


def _fields(config_class: Any) -> Iterator[tuple[str, Any]]:
    """The names and class defaults of a config's fields; values that the class derives from others are left to it."""
    for field in dataclasses.fields(config_class):
        if field.init and field.default is not dataclasses.MISSING:
            yield field.name, field.default


def _small(name: str, default: int, sizes: tuple[tuple[str, int], ...]) -> dict[str, int]:
    for pattern, size in sizes:
        if re.fullmatch(pattern, name):
            return {name: min(size, default) if default > 0 else default}
    return {}


def _special_ids(config_class: Any) -> Iterator[tuple[str, int]]:
    """Special token ids moved to the end of the small vocabulary, where the inputs do not reach."""
    free = VOCABULARY - 1
    for name, default in _fields(config_class):
        if re.fullmatch(r"\w+_token_(id|index)", name) and isinstance(default, int) and default >= _FIRST_PLAIN_ID:
            yield name, free
            free -= 1


def _class_named(model_type: str, mapping: str) -> Any | None:
    import transformers

    names = getattr(importlib.import_module("transformers.models.auto.modeling_auto"), mapping, {})
    name = names.get(model_type)
    if isinstance(name, list | tuple):
        name = name[0]
    return getattr(transformers, name) if name else None


def _has(config: Any, pattern: str) -> bool:
    return config is not None and any(getattr(config, name, None) is not None for name in pattern.split("|"))


def _first(config: Any, names: tuple[str, ...], default: int) -> Any:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), default)


def _deep(config: Any, names: tuple[str, ...], default: int) -> Any:
    """The first of these values that the config has itself, or else one of its sub-configs."""
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
    return next((v for part in parts if isinstance(v := _first(part, names, 0), int) and v), default)
