"""Which of a model's outputs are hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from deadreckon.forward.likeness import alike, tensors
from deadreckon.forward.probe import NormProbe
from deadreckon.forward.watching import Call

_LEVELS = ("feature_maps", "intermediate_hidden_states")


def hidden_states(output: Any, calls: Sequence[Call], probes: Mapping[str, NormProbe]) -> dict[str, Tensor]:
    """The hidden states that a model reports.

    Where it reports none under that name: the last of several levels or layers, what its logits are made of, its pooled
    token, or anything that a norm made.

    Args:
        output: what the model made.
        calls: what its modules made.
        probes: its norms, by module path.

    Returns:
        Key (``last_hidden_state`` or ending in it) -> state; empty where there is none.
    """
    if named := dict(_named(output)):
        return named
    if isinstance(output, Mapping):
        found = _unnamed(output, calls, probes)
    else:
        found = next(tensors(output if isinstance(output, tuple | list) else [output]), None)
    return {"last_hidden_state": found} if isinstance(found, Tensor) and found.is_floating_point() else {}


def _named(output: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Mapping):
        for key, value in output.items():
            if isinstance(value, Mapping):
                yield from _named(value, f"{prefix}{key}.")
            elif str(key).endswith("last_hidden_state") and isinstance(value, Tensor):
                yield f"{prefix}{key}", value


def _unnamed(output: Mapping[str, Any], calls: Sequence[Call], probes: Mapping[str, NormProbe]) -> Any:
    levels = next((value for key in _LEVELS if (value := output.get(key)) is not None), None)
    if levels is not None:
        return levels[-1]
    logits = next((value for key, value in output.items() if str(key).endswith("logits")), None)
    layer = next((call for call in calls if call.path and alike(call.made, logits)), None)
    if layer is not None:
        return layer.given
    if (pooled := output.get("pooler_output")) is not None:
        return pooled
    made = [call.made for call in calls if call.path in probes]
    return next((value for value in output.values() if any(alike(m, value) for m in made)), None)
