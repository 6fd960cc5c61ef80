"""Text and one image or sound in one sequence: as many placeholders as the model itself makes of the image or sound.

How many that is differs from model to model, and with the size of the image. The model's own ``get_image_features`` (or
``get_audio_features``) is asked, once for every shape that comes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.calibration import placed
from deadreckon.forward.evaluating import evaluating
from deadreckon.forward.memory import out_of_memory
from deadreckon.forward.modality import delimiters, modality, placeholders
from deadreckon.forward.placement import input_device
from deadreckon.forward.text import Words, sequence_length


class Weaver:
    """Makes sequences of text around images or sounds for one model.

    Attributes:
        name: ``image`` or ``audio``.
        takes: names of the inputs that the model takes beside ids.
    """

    def __init__(self, model: nn.Module, name: str, features: Callable[..., Any]) -> None:
        self.name, self._model, self._features = name, model, features
        self._config: Any = model.config
        self.takes = frozenset(inspect.signature(model.forward).parameters) - {"input_ids"}
        self._counts: dict[object, int] = {}

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Weaver | None:
        """The weaver of a model; None where it does not put images (or sounds) among its tokens.

        Args:
            model: a transformers model.
            name: ``image`` or ``audio``.

        Returns:
            The weaver.
        """
        features = _features(model, name)
        woven = features is not None and name in placeholders(getattr(model, "config", None))
        return cls(model, name, features) if features is not None and woven else None

    def row(self, medium: Mapping[str, Tensor], words: Words) -> dict[str, Tensor]:
        """One sequence: text, the placeholders of one image or sound between its delimiters, text.

        Args:
            medium: the image or sound, as the model takes it: a batch of one.
            words: where the text comes from.

        Returns:
            Keyword arguments of the model's forward. At least half of the sequence is text.

        Raises:
            UsageError: the model makes nothing of it.
        """
        count = self._count(medium)
        before, after = delimiters(self._config, self.name)
        token = placeholders(self._config)[self.name]
        middle = [*([] if before is None else [before]), *[token] * count, *([] if after is None else [after])]
        length = max(sequence_length(self._config), _rounded(2 * len(middle)))
        text = words(length - len(middle))
        half = len(text) // 2
        ids = torch.cat([text[:half], torch.tensor(middle), text[half:]])[None]
        row = {"input_ids": ids, **medium}
        labels = modality(row, self._config)
        if labels is not None and (name := _labels_of(self._config, self.takes)) is not None:
            row[name] = labels
        return row

    def _count(self, medium: Mapping[str, Tensor]) -> int:
        # Shapes alone do not tell where images are described by numbers (grids, positions of patches).
        key = tuple((k, v.shape, v.numpy().tobytes() if not v.is_floating_point() else b"") for k, v in medium.items())
        if key not in self._counts:
            self._counts[key] = self._asked(medium)
        return self._counts[key]

    def _asked(self, medium: Mapping[str, Tensor]) -> int:
        known = inspect.signature(self._features).parameters
        given = placed({k: v for k, v in medium.items() if k in known}, input_device(self._model))
        dtype = next(p.dtype for p in self._model.parameters() if p.is_floating_point())
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
        try:
            with torch.no_grad(), evaluating(self._model):
                made = self._features(**given)
        except Exception as error:  # whatever another project's model makes of its inputs
            if out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise UsageError(
                f"{type(self._model).__name__} makes no {self.name} tokens of {', '.join(given)} "
                f"({type(error).__name__}: {reason}); pass batches=... of its own inputs"
            ) from error
        return _vectors(getattr(made, "pooler_output", made))


def _features(model: nn.Module, name: str) -> Callable[..., Any] | None:
    """What makes tokens of an image or a sound: a class with a head leaves it to its base model."""
    for holder in (model, getattr(model, "base_model", None)):
        if (found := getattr(holder, f"get_{name}_features", None)) is not None:
            method: Callable[..., Any] = found
            return method
    return None


def _vectors(features: Any) -> int:
    if isinstance(features, Tensor):
        return features.shape[:-1].numel()
    return sum(_vectors(part) for part in features)


def _rounded(length: int) -> int:
    """The next multiple of 64: sequences of few lengths make large batches."""
    return 64 * -(-length // 64)


def _labels_of(config: Any, takes: frozenset[str]) -> str | None:
    """The input by which the model is told the modalities, if there is one."""
    if "mm_token_type_ids" in takes:
        return "mm_token_type_ids"
    return "token_type_ids" if "token_type_ids" in takes and _processor_labels(config) else None


def _processor_labels(config: Any) -> bool:
    """Whether the model's processor labels modalities: other models mean segments or prefixes by token types."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        processor = PROCESSOR_MAPPING[type(config)]
    except KeyError:
        return False
    kinds = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
    words = kinds.get("text_kwargs", {})
    key = "return_mm_token_type_ids"
    return bool(getattr(processor, key, False) or words.get(key, False))
