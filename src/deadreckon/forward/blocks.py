"""The residual streams of a model as it is: lists of blocks, found by watching what they hand each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.anatomy import base_model, last_hidden_state, run
from deadreckon.forward.placement import at_hand
from deadreckon.forward.probe import norm_candidates, probe_norm

_LISTED = 8
_IDS = ("decoder_input_ids", "input_ids")  # one entry a token of the stream
_CARRIED = 0.25  # <given, made>/|given|^2 of a block that adds to what it was given; about zero of a plain convolution


@dataclass(frozen=True)
class BlockStack:
    """One residual stream.

    Attributes:
        path: module path of the list of blocks.
        role: final (what makes the last hidden state) | decoder (the same, of an encoder-decoder; or what runs after
            it) | encoder (what runs before it) | vision | audio.
        blocks: path and module of each block in the order in which they run; one module may run several times.
        hidden_size: d.
        tokens: positions that one row of the inputs has in it.
        norm_output: for each block the path of the norm that makes what it hands on (post-norm); None without one.
        axes: order of a stream tensor's axes that puts rows first, then positions, coordinates last; empty: as it is.
    """

    path: str
    role: str
    blocks: tuple[tuple[str, nn.Module], ...]
    hidden_size: int
    tokens: int
    norm_output: tuple[str | None, ...]
    axes: tuple[int, ...] = ()

    @property
    def post_norm(self) -> bool:
        """Whether most nodes are norm outputs, so that the stream has no identity path."""
        return 2 * sum(path is not None for path in self.norm_output) > len(self.norm_output)

    def stream(self, values: Any) -> Tensor | None:
        """The stream among a block's arguments or outputs.

        Args:
            values: a tensor, or a tuple, list or mapping of such.

        Returns:
            The tensor, shape (rows, positions, ..., d) unless the model itself flattens them; None where there is none.
        """
        if not self.axes:
            return stream_tensor(values, self.hidden_size)
        found = stream_tensor(values)
        fits = found is not None and found.dim() == len(self.axes) and found.shape[self.axes[-1]] == self.hidden_size
        return found.permute(self.axes) if found is not None and fits else None


def find_block_stacks(model: nn.Module, batch: Mapping[str, Any], path: str | None = None) -> list[BlockStack]:
    """The residual streams that one row of inputs runs through, in the order in which they end, the main one last.

    Args:
        model: any module, in evaluation mode.
        batch: keyword arguments of its forward, one row on its device.
        path: the list of blocks to take instead of what is found.

    Returns:
        The streams; at the end the one that makes the last hidden state, or else the one whose blocks run last.

    Raises:
        UsageError: no list of modules hands a stream on, or that of `path` does not; the lists there are are named.
    """
    lists = dict(_lists(model))
    if path is not None and path not in lists:
        raise UsageError(f"{path!r} is no list of blocks of {type(model).__name__}: choose one of {_named(lists)}")
    seen = _watch(model, batch, {path: lists[path]} if path is not None else lists)
    chains: dict[str, _Chain] = {}
    for name in lists if path is None else [path]:
        chain = seen.chains[name]
        if not any(name.startswith(f"{outer}.") for outer in chains) and chain.is_stream(asked_for=path is not None):
            chains[name] = chain
    if path is not None and not chains:
        what = "puts out no one stream" if seen.chains[path].calls else "does not run on these inputs"
        raise UsageError(f"{path} {what}: choose another of {_named(lists)}")
    if not chains:
        raise UsageError(
            f"{type(model).__name__} has no list of blocks that hand a residual stream on: its lists are "
            f"{_named(lists) or 'none'}; name one with blocks_path=... (--blocks-path)"
        )
    ordered = sorted(chains, key=lambda name: chains[name].ended)
    main = next((name for name in ordered if seen.ends_in(chains[name])), ordered[-1])
    after = ordered[ordered.index(main) :]
    takes = next((batch[name].shape[-1] for name in _IDS if isinstance(batch.get(name), Tensor)), 0)
    paired = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)) and path is None

    def role(name: str) -> str:
        if name == main:
            return "decoder" if paired else "final"
        kinds = (("vision", "vision|visual|image|video"), ("audio", "audio|speech"))
        beside = "decoder" if name in after else "encoder"
        return next((kind for kind, words in kinds if re.search(words, name)), beside)

    return [chains[name].stack(name, role(name), takes) for name in sorted(ordered, key=lambda name: name == main)]


@dataclass
class _Call:
    """What is kept of one call of one block: no tensor."""

    path: str
    module: nn.Module
    given: torch.Size | None
    made: torch.Size | None
    handed: bool
    carried: bool
    norm_output: str | None


@dataclass
class _Chain:
    """The calls of a list's members, and what the last of them put out."""

    calls: list[_Call] = field(default_factory=list)
    last: Tensor | None = None
    ended: int = 0

    def is_stream(self, *, asked_for: bool) -> bool:
        """Whether the members take and give tensors of one shape, each that of the one before it."""
        calls = self.calls
        if asked_for:
            return bool(calls) and calls[0].made is not None and len({call.made for call in calls}) == 1
        if len(calls) < 2:
            return False
        enough = 2 * len(calls) / 3
        shaped = sum(call.given is not None and call.given == call.made for call in calls)
        handed = sum(call.handed for call in calls[1:])
        carried = self._channel() == -1 or sum(call.carried for call in calls) >= enough
        return shaped >= enough and 3 * handed >= 2 * (len(calls) - 1) and carried

    def _channel(self) -> int:
        """The axis of the coordinates: 1 where only that has the size of any vector or matrix of the block."""
        shape = self.calls[0].made
        sizes = {n for p in self.calls[0].module.parameters() if p.dim() < 3 for n in p.shape}
        return 1 if shape is not None and len(shape) > 2 and shape[-1] not in sizes and shape[1] in sizes else -1

    def stack(self, name: str, role: str, takes: int) -> BlockStack:
        """The stream that these calls hand on; `takes`: token ids of a row, or 0."""
        shape = self.calls[0].made
        if shape is None:
            raise UsageError(f"the members of {name} put out no tensor that could be a residual stream: name another")
        axes = list(range(len(shape)))
        axes.append(axes.pop(self._channel()))
        row = next((axis for axis in axes[:-1] if shape[axis] == 1), axes[0])
        places = [axis for axis in axes[:-1] if axis != row]
        tokens = shape[:-1].numel() if self._channel() == -1 else shape[2:].numel()
        # Several vectors a token (streams side by side): positions come first, the vectors of each after it.
        if len(places) > 1 and takes in (shape[axis] for axis in places):
            places.sort(key=lambda axis: shape[axis] != takes)
            tokens = takes
        axes = [row, *places, axes[-1]] if len(shape) > 2 else axes
        return BlockStack(
            path=name,
            role=role,
            blocks=tuple((call.path, call.module) for call in self.calls),
            hidden_size=shape[axes[-1]],
            tokens=tokens,
            norm_output=tuple(call.norm_output for call in self.calls),
            axes=() if axes == sorted(axes) else tuple(axes),
        )


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
        if ended % len(stack.blocks) == 0 and (stream := stack.stream([*args, kwargs])) is not None:
            see(-1, stream)

    def leaves(_: nn.Module, _args: Any, output: Any) -> None:
        nonlocal ended
        if (stream := stack.stream(output)) is not None:
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


