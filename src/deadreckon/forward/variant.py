"""One tiny model under some settings, with its norms probed, its streams found, and its module paths as patterns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from deadreckon.forward.probe import NormProbe, probe_norms
from deadreckon.forward.stacks import Stack, find_stacks
from deadreckon.forward.tiny import tiny_model


@dataclass(frozen=True)
class Variant:
    """A tiny base model and what was found in it.

    Attributes:
        model: the model, its norms redrawn.
        fresh: its norms as the initialiser left them, by module path.
        probes: its norms as they are now, by module path.
        stacks: its residual streams, the main one first.
    """

    model: nn.Module
    fresh: Mapping[str, NormProbe]
    probes: Mapping[str, NormProbe]
    stacks: list[Stack]

    @classmethod
    def build(cls, model_type: str, overrides: Mapping[str, Any]) -> Variant:
        """Build and examine one.

        Args:
            model_type: transformers' name.
            overrides: config values, as for `tiny_config`.

        Returns:
            The variant.

        Raises:
            UsageError: no such model type, or it runs on none of the inputs that can be made.
        """
        model = tiny_model(model_type, **overrides)
        fresh = probe_norms(model)
        stacks = find_stacks(model, fresh)
        return cls(model, fresh, probe_norms(model), stacks)

    def summary(self) -> list[tuple[Any, ...]]:
        """What a setting may change: the roles, places and kinds of the norms that end the streams."""
        return [
            (s.role, s.norm and self.pattern(s.norm), s.placement, s.norm and behaviour(self.probes[s.norm]))
            for s in self.stacks
        ]

    def norms(self) -> set[str]:
        """Every norm's pattern and behaviour, as text to compare."""
        return {f"{self.pattern(path)} {behaviour(probe)}" for path, probe in self.probes.items()}

    def pattern(self, path: str) -> str:
        """The path with the index of its block spelled ``*`` (``{last}`` for the norm that ends a stream).

        Args:
            path: a norm's module path.

        Returns:
            The pattern.
        """
        segments = path.split(".")
        for place, _, star in self.indices(path):
            segments[place] = star
        return ".".join(segments)

    def indices(self, path: str) -> list[tuple[int, str, str]]:
        """Where the path counts blocks.

        The outermost list of more than one element always counts blocks; one inside it does where its elements are
        alike (an attention layer's norm a head), and does not where they differ (self-attention, cross-attention, MLP).

        Args:
            path: a norm's module path.

        Returns:
            (segment, name of the list, how to spell the index) for each.
        """
        found: list[tuple[int, str, str]] = []
        segments = path.split(".")
        ends = any(path == stack.norm for stack in self.stacks)
        for place in range(1, len(segments)):
            modules = self.model.get_submodule(".".join(segments[:place]))
            if not isinstance(modules, nn.ModuleList) or len(modules) < 2:
                continue
            if ends and not found:
                if int(segments[place]) == len(modules) - 1:
                    found.append((place, segments[place - 1], "{last}"))
            elif not found or len({type(module) for module in modules}) == 1:
                found.append((place, segments[place - 1], "*"))
        return found


def behaviour(probe: NormProbe) -> dict[str, Any]:
    """What a norm does, as the atlas spells it; usual values are left out.

    Args:
        probe: the norm.

    Returns:
        ``kind``, ``gain`` and ``shift`` (names of the parameters), ``offset`` unless 0 (null: not a plain offset) and
        ``groups`` unless 1.
    """
    result: dict[str, Any] = {"kind": probe.kind.name, "gain": probe.gain_name, "shift": probe.shift_name}
    if probe.gain_offset != 0:
        result["offset"] = probe.gain_offset
    if probe.groups != 1:
        result["groups"] = probe.groups
    return result
