"""Which of transformers' classes a tiny model is an instance of."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from deadreckon.forward.tiny_facts import CLASSES

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


def head_class(model_type: str) -> Any | None:
    """The transformers class with an output head for that model type.

    Args:
        model_type: transformers' name.

    Returns:
        The class, or None when the type has a base class only.
    """
    return next((found for mapping in _HEADS if (found := _class_named(model_type, mapping)) is not None), None)


def base_class(model_type: str) -> Any | None:
    """The base class, or else, for a part of a model, the first class that takes that type's config and can be run."""
    from transformers import CONFIG_MAPPING, PreTrainedModel

    if model_type in CLASSES:
        module, _, name = CLASSES[model_type].rpartition(".")
        return getattr(importlib.import_module(f"transformers.models.{module}"), name)
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


def _class_named(model_type: str, mapping: str) -> Any | None:
    import transformers

    names = getattr(importlib.import_module("transformers.models.auto.modeling_auto"), mapping, {})
    name = names.get(model_type)
    if isinstance(name, list | tuple):
        name = name[0]
    return getattr(transformers, name) if name else None
