"""A very small random instance of any transformers model type."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.tiny_classes import base_class, head_class
from deadreckon.forward.tiny_config import shrink
from deadreckon.forward.tiny_facts import OVERRIDES
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.tiny_sizes import CHOICES, Sizes

_MOST_PARAMETERS = 250_000_000


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
    return shrink(CONFIG_MAPPING[model_type], {**OVERRIDES.get(model_type, {}), **overrides}, _sizes(model_type))


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
    for sizes in CHOICES if base is not None else ():
        try:
            config = shrink(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}), sizes)
            if sizes.widths_kept:
                with torch.device("meta"):
                    parameters = sum(p.numel() for p in _build(base, config).parameters())
                if parameters > _MOST_PARAMETERS:
                    continue
            with torch.device("cpu"):
                tiny_inputs(_build(base, config))
        except Exception:  # whatever a foreign class raises: these sizes do not fit it
            continue
        return sizes
    return CHOICES[0]
