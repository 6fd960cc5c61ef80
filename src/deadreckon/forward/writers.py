"""What a block writes to the residual stream: the modules inside it whose outputs add up to what it hands on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.forward.anatomy import run
from deadreckon.forward.blocks import BlockStack
from deadreckon.forward.precision import unit_roundoff

_DEPTHS = (1, 2, 3)  # how deep inside a block its writers may sit
_ROUNDINGS = 2  # a block rounds a handful of sums, each by less than half of u on average
_SCATTER = 25  # in variances of the rounding: an improvement of the fit by less, five deviations, is chance
_ALIKE = 2e-2  # relative difference up to which coefficients are one, and share of the output that counts as a path

Seen = Callable[[str, Tensor], None]
GIVEN, MADE = "<", ">"  # the block's own input and output; no module has such a name


@dataclass(frozen=True)
class Writer:
    """A module that writes, and the factor with which its output enters the block's.

    Attributes:
        path: of the module in the model.
        name: of the module in the block, with `@n` for its n-th firing there, from the second on.
        coefficient: the factor.
    """

    path: str
    name: str
    coefficient: float


@dataclass(frozen=True)
class Equation:
    """output = coefficient * input + sum of coefficient * writer's output.

    Attributes:
        coefficient: of the block's input.
        writers: in the order in which they fire; empty where none were found.
        residual: share of the output that is left over, tokens and coordinates brought to one scale.
        tolerance: share that rounding may leave over.
    """

    coefficient: float
    writers: tuple[Writer, ...]
    residual: float
    tolerance: float

    @property
    def scalar(self) -> float | None:
        """The factor of the whole output, where input and all writes share one that is not 1; else None."""
        same = all(abs(each.coefficient / self.coefficient - 1) <= _ALIKE for each in self.writers if self.coefficient)
        return self.coefficient if same and self.solved and abs(self.coefficient - 1) > _ALIKE else None

    @property
    def solved(self) -> bool:
        """Whether it accounts for the output, the input being part of it."""
        return self.residual <= self.tolerance and self.coefficient != 0


def block_equation(
    model: nn.Module, batch: Mapping[str, Any], stack: BlockStack, index: int, aside: Tensor | None = None
) -> Equation:
    """How a block's output is made of its input and of what modules inside it put out, by least squares over one row.

    Of modules whose outputs say the same (a norm's input and output, a sublayer that has the stream in its output), the
    one that acts last is taken, and rather a part than the whole.

    Args:
        model: in evaluation mode.
        batch: keyword arguments of its forward, a row on its device.
        stack: the stream.
        index: of the block.
        aside: unit vector of the stream that is left out, so that what becomes of it does not bend the factors and
            the equation can be held against it.

    Returns:
        The equation; `solved` says whether it holds.
    """
    seen: dict[str, Tensor] = {}
    dtype: torch.dtype | None = None

    def keep(name: str, stream: Tensor) -> None:
        nonlocal dtype
        dtype = stream.dtype if name == MADE else dtype
        seen.pop(name, None)
        seen[name] = stream.clone() if aside is None else _off(stream, aside)

    with torch.no_grad(), inside(stack, index, keep):
        run(model, dict(batch))
    given, made = seen.pop(GIVEN, None), seen.pop(MADE, None)
    if given is None or made is None or dtype is None or given.shape != made.shape:
        return Equation(1.0, (), 1.0, 0.0)
    tolerance = _ROUNDINGS * unit_roundoff(dtype)
    path = stack.blocks[index][0]
    best: Equation | None = None
    for depth in _DEPTHS:
        columns: dict[str, Tensor] = {}
        for name, output in seen.items():
            column = output.to(made.device).reshape(made.shape) if output.numel() == made.numel() else None
            known = [given, made, *columns.values()]
            if column is not None and name.count(".") < depth and not any(_equal(column, k) for k in known):
                columns[name] = column
        coefficient, found, residual = _fit(made, given, columns, unit_roundoff(dtype))
        writers = tuple(Writer(f"{path}.{_module(name)}", name, c) for name, c in found.items())
        equation = Equation(coefficient, writers, residual, tolerance)
        # More columns always fit a little better: unless they solve it, those nearest the block's surface stand.
        if best is None or equation.solved or not best.writers:
            best = equation
        if best.solved:
            break
    return best or Equation(1.0, (), 1.0, tolerance)


@contextmanager
def inside(stack: BlockStack, index: int, see: Seen, names: Sequence[str] | None = None) -> Iterator[None]:
    """Show what enters a block, what the modules inside it put out and what leaves it, each time that it fires.

    A block that has several places in the stream fires several times; only its firing at this place is shown. Open it
    anew after a pass that broke off.

    Args:
        stack: the stream.
        index: of the block.
        see: called with `GIVEN`, the name of the module in the block or `MADE`, and the tensor.
        names: as a `Writer` has them; None for all modules down to the third level.
    """
    block = stack.blocks[index][1]
    place = sum(module is block for _, module in stack.blocks[:index])
    places = sum(module is block for _, module in stack.blocks)
    ended = 0
    calls: dict[str, int] = {}

    def show(name: str, values: Any) -> None:
        if ended % places == place and (stream := stack.stream(values)) is not None:
            see(name, stream)

    def enters(_: nn.Module, args: Any, kwargs: Any) -> None:
        calls.clear()
        show(GIVEN, [*args, kwargs])

    def leaves(_: nn.Module, _args: Any, output: Any) -> None:
        nonlocal ended
        show(MADE, output)
        ended += 1

    def writes(path: str) -> Any:
        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            calls[path] = call = calls.get(path, 0) + 1
            name = path if call == 1 else f"{path}@{call}"
            if names is None or name in names:
                show(name, output)

        return hook

    wanted = None if names is None else {_module(name) for name in names}
    with ExitStack() as stacked:
        stacked.callback(block.register_forward_pre_hook(enters, with_kwargs=True).remove)
        for path, module in block.named_modules():
            if path and (path.count(".") < max(_DEPTHS) if wanted is None else path in wanted):
                stacked.callback(module.register_forward_hook(writes(path)).remove)
        stacked.callback(block.register_forward_hook(leaves).remove)
        yield


def _fit(
    target: Tensor, start: Tensor, columns: Mapping[str, Tensor], roundoff: float
) -> tuple[float, dict[str, float], float]:
    """Coefficients of the start (0: next to none of it is in the target) and of the columns needed; what is left over.

    The sum holds number by number, so any weights give the same one; tokens and coordinates are brought to one scale,
    or a massive activation would be all that is fitted, and its rounding all that is left.

    Returns:
        The start's coefficient, the columns' by name, and the residual relative to the target.
    """
    weight = _weights(start, target).reshape(-1)
    matrix = torch.stack([(v.double().reshape(-1) * weight) for v in (start, *columns.values(), target)], 1)
    # Columns of all magnitudes, in as many numbers as there are columns: what follows works on the triangle alone.
    norms = torch.linalg.vector_norm(matrix, dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    triangle = torch.linalg.qr(matrix / norms, mode="r").R.cpu()
    scale = (norms[-1] / norms).cpu()
    aim = triangle[:, -1]

    def solved(chosen: Sequence[int]) -> tuple[Tensor, float]:
        part = triangle[:, list(chosen)]
        solution = torch.linalg.lstsq(part, aim[:, None], driver="gelsd").solution[:, 0]
        return solution, float(torch.linalg.vector_norm(part @ solution - aim))

    names = list(columns)
    # A sublayer that has the stream in its output: what writes is the part of it that adds to the stream.
    wholes = [n for n in names if any(_module(other).startswith(f"{_module(n)}.") for other in names)]
    chosen = list(range(len(names) + 1))
    # Variance of the fit's rounding in one number: what is left over, or the least that one rounding leaves.
    rounding = max(solved(chosen)[1], roundoff / 8) ** 2 / target.numel()
    for name in [*wholes, *(n for n in names if n not in wholes)]:
        fewer = [k for k in chosen if k != 1 + names.index(name)]
        left = solved(fewer)[1]
        if (name in wholes and left <= _ROUNDINGS * roundoff) or left**2 <= solved(chosen)[
            1
        ] ** 2 + _SCATTER * rounding:
            chosen = fewer
    solution, residual = solved(chosen)
    coefficient, *others = (solution * scale[chosen]).tolist()
    found = {names[k - 1]: c for k, c in zip(chosen[1:], others, strict=True)}
    return coefficient if abs(float(solution[0])) > _ALIKE else 0.0, found, residual


def _weights(start: Tensor, target: Tensor) -> Tensor:
    """What brings every token and then every coordinate of a block's input and output to one root mean square."""
    rows = torch.stack([start, target]).double().reshape(2, -1, start.shape[-1])
    tokens = _inverse(rows.square().mean((0, 2)).sqrt())[:, None]
    return tokens * _inverse((rows * tokens).square().mean((0, 1)).sqrt())


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1.0 / torch.where(scale > 0, scale, 1.0), 0.0)


def _off(stream: Tensor, direction: Tensor) -> Tensor:
    rows, u = stream.double(), direction.to(stream.device, torch.float64)
    return rows - (rows @ u)[..., None] * u


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b.reshape(a.shape).to(a.device))


def _module(name: str) -> str:
    return name.partition("@")[0]
