"""What a residual stream does over depth: the results of ``trace``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.measurement import Environment
from deadreckon.results.reading import FileStamp
from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class Node:
    """The stream at one place. Singular values are of X, tokens by coordinates, divided by the root of their number.

    Attributes:
        index: of the block that put it out; -1: what enters the first block.
        block: module path of that block; empty for -1.
        sigma_min: smallest singular value, from above.
        sigma_min_error: by how much less it may be.
        sigma_floor: what rounding of the stored stream and of the Gram may make of zero.
        sigma_min_centred: smallest singular value about the mean token, where every node is a norm's output; else None.
        sigma_geomean: geometric mean of the singular values above the floor.
        sigma_max: largest, from below, to a few hundredths.
        step_ratio: sigma_min over that of the node before; None at the first, and where that is at its floor.
        relative_step_ratio: the same in units of the geometric mean: a change of the whole stream's scale drops out.
        cumulative_ratio: sigma_min over that of node -1.
        status: ok | rank_limited (the inputs do not span the stream yet) | at_floor.
    """

    index: int
    block: str
    sigma_min: float
    sigma_min_error: float
    sigma_floor: float
    sigma_min_centred: float | None = None
    sigma_geomean: float
    sigma_max: float
    step_ratio: float | None = None
    relative_step_ratio: float | None = None
    cumulative_ratio: float | None = None
    status: str = "ok"


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One coordinate of a direction and its weight there, the square of its entry."""

    coordinate: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class StreamDirection:
    """A unit vector of the stream.

    Attributes:
        participation_ratio: 1/sum u^4: 1 for a single coordinate, d for an even spread.
        top: coordinates of the largest weight.
    """

    participation_ratio: float
    top: list[Coordinate]


@dataclass(frozen=True, kw_only=True)
class Write:
    """What a part of a block adds along a direction u.

    Attributes:
        module: path of the part.
        coefficient: with which its output enters the block's.
        share: of the input's component that it cancels, -<Xu, Wu>/|Xu|^2: 1 cancels all of it.
        correlation: of its component with the input's, about zero: -1 is cancellation.
    """

    module: str
    coefficient: float
    share: float
    correlation: float


@dataclass(frozen=True, kw_only=True)
class TokenGroup:
    """How much of a direction some tokens carry.

    Attributes:
        group: a modality, or positions ``first-last``.
        tokens: their share of all tokens.
        before: their share of |Xu|^2 before the block.
        after: their share after it.
    """

    group: str
    tokens: float
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class StreamEvidence:
    """The numbers behind an event's cause, those of the other candidates included. u is the direction after the block.

    Attributes:
        step_ratio: that of the node after the block.
        relative_step_ratio: likewise.
        before: |Xu|/sqrt(N) before the block.
        after: the same after it.
        floor: sigma_floor after it.
        correlation: of what the parts write along u together, with what was there, about zero: -1 is cancellation;
            None where nothing is written. Taken, like the next two, in units of the input, a scalar taken out.
        write_ratio: |what they write together| over |what was there|, along u.
        remainder: |what the block hands on, less its input and what they write| over |what was there|, along u.
        writes: the parts that add up to what the block adds.
        unexplained_write: share of the block's output off u that they leave over, on one row of the inputs.
        scalar: factor of the block's whole output; None where there is none.
        scalar_tensor: one-element tensor of the block with that value.
        dead_coordinates: coordinates whose column fell below `collapse_ratio` of itself and of the median column.
        dead_weight: share of u on them.
        norm_alignment: |<u, w>|, w the dead direction of the norm that makes the block's output; None without one.
        tokens: how groups of tokens carry the direction.
        carriers: smallest share of tokens that carries 99 % of |Xu|^2 before the block.
        parameter_bound: largest |h_j| after the block that the parameters allow on the heaviest coordinate of u; None
            where they bound nothing.
        survives_to: last block up to which the direction stays below `collapse_ratio` times what it was.
        last: |Xu|/sqrt(N) after the last block.
        after_final_norm: standard deviation along the direction's image through the final norm, relative to the root
            mean square of its output; None where it was not seen.
        attributed_to: block whose rescaling is the cause of a collapse further on.
    """

    step_ratio: float
    relative_step_ratio: float | None
    before: float
    after: float
    floor: float
    correlation: float | None
    write_ratio: float
    remainder: float
    writes: list[Write]
    unexplained_write: float | None
    scalar: float | None
    scalar_tensor: str | None
    dead_coordinates: list[int]
    dead_weight: float
    norm_alignment: float | None
    tokens: list[TokenGroup]
    carriers: float | None
    parameter_bound: float | None
    survives_to: int
    last: float
    after_final_norm: float | None
    attributed_to: int | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """A block over which the smallest singular value falls.

    Attributes:
        block: its index.
        module: its path.
        kind: rescaled (the whole stream shrank, or grew past the direction) | collapsed (a direction was lost).
        cause: branch_cancellation | block_scalar | dead_coordinate | norm_node | token_subset | precision_floor |
            unexplained. Where the event is attributed to an earlier one, the cause of that.
        says: the cause in words.
        direction: bottom right-singular vector after the block.
        evidence: what the cause was decided by.
    """

    block: int
    module: str
    kind: str
    cause: str
    says: str
    direction: StreamDirection
    evidence: StreamEvidence


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One residual stream.

    Attributes:
        role: final | decoder (the main one of an encoder-decoder, or one beside the main) | encoder | vision | audio.
        blocks_path: module path of its list of blocks.
        hidden_size: d.
        tokens: N.
        tokens_per_dimension: N/d.
        distinct_inputs: number of distinct token ids; None for other inputs.
        blocks: the nodes, by index.
        worst_block: index of the smallest step ratio; None without one.
        verdict: preserved | eased | rescaled | collapsed | not_applicable.
        why: what the verdict rests on, in words.
        events: where it falls below the collapse ratio, with causes.
        warnings: what limits the result.
    """

    role: str
    blocks_path: str
    hidden_size: int
    tokens: int
    tokens_per_dimension: float
    distinct_inputs: int | None
    blocks: list[Node]
    worst_block: int | None
    verdict: str
    why: str
    events: list[Event]
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class Trace(Stream, Record):
    """The result of ``trace``: the stream that makes the last hidden state, and beside it every stream of the model.

    Attributes:
        collapse_ratio: step ratios below it are events.
        streams: all streams, this one first.
        data: what the inputs were.
        skipped_inputs: how many unreadable inputs were left out.
        seed: of random weights and inputs.
        revision: of the model, where it has one.
        files: the files that were loaded.
        affine: how gains and shifts were redrawn, or None.
        environment: device, dtype and versions.
        passes: forward passes over the inputs.
        seconds: wall time, loading included.
    """

    kind_of_record: ClassVar[str] = "deadreckon.trace/1"

    collapse_ratio: float
    streams: list[Stream]
    data: str
    skipped_inputs: int
    seed: int
    revision: str | None
    files: list[FileStamp]
    affine: str | None
    environment: Environment
    passes: int
    seconds: float

    def headline(self) -> list[tuple[str, str]]:
        """Verdict, worst block and events."""
        rows = [("model", self.model), ("verdict", f"{self.verdict}: {self.why}")]
        rows += [(f"block {event.block}", f"{event.kind}, {event.says}") for event in self.events]
        return rows
