"""What a step of parameters does, to first order, to what the norm and its readers make: the tangents it starts as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deadreckon.forward.reference import ReferenceNorm
from deadreckon.forward.sites import Site
from deadreckon.forward.steps import Outer, Step


@dataclass(frozen=True)
class Visit:
    """One call of a module: its path, what it was given and what it made."""

    path: str
    given: Tensor
    made: Tensor


Response = Callable[[Sequence[Visit]], list[Tensor | None]]
"""Calls of norm and readers in their order -> tangent of what each made, float64; None for none."""


def response_to(site: Site, step: Step) -> Response:
    """The response to a step.

    Args:
        site: where.
        step: of what.

    Returns:
        The function.
    """

    def tangent(visit: Visit) -> Tensor | None:
        if visit.path == site.norm_path:
            return None if step.shift is None else step.shift.to(visit.made.device).expand(visit.made.shape)
        weight, bias = step.weights.get(visit.path), step.biases.get(visit.path)
        by_weight = None if weight is None else weight.respond(visit.given)
        if bias is None:
            return by_weight
        bias = bias.to(visit.made.device)
        return bias.expand(visit.made.shape) if by_weight is None else by_weight + bias

    return lambda visits: [tangent(visit) for visit in visits]


def response_to_rounding(site: Site, step: Step) -> Response:
    """What rounding makes of the response to a step that is exactly dead.

    That is the response to the norm's own error, measured against the norm in float64, and to an ulp of w.y and of
    the remedy, drawn.

    Args:
        site: where.
        step: the dead step.

    Returns:
        The function.
    """

    def respond(visits: Sequence[Visit]) -> list[Tensor | None]:
        device = visits[0].made.device
        reference, vector = ReferenceNorm(site.norm, device), torch.from_numpy(site.vector).to(device)
        generator = torch.Generator(device).manual_seed(0)
        error: Tensor | None = None
        tangents: list[Tensor | None] = []
        for visit in visits:
            if visit.path == site.norm_path:
                flat = visit.given.reshape(-1, visit.given.shape[-1])
                true = reference(flat)[0] + reference.shift
                error = (visit.made.reshape(flat.shape).to(true) - true) @ vector
                tangents.append(None)
                continue
            y, tokens = visit.given.to(vector), visit.given.shape[:-1]
            ulps = torch.randn(tokens, generator=generator, device=device, dtype=y.dtype)
            ulps *= torch.finfo(visit.given.dtype).eps
            off = ulps * (y.square() @ vector.square()).sqrt()
            if error is not None and error.numel() == tokens.numel():  # else some of the norm's tokens
                off = off + error.reshape(tokens)
            weight, bias = step.weights.get(visit.path), step.biases.get(visit.path)
            left = weight.left.to(y) if isinstance(weight, Outer) else torch.zeros_like(visit.made[..., :1]).to(y)
            constant = site.constant * left if bias is None else bias.to(y)
            tangents.append(off[..., None] * left + ulps[..., None] * constant)
        return tangents

    return respond
