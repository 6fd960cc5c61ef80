"""Directional Fisher information by forward-mode derivatives: no backward pass, and no parameter is touched.

A step of a reader's weights is one of a single use of them: where norm and readers run, their responses to the step
are added to what they make, and the derivative of the model's outputs is read at the end, for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.differentiable import without_derivative
from deadreckon.forward.outputs import Outputs
from deadreckon.forward.replacing import Replace, replaced
from deadreckon.forward.responses import Factored, Response, Visit, response_to, response_to_error, response_to_ulps
from deadreckon.forward.sites import Site, weight_of
from deadreckon.forward.steps import SiteSteps, Step

_AT_ONCE = {"cuda": 2**27, "cpu": 2**23}  # probabilities of tokens that are looked at together
_HELD = {"cuda": 2**31, "cpu": 2**30}  # numbers in the random directions that are held together
_TOGETHER = 2**26  # numbers that the outputs of steps taken at once may be
_NO_DERIVATIVE = ("forward AD", "jvp", "forward mode")

Evaluate = Callable[[Sequence[Callable[[], Response]]], list[float]]
"""Directional Fisher information per token of each response; one is made when it is needed, as it may be large."""


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


def site_fisher(model: nn.Module, site: Site, steps: SiteSteps, draws: int, evaluate: Evaluate) -> SiteFisher:
    """Directional Fisher information along the steps of a site.

    Args:
        model: holds the readers.
        site: where.
        steps: along what.
        draws: how many random directions.
        evaluate: `through_model` or `at_head`.

    Returns:
        The figures.
    """

    def along(step: Step) -> Callable[[], Response]:
        return lambda: response_to(site, step)

    def drawn(number: int) -> Callable[[], Response]:
        return lambda: response_to(site, steps.random(number))

    dead = steps.exact or steps.naive
    exact, naive, constant, error, ulps, *random = evaluate(
        [
            along(dead),
            along(steps.naive),
            along(steps.constant),
            lambda: response_to_error(model, site, dead),
            lambda: response_to_ulps(site, dead),
            *(drawn(number) for number in range(draws)),
        ]
    )
    return SiteFisher(None if steps.exact is None else exact, naive, constant, random, error + ulps)


def through_model(model: nn.Module, site: Site, runs: Sequence[Outputs], metric: str) -> Evaluate:
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

    @torch.no_grad()
    def evaluate(responses: Sequence[Callable[[], Response]]) -> list[float]:
        totals, count = torch.zeros(len(responses), dtype=torch.float64), 0
        for run in runs:
            with _visiting(model, site) as visits:
                outputs = run()
            if count == 0:
                _check_derivatives(model, run, site)
            count += len(outputs)
            p = torch.softmax(outputs.double(), -1) if metric == "softmax" else None
            several = max(1, _TOGETHER // outputs.numel())
            for start in range(0, len(responses), several):
                chosen = [make()(visits) for make in responses[start : start + several]]
                for number, change in enumerate(_changes(model, run, visits, chosen, site)):
                    totals[start + number] += _square(p, change.double()).sum().cpu()
        return _means(totals, count, site)

    return evaluate


def at_head(model: nn.Module, site: Site, inputs: Sequence[Tensor]) -> Evaluate:
    """Fisher information at the head in closed form: the change of the logits is linear in the step.

    Args:
        model: holds norm and head.
        site: the head's.
        inputs: what entered the norm, shape (n, d) each.

    Returns:
        The function; nothing needs to be differentiable.
    """
    (reader,) = site.moved
    norm, head = model.get_submodule(site.norm_path), model.get_submodule(reader.path)

    def visit(x: Tensor) -> tuple[list[Visit], Tensor]:
        y = norm(x)
        logits = head(y)
        p = torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return [Visit(site.norm_path, x, y), Visit(reader.path, y, logits)], p

    words, width = weight_of(model, reader).shape[:: -1 if reader.input_first else 1]
    device = inputs[0].device
    tokens = max(1, _AT_ONCE.get(device.type, _AT_ONCE["cpu"]) // words)
    chunks = [x[i : i + tokens] for x in inputs for i in range(0, len(x), tokens)]
    held = max(1, _HELD.get(device.type, _HELD["cpu"]) // (words * width))

    def constant(of_norm: Tensor | Factored | None, like: Tensor) -> Tensor:
        """What a moved shift adds to the logits of every token."""
        if not isinstance(of_norm, Tensor):
            return torch.zeros(like.shape[-1:], dtype=torch.float64, device=device)
        shift = of_norm[:1].to(weight_of(model, reader).dtype)
        moved: Tensor = head(torch.cat([shift, torch.zeros_like(shift)]))
        return moved[0].double() - moved[1].double()

    @torch.no_grad()
    def evaluate(responses: Sequence[Callable[[], Response]]) -> list[float]:
        totals = torch.zeros(len(responses), dtype=torch.float64, device=device)
        for start in range(0, len(responses), held):
            made = [make() for make in responses[start : start + held]]
            for x in chunks:
                visits, p = visit(x)
                factored: dict[int, Factored] = {}
                for number, response in enumerate(made, start):
                    of_norm, change = response(visits)
                    moved = constant(of_norm, p)
                    if isinstance(change, Factored):
                        whole = moved if change.constant is None else change.constant + moved
                        factored[number] = Factored(change.scalars, change.left, whole)
                    elif change is not None:
                        dense = change.to(p.dtype) + moved.to(p) if isinstance(of_norm, Tensor) else change.to(p.dtype)
                        totals[number] += _square(p, dense).sum(dtype=torch.float64)
                if factored:
                    totals[list(factored)] += _factored_squares(p, list(factored.values())).sum(0)
        return _means(totals.cpu(), sum(len(x) for x in inputs), site)

    return evaluate


def _factored_squares(p: Tensor, changes: Sequence[Factored]) -> Tensor:
    """Var_p of scalar times left plus constant from the vectors' moments, without cancellation, shape (n, changes)."""
    left = torch.stack([change.left for change in changes])
    rest = torch.stack([torch.zeros_like(left[0]) if c.constant is None else c.constant for c in changes])
    scalars = torch.stack([change.scalars for change in changes], 1)
    # What a remedy takes back is taken back here, before anything is rounded.
    tiny = torch.finfo(torch.float64).tiny
    share = (rest * left).sum(1) / left.square().sum(1).clamp_min(tiny)
    scalars, rest = scalars + share, rest - share[:, None] * left
    sizes = [vectors.abs().amax(1).clamp_min(tiny) for vectors in (left, rest)]
    a, b = ((v / size[:, None]).to(p) for v, size in zip((left, rest), sizes, strict=True))
    moments = (p @ torch.cat([a, b, a * a, a * b, b * b]).T).double()
    of_a, of_b, of_aa, of_ab, of_bb = moments.split_with_sizes([len(changes)] * 5, 1)
    scalars, size = scalars * sizes[0], sizes[1]
    square = scalars.square() * (of_aa - of_a**2) + size.square() * (of_bb - of_b**2)
    return (square + 2 * scalars * size * (of_ab - of_a * of_b)).clamp_min(0.0)