@dataclass
class _Seen:
    """What one forward pass showed.

    Attributes:
        chains: of every list.
        norms: path -> input and output of every norm that ran outside the blocks.
        hidden: the last hidden state.
    """

    chains: dict[str, _Chain]
    norms: dict[str, tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    hidden: Tensor | None = None

    def ends_in(self, chain: _Chain) -> bool:
        """Whether a chain's end, normed or not, is the last hidden state."""
        made_by = (given for given, made in self.norms.values() if _same(made, self.hidden))
        return any(_same(chain.last, each) for each in (self.hidden, *made_by))


def _watch(model: nn.Module, batch: Mapping[str, Any], lists: Mapping[str, nn.Module]) -> _Seen:
    """One forward pass; of each list no more than the newest output is held."""
    seen = _Seen({name: _Chain() for name in lists})
    running: list[Tensor | None] = []
    paths = {module: path for path, module in norm_candidates(model)}
    made: dict[nn.Module, Tensor] = {}  # by the norms inside the blocks that are running
    ended = 0

    def normed(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and running:
            made[module] = output.clone()
        elif isinstance(output, Tensor):
            given = stream_tensor(args)
            seen.norms[paths[module]] = (None if given is None else given.clone(), output.clone())

    def enters(_: nn.Module, args: Any, kwargs: Any) -> None:
        given = stream_tensor([*args, kwargs])
        running.append(None if given is None else given.clone())

    def leaves(name: str, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            nonlocal ended
            given, chain, result = running.pop(), seen.chains[name], stream_tensor(output)
            maker = next((norm for norm in module.modules() if norm in made and _same(made[norm], result)), None)
            chain.calls.append(
                _Call(
                    path=path,
                    module=module,
                    given=None if given is None else given.shape,
                    made=None if result is None else result.shape,
                    handed=_same(chain.last, given),
                    carried=_carried(given, result),
                    norm_output=None if maker is None or not _is_norm(maker, result) else paths[maker],
                )
            )
            chain.last = None if result is None else result.clone()
            ended += 1
            chain.ended = ended
            if not running:
                made.clear()

        return hook

    def done(_: nn.Module, _args: Any, output: Any) -> None:
        hidden = last_hidden_state(output)
        seen.hidden = None if hidden is None else hidden.clone()

    # A norm that is itself a member of a list must have been seen before the list's own hooks run.
    handles = [module.register_forward_hook(normed) for module in paths]
    for name, members in lists.items():
        for key, member in members.named_children():
            handles.append(member.register_forward_pre_hook(enters, with_kwargs=True))
            handles.append(member.register_forward_hook(leaves(name, f"{name}.{key}")))
    handles.append(base_model(model).register_forward_hook(done))
    try:
        with torch.no_grad():
            run(model, dict(batch))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _is_norm(module: nn.Module, output: Tensor | None) -> bool:
    with at_hand(module):
        return probe_norm(module, None if output is None else output.shape[-1]) is not None


def _carried(given: Tensor | None, made: Tensor | None) -> bool:
    """Whether a block's output holds its input."""
    if given is None or made is None or given.shape != made.shape:
        return False
    before, after = given.flatten().float(), made.flatten().to(given.device).float()
    return bool(before @ after >= _CARRIED * (before @ before))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a.to(b.device), b)


def _named(lists: Mapping[str, nn.Module]) -> str:
    shown = [f"{path} ({len(list(module.children()))})" for path, module in list(lists.items())[:_LISTED]]
    return ", ".join(shown) + (f" and {len(lists) - _LISTED} more" if len(lists) > _LISTED else "")
