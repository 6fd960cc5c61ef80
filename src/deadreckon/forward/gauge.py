"""Finite steps: whether a step of parameters changes what a model puts out by more than rounding does.

Norm and readers are replaced by copies with moved parameters while the model runs; its own parameters stay as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.outputs import Outputs
from deadreckon.forward.reference import ReferenceNorm
from deadreckon.forward.replacing import Replace, replaced
from deadreckon.forward.sites import Site, weight_of
from deadreckon.forward.steps import Step, frobenius_norm

SIZES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Sizes of steps, in units of the norm of the parameters that move."""

_OUTPUTS = 4096
_ROUNDINGS = 10.0  # times what rounding alone changes: what comes later rounds as well


@dataclass(frozen=True)
class Moved:
    """What a finite step did to the outputs.

    Attributes:
        size: of the step, relative to the parameters that move.
        change: largest change of a logit (of a hidden state's entry); None where the outputs are no longer finite.
        divergence: mean Kullback-Leibler divergence a token, nats; likewise.
        rounding: the change that the rounding of the moved norm and readers makes by itself.
    """

    size: float
    change: float | None
    divergence: float | None
    rounding: float

    @property
    def is_gauge(self) -> bool:
        """Whether nothing changed but by rounding."""
        return self.change is not None and self.change <= _ROUNDINGS * self.rounding


@torch.no_grad()
def moved_outputs(
    model: nn.Module, site: Site, step: Step, run: Outputs, metric: str, sizes: Sequence[float] = SIZES
) -> list[Moved]:
    """Take a step at several sizes and compare the outputs.

    Args:
        model: in evaluation mode; not changed.
        site: where.
        step: which way.
        run: what to run.
        metric: ``softmax`` or ``gaussian``.
        sizes: relative to the parameters that move.

    Returns:
        What each step did.
    """
    length = _length(model, site, step) / step.norm()
    mover = _Mover(model, site, step)
    with mover.watching():
        base = run().double()
    found = []
    for size in sizes:
        with mover.moving(size * length):
            there = run().double()
        with mover.rounding():
            rounded = run().double()
        finite = bool(torch.isfinite(there).all())
        found.append(
            Moved(
                size=size,
                change=float((there - base).abs().max()) if finite else None,
                divergence=float(_DIVERGENCES[metric](base, there).mean()) if finite else None,
                rounding=float((rounded - base).abs().nan_to_num(0.0).max()),
            )
        )
    return found


@dataclass(frozen=True)
class _Call:
    """One call of a reader in exact arithmetic: what the norm should have made, and what the reader makes of it."""

    given: Tensor
    made: Tensor


