"""What the parameters alone say: the results of ``read`` and ``classify``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One observation about a norm's kind.

    Attributes:
        name: what was looked at: architecture | timm_architecture | graph_node | shift_tensor | epsilon_key | adapter |
            weights_fingerprint | functional | given.
        says: layernorm | rmsnorm | none | undetermined.
        strength: decisive | strong | weak.
        value: what was seen.
    """

    name: str
    says: str
    strength: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One coordinate of a unit vector."""

    index: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Direction:
    """A unit vector in words: how many coordinates it spreads over and which it leans on.

    Attributes:
        participation_ratio: 1/sum(w^4): 1 for a coordinate axis, d for an even spread.
        top: the largest coordinates by magnitude.
    """

    participation_ratio: float
    top: list[Coordinate]


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """A file that the result rests on. `sha256` covers what `covers` says: the whole file, or its header only."""

    name: str
    bytes: int
    sha256: str
    covers: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The stamp of a whole file, read through once."""
        import hashlib

        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(name=path.name, bytes=path.stat().st_size, sha256=digest, covers="file")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What went over the network.

    Attributes:
        requests: HTTP requests, redirects that were followed and second attempts counted.
        bytes: received in the bodies of answers.
    """

    requests: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class NormReading:
    """What a norm's parameters say about its output.

    Attributes:
        role: final | head | encoder | decoder | vision | block.
        kind: layernorm | rmsnorm.
        hidden_size: d.
        tau: tolerance of the predicted dead count, relative to the mean eigenvalue.
        final_norm: name of the gain tensor (of the module, where the norm has no parameters).
        gain_offset: what the module adds to the stored tensor.
        kernel_dim: dimension of the exact kernel.
        dead_count: predicted number of dead directions at `tau`.
        zero_gains: number of gains that are exactly zero.
        smallest_gain: smallest effective gain's magnitude.
        median_gain: median magnitude.
        largest_gain: largest magnitude.
        direction: the dead direction, where the kernel is exactly one direction.
        beta_projection: w.shift, the constant that the dead direction reads for every input; None without a direction.
        predicted_eigenvalues: smallest predicted eigenvalues relative to their mean, ascending.
        gain_depth_decades: log10(mean(gain^2) mean(gain^-2)), by how much rounding along the dead direction is smaller,
            relative to the mean variance, than with even gains; None where a gain is zero.
    """

    role: str
    kind: str
    hidden_size: int
    final_norm: str
    gain_offset: float
    tau: float
    kernel_dim: int
    dead_count: int
    zero_gains: int
    smallest_gain: float
    median_gain: float
    largest_gain: float
    direction: Direction | None
    beta_projection: float | None
    predicted_eigenvalues: list[float]
    gain_depth_decades: float | None = None


@dataclass(frozen=True, kw_only=True)
class BoundedCoordinate:
    """One coordinate of the residual stream and the bound of its magnitude after the last block."""

    index: int
    bound: float


@dataclass(frozen=True, kw_only=True)
class StreamReading:
    """What the parameters alone say about the coordinates of the residual stream.

    Attributes:
        applies: whether every write to the stream passes a norm, so that the stream has a bound; where not, the fields
            below are None or empty.
        why: why there is no bound, or why the embedding is not in it; None where there is nothing to say.
        covers: stream, or writes where the embedding is not in the bound: then it is of what the blocks add.
        inputs: any token ids | token ids alone, which leaves out inputs that take an embedding's place (images, audio):
            for these only `unwritten_coordinates` holds.
        architecture: the row of the table of streams that was applied.
        blocks: number of blocks.
        hidden_size: d.
        norms: the norms that write, ``*`` for a block's index.
        tolerance: a bound counts as zero up to this times the median bound.
        dead_coordinates: number of coordinates whose bound after the last block counts as zero; None where the
            embedding is not in the bound.
        unwritten_coordinates: number of coordinates to which the blocks can add nothing, by the same tolerance.
        bound_min: smallest bound of a coordinate after the last block.
        bound_median: median bound.
        bound_max: largest bound.
        smallest: coordinates of the smallest bounds, ascending.
        largest: coordinates of the largest bounds, descending.
        block_scalars: what each block multiplies the stream by; empty where blocks have no scalar.
        scalar_product: the product of their magnitudes: what is left of the embedding's scale at the end.
        embedding_term: whether the bound includes the embedding.
        embedding_scale: what the model multiplies its embedding by.
        bytes_read: bytes read for this: norms, scalars and the embedding.
    """

    applies: bool
    why: str | None = None
    covers: str | None = None
    inputs: str | None = None
    architecture: str | None = None
    blocks: int | None = None
    hidden_size: int | None = None
    norms: list[str] = field(default_factory=list)
    tolerance: float | None = None
    dead_coordinates: int | None = None
    unwritten_coordinates: int | None = None
    bound_min: float | None = None
    bound_median: float | None = None
    bound_max: float | None = None
    smallest: list[BoundedCoordinate] = field(default_factory=list)
    largest: list[BoundedCoordinate] = field(default_factory=list)
    block_scalars: list[float] = field(default_factory=list)
    scalar_product: float | None = None
    embedding_term: bool = False
    embedding_scale: float | None = None
    bytes_read: int = 0


@dataclass(frozen=True, kw_only=True)
class Reading(NormReading, Record):
    """What the parameters alone say: the result of ``read``.

    Attributes:
        norms: every norm asked for, the top-level one first.
        evidence: why the top-level norm is taken to be of its kind.
        files: what was opened.
        bytes_read: bytes read: config, headers and norm tensors, and what `stream` has read.
        seconds: wall time of the read, imports not included.
        revision: the commit on the hub that was read; None for other places.
        transfer: what that took over the network; None for files of this machine.
        stream: bounds of the residual stream's coordinates, where asked for (``--stream``).
    """

    kind_of_record: ClassVar[str] = "deadreckon.read/1"

    norms: list[NormReading]
    evidence: list[Evidence]
    files: list[FileStamp]
    bytes_read: int
    seconds: float
    revision: str | None = None
    transfer: Transfer | None = None
    stream: StreamReading | None = None

    def headline(self) -> list[tuple[str, str]]:
        """Model, norm, and how many directions are dead."""
        return [
            ("model", self.model),
            ("final norm", f"{self.final_norm} ({self.kind}, d = {self.hidden_size})"),
            ("exact kernel", f"{self.kernel_dim} direction(s)"),
            (f"predicted dead at {self.tau:g}", str(self.dead_count)),
        ]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The kind of a model's final norm, with the evidence and what contradicts it.

    Attributes:
        model: as it was named.
        kind: layernorm | rmsnorm | none | undetermined.
        evidence: each observation by itself.
        contradictions: a sentence for each observation that says otherwise, and for each trace of a conversion.
        revision: the commit on the hub that was read; None for other places.
        bytes_read: bytes read: config, headers, norms, and parts of the matrices that were looked at.
    """

    model: str
    kind: str
    evidence: list[Evidence]
    contradictions: list[str]
    revision: str | None = None
    bytes_read: int = 0


@dataclass(frozen=True, kw_only=True)
class Classifications(Record):
    """The result of ``classify``: one entry a model."""

    kind_of_record: ClassVar[str] = "deadreckon.classify/1"

    results: list[Classification]

    def headline(self) -> list[tuple[str, str]]:
        """One row a model."""
        return [(result.model, result.kind) for result in self.results]
