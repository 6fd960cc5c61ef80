"""The residual streams of a model as it is: lists of blocks, found by watching what they hand each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.anatomy import run
from deadreckon.forward.probe import norm_candidates

_LISTED = 8


@dataclass(frozen=True)
class BlockStack:
    """One residual stream.

    Attributes:
        path: module path of the list of blocks.
        role: final (the only stream) | decoder | encoder | vision | audio.
        blocks: path and module of each block in the order in which they run; one module may run several times.
        hidden_size: d.
        tokens: positions that one row of the inputs has in it.
        norm_output: for each block the path of the norm that makes what it hands on (post-norm); None without one.
    """

    path: str
    role: str
    blocks: tuple[tuple[str, nn.Module], ...]
    hidden_size: int
    tokens: int
    norm_output: tuple[str | None, ...]

    @property
    def post_norm(self) -> bool:
        """Whether most nodes are norm outputs, so that the stream has no identity path."""
        return 2 * sum(path is not None for path in self.norm_output) > len(self.norm_output)


def find_block_stacks(model: nn.Module, batch: Mapping[str, Any], path: str | None = None) -> list[BlockStack]:
    """The residual streams that one row of inputs runs through, in the order in which they end.

    Args:
        model: any module, in evaluation mode.
        batch: keyword arguments of its forward, one row on its device.
        path: the list of blocks to take instead of what is found.

    Returns:
        The streams, the main one (whose blocks run last) at the end.

    Raises:
        UsageError: no list of modules hands a stream on; the lists there are are named.
    """
    lists = dict(_lists(model))
    if path is not None and path not in lists:
        raise UsageError(f"{path!r} is no list of blocks of {type(model).__name__}: choose one of {_named(lists)}")
    calls = _watch(model, batch, {path: lists[path]} if path is not None else lists)
    chains: dict[str, list[_Call]] = {}
    for name in lists if path is None else [path]:
        if any(name.startswith(f"{outer}.") for outer in chains):
            continue
        chain = [call for call in calls if call.list_path == name]
        if chain and (path is not None or _hands_on(chain)):
            chains[name] = chain
    if not any(chain[0].given is not None for chain in chains.values()):
        raise UsageError(
            f"{type(model).__name__} has no list of blocks that hand a residual stream on: its lists are "
            f"{_named(lists) or 'none'}; name one with blocks_path=... (--blocks-path)"
        )
    ordered = sorted(chains, key=lambda name: calls.index(chains[name][-1]))
    return [_stack(name, chains[name], alone=len(ordered) == 1, main=name == ordered[-1]) for name in ordered]


@dataclass(eq=False)
class _Call:
    list_path: str
    path: str
    module: nn.Module
    given: Tensor | None
    made: Tensor | None = None
    norm_output: str | None = None


@contextmanager
def tapped(stack: BlockStack, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Show every node of a stream to `see` as it appears, while the context is open; the hooks leave with it.

    What runs later cannot change a tensor before it was shown. Open it anew after a pass that broke off.

    Args:
        stack: the stream.
        see: called with -1 and what enters the first block, then with the index and the output of every block.
    """
    ended = 0

    def enters(_: nn.Module, args: Any, kwargs: Any) -> None:
        if ended % len(stack.blocks) == 0 and (stream := stream_tensor([*args, kwargs], stack.hidden_size)) is not None:
            see(-1, stream)

    def leaves(_: nn.Module, _args: Any, output: Any) -> None:
        nonlocal ended
        if (stream := stream_tensor(output, stack.hidden_size)) is not None:
            see(ended % len(stack.blocks), stream)
        ended += 1

    handles = [stack.blocks[0][1].register_forward_pre_hook(enters, with_kwargs=True)]
    handles += [module.register_forward_hook(leaves) for module in dict.fromkeys(module for _, module in stack.blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stream_tensor(values: Any, width: int | None = None) -> Tensor | None:
    """The residual stream among a block's arguments or outputs: the first floating-point tensor (of that width).

    Args:
        values: a tensor, or a tuple, list or mapping of such.
        width: d; None for any.

    Returns:
        The tensor; None where there is none.
    """
    if isinstance(values, Tensor):
        fits = values.is_floating_point() and values.dim() > 1 and (width is None or values.shape[-1] == width)
        return values if fits else None
    if isinstance(values, Mapping):
        named = values.get("hidden_states")
        return stream_tensor(([named] if named is not None else []) + list(values.values()), width)
    if isinstance(values, tuple | list):
        return next((found for value in values if (found := stream_tensor(value, width)) is not None), None)
    return None


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Lists of modules, outermost first; a Sequential counts where its members are alike, as blocks are."""
    for path, module in model.named_modules():
        members = list(module.children())
        alike = isinstance(module, nn.Sequential) and len(members) > 1 and len({type(m) for m in members}) == 1
        if path and members and (isinstance(module, nn.ModuleList) or alike):
            yield path, module


def _watch(model: nn.Module, batch: Mapping[str, Any], lists: Mapping[str, nn.Module]) -> list[_Call]:
    """The calls of the lists' members over one forward pass, in the order in which they ended."""
    calls: list[_Call] = []
    running: list[_Call] = []
    norms = {module: path for path, module in norm_candidates(model)}
    made: dict[nn.Module, Tensor] = {}
    handles = []

    for name, members in lists.items():
        for key, member in members.named_children():

            def enters(
                module: nn.Module, args: Any, kwargs: Any, name: str = name, path: str = f"{name}.{key}"
            ) -> None:
                given = stream_tensor([*args, kwargs])
                running.append(_Call(name, path, module, None if given is None else given.clone()))

            def leaves(module: nn.Module, _args: Any, output: Any) -> None:
                call = running.pop()
                result = stream_tensor(output)
                call.made = None if result is None else result.clone()
                inside = (norms[p] for p in module.modules() if p in made and _same(made[p], call.made))
                call.norm_output = next(inside, None)
                calls.append(call)

            handles.append(member.register_forward_pre_hook(enters, with_kwargs=True))
            handles.append(member.register_forward_hook(leaves))

    def keep(module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[module] = output.clone()

    # Before the blocks' own hooks run, the norms inside must have been seen: hooks of inner modules run first.
    handles += [module.register_forward_hook(keep) for module in norms]
    try:
        with torch.no_grad():
            run(model, dict(batch))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _hands_on(chain: list[_Call]) -> bool:
    """Whether the members of a list take and give tensors of one shape, each the one before it."""
    if len(chain) < 2:
        return False
    shaped = [c for c in chain if c.given is not None and c.made is not None and c.given.shape == c.made.shape]
    handed = sum(_same(a.made, b.given) for a, b in pairwise(chain))
    return 3 * len(shaped) >= 2 * len(chain) and 3 * handed >= 2 * (len(chain) - 1)


def _stack(name: str, chain: list[_Call], *, alone: bool, main: bool) -> BlockStack:
    stream = chain[0].given if chain[0].given is not None else chain[0].made
    if stream is None:
        raise UsageError(f"the members of {name} put out no tensor that could be a residual stream: name another list")
    return BlockStack(
        path=name,
        role="final" if alone else _role(name, main=main),
        blocks=tuple((call.path, call.module) for call in chain),
        hidden_size=stream.shape[-1],
        tokens=stream[..., 0].numel(),
        norm_output=tuple(call.norm_output for call in chain),
    )


def _role(path: str, *, main: bool) -> str:
    if re.search("vision|visual|image|video", path):
        return "vision"
    if re.search("audio|speech", path):
        return "audio"
    return "decoder" if main else "encoder"


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a.to(b.device), b)


def _named(lists: Mapping[str, nn.Module]) -> str:
    shown = [f"{path} ({len(list(module.children()))})" for path, module in list(lists.items())[:_LISTED]]
    return ", ".join(shown) + (f" and {len(lists) - _LISTED} more" if len(lists) > _LISTED else "")