class _Mover:
    """Moves norm and readers along one step, and keeps the errors that rounding makes on the way."""

    def __init__(self, model: nn.Module, site: Site, step: Step) -> None:
        self.model, self.site, self.step = model, site, step
        self.norm = model.get_submodule(site.norm_path)
        self.reference = ReferenceNorm(site.norm, weight_of(model, site.moved[0]).device)
        self.readers = {m.path: m for m in (*site.moved, *site.others) if m.path in {*step.weights, *step.biases}}
        self.true: Tensor | None = None
        self.calls: dict[str, list[_Call]] = {path: [] for path in self.readers}
        self.errors: dict[str, list[Tensor]] = {}
        self.by_shift = {} if step.shift is None else {path: self._by_shift(path, step.shift) for path in self.readers}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Nothing moved; every reader's call is kept."""

        def at_norm(_: nn.Module, given: Tensor, made: Tensor) -> Tensor:
            self.true = self._true(given)
            return made

        def at_reader(path: str) -> Replace:
            def replace(_: nn.Module, given: Tensor, made: Tensor) -> Tensor:
                self.calls[path].append(self._call(path, given))
                return made

            return replace

        with replaced(self.model, {self.site.norm_path: at_norm, **{path: at_reader(path) for path in self.readers}}):
            yield

    @contextmanager
    def moving(self, length: float) -> Iterator[None]:
        """Norm and readers with parameters moved so far."""
        step = self.step.times(length)
        displaced = {path: self._displaced_reader(path, step) for path in self.readers}
        self.errors = {path: [] for path in self.readers}
        once = all(len(calls) == 1 for calls in self.calls.values())  # then what enters the norm stays as it was
        norm = self.norm
        if (moved_shift := step.shift) is not None and self.site.shift_name is not None:
            norm = _displaced(self.norm, {self.site.shift_name: lambda shift: shift + moved_shift.to(shift)})

        def at_norm(_: nn.Module, given: Tensor, made: Tensor) -> Tensor:
            self.true = None if once else self._true(given)
            return made if norm is self.norm else norm(given)

        def at_reader(path: str) -> Replace:
            def replace(_: nn.Module, given: Tensor, made: Tensor) -> Tensor:
                moved: Tensor = displaced[path](given)
                call = self.calls[path][0] if once else self._call(path, given)
                self.errors[path].append(moved.double() - self._ideal(path, call, step, length))
                return moved

            return replace

        with replaced(self.model, {self.site.norm_path: at_norm, **{path: at_reader(path) for path in displaced}}):
            yield

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Nothing moved, the errors of the last `moving` added where they arose."""
        left = {path: iter(errors) for path, errors in self.errors.items()}

        def at_reader(path: str) -> Replace:
            return lambda _, given, made: (made.double() + next(left[path])).to(made.dtype)

        with replaced(self.model, {path: at_reader(path) for path in left}):
            yield

    def _true(self, given: Tensor) -> Tensor:
        """What the norm should have made, float64, shape (tokens, d)."""
        return self.reference(given.reshape(-1, given.shape[-1]))[0] + self.reference.shift

    def _call(self, path: str, given: Tensor) -> _Call:
        y = given.double()  # what a reader of some of the tokens was given is taken as it came
        if self.true is not None and len(self.true) == given.shape[:-1].numel():
            y = self.true.reshape(given.shape)
        exact, bias = self._product(path, y), getattr(self.model.get_submodule(path), "bias", None)
        return _Call(y, exact if bias is None else exact + bias.detach().to(exact))

    def _ideal(self, path: str, call: _Call, step: Step, length: float) -> Tensor:
        """What the moved reader makes of the moved norm's output in exact arithmetic."""
        y, made = call.given, call.made
        if step.shift is not None:
            y, made = y + step.shift.to(y), made + self.by_shift[path] * length
        weight, bias = step.weights.get(path), step.biases.get(path)
        made = made if weight is None else made + weight.respond(y).to(made)
        return made if bias is None else made + bias.to(made)

    def _by_shift(self, path: str, shift: Tensor) -> Tensor:
        return self._product(path, shift.to(self.reference.gain))

    def _product(self, path: str, y: Tensor) -> Tensor:
        """A reader's weight times tokens, float64; some outputs at a time, since a head's weight is large."""
        reader = self.readers[path]
        weight = weight_of(self.model, reader).detach()
        plain = weight if reader.input_first else weight.T
        starts = range(0, plain.shape[1], _OUTPUTS)
        return torch.cat([y.to(plain.device) @ plain[:, i : i + _OUTPUTS].double() for i in starts], dim=-1)

    def _displaced_reader(self, path: str, step: Step) -> nn.Module:
        moves: dict[str, Callable[[Tensor], Tensor]] = {}
        if (weight := step.weights.get(path)) is not None:
            input_first = self.readers[path].input_first
            moves["weight"] = lambda value: weight.added(value.T).T if input_first else weight.added(value)
        if (bias := step.biases.get(path)) is not None:
            moves["bias"] = lambda value: value + bias.to(value)
        return _displaced(self.model.get_submodule(path), moves)


def _displaced(module: nn.Module, moves: Mapping[str, Callable[[Tensor], Tensor]]) -> nn.Module:
    """A copy of a module with some parameters moved and without its hooks; what is not moved is shared."""
    moved = copy.copy(module)
    moved.__dict__.pop("forward", None)  # a wrapper that is bound to the original
    moved._parameters = dict(module._parameters)
    moved._forward_hooks, moved._forward_pre_hooks = type(module._forward_hooks)(), type(module._forward_pre_hooks)()
    for name, move in moves.items():
        moved._parameters[name] = nn.Parameter(move(getattr(module, name).detach()), requires_grad=False)
    return moved


def _length(model: nn.Module, site: Site, step: Step) -> float:
    """Norm of the parameters that a step moves."""
    moved: list[Tensor] = [weight_of(model, m) for m in site.moved if m.path in step.weights]
    moved += [bias for path in step.biases if (bias := getattr(model.get_submodule(path), "bias", None)) is not None]
    if step.shift is not None and site.shift_name is not None:
        moved.append(getattr(model.get_submodule(site.norm_path), site.shift_name))
    if any(tensor.is_meta for tensor in moved):
        raise UsageError(f"{site.name}: its weights wait on disk and cannot be moved; give the model more memory")
    return math.hypot(*(frobenius_norm(tensor.detach()) for tensor in moved))


def _softmax_divergence(base: Tensor, there: Tensor) -> Tensor:
    """KL(p, q) of softmaxes: log sum p exp(d) for the centred change d of the logits, without cancellation."""
    p = torch.softmax(base, -1)
    change = there - base
    change -= (p * change).sum(-1, keepdim=True)
    small = torch.log1p((p * (torch.expm1(change) - change)).sum(-1))
    large = torch.logsumexp(torch.log_softmax(base, -1) + change, -1)
    return torch.where(change.abs().amax(-1) < 1.0, small, large).clamp_min(0.0)


def _half_square(base: Tensor, there: Tensor) -> Tensor:
    return (there - base).square().sum(-1) / 2


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": _softmax_divergence,
    "gaussian": _half_square,
}
