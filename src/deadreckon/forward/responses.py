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


@dataclass(frozen=True)
class Factored:
    """The tangent scalar times left plus constant, of every token; float64.

    Attributes:
        scalars: a number a token.
        left: shape (out,).
        constant: shape (out,), or None.
    """

    scalars: Tensor
    left: Tensor
    constant: Tensor | None = None

    def dense(self) -> Tensor:
        """The tangent itself, shape (tokens, out)."""
        product = self.scalars[..., None] * self.left
        return product if self.constant is None else product + self.constant


Response = Callable[[Sequence[Visit]], list[Tensor | Factored | None]]
"""Calls of norm and readers in their order -> tangent of what each made; None for none."""


def response_to(site: Site, step: Step) -> Response:
    """The response to a step.

    Args:
        site: where.
        step: of what.

    Returns:
        The function.
    """

    def tangent(visit: Visit) -> Tensor | Factored | None:
        device = visit.made.device
        if visit.path == site.norm_path:
            return None if step.shift is None else step.shift.to(device).expand(visit.made.shape)
        weight, bias = step.weights.get(visit.path), step.biases.get(visit.path)
        bias = None if bias is None else bias.to(device)
        if isinstance(weight, Outer):
            return Factored(visit.given.double() @ weight.right.to(device), weight.left.to(device), bias)
        if weight is None:
            ones = torch.ones(visit.given.shape[:-1], dtype=torch.float64, device=device)
            return None if bias is None else Factored(ones, bias)
        product = weight.respond(visit.given)
        return product if bias is None else product + bias.to(product)

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

    def respond(visits: Sequence[Visit]) -> list[Tensor | Factored | None]:
        device = visits[0].made.device
        reference, vector = ReferenceNorm(site.norm, device), torch.from_numpy(site.vector).to(device)
        error = torch.zeros(1, dtype=vector.dtype, device=device)
        tangents: list[Tensor | Factored | None] = []
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
            constant = None if step.shift is None else _product(model, site, visit.path, step.shift).to(back) + back
            tangents.append(Factored(errors, left, constant))
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

    def respond(visits: Sequence[Visit]) -> list[Tensor | Factored | None]:
        device = visits[0].made.device
        vector = torch.from_numpy(site.vector).to(device)
        generator = torch.Generator(device).manual_seed(0)
        tangents: list[Tensor | Factored | None] = []
        for visit in visits:
            if visit.path == site.norm_path:
                tangents.append(None)
                continue
            left, back = _parts(site, step, visit)
            y = visit.given.to(vector)
            ulps = torch.randn(y.shape[:-1], generator=generator, device=device, dtype=y.dtype)
            ulps *= torch.finfo(visit.given.dtype).eps
            size = (y.square() @ vector.square()).sqrt() + abs(site.constant)
            tangents.append(Factored(ulps * size, left) if visit.path in step.weights else Factored(ulps, back))
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
