"""How many parameter dimensions are exactly dead: the result of ``census``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class TensorCount:
    """Dead dimensions that are counted under one tensor.

    Attributes:
        tensor: its name.
        dead: dead dimensions.
        parameters: its entries.
    """

    tensor: str
    dead: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class EmittedDirection:
    """The direction whose tensors ride along (``--emit``).

    Attributes:
        family: its reason.
        index: which direction of that family, from 0.
        counted_under: the tensor it is counted under.
        tensors: the tensors that it moves.
    """

    family: str
    index: int
    counted_under: str
    tensors: list[str]


@dataclass(frozen=True, kw_only=True)
class Census(Record):
    """Exactly dead parameter dimensions: independent directions along which no output changes, at any distance.

    Attributes:
        model_class: the class whose outputs were meant.
        output: logits (under a softmax) | hidden_state: what does not change.
        parameters: number of parameters P, tied ones once.
        dead_dimensions: how many independent dead dimensions the families have together.
        share: dead_dimensions / parameters.
        by_reason: dead dimensions by family; what two families share is counted with the first.
        by_tensor: the tensors with most of them.
        layernorm_kernel_share: share of P that the kernel of LayerNorm alone accounts for.
        rlct_upper_bound: (parameters - dead_dimensions)/2, an upper bound of the learning coefficient.
        generic_dead_dimensions: what the count would be with gains and shifts in general position: a random
            initialisation has shifts of zero, which training leaves.
        norms: number of norms that were taken into account.
        emitted: the direction asked for, null without ``--emit``.
        notes: what a reader of the numbers has to know.
        bytes_read: bytes read: config, headers and norm tensors.
        seconds: wall time, imports not included.
        revision: the commit on the hub that was read; None for other places.
    """

    kind_of_record: ClassVar[str] = "deadreckon.census/1"

    model_class: str
    output: str
    parameters: int
    dead_dimensions: int
    share: float
    by_reason: dict[str, int]
    by_tensor: list[TensorCount]
    layernorm_kernel_share: float
    rlct_upper_bound: float
    generic_dead_dimensions: int
    norms: int
    emitted: EmittedDirection | None
    notes: list[str]
    bytes_read: int
    seconds: float
    revision: str | None = None

    def headline(self) -> list[tuple[str, str]]:
        """Parameters, dead dimensions, and the bound."""
        return [
            ("model", self.model),
            ("parameters", f"{self.parameters:,}"),
            ("exactly dead dimensions", f"{self.dead_dimensions:,} ({self.share:.3%})"),
            ("learning coefficient at most", f"{self.rlct_upper_bound:,.1f}"),
        ]
