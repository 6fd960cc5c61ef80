"""One row of random input for a model that takes images, videos or sound, in the shape that its config asks for.

What decides is the names of inputs and of config fields: models that take a list of patches also take where the patches
lie, models of clips say how many frames a clip has, models of spectrograms how many bins one has.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from math import prod
from typing import Any

import torch
from torch import Tensor

from deadreckon.forward.modality import parts

Row = dict[str, Tensor]
Draw = Callable[[torch.Generator], Row]
"""Makes one row: a batch of one, by input name."""

IMAGES = ("pixel_values", "pixel_values_videos")
SOUNDS = ("input_features", "input_values")

_SIZE = ("image_size", "crop_size")
_CHANNELS = ("num_channels", "in_channels", "in_chans")
_FRAMES = ("num_frames", "frames_per_clip")
_FEATURES = ("input_feat_per_channel", "feature_projection_input_dim", "input_feat_size")
_POSITIONS = ("image_position_ids", "pixel_position_ids")
_SIDE = 48  # patches a side, where any number will do: what poolings by 2, 3 and 4 divide
_STEPS = 512  # of a sound, where any number will do
_SAMPLES_A_STEP = 320


def drawn(config: Any, name: str, takes: Container[str]) -> Draw | None:
    """How to draw a row of the input `name`, and of the inputs that say how to read it.

    Args:
        config: the model's config.
        name: the input, one of `IMAGES` or `SOUNDS`.
        takes: names of the inputs that the model takes.

    Returns:
        Draws a row; None where the config does not tell its shape.
    """
    if name in SOUNDS:
        return _sound(config, name, takes)
    places = next((n for n in ("image_grid_thw", "grid_thw", *_POSITIONS, "spatial_shapes") if n in takes), None)
    return _image(config, name) if places is None else _patches(config, name, places)


def frames(config: Any) -> int:
    """How many images one input of the model is made of: more than 1 for models of videos."""
    count = _value(_part(config, *_SIZE), *_FRAMES)
    return count if isinstance(count, int) else 1


def pixel_channels(config: Any) -> int:
    """How many numbers a pixel has."""
    channels = _value(_part(config, *_SIZE, "patch_size"), *_CHANNELS)
    return channels if isinstance(channels, int) else 3


def _image(config: Any, name: str) -> Draw | None:
    part = _part(config, *_SIZE)
    if part is None:
        whole = (getattr(config, "pretrained_cfg", None) or {}).get("input_size")  # as timm says it
        return None if whole is None else lambda generator: {name: torch.randn((1, *whole), generator=generator)}
    size = _value(part, *_SIZE)
    size = (size["height"], size["width"]) if isinstance(size, dict) else size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    clip = [count] if isinstance(count := _value(part, *_FRAMES), int) else []
    shape = (1, *clip, pixel_channels(config), height, width)
    return lambda generator: {name: torch.randn(shape, generator=generator)}


def _patches(config: Any, name: str, places: str) -> Draw | None:
    part = _part(config, "patch_size")
    if part is None or not isinstance(part.patch_size, int):
        return None
    count = _SIDE**2
    features = pixel_channels(config) * part.patch_size**2 * (_value(part, "temporal_patch_size") or 1)
    rows, columns = torch.meshgrid(torch.arange(_SIDE), torch.arange(_SIDE), indexing="ij")
    described: Row
    if places.endswith("grid_thw"):
        shape: tuple[int, ...] = (count, features)
        described = {places: torch.tensor([[1, _SIDE, _SIDE]])}
    elif places in _POSITIONS:
        shape = (1, count, features)
        described = {places: torch.stack([columns, rows], -1).reshape(1, count, 2)}
    else:
        side = int(part.num_patches**0.5) if isinstance(_value(part, "num_patches"), int) else _SIDE
        shape = (1, side**2, features)
        described = {
            places: torch.tensor([[side, side]]),
            "pixel_attention_mask": torch.ones(1, side**2, dtype=torch.long),
        }
    return lambda generator: {name: torch.randn(shape, generator=generator), **described}


def _sound(config: Any, name: str, takes: Container[str]) -> Draw | None:
    part = _part(config, "num_mel_bins", *_FEATURES)
    bins, positions = _value(part, "num_mel_bins"), _value(part, "max_source_positions")
    mask = next((n for n in ("input_features_mask", "feature_attention_mask") if n in takes), None)
    if name == "input_values" and bins and isinstance(_value(part, "max_length"), int):
        shape: tuple[int, ...] = (1, part.max_length, bins)
    elif name == "input_values":
        strides = _value(_part(config, "conv_stride"), "conv_stride")
        shape = (1, _STEPS * (prod(strides) if strides else _SAMPLES_A_STEP))
    elif bins and positions:  # the encoder's second convolution halves the steps
        shape = (1, bins, 2 * positions)
    elif features := _value(part, *_FEATURES):
        shape = (1, _STEPS, features)
    else:
        return None
    steps = shape[-1] if bins and positions else shape[1]
    described = {mask: torch.ones(1, steps, dtype=torch.long)} if mask else {}
    return lambda generator: {name: torch.randn(shape, generator=generator), **described}


def _part(config: Any, *names: str) -> Any:
    """The outermost config that has one of these fields."""
    return next((part for part in parts(config) if _value(part, *names) is not None), None)


def _value(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
