"""Configs with every size shrunk, recursively: no model type needs code of its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deadreckon.forward.tiny_facts import OVERRIDES
from deadreckon.forward.tiny_sizes import FIRST_PLAIN_ID, LAYERS, VOCABULARY, Sizes

_TOKEN = r"\w+_token_(id|index)$"


def shrink(config_class: Any, overrides: Mapping[str, Any], sizes: Sizes, part: Any = None) -> Any:
    """A small config.

    Args:
        config_class: a transformers config class.
        overrides: values that win over the small ones; a dotted key reaches into a sub-config.
        sizes: how small.
        part: an instance of the class as the config that it is part of makes it by default.

    Returns:
        An instance of the class.
    """
    defaults = config_class()
    values = {} if part is None else _differing(part, defaults)
    for name, default in _fields(config_class):
        default = values.get(name, default)
        if isinstance(default, int) and not isinstance(default, bool):
            if (small := sizes.shrunk(name, default)) is not None:
                values[name] = small
        elif default is None and name in sizes.unset:
            values[name] = sizes.unset[name]
        elif name == "use_cache":
            values[name] = False  # the caches of some hybrids need a layer of every kind
    values |= dict(_special_ids(config_class))
    levels = getattr(part, "out_indices", None)  # of a backbone
    if levels is not None and levels != getattr(defaults, "out_indices", None):
        values["out_indices"] = list(levels)
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
            values[key] = {**shrink(sub_class, own, sizes, default).to_dict(), "model_type": model_type}
    return config_class(**values)


def _fields(config_class: Any) -> Iterator[tuple[str, Any]]:
    """The names and class defaults of a config's fields; values that the class derives from others are left to it."""
    for field in dataclasses.fields(config_class):
        if field.init and field.default is not dataclasses.MISSING:
            yield field.name, field.default


def _differing(part: Any, defaults: Any) -> dict[str, Any]:
    """The values of a part's own fields that the whole chose for it; its parts and token ids aside."""
    names = {field.name for field in dataclasses.fields(defaults) if field.init} - set(getattr(part, "sub_configs", {}))
    return {
        name: value
        for name, value in vars(part).items()
        if name in names and value != vars(defaults).get(name) and not re.search(_TOKEN, name)
    }


def _special_ids(config_class: Any) -> Iterator[tuple[str, int]]:
    """Special token ids moved to the end of the small vocabulary, where the inputs do not reach."""
    free = VOCABULARY - 1
    for name, default in _fields(config_class):
        if re.search(_TOKEN, name) and isinstance(default, int) and default >= FIRST_PLAIN_ID:
            yield name, free
            free -= 1
