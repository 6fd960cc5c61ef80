"""Which position of a sequence stands for what: text, or a placeholder that an image, a video or a sound fills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from deadreckon.forward.calibration import Batch

MODALITIES = ("text", "image", "video", "audio")
"""Names of the labels: label k is ``MODALITIES[k]``. The numbers are those of transformers' ``mm_token_type_ids``."""


def modality(batch: Batch, config: Any) -> Tensor | None:
    """What each position of a batch's sequences holds.

    Args:
        batch: keyword arguments of a model's forward.
        config: the model's config.

    Returns:
        Labels of shape (rows, tokens), int64, on the device of the ids: index into `MODALITIES`. None where the batch
        or the model knows only one modality (plain language models, vision and audio towers).
    """
    labels, ids = batch.get("mm_token_type_ids"), batch.get("input_ids")
    if isinstance(labels, Tensor):
        return labels.long()
    known = placeholders(config)
    if not known or not isinstance(ids, Tensor) or ids.is_floating_point():
        return None
    labels = torch.zeros_like(ids, dtype=torch.long)
    for name, token in known.items():
        labels[ids == token] = MODALITIES.index(name)
    return labels


def placeholders(config: Any) -> dict[str, int]:
    """The token ids whose positions other modalities fill.

    Args:
        config: a model's config.

    Returns:
        Modality -> token id, for those that the config (or a part of it) names.
    """
    return {name: token for name in MODALITIES[1:] if (token := _token(config, name)) is not None}


def delimiters(config: Any, name: str) -> tuple[int | None, int | None]:
    """The token ids that go before and after the placeholders of one image or sound, where the config names any.

    Args:
        config: a model's config.
        name: one of `MODALITIES`.

    Returns:
        The id before and the id after.
    """
    sense = "vision" if name in {"image", "video"} else name
    begin = next(_ids(config, (f"bo{name[0]}", f"{sense}_start")), None)
    end = next(_ids(config, (f"eo{name[0]}", f"{sense}_end")), None)
    return begin, end


def parts(config: Any) -> Iterator[Any]:
    """A config and the configs inside it, the outer ones first.

    Args:
        config: a transformers config.

    Yields:
        Configs.
    """
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            yield from parts(part)


def _token(config: Any, name: str) -> int | None:
    return next(_ids(config, (name,)), None)


def _ids(config: Any, names: tuple[str, ...]) -> Iterator[int]:
    for part in parts(config):
        for name in names:
            for spelling in (f"{name}_token_id", f"{name}_token_index"):
                value = getattr(part, spelling, None)
                if isinstance(value, int):
                    yield value
