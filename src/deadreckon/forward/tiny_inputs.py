"""Inputs that run a tiny model, whatever its modality."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.modality import parts
from deadreckon.forward.tiny_listed_inputs import INPUTS, Shaped
from deadreckon.forward.tiny_sizes import FIRST_PLAIN_ID, VOCABULARY, WIDTH

_SMALL_TOKENS = 12
_SHAPES = 5  # layouts of an input that are tried
_EMBEDDED = ("inputs_embeds", "query_embeds", "noise_embeds", "context_hidden_states", "embeddings")


def tiny_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Keyword inputs under which `model` runs: its main input, and as few others as it needs.

    Args:
        model: a transformers model (or one tower of one) built by `tiny_model`.

    Returns:
        Input name -> tensor, batch of one.

    Raises:
        UsageError: no combination of the inputs that this function can make runs the model.
    """
    if (listed := INPUTS.get(type(model).__name__)) is not None:
        generator = torch.Generator().manual_seed(0)
        inputs = {name: _made(value, model.config, generator) for name, value in listed.items()}
        with torch.no_grad():
            model(**inputs)
        return inputs
    parameters = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    mains = [main] if isinstance(main, str) else list(main)
    failure: Exception | None = None
    tried: set[str] = set()
    for shape in range(_SHAPES):
        available = {name: value for name, value in _inputs(model.config, shape).items() if name in parameters}
        if shape == 0 and {"pixel_values", "pixel_position_ids"} <= available.keys():
            available["pixel_values"] = _inputs(model.config, shape)["hidden_states"].unsqueeze(0)
        wanted = [*mains, *(n for n, p in parameters.items() if p.default is p.empty and n in available)]
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
    raise UsageError(f"{type(model).__name__} runs on none of the inputs {sorted(tried)}: {failure}") from failure


def _made(value: Any, config: Any, generator: torch.Generator) -> Any:
    """A listed input: numbers of a shape, or the value itself."""
    if isinstance(value, tuple):
        return [_made(part, config, generator) for part in value]
    if isinstance(value, list):
        return torch.tensor(value)
    if not isinstance(value, Shaped):
        return value
    shape = [attrgetter(size)(config) if isinstance(size, str) else size for size in value.shape]
    if value.of == "normal":
        return torch.randn(shape, generator=generator)
    if value.of == "uniform":
        return torch.rand(shape, generator=generator)
    if value.of == "false":
        return torch.zeros(shape, dtype=torch.bool)
    if value.of == "ids":
        return torch.randint(FIRST_PLAIN_ID, VOCABULARY // 2, shape, generator=generator)
    return torch.full(shape, {"ones": 1, "zeros": 0}[value.of])


def _inputs(config: Any, shape: int = 0) -> dict[str, Tensor]:
    """Every input this module can make for a model of that config, in one of `_SHAPES` layouts of the same names."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def ids(length: int) -> Tensor:
        return torch.randint(FIRST_PLAIN_ID, VOCABULARY // 2, (1, length), generator=generator)

    vision = next((part for part in parts(config) if _has(part, "image_size|crop_size")), None)
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


def _has(config: Any, pattern: str) -> bool:
    return config is not None and any(getattr(config, name, None) is not None for name in pattern.split("|"))


def _first(config: Any, names: tuple[str, ...], default: int) -> Any:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), default)


def _deep(config: Any, names: tuple[str, ...], default: int) -> Any:
    """The first of these values that the config has itself, or else one of its sub-configs."""
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
    return next((v for part in parts if isinstance(v := _first(part, names, 0), int) and v), default)
