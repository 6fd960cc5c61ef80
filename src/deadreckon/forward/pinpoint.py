"""Why a direction of the residual stream is lost at a block: one more pass that follows the direction itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadreckon.forward.anatomy import NormSite
from deadreckon.forward.blocks import BlockStack
from deadreckon.forward.cause import cause
from deadreckon.forward.follow import BEFORE, Followed, Keep, following
from deadreckon.forward.passes import Passes
from deadreckon.forward.placement import at_hand
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.profile import Fall, Step
from deadreckon.forward.token_groups import TokenGroups
from deadreckon.forward.writers import GIVEN, MADE, block_equation
from deadreckon.kernel.subspace import DeadSubspace
from deadreckon.results.trace import Coordinate, Event, StreamDirection, StreamEvidence, TokenGroup, Write

_TOP = 8  # coordinates of a direction that are named
_LISTED = 256  # dead coordinates that are listed
_MOST = 0.99  # share that counts as all of it
_ALIKE = 2e-2  # relative difference up to which a tensor of one element is the factor that was fitted


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
    followed = []
    for fall in falls:
        direction = by_index[fall.index].spectrum.direction
        equation = block_equation(passes.model, row, stack, fall.index, aside=direction)
        followed.append(Followed(fall.index, direction, equation))
    tokens = TokenGroups(getattr(passes.model, "config", None), stack)
    passes.run(lambda: following(stack, followed, keep, final, tokens))
    groups = tokens.groups()
    events: dict[int, Event] = {}
    for fall, each in zip(falls, followed, strict=True):
        found = _evidence(fall, by_index[fall.index], each, stack, groups, bounds, collapse_ratio)
        if fall.attributed_to is None:
            name, says = cause(found, collapse_ratio)
        else:
            name = events[fall.attributed_to].cause
            says = f"what block {fall.attributed_to} scaled down is small against what is written here"
        events[fall.index] = Event(
            block=fall.index,
            module=stack.blocks[fall.index][0],
            kind=fall.kind,
            cause=name,
            says=says,
            direction=stream_direction(each.direction.cpu().double().numpy()),
            evidence=found,
        )
    return list(events.values())


def _evidence(
    fall: Fall,
    step: Step,
    each: Followed,
    stack: BlockStack,
    groups: Mapping[str, Tensor],
    bounds: Tensor | None,
    collapse_ratio: float,
) -> StreamEvidence:
    """The numbers of all candidates."""
    equation, index = each.equation, each.index
    before, given, made = (each.along(name) for name in (BEFORE, GIVEN, MADE))
    count = len(made)
    held, left = (_rms(values) for values in (before, made))
    # In units of the input: what the block does to input and writes alike is its scalar, a cause of its own.
    unit = equation.coefficient if equation.solved else 1.0
    written = {
        writer.path: (writer.coefficient, each.along(writer.name) * (writer.coefficient / unit))
        for writer in equation.writers
    }
    if not torch.equal(given, before):  # the model adds to the stream between its blocks
        written[f"{stack.path} (between blocks)"] = (1.0, given - before)
    together = sum((along for _, along in written.values()), torch.zeros_like(before))
    dead, weight = _dead_coordinates(each, collapse_ratio)
    level = {node: (square / count) ** 0.5 for node, square in sorted(each.squares.items())}
    return StreamEvidence(
        step_ratio=step.ratio or 0.0,
        relative_step_ratio=step.relative,
        before=held,
        after=left,
        floor=step.spectrum.sigma_floor,
        correlation=_correlation(before, together),
        write_ratio=_ratio(_rms(together), held),
        remainder=_ratio(_rms(made / unit - before - together), held),
        writes=[
            Write(
                module=path,
                coefficient=coefficient,
                share=-_ratio(float(before @ along), float(before @ before)),
                correlation=_correlation(before, along) or 0.0,
            )
            for path, (coefficient, along) in written.items()
        ],
        unexplained_write=equation.residual,
        scalar=equation.scalar,
        scalar_tensor=_scalar_tensor(stack.blocks[index], equation.scalar),
        dead_coordinates=dead,
        dead_weight=weight,
        norm_alignment=_norm_alignment(stack, index, each.direction),
        tokens=[
            TokenGroup(
                group=name,
                tokens=float(members.double().mean()),
                before=_share(before, members),
                after=_share(made, members),
            )
            for name, members in groups.items()
        ],
        carriers=_carriers(before.square()),
        parameter_bound=None if bounds is None else float(bounds[index + 1, int(each.direction.abs().argmax())]),
        survives_to=_survives(level, index, held, collapse_ratio),
        last=list(level.values())[-1],
        after_final_norm=_after_norm(each.normed),
        attributed_to=fall.attributed_to,
    )


def _dead_coordinates(each: Followed, collapse_ratio: float) -> tuple[list[int], float]:
    """Coordinates whose column fell, against itself and against the others, and the direction's weight on them."""
    before, after = (each.columns[node].double().cpu().sqrt() for node in (each.index - 1, each.index))
    fell = (after <= collapse_ratio * before) & (after <= collapse_ratio * after.median())
    return fell.nonzero()[:, 0].tolist()[:_LISTED], float(each.direction.cpu().square()[fell].sum())


def _norm_alignment(stack: BlockStack, index: int, direction: Tensor) -> float | None:
    """How much of the direction is in the dead subspace of the norm that makes the block's output."""
    path = stack.norm_output[index]
    if path is None:
        return None
    block_path, block = stack.blocks[index]
    module = block if path == block_path else block.get_submodule(path.removeprefix(f"{block_path}."))
    with at_hand(module):
        probe = probe_norm(module)
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
        if tensor.numel() != 1 or not tensor.is_floating_point():
            continue
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        with at_hand(part):
            value = float(getattr(part, leaf))
        if math.isclose(value, scalar, rel_tol=_ALIKE):
            return f"{path}.{name}"
    return None


def _survives(level: Mapping[int, float], index: int, before: float, collapse_ratio: float) -> int:
    """The last of the blocks after which, without a break, the direction is below the collapse ratio of what it was."""
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


def _share(along: Tensor, members: Tensor) -> float:
    return _ratio(float(along[members].square().sum()), float(along.square().sum()))


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


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
