"""Why a direction of the residual stream is lost at a block: one more pass that follows the direction itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadreckon.forward.anatomy import NormSite
from deadreckon.forward.blocks import BlockStack, stream_tensor, tapped
from deadreckon.forward.modality import MODALITIES, modality
from deadreckon.forward.passes import Part, Passes
from deadreckon.forward.precision import AT_FLOOR
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.profile import RESCALED, Fall, Step
from deadreckon.forward.stream import kept
from deadreckon.forward.writers import Equation, block_equation
from deadreckon.kernel.subspace import DeadSubspace
from deadreckon.results.trace import Coordinate, Event, Evidence, StreamDirection, TokenGroup, Write

_TOP = 8  # coordinates of a direction that are named
_BINS = 16  # ranges that positions are grouped in
_MOST = 0.99  # share that counts as all of it
_FEW = 0.5  # share of the tokens up to which they are a subset that carries a direction alone
_CANCELS = -0.9  # correlation from which a write counts as the negative of what was there

Keep = Callable[[Part, BlockStack], Tensor | None]


@dataclass
class _Followed:
    """What one pass shows of a direction u of the stream after a block."""

    step: Step
    before: Step
    fall: Fall
    equation: Equation
    direction: Tensor
    along: dict[str, list[Tensor]] = field(default_factory=lambda: {"before": [], "after": []})
    squares: dict[int, float] = field(default_factory=dict)  # |X_m u|^2 at the nodes after
    columns: dict[int, Tensor] = field(default_factory=dict)  # squared column norms before and after
    normed: list[Tensor] = field(default_factory=list)


def pinpoint(
    passes: Passes,
    stack: BlockStack,
    steps: Sequence[Step],
    falls: Sequence[Fall],
    *,
    row: Mapping[str, Any],
    keep: Keep,
    final: NormSite | None,
    bounds: Tensor | None,
    collapse_ratio: float,
) -> list[Event]:
    """The events of a stream with their causes.

    Args:
        passes: runs the model over the tokens that were traced.
        stack: the stream.
        steps: its nodes.
        falls: where it falls.
        row: one row of the inputs, on the model's device.
        keep: which positions of the stream count in a part.
        final: the norm at the stream's end, where it was found.
        bounds: largest magnitude of each coordinate that the parameters allow, shape (nodes, d), node -1 first; None
            where they bound nothing.
        collapse_ratio: as it decided the falls.

    Returns:
        One event a fall.
    """
    if not falls:
        return []
    by_index = {step.spectrum.index: step for step in steps}
    followed = [
        _Followed(
            step=by_index[fall.index],
            before=by_index[fall.index - 1],
            fall=fall,
            equation=block_equation(passes.model, row, stack, fall.index),
            direction=by_index[fall.index].spectrum.direction,
        )
        for fall in falls
    ]
    tokens = _Tokens(getattr(passes.model, "config", None), stack)
    passes.run(lambda: _following(stack, followed, keep, final, tokens))
    return [_event(each, stack, tokens, final, bounds, collapse_ratio) for each in followed]


@contextmanager
def _following(
    stack: BlockStack, followed: Sequence[_Followed], keep: Keep, final: NormSite | None, tokens: _Tokens
) -> Iterator[Callable[[Part], None]]:
    """Project the stream and what is written to it on every direction, from the start."""
    mask: Tensor | None = None
    tokens.clear()
    for each in followed:
        each.along = {name: [] for name in ("before", "after", *(writer.path for writer in each.equation.writers))}
        each.squares, each.columns, each.normed = {}, {}, []

    def prepare(part: Part) -> None:
        nonlocal mask
        mask = keep(part, stack)
        tokens.begin(part, mask)

    def see(index: int, stream: Tensor) -> None:
        rows: Tensor | None = None
        for each in followed:
            here = each.fall.index
            if index < here - 1:
                continue
            if rows is None:
                rows = kept(stream, mask).double()
            along = rows @ each.direction.to(rows.device)
            each.squares[index] = each.squares.get(index, 0.0) + float(along.square().sum())
            if index in (here - 1, here):
                each.along["before" if index < here else "after"].append(along.cpu())
                squares = rows.square().sum(0)
                each.columns[index] = each.columns.get(index, 0.0) + squares
        if index == -1:
            tokens.saw(stream)

    def writes(each: _Followed, path: str) -> Any:
        firing = sum(module is stack.blocks[each.fall.index][1] for _, module in stack.blocks[: each.fall.index])
        total = sum(module is stack.blocks[each.fall.index][1] for _, module in stack.blocks)
        seen = 0

        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            nonlocal seen
            stream = stream_tensor(output, stack.hidden_size)
            if stream is not None and seen % total == firing:
                rows = kept(stream, mask).double()
                each.along[path].append((rows @ each.direction.to(rows.device)).cpu())
            seen += 1

        return hook

    def normed(_: nn.Module, _args: Any, output: Any) -> None:
        for each in followed:
            rows = kept(output, mask).double()
            image = _through(each.direction, final).to(rows.device)
            each.normed.append(torch.stack([rows @ image, rows.square().mean(1)]).cpu())

    with ExitStack() as stacked:
        stacked.enter_context(tapped(stack, see))
        for each in followed:
            for writer in each.equation.writers:
                handle = writer.module.register_forward_hook(writes(each, writer.path))
                stacked.callback(handle.remove)
        if final is not None:
            stacked.callback(final.module.register_forward_hook(normed).remove)
        yield prepare


def _through(direction: Tensor, final: NormSite | None) -> Tensor:
    """The direction in which a norm's output shows the stream's direction: that divided by the gain, normalised."""
    if final is None:
        return direction
    gain = torch.from_numpy(final.norm.gain).to(direction.device)
    image = torch.where(gain != 0, direction / torch.where(gain != 0, gain, 1.0), 0.0)
    return torch.nn.functional.normalize(image, dim=0)


class _Tokens:
    """Modality and position of every token that counted."""

    def __init__(self, config: Any, stack: BlockStack) -> None:
        self._config = config
        self._text = stack.role in {"final", "decoder"}
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._labels: list[Tensor] = []
        self._positions: list[Tensor] = []

    def begin(self, part: Part, mask: Tensor | None) -> None:
        """Note what the next forward runs on."""
        self._mask = mask
        self._labelled = modality(part.inputs, self._config) if self._text and self._config is not None else None
        self._rows = len(part.rows)

    def saw(self, stream: Tensor) -> None:
        """Note the positions of the stream that the part has."""
        count = stream[..., 0].numel()
        length = count // self._rows if count % self._rows == 0 else count
        keep = torch.ones(count, dtype=torch.bool) if self._mask is None else self._mask.flatten().cpu()
        self._positions.append((torch.arange(count) % length)[keep])
        fits = self._labelled is not None and self._labelled.numel() == count
        labels = self._labelled.flatten().cpu() if fits and self._labelled is not None else torch.full((count,), -1)
        self._labels.append(labels[keep])

    def groups(self) -> dict[str, Tensor]:
        """Name -> which tokens are in it, bool of shape (N,)."""
        labels, positions = torch.cat(self._labels), torch.cat(self._positions)
        found = {MODALITIES[k]: labels == k for k in torch.unique(labels).tolist() if k >= 0}
        found = found if len(found) > 1 else {}
        length = int(positions.max()) + 1
        width = -(-length // _BINS)
        for start in range(0, length, width):
            stop = min(start + width, length)
            name = f"positions {start}-{stop - 1}" if stop - start > 1 else f"position {start}"
            found[name] = (positions >= start) & (positions < stop)
        return found


def _event(
    each: _Followed,
    stack: BlockStack,
    tokens: _Tokens,
    final: NormSite | None,
    bounds: Tensor | None,
    collapse_ratio: float,
) -> Event:
    index, equation = each.fall.index, each.equation
    path = stack.blocks[index][0]
    along = {name: torch.cat(parts) for name, parts in each.along.items()}
    count = len(along["after"])
    scalar = equation.scalar
    written = along["after"] / (scalar or 1.0) - along["before"]
    before, after = (float(along[name].norm()) / count**0.5 for name in ("before", "after"))
    writes = [
        Write(
            module=writer.path,
            coefficient=writer.coefficient,
            share=-_ratio(
                float(along["before"] @ along[writer.path]) * _own(writer.coefficient, scalar), before**2 * count
            ),
            correlation=_correlation(along["before"], along[writer.path]) or 0.0,
        )
        for writer in equation.writers
    ]
    dead, weight = _dead_coordinates(each, collapse_ratio)
    energy = along["before"].square()
    groups = [
        TokenGroup(
            group=name,
            tokens=float(inside.double().mean()),
            before=_ratio(float(energy[inside].sum()), float(energy.sum())),
            after=_ratio(float(along["after"][inside].square().sum()), float(along["after"].square().sum())),
        )
        for name, inside in tokens.groups().items()
    ]
    level = {m: (square / count) ** 0.5 for m, square in sorted(each.squares.items())}
    direction = each.direction.cpu().double()
    top = int(direction.abs().argmax())
    evidence = Evidence(
        before=before,
        after=after,
        floor=each.step.spectrum.sigma_floor,
        correlation=_correlation(along["before"], written),
        write_ratio=_ratio(float(written.norm()), float(along["before"].norm())),
        writes=writes,
        unexplained_write=equation.residual,
        scalar=scalar,
        scalar_tensor=_scalar_tensor(stack.blocks[index], scalar),
        dead_coordinates=dead,
        dead_weight=weight,
        norm_alignment=_norm_alignment(stack, index, each.direction),
        tokens=groups,
        carriers=_carriers(energy),
        parameter_bound=None if bounds is None else float(bounds[index + 1, top]),
        survives_to=_survives(level, index, before, collapse_ratio),
        last=list(level.values())[-1],
        after_final_norm=_after_norm(each.normed),
        attributed_to=each.fall.attributed_to,
    )
    cause, says = _cause(each, evidence, path, collapse_ratio)
    return Event(
        block=index,
        module=path,
        kind=each.fall.kind,
        cause=cause,
        says=says,
        direction=stream_direction(direction.numpy()),
        evidence=evidence,
    )


def _cause(each: _Followed, found: Evidence, path: str, collapse_ratio: float) -> tuple[str, str]:
    """The first cause, from the most particular to the most general, that its numbers bear out."""
    ratio = each.step.ratio or 0.0
    relative = each.step.relative
    drowns = relative is not None and relative < collapse_ratio <= ratio
    if found.attributed_to is not None:
        return "block_scalar", f"what block {found.attributed_to} scaled down is small against what is written here"
    if found.scalar is not None and abs(found.scalar) < 1 and ratio >= collapse_ratio * abs(found.scalar):
        name = found.scalar_tensor or "its output"
        return "block_scalar", f"{name} multiplies the whole stream by {found.scalar:.3g}"
    if found.before <= AT_FLOOR * found.floor:
        return (
            "precision_floor",
            f"the direction held {found.before:.2g} before and rounding after the block is {found.floor:.2g}",
        )
    if found.norm_alignment is not None and found.norm_alignment >= _MOST:
        return "norm_node", "the block ends in a norm, and this is its dead direction"
    if found.dead_weight >= _MOST and found.dead_coordinates:
        names = ", ".join(map(str, found.dead_coordinates[:_TOP]))
        return "dead_coordinate", f"coordinate {names} of the stream is dead after {path}"
    if (subset := _subset(found.tokens)) is not None:
        return "token_subset", f"the direction was carried by {subset} alone"
    if found.correlation is not None and found.correlation <= _CANCELS:
        most = max(found.writes, key=lambda write: write.share, default=None)
        by = most.module if most is not None and most.share >= _FEW else path
        return "branch_cancellation", f"{by} writes the negative of what the direction held"
    if each.fall.kind == RESCALED and drowns:
        return "unexplained", "the other directions grew past this one; no candidate explains it"
    return "unexplained", "no candidate explains it: see their numbers"


def _subset(groups: Sequence[TokenGroup]) -> str | None:
    """The modality, or the positions, that carry all of the direction and are few; None where there are none."""
    for group in groups:
        if not group.group.startswith("position") and group.tokens <= _FEW and group.before >= _MOST:
            return f"{group.group} tokens"
    places = sorted((g for g in groups if g.group.startswith("position")), key=lambda g: -g.before)
    held = share = 0.0
    named = []
    for group in places:
        named.append(group.group)
        held, share = held + group.before, share + group.tokens
        if held >= _MOST:
            return ", ".join(named) if share <= _FEW else None
    return None


def _dead_coordinates(each: _Followed, collapse_ratio: float) -> tuple[list[int], float]:
    """Coordinates whose column fell, against itself and against the others, and the direction's weight on them."""
    before, after = (each.columns[k].double().cpu().sqrt() for k in (each.fall.index - 1, each.fall.index))
    fell = (after <= collapse_ratio * before) & (after <= collapse_ratio * after.median())
    return fell.nonzero()[:, 0].tolist()[:256], float(each.direction.cpu().square()[fell].sum())


