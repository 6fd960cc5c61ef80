"""Directional Fisher information by forward-mode derivatives: no backward pass, and no parameter is touched.

A step of a reader's weights is one of a single use of them: where the reader runs, its response to the step is added to
its output as a tangent, and the derivative of the model's outputs is read at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.outputs import Outputs
from deadreckon.forward.reference import ReferenceNorm
from deadreckon.forward.replacing import Replace, replaced
from deadreckon.forward.sites import Site, weight_of
from deadreckon.forward.steps import Outer, SiteSteps, Step

_KEPT = 2**27  # probabilities that are kept from one step to the next


@dataclass(frozen=True)
class SiteFisher:
    """Directional Fisher information at one site, per token, along steps of norm 1.

    Attributes:
        exact: along the kernel with its remedy; None where there is none.
        naive: along the same weights alone.
        constant: along a change of the readers' outputs by c times the left vectors: what `naive` must be.
        random: along Gaussian directions in the tensors that `exact` moves.
        floor: of `exact`: what the rounding of the norm's output and of the remedy reads.
    """

    exact: float | None
    naive: float
    constant: float
    random: list[float]
    floor: float


Along = Callable[["StepTangents"], float]
"""Directional Fisher information per token along what tangents a step has."""


def site_fisher(site: Site, steps: SiteSteps, draws: int, along: Along) -> SiteFisher:
    """Directional Fisher information along the steps of a site.

    Args:
        site: where.
        steps: along what.
        draws: how many random directions.
        along: `through_model` or `at_head`.

    Returns:
        The figures.
    """
    return SiteFisher(
        exact=None if steps.exact is None else along(StepTangents(steps.exact)),
        naive=along(StepTangents(steps.naive)),
        constant=along(StepTangents(steps.constant)),
        random=[along(StepTangents(steps.random())) for _ in range(draws)],
        floor=along(RoundingTangents(site, steps.exact or steps.naive, steps.device)),
    )


class StepTangents:
    """The response to a step, as tangents of what norm and readers make."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def of_norm(self, given: Tensor, made: Tensor) -> Tensor | None:
        """The tangent of the norm's output."""
        return None if self.step.shift is None else self.step.shift.to(made.device).expand(made.shape)

    def of_reader(self, path: str, given: Tensor) -> Tensor:
        """The tangent of a reader's output that its own step gives it."""
        weight, bias = self.step.weights.get(path), self.step.biases.get(path)
        constant = torch.zeros((), dtype=torch.float64) if bias is None else bias
        constant = constant.to(given.device)
        return constant.expand(*given.shape[:-1], -1) if weight is None else weight.respond(given) + constant

    @property
    def readers(self) -> set[str]:
        """The readers that move."""
        return {*self.step.weights, *self.step.biases}


class RoundingTangents(StepTangents):
    """What rounding makes of an exactly dead step.

    That is the norm's own error, measured against the norm in float64, and an ulp of w.y and of the remedy, drawn.
    """

    def __init__(self, site: Site, step: Step, device: torch.device) -> None:
        super().__init__(step)
        self.site = site
        self.reference = ReferenceNorm(site.norm, device)
        self.generator = torch.Generator(device).manual_seed(0)
        self.vector = torch.from_numpy(site.vector).to(device)
        self.error: Tensor | None = None

    def of_norm(self, given: Tensor, made: Tensor) -> None:
        """No tangent; the error of w.y is kept for the readers."""
        flat = given.reshape(-1, given.shape[-1])
        true = self.reference(flat)[0] + self.reference.shift
        self.error = (made.reshape(flat.shape).to(true) - true) @ self.vector

    def of_reader(self, path: str, given: Tensor) -> Tensor:
        """The step's response to these errors."""
        y, tokens = given.to(self.vector), given.shape[:-1]
        ulps = torch.randn(tokens, generator=self.generator, device=y.device, dtype=y.dtype)
        ulps *= torch.finfo(given.dtype).eps
        error = ulps * (y.square() @ self.vector.square()).sqrt()
        if self.error is not None and self.error.numel() == tokens.numel():
            error = error + self.error.reshape(tokens)
        weight, bias = self.step.weights.get(path), self.step.biases.get(path)
        left = weight.left.to(y) if isinstance(weight, Outer) else torch.zeros((), dtype=y.dtype, device=y.device)
        constant = self.site.constant * left if bias is None else bias.to(y)
        return error[..., None] * left + ulps[..., None] * constant


