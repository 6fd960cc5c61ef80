"""The residual streams of a model, node by node: Grams within a budget of memory, in as many passes as that takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.anatomy import NormSite, final_norm, run
from deadreckon.forward.batching import Rows
from deadreckon.forward.blocks import BlockStack, find_block_stacks, tapped
from deadreckon.forward.calibration import Calibration, placed
from deadreckon.forward.distinct import DistinctIds, ids_of
from deadreckon.forward.memory import free_memory
from deadreckon.forward.passes import Part, Passes, Progress
from deadreckon.forward.pinpoint import pinpoint
from deadreckon.forward.placement import input_device
from deadreckon.forward.profile import Fall, Step, falls, steps
from deadreckon.forward.stream import NodeSpectrum, StreamMoments, kept, node_spectra
from deadreckon.forward.stream_bound import stream_of_module
from deadreckon.kernel.stream_bound import NoBound
from deadreckon.results.trace import Event

_TOKENS_PER_DIMENSION = 8
_SHARE = 3  # of the free memory, one part in so many goes to Grams


@dataclass
class Traced:
    """What a trace found of one stream.

    Attributes:
        stack: the stream.
        tokens: N.
        distinct: number of distinct token ids; None where the inputs are not ids.
        steps: its nodes.
        centred: index -> smallest singular value about the mean token, where the nodes are norm outputs.
        falls: where it falls below the collapse ratio.
        events: these with their causes.
    """

    stack: BlockStack
    tokens: int = 0
    distinct: int | None = None
    steps: list[Step] = field(default_factory=list)
    centred: dict[int, float] = field(default_factory=dict)
    falls: list[Fall] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def trace_streams(
    model: nn.Module,
    calibration: Calibration,
    *,
    tokens: int | None,
    batch_size: int | None = None,
    blocks: Collection[int] | None = None,
    blocks_path: str | None = None,
    count: int = 1,
    memory: int | None = None,
    collapse_ratio: float = 0.1,
    progress: Progress | None = None,
) -> tuple[list[Traced], int]:
    """The spectra of every node of every residual stream, and why they fall where they do.

    Args:
        model: in evaluation mode.
        calibration: its inputs.
        tokens: N of the main stream; None: 8 d.
        batch_size: rows a forward at most.
        blocks: indices of the blocks to trace; None for all.
        blocks_path: the list of blocks, where it is not to be found.
        count: singular directions to keep at every node.
        memory: bytes that the Grams of one pass may take; None: a third of what is free.
        collapse_ratio: step ratios below it are events.
        progress: called with tokens done and wanted after every forward.

    Returns:
        The streams, the main one last, and how many passes it took.

    Raises:
        UsageError: no stream was found, too few tokens, or a budget too small for one Gram.
        InputError: the stream is not finite.
    """
    row = _first_row(model, calibration)
    stacks = find_block_stacks(model, row, blocks_path)
    main = stacks[-1]
    size = main.hidden_size
    wanted = _TOKENS_PER_DIMENSION * size if tokens is None else tokens
    _enough(wanted, size)
    passes = Passes(model, calibration, main, tokens=wanted, batch_size=batch_size, progress=progress)
    found = [Traced(stack) for stack in stacks]
    asked = {k: _wanted(each.stack, blocks) for k, each in enumerate(found) if each.stack is main or blocks is None}
    _collect(passes, asked, found, count=count, memory=memory)
    _enough(found[-1].tokens, size)
    for each in found:
        each.falls = [] if each.stack.post_norm else falls(each.steps, collapse_ratio)
        if each.falls:
            each.events = pinpoint(
                passes,
                each.stack,
                each.steps,
                each.falls,
                row=row,
                keep=_keep,
                final=_final_norm(model, row) if each.stack is main else None,
                bounds=_bounds(model, each.stack) if each.stack is main else None,
                collapse_ratio=collapse_ratio,
            )
    return [each for each in found if each.steps], passes.done


def _collect(
    passes: Passes, wanted: Mapping[int, Sequence[int]], found: Sequence[Traced], *, count: int, memory: int | None
) -> None:
    """The spectra of the wanted nodes of every stream, as many a pass as memory allows."""
    spectra: dict[int, list[NodeSpectrum]] = {number: [] for number in wanted}
    for portion in _portions(passes.model, wanted, found, memory):
        collecting = {number: _Collecting(found[number].stack, nodes) for number, nodes in portion.items()}
        passes.run(partial(_together, collecting.values()))
        for number, each in collecting.items():
            stack, moments = found[number].stack, each.moments
            if not moments.nodes:
                raise UsageError(f"{stack.path} did not run on these inputs: name another list (--blocks-path)")
            for index, one in moments.nodes.items():
                if not bool(torch.isfinite(one.upper.diagonal()).all()):
                    raise InputError(_where_not_finite(passes, stack, index))
            spectra[number] += node_spectra(moments.nodes, moments.dtypes, count=count)
            if stack.post_norm:
                for index, one in moments.nodes.items():
                    smallest = float(torch.linalg.eigvalsh(one.scatter())[0]) / one.count
                    found[number].centred[index] = max(smallest, 0.0) ** 0.5
            found[number].tokens = next(iter(moments.nodes.values())).count
            ids = each.distinct.ids()
            found[number].distinct = None if ids is None else len(ids)
    for number, nodes in spectra.items():
        found[number].steps = steps(nodes)


def _portions(
    model: nn.Module, wanted: Mapping[int, Sequence[int]], found: Sequence[Traced], memory: int | None
) -> Iterator[dict[int, list[int]]]:
    """Which nodes of which streams to collect in each pass."""
    if memory is None:
        free = free_memory(input_device(model))
        memory = sys.maxsize if free is None else free // _SHARE
    portion: dict[int, list[int]] = {}
    taken = 0
    for number, nodes in wanted.items():
        size = found[number].stack.hidden_size
        each = 8 * size**2
        if each > memory:
            raise UsageError(
                f"one Gram of {size} dimensions takes {each:,} bytes and the budget is {memory:,}: give more (--memory)"
            )
        for index in nodes:
            if taken + each > memory:
                yield portion
                portion, taken = {}, 0
            portion.setdefault(number, []).append(index)
            taken += each
    yield portion


class _Collecting:
    """Moments of some nodes of a stream over one pass."""

    def __init__(self, stack: BlockStack, only: Collection[int]) -> None:
        self.stack, self.only = stack, frozenset(only)

    @contextmanager
    def watching(self) -> Iterator[Callable[[Part], None]]:
        """Collect, from nothing."""
        self.moments = StreamMoments(self.stack, only=self.only, centred=self.stack.post_norm)
        self.distinct = DistinctIds()

        def prepare(part: Part) -> None:
            self.moments.keep = keep = _keep(part, self.stack)
            shape = torch.Size((len(part.rows), part.length))
            ids = ids_of(part.inputs, shape) if part.main is self.stack else None
            self.distinct.add(None if ids is None else kept(ids[..., None], keep)[:, 0])

        with self.moments.watching():
            yield prepare


@contextmanager
def _together(collecting: Iterable[_Collecting]) -> Iterator[Callable[[Part], None]]:
    with ExitStack() as opened:
        each = [opened.enter_context(one.watching()) for one in collecting]

        def prepare(part: Part) -> None:
            for one in each:
                one(part)

        yield prepare


def _keep(part: Part, stack: BlockStack) -> Tensor | None:
    """Which positions of a stream count: those of the main one by its budget, others by a mask that fits them."""
    if part.main is stack:
        return None if part.keep is None else part.keep
    mask = part.inputs.get("attention_mask")
    if stack.role != "encoder" or not isinstance(mask, Tensor):
        return None
    return mask.bool() if mask.numel() == len(part.rows) * stack.tokens else None


def _wanted(stack: BlockStack, blocks: Collection[int] | None) -> list[int]:
    """Indices of the nodes to collect: of every block that was asked for also the node before it."""
    if blocks is None:
        return list(range(-1, len(stack.blocks)))
    if beyond := [index for index in blocks if not -1 <= index < len(stack.blocks)]:
        raise UsageError(f"{stack.path} has {len(stack.blocks)} blocks, from 0: there is no block {beyond[0]}")
    return sorted({*blocks, *(index - 1 for index in blocks if index >= 0)})


def _enough(tokens: int, size: int) -> None:
    if tokens < size:
        raise UsageError(
            f"{tokens} tokens in {size} dimensions: with N < d the smallest singular value is zero by counting alone; "
            f"give at least {_TOKENS_PER_DIMENSION * size}"
        )


def _first_row(model: nn.Module, calibration: Calibration) -> Mapping[str, Any]:
    batch = next(calibration.batches(), None)
    if batch is None:
        raise UsageError("no batches were given: there is nothing to trace")
    return placed(Rows.of(batch).take([0]), input_device(model))


def _final_norm(model: nn.Module, row: Mapping[str, Any]) -> NormSite | None:
    try:
        return final_norm(model, row)
    except UsageError:
        return None


def _bounds(model: nn.Module, stack: BlockStack) -> Tensor | None:
    parts = stream_of_module(model)
    if isinstance(parts, NoBound):
        return None
    bounds = torch.from_numpy(parts.bound())
    return bounds if bounds.shape == (len(stack.blocks) + 1, stack.hidden_size) else None


def _where_not_finite(passes: Passes, stack: BlockStack, index: int) -> str:
    """Which batch, row and token first hold a value that is not finite, and at which node; runs them once more."""
    found: list[str] = []
    for part in passes.parts():
        keep = _keep(part, stack)

        def see(node: int, stream: Tensor, part: Part = part, keep: Tensor | None = keep) -> None:
            bad = ~torch.isfinite(stream).all(-1).flatten()
            if found or not bool((bad if keep is None else bad & keep.flatten().to(bad.device)).any()):
                return
            place = int(bad.nonzero()[0])
            row, token = divmod(place, max(1, bad.numel() // len(part.rows)))
            block = "what enters the first block" if node < 0 else f"block {node} ({stack.blocks[node][0]})"
            found.append(f"batch {part.number}, row {part.rows[row]}, token {token}: {block} is not finite")

        with torch.no_grad(), tapped(stack, see):
            run(passes.model, part.inputs)
        if found:
            break
    where = found[0] if found else f"block {index} is not finite"
    return f"{where}: the model diverged, or overflows in its dtype; try another dtype"