def _norm_alignment(stack: BlockStack, index: int, direction: Tensor) -> float | None:
    path = stack.norm_output[index]
    if path is None:
        return None
    block_path, block = stack.blocks[index]
    probe = probe_norm(block.get_submodule(path.removeprefix(f"{block_path}.")) if path != block_path else block)
    norm = None if probe is None else probe.norm(path)
    if norm is None or norm.hidden_size != len(direction):
        return None
    tested = torch.from_numpy(DeadSubspace.of(norm).tested_directions())
    return float(torch.linalg.vector_norm(tested.T @ direction.cpu().double()))


def _scalar_tensor(block: tuple[str, nn.Module], scalar: float | None) -> str | None:
    """A one-element tensor of the block that holds the factor."""
    if scalar is None:
        return None
    path, module = block
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.numel() == 1 and tensor.is_floating_point() and math.isclose(float(tensor), scalar, rel_tol=0.02):
            return f"{path}.{name}"
    return None


def _survives(level: Mapping[int, float], index: int, before: float, collapse_ratio: float) -> int:
    last = index
    for node, value in level.items():
        if node < index:
            continue
        if value > collapse_ratio * before:
            break
        last = node
    return last


def _after_norm(normed: Sequence[Tensor]) -> float | None:
    if not normed:
        return None
    along, squares = torch.cat(list(normed), 1)
    total = float(squares.mean())
    return (float(along.var()) / total) ** 0.5 if total > 0 else None


def _carriers(energy: Tensor) -> float | None:
    total = float(energy.sum())
    if total <= 0:
        return None
    held = energy.sort(descending=True).values.cumsum(0)
    return (int((held < _MOST * total).sum()) + 1) / len(energy)


def _own(coefficient: float, scalar: float | None) -> float:
    """A writer's factor before the block's scalar."""
    return coefficient / (scalar or 1.0)


def _correlation(a: Tensor, b: Tensor) -> float | None:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else None


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0


def stream_direction(vector: np.ndarray[Any, Any]) -> StreamDirection:
    """A unit vector in a few numbers.

    Args:
        vector: shape (d,).

    Returns:
        Its participation ratio and heaviest coordinates.
    """
    weight = np.square(vector)
    order = np.argsort(weight)[::-1][:_TOP]
    return StreamDirection(
        participation_ratio=float(weight.sum() ** 2 / np.square(weight).sum()),
        top=[Coordinate(coordinate=int(k), weight=float(weight[k])) for k in order],
    )
