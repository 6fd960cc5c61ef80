"""The paper's claims beside our figures: the result of ``reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.measurement import Environment, GapFigure
from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, what the paper reports for it and what was measured.

    Attributes:
        name: kernel | no_kernel | gain | residual | classification | fisher | depth | further.
        says: the claim in words.
        theirs: the paper's figure; empty where the claim is not the paper's.
        ours: the figure measured here.
        verdict: confirmed | partly | refuted | not_tested.
    """

    name: str
    says: str
    theirs: str
    ours: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A model at random initialisation, in one dtype, over all seeds.

    "Plain" are the weights of the model's own initialiser, where every gain is 1; "redrawn" has log-normal gains and
    normal shifts in every norm. Of alignments the one furthest from the claim is kept: the smallest of a LayerNorm
    model, the largest of an RMSNorm model.

    Attributes:
        model: as it was named.
        parameters: of the published configuration, tied weights once; None for others.
        listed_as: layernorm | rmsnorm, by the paper's list; empty where it is not on it.
        kind_read: kind by the parameters alone; empty where they were not read.
        kind_seen: kind by the forward pass: layernorm where the kernel is there, rmsnorm where it is not.
        hidden_size: d.
        blocks: of the residual stream; None where it was not traced.
        dtype: that it ran in.
        data: what the inputs were.
        tokens_per_dimension: N/d.
        seeds: of weights and inputs.
        alignment: |cos| of gain^-1 and the bottom eigenvector, plain.
        alignment_mean: its mean over seeds.
        alignment_redrawn: the same, redrawn.
        uniform_redrawn: of 1/sqrt(d), redrawn, at its largest.
        random_level: |cos| that a random direction has on average, sqrt(2/(pi d)).
        dead_share: largest native variance along gain^-1 over the mean variance, plain.
        dead_share_float64: the same for the float64 norm.
        protocol: ok | failed.
        trace: verdict on the residual stream, the worst over seeds; empty where it was not traced.
        smallest_step_ratio: of sigma_min, over all blocks and seeds.
        events: what the trace names, in words.
        seconds: of all its tasks.
    """

    model: str
    parameters: int | None
    listed_as: str
    kind_read: str
    kind_seen: str
    hidden_size: int
    blocks: int | None
    dtype: str
    data: str
    tokens_per_dimension: float
    seeds: list[int]
    alignment: float
    alignment_mean: float
    alignment_redrawn: float | None
    uniform_redrawn: float | None
    random_level: float
    dead_share: float
    dead_share_float64: float
    protocol: str
    trace: str
    smallest_step_ratio: float | None
    events: list[str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainedRow:
    """A trained model beside its random-init twins.

    Attributes:
        model: as it was named.
        kind: layernorm | rmsnorm.
        hidden_size: d.
        dtype: that it ran in.
        data: what the inputs were.
        tokens_per_dimension: N/d.
        subspace_alignment: of the tested directions with the measured bottom.
        depth_decades: log10(mean variance/variance along gain^-1), native.
        deepening: trained minus the twins' mean, decades.
        gain_decades: what the gain alone explains of it, log10(mean(gain^2) mean(gain^-2)); None where a gain is 0.
        dead: dead directions (float64, at tau).
        dead_twin: of the twins, at most.
        algebraic_dead: those that the gain explains.
        learned_dead: those that it does not.
        effective_rank_change: trained minus the twins' mean.
        trace: verdict on the residual stream; empty where it was not traced.
    """

    model: str
    kind: str
    hidden_size: int
    dtype: str
    data: str
    tokens_per_dimension: float
    subspace_alignment: float
    depth_decades: float | None
    deepening: float | None
    gain_decades: float | None
    dead: int
    dead_twin: int
    algebraic_dead: int
    learned_dead: int
    effective_rank_change: GapFigure
    trace: str


@dataclass(frozen=True, kw_only=True)
class FisherRow:
    """Directional Fisher information at a model's head.

    Attributes:
        model: as it was named.
        kind: layernorm | rmsnorm.
        is_dead: whether the exact step's is rounding.
        ratio: over that of random steps of the same length.
    """

    model: str
    kind: str
    is_dead: bool
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A task that failed.

    Attributes:
        model: as it was named.
        verb: which verb was called.
        why: the reason.
    """

    model: str
    verb: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Reproduction(Record):
    """Every claim with its verdict, and the table under it. `model` says which scale.

    Attributes:
        claims: the claims.
        models: random-init models.
        trained: trained models.
        fisher: heads.
        failures: tasks that failed.
        environment: of the first measurement.
        store: folder that holds every task's record.
        seconds: wall time of the tasks together.
    """

    kind_of_record: ClassVar[str] = "deadreckon.reproduction/1"

    claims: list[Claim]
    models: list[ModelRow]
    trained: list[TrainedRow]
    fisher: list[FisherRow]
    failures: list[Failure]
    environment: Environment | None
    store: str
    seconds: float

    def headline(self) -> list[tuple[str, str]]:
        """One row a claim."""
        return [(claim.says, f"{claim.verdict}: {claim.ours}") for claim in self.claims]