@contextmanager
def _visiting(model: nn.Module, site: Site) -> Iterator[list[Visit]]:
    """Records the calls of the norm and its readers in their order."""
    visits: list[Visit] = []

    def at(path: str) -> Replace:
        def replace(_: nn.Module, given: Tensor, made: Tensor) -> Tensor:
            visits.append(Visit(path, given.clone(), made.clone()))
            return made

        return replace

    with replaced(model, {path: at(path) for path in _places(site)}):
        yield visits


def _places(site: Site) -> list[str]:
    return [site.norm_path, *(reader.path for reader in (*site.moved, *site.others))]


def _changes(
    model: nn.Module,
    run: Outputs,
    visits: Sequence[Visit],
    chosen: Sequence[list[Tensor | Factored | None]],
    site: Site,
) -> Tensor:
    """Derivative of the outputs along several sets of tangents, shape (sets, n, k)."""
    moved = [i for i in range(len(visits)) if any(tangents[i] is not None for tangents in chosen)]
    zeros = tuple(torch.zeros_like(visits[i].made) for i in moved)
    stacked = tuple(
        torch.stack([_dense(tangents[i], zero) for tangents in chosen]) for i, zero in zip(moved, zeros, strict=True)
    )

    def outputs(*added: Tensor) -> Tensor:
        calls = iter(range(len(visits)))

        def replace(_: nn.Module, _given: Tensor, made: Tensor) -> Tensor:
            call = next(calls)
            return made + added[moved.index(call)] if call in moved else made

        with replaced(model, dict.fromkeys(_places(site), replace)):
            return run()

    changes: Tensor = vmap(lambda *tangents: jvp(outputs, zeros, tangents)[1], randomness="error")(*stacked)
    return changes


def _dense(tangent: Tensor | Factored | None, like: Tensor) -> Tensor:
    tangent = tangent.dense() if isinstance(tangent, Factored) else tangent
    return like if tangent is None else tangent.to(like).expand(like.shape)


def _check_derivatives(model: nn.Module, run: Outputs, site: Site) -> None:
    """Refuse a model that does not pass derivatives on."""
    try:
        lost = without_derivative(model, [reader.path for reader in site.moved], run)
        reason = f"{lost[0]} passes none on" if lost else ""
    except RuntimeError as error:  # NotImplementedError is one
        reason = str(error).strip().splitlines()[0]
        if not any(word in reason for word in _NO_DERIVATIVE):
            raise
    if reason:
        raise UsageError(
            f"{site.name}: what is between it and the outputs has no forward-mode derivative ({reason}): quantised and "
            "custom kernels lack one. The head needs none: site='head' (--site head)"
        )


def _means(totals: Tensor, count: int, site: Site) -> list[float]:
    if not bool(torch.isfinite(totals).all()):
        raise InputError(f"{site.name}: the outputs or their derivative are not finite; try another dtype (--dtype)")
    return [float(total) / count for total in totals]


def _square(p: Tensor | None, change: Tensor) -> Tensor:
    """Var_p(change) of every token; without a distribution, the squared length of the change. `change` is consumed."""
    if p is None:
        return change.square_().sum(-1)
    change -= torch.einsum("nv,nv->n", p, change)[:, None]
    return torch.einsum("nv,nv->n", p, change.square_())
