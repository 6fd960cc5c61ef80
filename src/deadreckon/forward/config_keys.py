"""Which config value a part of a model answers to: found by changing one at a time on the meta device."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deadreckon.forward.probe import probe_norm
from deadreckon.forward.tiny import tiny_model

_NEAR = 0.01  # relative: a measured eps agrees with the config's


class ConfigKeys:
    """The config keys of one tiny model.

    Args:
        model_type: transformers' name.
        model: a tiny instance.
        head: whether it is the class with a head.
        overrides: the settings that it was built with.
    """

    def __init__(
        self, model_type: str, model: nn.Module, *, head: bool = False, overrides: Mapping[str, Any] | None = None
    ) -> None:
        self._model, self._leaves = model, dict(leaves(model.config))
        self._model_type, self._head, self._overrides = model_type, head, dict(overrides or {})

    def eps(self, path: str) -> list[Any]:
        """The key of a norm's eps (or None) and the value it has by default.

        Args:
            path: the norm's module path.

        Returns:
            [key, value].
        """
        value = _probed(self._model, path, "eps")
        near = [k for k, v in self._leaves.items() if isinstance(v, float) and abs(v - value) <= _NEAR * value]
        return [self._answering(near, lambda _: 0.003, lambda m: _probed(m, path, "eps")), value]

    def hidden_size(self, path: str) -> str | None:
        """The key of a norm's size.

        Args:
            path: the norm's module path.

        Returns:
            The key, None where there is none.
        """
        if not list(self._model.get_submodule(path).parameters()):
            return self._canonical("hidden_size")  # a norm without parameters does not show its size
        size = _probed(self._model, path, "hidden_size")
        near = [k for k, v in self._leaves.items() if type(v) is int and v == size]
        found = self._answering(near, lambda v: 2 * v, lambda m: _probed(m, path, "hidden_size"))
        return found or self._canonical("hidden_size", size)

    def layers(self, blocks: str) -> str | None:
        """The key of the number of blocks.

        Args:
            blocks: module path of the list of blocks.

        Returns:
            The key, None where there is none.
        """
        count = _length(self._model, blocks)
        near = [
            k for k, v in self._leaves.items() if type(v) is int and v == count and re.search("layer|depth|block", k)
        ]
        found = self._answering(near, lambda v: v + 1, lambda m: _length(m, blocks))
        return found or self._canonical("num_hidden_layers", count)

    def _answering(
        self, keys: Sequence[str], change: Callable[[Any], Any], look: Callable[[nn.Module], Any]
    ) -> str | None:
        """The key whose change is seen, and of several the one that changes least of the model besides."""
        before, found = look(self._model), []
        for key in keys:
            try:
                with torch.device("meta"):
                    changes = {**self._overrides, key: change(self._leaves[key])}
                    model = tiny_model(self._model_type, self._head, **changes)
                if look(model) != before:
                    found.append((_difference(model, self._model), len(key), key))
            except Exception:  # whatever a foreign class raises: this value cannot change alone
                continue
        return min(found)[2] if found else None

    def _canonical(self, name: str, value: int | None = None) -> str | None:
        """The config's own key for transformers' common name, where no value could be changed alone."""
        key: str = getattr(self._model.config, "attribute_map", {}).get(name, name)
        return key if key in self._leaves and value in {None, self._leaves[key]} else None


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value that an architecture's own config classes declare.

    Args:
        config: a transformers config.
        prefix: dotted path of that config inside another.

    Yields:
        Dotted key and value.
    """
    from transformers import PreTrainedConfig

    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    parts = set(getattr(config, "sub_configs", {}))
    for field in dataclasses.fields(config):
        value = vars(config).get(field.name)
        if field.name in parts and value is not None:
            yield from leaves(value, f"{prefix}{field.name}.")
        elif field.name not in common and isinstance(value, bool | int | float | str):
            yield f"{prefix}{field.name}", value


def _difference(a: nn.Module, b: nn.Module) -> int:
    first, second = ({(name, tuple(p.shape)) for name, p in m.named_parameters()} for m in (a, b))
    return len(first ^ second)


def _probed(model: nn.Module, path: str, field: str) -> Any:
    return getattr(probe_norm(model.get_submodule(path)), field, None)


def _length(model: nn.Module, path: str) -> int:
    modules = model.get_submodule(path)
    return len(modules) if isinstance(modules, nn.ModuleList) else 0
