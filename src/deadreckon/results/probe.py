"""A norm layer by itself, nothing assumed about its formula: the result of ``probe``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.reading import Coordinate
from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class KernelDirection:
    """A direction of the output that no input makes vary.

    Attributes:
        participation_ratio: 1/sum(w^4): 1 for a coordinate axis, d for an even spread.
        top: the largest coordinates by magnitude.
        constant: w.y, the same for every token; None where it differs between distributions of tokens.
    """

    participation_ratio: float
    top: list[Coordinate]
    constant: float | None


@dataclass(frozen=True, kw_only=True)
class Invariance:
    """One property of the layer as a function.

    Attributes:
        name: shift_invariant | shift_equivariant | scale_invariant | scale_equivariant | even | odd (up to a constant)
            | permutation_equivariant.
        holds: exact | to_eps (as closely as a small constant under a root allows) | no.
        deviation: rms of the difference that would be zero, over the output's spread.
    """

    name: str
    holds: str
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Probe(Record):
    """What a layer does to random tokens, and whether its output has a linear kernel.

    Standard deviations are those of the output with every coordinate scaled to 1, over tokens of all distributions.

    Attributes:
        hidden_size: d.
        layout: how tokens were handed over: tokens (n, d) | batched (b, t, d) | channels_first (b, d, t) | image
            (b, d, h, w).
        layouts: all of these that the layer takes.
        training: whether it ran in training mode.
        parameters: its floating-point parameters.
        tokens: tokens of each distribution.
        seed: of tokens and draws.
        kernel_dim: number of directions without variance for the parameters as given; None where a direction is neither
            rounding nor clear of it.
        inherent_dim: number that is there for all parameters tried; None where that is undetermined.
        directions: the kernel's first directions; the whole basis rides along (``--save``).
        largest_dead: largest standard deviation that counts as zero; None without a kernel.
        dead_floor: largest rounding error along those directions.
        smallest_live: smallest standard deviation that does not; None where nothing varies.
        live_floor: rounding error along that direction.
        gap: smallest_live over the larger of its floor and largest_dead.
        undetermined: number of directions that are neither.
        by_distribution: kernel dimension for each distribution of tokens by itself; ``centred`` tokens have zero mean.
        by_draw: kernel dimension for other parameters: redrawn, and redrawn with a third of a vector's entries zero.
        depends_on: the parameters that move the kernel.
        kernel_form: the kernel in a formula, where one fits.
        invariances: how the output follows its input.
        elementwise: whether an output coordinate depends on its own input coordinate alone.
        mixes_tokens: whether an output depends on other tokens (batch statistics).
        quadratic_constraints: constraints on squares of the outputs, such as a fixed length; None where d is too large.
        noise: rounding error of an output, relative: about 1e-16 in float64, 1e-7 where the layer goes through float32.
        verdict: inherent | parameters (a kernel of the given values alone) | none | undetermined.
        says: the verdict in words.
        notes: what a reader of the numbers has to know.
        torch: version of PyTorch.
        seconds: wall time, imports not included.
    """

    kind_of_record: ClassVar[str] = "deadreckon.probe/1"

    hidden_size: int
    layout: str
    layouts: list[str]
    training: bool
    parameters: list[str]
    tokens: int
    seed: int
    kernel_dim: int | None
    inherent_dim: int | None
    directions: list[KernelDirection]
    largest_dead: float | None
    dead_floor: float | None
    smallest_live: float | None
    live_floor: float | None
    gap: float | None
    undetermined: int
    by_distribution: dict[str, int | None]
    by_draw: dict[str, int | None]
    depends_on: list[str]
    kernel_form: str | None
    invariances: list[Invariance]
    elementwise: bool
    mixes_tokens: bool
    quadratic_constraints: int | None
    noise: float
    verdict: str
    says: str
    notes: list[str]
    torch: str
    seconds: float

    def headline(self) -> list[tuple[str, str]]:
        """Dimension of the kernel, and the verdict."""
        dim = "undetermined" if self.kernel_dim is None else str(self.kernel_dim)
        return [("layer", self.model), ("kernel dimension", f"{dim} of {self.hidden_size}"), ("verdict", self.says)]
