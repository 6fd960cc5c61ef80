"""What a step of parameters does, to first order, to what the norm and its readers make: the tangents it starts as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deadreckon.forward.reference import ReferenceNorm
from deadreckon.forward.sites import Site, weight_of
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


def response_to_error(model: nn.Module, site: Site, step: Step) -> Response:
    """What the rounding of the model makes of the response to a step that is exactly dead, measured.

    That is the response to the error of the norm's output, against the norm in float64, and to that of the readers'
    products with a moved shift.

    Args:
        model: holds the readers.
        site: where.
        step: the dead step.

    Returns:
        The function.
    """

    def respond(visits: Sequence[Visit]) -> list[Tensor | None]:
        device = visits[0].made.device
        reference, vector = ReferenceNorm(site.norm, device), torch.from_numpy(site.vector).to(device)
        error = torch.zeros(1, dtype=vector.dtype, device=device)
        tangents: list[Tensor | None] = []
        for visit in visits:
            if visit.path == site.norm_path:
                flat = visit.given.reshape(-1, visit.given.shape[-1])
                true = reference(flat)[0] + reference.shift
                error = (visit.made.reshape(flat.shape).to(true) - true) @ vector
                tangents.append(None)
                continue
            left, back = _parts(site, step, visit)
            tokens = visit.given.shape[:-1]
            # A reader of some of the norm's tokens: their errors are like those of the others.
            errors = error.reshape(tokens) if error.numel() == tokens.numel() else error.abs().max().expand(tokens)
            tangent = errors[..., None] * left
            if step.shift is not None:
                tangent = tangent + _product(model, site, visit.path, step.shift).to(back) + back
            tangents.append(tangent)
        return tangents

    return respond


def response_to_ulps(site: Site, step: Step) -> Response:
    """The response to a random ulp of w.y and of the remedy: what evaluating an exactly dead step may leave.

    Args:
        site: where.
        step: the dead step.

    Returns:
        The function.
    """

    def respond(visits: Sequence[Visit]) -> list[Tensor | None]:
        device = visits[0].made.device
        vector = torch.from_numpy(site.vector).to(device)
        generator = torch.Generator(device).manual_seed(0)
        tangents: list[Tensor | None] = []
        for visit in visits:
            if visit.path == site.norm_path:
                tangents.append(None)
                continue
            left, back = _parts(site, step, visit)
            y = visit.given.to(vector)
            ulps = torch.randn(y.shape[:-1], generator=generator, device=device, dtype=y.dtype)
            ulps *= torch.finfo(visit.given.dtype).eps
            size = (y.square() @ vector.square()).sqrt()
            tangents.append((ulps * size)[..., None] * left + ulps[..., None] * back)
        return tangents

    return respond


def _parts(site: Site, step: Step, visit: Visit) -> tuple[Tensor, Tensor]:
    """A reader's left vector, and the constant that the remedy takes back; zero where it has none."""
    device, none = visit.made.device, torch.zeros(1, dtype=torch.float64, device=visit.made.device)
    moved, bias = step.weights.get(visit.path), step.biases.get(visit.path)
    left = moved.left.to(device) if isinstance(moved, Outer) else none
    return left, site.constant * left if bias is None else bias.to(device)


def _product(model: nn.Module, site: Site, path: str, shift: Tensor) -> Tensor:
    """A reader's weight times a shift, as the model computes it."""
    reader = next(m for m in (*site.moved, *site.others) if m.path == path)
    weight = weight_of(model, reader).detach()
    return torch.mv(weight.T if reader.input_first else weight, shift.to(weight))
