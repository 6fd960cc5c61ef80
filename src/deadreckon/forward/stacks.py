"""Where a transformers model normalises its residual streams, found by watching one forward pass of a tiny instance.

Nothing is read off names: the norm that ends a stream is the one whose output *is* the model's last hidden state, bit
for bit; a block list is a module list whose elements hand each other the stream; placement is decided by which norms
see a block's input, make its output, or add up to what it writes.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deadreckon.errors import DeadreckonError
from deadreckon.forward.hidden_states import hidden_states
from deadreckon.forward.likeness import alike, relation, same
from deadreckon.forward.probe import NormProbe, probe_norms
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.watching import Call, redraw, watch

# A block's output is its input plus its writes, rounded at every addition in float32: a few 6e-8 each.
_ADDS_UP = 1e-5
_MOST_WRITERS = 6


@dataclass(frozen=True)
class Stack:
    """One residual stream of a model and the norm that ends it.

    Attributes:
        role: final (the only stack) | decoder | encoder | vision.
        norm: module path of the norm that makes the stack's hidden state; None: it ends without one.
        blocks: module path of the list of blocks; None where none was recognised.
        placement: post | pre | sandwich | branch | None, see `find_stacks`.
        why: what makes the hidden state instead, where there is no norm.
        note: anything that a reader of this norm has to know.
    """

    role: str
    norm: str | None
    blocks: str | None = None
    placement: str | None = None
    why: str | None = None
    note: str | None = None


def find_stacks(model: nn.Module, probes: Mapping[str, NormProbe] | None = None) -> list[Stack]:
    """The residual streams of a tiny model, the main one first.

    Placement: *post*, a block's output is a norm's output; *pre*, a norm sees the block's input; *branch*, all that a
    block adds to its input are outputs of norms; *sandwich*, pre and branch.

    Args:
        model: a transformers model as `tiny_model` builds it. Its norms are redrawn in place.
        probes: its norms, when they are known already.

    Returns:
        One entry a hidden state that the model (or a tower of it that did not run) reports; none where it reports none.

    Raises:
        UsageError: no inputs were found under which the model runs.
    """
    probes = probe_norms(model) if probes is None else probes
    redraw(model, probes)
    output, calls = watch(model, tiny_inputs(model))
    lists = _block_lists(model, calls) or _block_lists(model, calls, kind=nn.Sequential)
    hidden = hidden_states(output, calls, probes)
    if not hidden:
        return []
    vision = "pixel" in getattr(model, "main_input_name", "")
    stacks = []
    for key in sorted(hidden, key=_rank):
        stack = _stack(hidden[key], _role(key, hidden), model, probes, calls, lists)
        pooled = _pooled_norm(hidden[key], probes, calls) if stack.norm is None else None
        if stack.norm is not None or pooled is None or key == "last_hidden_state":
            stacks.append(stack)
        if pooled is not None:
            note = "acts on the pooled token only; the stream itself ends without a norm"
            role = "vision" if vision or stack.role == "vision" else stack.role
            stacks.append(replace(stack, role=role, norm=pooled, why=None, note=note))
    ran = {call.path for call in calls}
    for path, tower in _towers(model, ran):
        stacks += _tower_stacks(path, tower)
    return stacks


def _tower_stacks(path: str, tower: nn.Module) -> Iterator[Stack]:
    """The streams of a tower that the model's main input does not reach, run on its own."""
    role = "vision" if re.search("pixel|image|video|vision|visual", " ".join(_argument_names(tower))) else "encoder"
    try:
        found = find_stacks(tower)
    except (DeadreckonError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        yield Stack(role, None, why=f"{path}: {_first_line(error)}")
        return
    named = [stack for stack in found if stack.norm is not None] or found[:1]
    for stack in named:
        norm, blocks = (f"{path}.{part}" if part else None for part in (stack.norm, stack.blocks))
        yield replace(stack, role=role, norm=norm, blocks=blocks)


def _stack(
    hidden: Tensor,
    role: str,
    model: nn.Module,
    probes: Mapping[str, NormProbe],
    calls: Sequence[Call],
    lists: Mapping[str, Sequence[Call]],
) -> Stack:
    norm, note = None, None
    for call in reversed(calls):
        if call.path in probes and call.made is not None and (follows := relation(call.made, hidden)) is not None:
            norm, note = call, follows or None
            break
    path = norm.path if norm else None
    maker = None if norm else next((c for c in calls if c.path and alike(c.made, hidden)), None)  # the innermost
    fed = next((c for c in reversed(calls) if maker and c.path in probes and alike(c.made, maker.given)), None)
    end = norm or fed
    blocks = _blocks_behind(end.path if end else "", end.given if end else hidden, lists)
    if blocks is None:
        anchor = end or maker
        blocks = max(lists, key=lambda p: _common(p, anchor.path if anchor else ""), default=None)
    placement = _placement(lists[blocks], probes, calls) if blocks else None
    why = None
    if maker is not None and blocks and maker.path.startswith(f"{blocks}."):
        why = "the last block's output is the last hidden state"
    elif maker is not None:
        why = f"{maker.path} ({type(model.get_submodule(maker.path)).__name__}) makes the last hidden state"
        why += " out of a norm's output" if fed else ""
    elif norm is None:
        why = "no module's output is the last hidden state"
    if norm is None and blocks and not fed:
        blocks, placement, why = _without_norm(hidden, model, probes, calls, lists) or (blocks, placement, why)
    return Stack(role, path, blocks, placement, why, note)


def _without_norm(
    hidden: Tensor,
    model: nn.Module,
    probes: Mapping[str, NormProbe],
    calls: Sequence[Call],
    lists: Mapping[str, Sequence[Call]],
) -> tuple[str, str, str] | None:
    """Blocks, placement and why, where what takes the last blocks' output is seen, and no norm is called behind it."""
    blocks = max(lists, key=lambda p: _place(lists[p][-1], calls))
    last = lists[blocks][-1]
    inner = _block_lists(model, calls, within=f"{last.path}.")  # blocks of the last stage
    chains = (chain[start:] for chain in (lists[blocks], *inner.values()) for start in range(len(chain) - 1))
    placement = next((found for chain in chains if (found := _placement(chain, probes, calls))), None)
    behind = calls[_place(last, calls) + 1 :]
    if placement is None:
        return None
    if relation(last.made, hidden) is not None:
        return blocks, placement, "the last block's output is the last hidden state"
    source = "the last block's output"
    taker = _taker(last, behind)
    if taker is not None and taker.path in probes:
        source, taker = "a norm's output", _taker(taker, behind)
    elif any(call.path in probes for call in behind):
        return None
    module = model.get_submodule(taker.path) if taker else model
    if taker is None or not any(p.dim() > 1 for p in module.parameters(recurse=False)):
        return None  # it may hold a norm, or be one, that probing does not recognise
    return blocks, placement, f"{taker.path} ({type(module).__name__}) takes {source}"


def _place(call: Call, calls: Sequence[Call]) -> int:
    return next(i for i, other in enumerate(calls) if other is call)


def _taker(maker: Call, calls: Sequence[Call]) -> Call | None:
    """The innermost module that is given what another one made."""
    return next((call for call in calls if call is not maker and alike(maker.made, call.given)), None)


def _blocks_behind(path: str, source: Tensor | None, lists: Mapping[str, Sequence[Call]]) -> str | None:
    """The block list that a norm lies in, or else the one whose last block made what the norm is given."""
    inside = next((p for p in lists if path.startswith(f"{p}.")), None)
    if inside is not None or source is None:
        return inside
    return next((p for p, chain in lists.items() if relation(chain[-1].made, source) is not None), None)


def _placement(chain: Sequence[Call], probes: Mapping[str, NormProbe], calls: Sequence[Call]) -> str | None:
    block = chain[min(1, len(chain) - 1)]
    if block.given is None or block.made is None or block.given.shape != block.made.shape:
        return None
    end = _place(block, calls)
    begin = next((i + 1 for i in range(end - 1, -1, -1) if any(calls[i] is member for member in chain)), 0)
    inside = [c for c in calls[begin:end] if c.path in probes]
    if any(alike(call.made, block.made) for call in inside):
        return "post"
    pre = any(alike(call.given, block.given) for call in inside)
    size = block.made.numel()
    made = [m.reshape(block.made.shape).double() for c in inside if (m := c.made) is not None and m.numel() == size]
    written, scale = (block.made - block.given).double(), float(block.made.double().norm())
    branch = any(
        float((written - torch.stack(subset).sum(0)).norm()) <= _ADDS_UP * scale
        for count in range(1, min(len(made), _MOST_WRITERS) + 1)
        for subset in itertools.combinations(made, count)
    )
    return {(True, True): "sandwich", (True, False): "pre", (False, True): "branch"}.get((pre, branch))


def _block_lists(
    model: nn.Module, calls: Sequence[Call], within: str = "", kind: type[nn.Module] = nn.ModuleList
) -> dict[str, list[Call]]:
    """Module lists whose elements hand each other the stream, outermost first, with their calls."""
    found: dict[str, list[Call]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, kind) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if not path.startswith(within):
            continue
        chain = [c for c in calls if c.path.rpartition(".")[0] == path and c.path.rpartition(".")[2].isdigit()]
        handed = sum(same(a.made, b.given) for a, b in itertools.pairwise(chain))
        if len(chain) > 1 and 3 * handed >= 2 * (len(chain) - 1):
            found[path] = chain
    return found


def _pooled_norm(hidden: Tensor, probes: Mapping[str, NormProbe], calls: Sequence[Call]) -> str | None:
    """The norm that sees some tokens of a hidden state that was not normed itself."""
    some = (c for c in reversed(calls) if c.path in probes and 0 < _size(c.given) < hidden.numel())
    return next((c.path for c in some if c.given is not None and relation(hidden, c.given)), None)


def _role(key: str, hidden: Mapping[str, Tensor]) -> str:
    if re.search("vision|image|video", key):
        return "vision"
    if key.startswith("encoder_"):
        return "encoder"
    if key != "last_hidden_state" and "last_hidden_state" in hidden:
        return "decoder"  # a second stream beside the main one
    return "decoder" if any(other.startswith("encoder_") for other in hidden) else "final"


def _rank(key: str) -> tuple[bool, bool, str]:
    return (key != "last_hidden_state", "text" not in key, key)


def _towers(model: nn.Module, ran: set[str]) -> Iterator[tuple[str, nn.Module]]:
    from transformers import PreTrainedModel

    seen: list[str] = []
    for path, module in model.named_modules():
        if (
            path
            and isinstance(module, PreTrainedModel)
            and path not in ran
            and not any(path.startswith(f"{s}.") for s in seen)
        ):
            seen.append(path)
            yield path, module


def _argument_names(module: nn.Module) -> list[str]:
    return [
        *inspect.signature(module.forward).parameters,
        getattr(module, "main_input_name", ""),
        type(module).__name__.lower(),
    ]


def _size(tensor: Tensor | None) -> int:
    return -1 if tensor is None else tensor.numel()


def _common(a: str, b: str) -> int:
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a.split("."), b.split("."), strict=False))
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
