"""A direction of the residual stream, followed through a pass: what the stream, a block's parts and the norm hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.forward.anatomy import NormSite
from deadreckon.forward.blocks import BlockStack, tapped
from deadreckon.forward.passes import Part
from deadreckon.forward.stream import kept
from deadreckon.forward.token_groups import TokenGroups
from deadreckon.forward.writers import GIVEN, MADE, Equation, inside

Keep = Callable[[Part, BlockStack], Tensor | None]


@dataclass
class Followed:
    """What a pass shows of a direction u around a block. X is the stream after the block before it.

    Attributes:
        index: of the block.
        direction: u, of shape (d,).
        equation: how the block's output is made.
        parts: `BEFORE`, `GIVEN`, `MADE` or the name of a writer -> its component along u, token by token.
        squares: index of a node from the one before the block on -> |X u|^2 there.
        columns: the same of the two nodes around the block -> squared norms of the stream's columns, shape (d,).
        normed: component along u's image in the final norm's output, and that output's mean square, by token.
    """

    index: int
    direction: Tensor
    equation: Equation
    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    squares: dict[int, float] = field(default_factory=dict)
    columns: dict[int, Tensor] = field(default_factory=dict)
    normed: list[Tensor] = field(default_factory=list)

    def along(self, name: str) -> Tensor:
        """Component along u of all tokens, float64 on the host, shape (N,).

        Args:
            name: a key of `parts`.

        Returns:
            The components.
        """
        return torch.cat(self.parts[name])

    def clear(self) -> None:
        """Forget what a pass that broke off has shown."""
        for seen in (self.parts, self.squares, self.columns, self.normed):
            seen.clear()


BEFORE = "<<"  # the node before the block: what the block is given, unless the model adds to it in between


@contextmanager
def following(
    stack: BlockStack, followed: Sequence[Followed], keep: Keep, final: NormSite | None, tokens: TokenGroups
) -> Iterator[Callable[[Part], None]]:
    """Project what a pass shows on every direction, from nothing; the hooks leave with the context.

    Args:
        stack: the stream.
        followed: what to follow; filled in.
        keep: which positions of the stream count in a part.
        final: the norm at the stream's end, where it was found.
        tokens: filled in likewise.

    Yields:
        What is to be told each part before it runs.
    """
    mask: Tensor | None = None
    tokens.clear()
    for each in followed:
        each.clear()

    def prepare(part: Part) -> None:
        nonlocal mask
        mask = keep(part, stack)
        tokens.begin(part, mask)

    def node(index: int, stream: Tensor) -> None:
        if index == -1:
            tokens.saw(stream)
        if not (near := [each for each in followed if index >= each.index - 1]):
            return
        rows = kept(stream, mask).double()
        columns = rows.square().sum(0) if any(index <= each.index for each in near) else None
        for each in near:
            along = rows @ each.direction.to(rows.device)
            each.squares[index] = each.squares.get(index, 0.0) + float(along.square().sum())
            if columns is not None and index <= each.index:
                each.columns[index] = each.columns.get(index, 0.0) + columns
            if index == each.index - 1:
                each.parts.setdefault(BEFORE, []).append(along.cpu())

    def part_of(each: Followed) -> Callable[[str, Tensor], None]:
        def see(name: str, stream: Tensor) -> None:
            rows = kept(stream, mask).double()
            each.parts.setdefault(name, []).append((rows @ each.direction.to(rows.device)).cpu())

        return see

    def normed(_: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or (mask is not None and output[..., 0].numel() != mask.numel()):
            return  # it norms other tokens than the stream's
        rows = kept(output, mask).double()
        for each in followed:
            image = _image(each.direction, final).to(rows.device)
            each.normed.append(torch.stack([rows @ image, rows.square().mean(1)]).cpu())

    with ExitStack() as stacked:
        stacked.enter_context(tapped(stack, node))
        for each in followed:
            names = [GIVEN, MADE, *(writer.name for writer in each.equation.writers)]
            stacked.enter_context(inside(stack, each.index, part_of(each), names))
        if final is not None:
            stacked.callback(final.module.register_forward_hook(normed).remove)
        yield prepare


def _image(direction: Tensor, final: NormSite | None) -> Tensor:
    """The direction in which a norm's output shows the stream's direction: that divided by the gain, normalised."""
    if final is None:
        return direction
    gain = torch.from_numpy(final.norm.gain).to(direction.device)
    image = torch.where(gain != 0, direction / torch.where(gain != 0, gain, 1.0), 0.0)
    return torch.nn.functional.normalize(image, dim=0)
