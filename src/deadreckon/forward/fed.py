"""Which linear maps are fed by which norm, seen in one forward pass: what a map is given *is* what the norm made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[Tensor | None, Tensor | None]
"""What a module was given first, and what it made."""

_CHECKED = 64  # output features: enough to tell one arrangement of a weight from another


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear map or convolution that ran.

    Attributes:
        path: of its module.
        weight: name of its weight, a tied one's first.
        bias: name of its bias; None: it has none.
        input_first: whether the weight is stored (in, out) rather than (out, in).
        given: what it was given at each call.
        makes_logits: whether the model's logits are what it made.
        linear: False for a convolution.
    """

    path: str
    weight: str
    bias: str | None
    input_first: bool
    given: list[Tensor]
    makes_logits: bool
    linear: bool


@dataclass(frozen=True, eq=False)
class Watched:
    """One forward pass.

    Attributes:
        calls: what each module without parameterised children was given and made, by path.
        output: of the model.
    """

    calls: dict[str, list[Call]]
    output: Any

    @property
    def logits(self) -> Tensor | None:
        """The model's logits, where it puts any out."""
        logits = self.output.get("logits") if isinstance(self.output, Mapping) else None
        return logits if isinstance(logits, Tensor) else None


def watch(model: nn.Module, inputs: Mapping[str, Any]) -> Watched:
    """Run a model and copy what its smallest modules are given and make.

    Args:
        model: in evaluation mode.
        inputs: keyword inputs, few: everything is kept.

    Returns:
        The calls.
    """
    calls: dict[str, list[Call]] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
            given = next((v for v in [*args, *kwargs.values()] if isinstance(v, Tensor)), None)
            pair = tuple(v.detach().clone() if isinstance(v, Tensor) else None for v in (given, made))
            calls.setdefault(path, []).append((pair[0], pair[1]))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            if path and not any(True for child in module.children() for _ in child.parameters()):
                stack.callback(module.register_forward_hook(keep(path), with_kwargs=True).remove)
        return Watched(calls, model(**inputs))


def linear_maps(model: nn.Module, watched: Watched) -> Iterator[LinearMap]:
    """The linear maps and convolutions that ran with weights of their own.

    Args:
        model: that was watched.
        watched: its pass.

    Yields:
        Those modules that compute what their parameters say, and nothing else.
    """
    names = canonical_names(model)
    for path, calls in watched.calls.items():
        module = model.get_submodule(path)
        weight = getattr(module, "weight", None)
        if f"{path}.weight" not in names or not isinstance(weight, Tensor) or not weight.is_floating_point():
            continue
        given = [g for g, _ in calls if g is not None]
        made = [m for _, m in calls if m is not None]
        if weight.dim() < 2 or len(given) < len(calls) or len(made) < len(calls) or not given[0].is_floating_point():
            continue
        bias = names.get(f"{path}.bias")
        makes = watched.logits is not None and any(same(m, watched.logits) for m in made)
        if weight.dim() == 2:
            for input_first in (False, True):
                if _computes(given[0], made[0], weight if input_first else weight.T, getattr(module, "bias", None)):
                    yield LinearMap(path, names[f"{path}.weight"], bias, input_first, given, makes, True)
                    break
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
            yield LinearMap(path, names[f"{path}.weight"], bias, False, given, False, False)


def fed_by(maps: list[LinearMap], made: list[Tensor]) -> list[LinearMap]:
    """The maps that were given nothing but what a norm made, all of it or some of its tokens.

    Args:
        maps: of one pass.
        made: what the norm made at each call.

    Returns:
        The maps in the order of their weights' names.
    """
    ordered = sorted(maps, key=lambda m: m.weight)
    return [m for m in ordered if m.linear and made and all(any(_part(g, y) for y in made) for g in m.given)]


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the first name of the same parameter."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, whatever their shapes."""
    return a.numel() == b.numel() and bool((a.flatten() == b.flatten().to(a.device)).all())


def _computes(given: Tensor, made: Tensor, matrix: Tensor, bias: Tensor | None) -> bool:
    """Whether a map's first outputs at one token are input times matrix plus bias, to the rounding of its dtype."""
    if given.shape[-1] != matrix.shape[0] or made.shape[-1] != matrix.shape[1] or given.numel() == 0 or matrix.is_meta:
        return False
    x, matrix = given.reshape(-1, given.shape[-1])[0].double(), matrix.detach()[:, :_CHECKED].double()
    y = made.reshape(-1, made.shape[-1])[0, :_CHECKED].double()
    shift = 0.0 if bias is None else bias.detach()[:_CHECKED].double()
    # Another arrangement of the same numbers is off by about the size of such a sum itself, reduced precision by 1e-3.
    allowed = torch.finfo(made.dtype).eps * y.abs() + 1e-2 * (x.square() @ matrix.square()).sqrt()
    return bool(((y - (x @ matrix + shift)).abs() <= allowed).all())


def _part(given: Tensor, made: Tensor) -> bool:
    """Whether `given` is `made`, or some of its tokens."""
    if same(given, made):
        return True
    if given.dim() == 0 or given.numel() >= made.numel() or given.shape[-1] != made.shape[-1]:
        return False
    rows, kept = made.reshape(-1, made.shape[-1]), given.reshape(-1, made.shape[-1])
    return bool((kept[:, None] == rows[None]).all(-1).any(-1).all())