def through_model(model: nn.Module, site: Site, runs: Sequence[Outputs], metric: str) -> Along:
    """Fisher information by forward-mode derivatives of the whole model.

    Args:
        model: in evaluation mode, its operations differentiable.
        site: where.
        runs: what to run.
        metric: ``softmax`` or ``gaussian``, of the outputs.

    Returns:
        A function that raises UsageError where something between the site and the outputs has no forward-mode
        derivative, and InputError where the outputs are not finite.
    """

    def along(tangents: StepTangents) -> float:
        squares, count = [], 0
        with torch.no_grad(), forward_ad.dual_level(), _watched(model, site, tangents):
            for run in runs:
                outputs, change = _parts(_run(run, site))
                count += len(outputs)
                if change is not None:
                    p = torch.softmax(outputs.double(), -1) if metric == "softmax" else None
                    squares.append(_square(p, change.double()))
        return _mean(squares, count, site)

    return along


def at_head(model: nn.Module, site: Site, inputs: Sequence[Tensor]) -> Along:
    """Fisher information at the head in closed form: the change of the logits is linear in the step.

    Args:
        model: holds norm and head.
        site: the head's.
        inputs: what entered the norm, shape (n, d) each.

    Returns:
        The function; nothing needs to be differentiable.
    """
    norm, head = model.get_submodule(site.norm_path), model.get_submodule(site.moved[0].path)

    @torch.no_grad()
    def distribution(x: Tensor) -> tuple[Tensor, Tensor]:
        y = norm(x)
        return y, torch.softmax(head(y).double(), -1)

    total = sum(len(x) for x in inputs)
    words = weight_of(model, site.moved[0]).shape[-1 if site.moved[0].input_first else 0]
    kept = [distribution(x) for x in inputs] if total * words <= _KEPT else None

    @torch.no_grad()
    def along(tangents: StepTangents) -> float:
        squares = []
        shift = tangents.step.shift
        moved: Any = 0.0
        for number, x in enumerate(inputs):
            y, p = distribution(x) if kept is None else kept[number]
            if tangents.of_norm(x, y) is not None and shift is not None:
                zero = torch.zeros_like(y[:1])
                moved = (head(shift.to(y)[None]).double() - head(zero).double()) if number == 0 else moved
            squares.append(_square(p, tangents.of_reader(site.moved[0].path, y) + moved))
        return _mean(squares, total, site)

    return along


def _mean(squares: Sequence[Tensor], count: int, site: Site) -> float:
    total = torch.stack([square.sum().cpu() for square in squares]).sum() if squares else torch.zeros(())
    if not torch.isfinite(total):
        raise InputError(f"{site.name}: the outputs or their derivative are not finite; try another dtype (--dtype)")
    return float(total) / count


def _run(run: Outputs, site: Site) -> Tensor:
    try:
        return run()
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        if "forward AD" not in reason and "jvp" not in reason and "forward mode" not in reason:
            raise
        raise UsageError(
            f"{site.name}: a module between it and the outputs has no forward-mode derivative ({reason}); quantised "
            "and custom kernels lack one. The head needs none: site='head' (--site head)"
        ) from error


@contextmanager
def _watched(model: nn.Module, site: Site, tangents: StepTangents) -> Iterator[None]:
    """Hooks that add tangents where norm and readers run."""

    def at_norm(_: nn.Module, given: Tensor, made: Tensor) -> Tensor:
        return _plus(made, tangents.of_norm(_parts(given)[0], _parts(made)[0]))

    def at_reader(path: str) -> Replace:
        return lambda _, given, made: _plus(made, tangents.of_reader(path, _parts(given)[0]))

    with replaced(model, {site.norm_path: at_norm, **{path: at_reader(path) for path in tangents.readers}}):
        yield


def _plus(made: Tensor, tangent: Tensor | None) -> Tensor:
    if tangent is None:
        return made
    tangent = tangent.to(made.device, made.dtype).expand(made.shape).contiguous()
    primal, before = _parts(made)
    dual: Tensor = forward_ad.make_dual(primal, tangent if before is None else before + tangent)  # type: ignore[no-untyped-call]
    return dual


def _parts(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Value and tangent."""
    parts = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return parts.primal, parts.tangent


def _square(p: Tensor | None, change: Tensor) -> Tensor:
    """Var_p(change) of every token; without a distribution, the squared length of the change. `change` is consumed."""
    if p is None:
        return change.square_().sum(-1)
    change -= torch.einsum("nv,nv->n", p, change)[:, None]
    return torch.einsum("nv,nv->n", p, change.square_())
