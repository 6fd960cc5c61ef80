"""What a forward pass shows: the results of ``measure`` and ``demo``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.reading import FileStamp, Reading
from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Whether the measured module is the norm that the parameters were read for.

    Attributes:
        status: ok | failed.
        norm_residual: |y - norm64(x)|/|y - shift| over all tokens, each token's error divided by |x|/|x - mean|, the
            factor by which subtracting its mean magnifies rounding.
        norm_tolerance: the largest residual that rounding of the native dtype explains.
        kernel_variance: largest float64 variance along the kernel, in units of d/|gain^-1|^2 (of the mean variance for
            zero gains); None where no kernel is predicted.
        kernel_tolerance: the largest value that float64 rounding explains.
        why: what failed, in words; empty when ok.
    """

    status: str
    norm_residual: float
    norm_tolerance: float
    kernel_variance: float | None
    kernel_tolerance: float
    why: str


@dataclass(frozen=True, kw_only=True)
class KFac:
    """The input-side factor A = E[(y,1)(y,1)^T] of K-FAC for the norm's readers, y the norm's output.

    Attributes:
        constant: c = w.shift, w the tested direction.
        homogeneous_quotient: Rayleigh quotient of A along (w, -c), from projected tokens.
        bias_free_quotient: that of E[y y^T] along w: lambda_w + c^2.
        eigenvalue_min: smallest eigenvalue of A.
        eigenvalue_2: the next one.
        eigenvalue_mean: mean eigenvalue.
        eigenvalue_max: largest eigenvalue.
        floor: what A in float64 resolves.
        alignment: |cos| between (w, -c) and the eigenvector of the smallest eigenvalue.
    """

    constant: float
    homogeneous_quotient: float
    bias_free_quotient: float
    eigenvalue_min: float
    eigenvalue_2: float
    eigenvalue_mean: float
    eigenvalue_max: float
    floor: float
    alignment: float


@dataclass(frozen=True, kw_only=True)
class Eigenvalues:
    """Eigenvalues of the covariance in about a hundred ranks: enough to draw the spectrum, whatever its size.

    Attributes:
        ranks: 1 is the smallest eigenvalue, d the largest. All of both ends and even steps of log(rank) between them;
            with the `bottom` solver those it solved for, and d.
        native: eigenvalues in these ranks, of the output as the model computed it. With the `bottom` solver those above
            a hundredth of the mean are upper bounds, the last one apart.
        float64: likewise, of the norm recomputed in float64.
        native_floor: what rounding of the norm and of the covariance may make of zero along each eigenvector of
            `native`; with the `bottom` solver null for the last one.
        float64_floor: what rounding of the covariance alone may make of zero, in any rank of `float64`.
    """

    ranks: list[int]
    native: list[float]
    float64: list[float]
    native_floor: list[float | None]
    float64_floor: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Second-order statistics of one norm's output over the calibration tokens.

    "Native" is the output as the model computed it; "float64" is the same norm recomputed in float64 from its captured
    input. Eigenvalues are of the centred covariance. A value at or below its floor is rounding and means "at the
    floor".

    Attributes:
        norm: module path of the norm.
        kind: layernorm | rmsnorm.
        hidden_size: d.
        tau: tolerance of `predicted_dead` and of the algebraic/learned split, relative to the mean eigenvalue.
        tokens: N, masked positions excluded.
        tokens_per_dimension: N/d.
        distinct_inputs: number of distinct token ids among them; None for other inputs.
        kernel_dim: dimension of the exact kernel that the gain predicts.
        predicted_dead: predicted dead count at `tau`.
        tested: what the alignment figures test: kernel, or candidate (gain^-1 of a norm that predicts no kernel: a
            control).
        alignment: |<w, u_1>|, w the tested direction and u_1 the native bottom eigenvector.
        alignment_uniform: the same for 1/sqrt(d) in place of w.
        alignment_float64: alignment with the float64 bottom eigenvector.
        bottom_simple: whether the bottom eigenvalue stands alone, without which `alignment` says little.
        subspace_alignment: |U_k^T w|, U_k the k = max(1, predicted dead) bottom native eigenvectors; the smallest such
            value over the span where several directions are tested.
        largest_principal_angle: between the predicted dead subspace and U_k, radians; None when nothing is predicted
            dead.
        largest_principal_angle_floor: angle that the rounding of the accumulated covariance may make; a smaller one is
            at the floor.
        largest_principal_angle_float64: the same for the float64 eigenvectors.
        largest_principal_angle_float64_floor: its floor.
        lambda_dead: largest native variance along the tested direction(s), from projected tokens.
        lambda_dead_floor: the part of it that the norm's own rounding explains, measured.
        lambda_dead_at_floor: whether `lambda_dead` is rounding; never so when the protocol check failed.
        lambda_dead_float64: the same for the float64 norm.
        lambda_dead_float64_floor: the part of it that float64 rounding explains, d u^2 in the direction's own unit.
        lambda_dead_float64_at_floor: whether `lambda_dead_float64` is rounding.
        lambda_dead_rank: number of native eigenvalues below `lambda_dead`; None where it exceeds those solved for.
        lambda_min: smallest native eigenvalue.
        lambda_min_floor: rounding of the norm and of the covariance along its eigenvector.
        lambda_min_at_floor: whether `lambda_min` is rounding.
        lambda_2: second smallest.
        lambda_2_floor: its floor.
        lambda_2_at_floor: whether `lambda_2` is rounding.
        lambda_mean: trace/d.
        lambda_max: largest.
        spectral_gap: lambda_2/lambda_min; None when lambda_min is at its floor.
        condition_number: lambda_max/lambda_min; None when lambda_min is at its floor.
        depth_decades: log10(lambda_mean/lambda_dead), native; None when lambda_dead is exactly 0.
        depth_decades_float64: the same for the float64 norm.
        dead_counts: number of float64 eigenvalues <= tau * mean, by tau.
        dead_counts_native: the same for the native output.
        algebraic_dead: dead directions at `tau` that the gain explains.
        learned_dead: those that it does not.
        effective_rank: exp of the entropy of the normalised singular values; None with the `bottom` solver.
        participation_ratio: (sum lambda)^2/sum lambda^2.
        stable_rank: sum lambda/lambda_max.
        schur_ratio: 1 - S/lambda_dead, S the variance of w.y left after regression on the other directions; None where
            lambda_dead is 0, the tested subspace has several directions, the model runs in float64, or the `bottom`
            solver was asked for.
        schur_reference: (d-1)/(N-1), a lower reference for it, not a null.
        protocol: the check that these figures are about the norm that was read.
        spectrum: eigenvalues to draw; None in records of versions that did not keep them.
        kfac: the readers' Kronecker factor along the dead direction, where it was asked for.
        warnings: what limits these figures.
    """

    norm: str
    kind: str
    hidden_size: int
    tokens: int
    tokens_per_dimension: float
    distinct_inputs: int | None
    tau: float
    kernel_dim: int
    predicted_dead: int
    tested: str
    alignment: float
    alignment_uniform: float
    alignment_float64: float
    bottom_simple: bool
    subspace_alignment: float
    largest_principal_angle: float | None
    largest_principal_angle_floor: float | None
    largest_principal_angle_float64: float | None
    largest_principal_angle_float64_floor: float | None
    lambda_dead: float
    lambda_dead_floor: float
    lambda_dead_at_floor: bool
    lambda_dead_float64: float
    lambda_dead_float64_floor: float
    lambda_dead_float64_at_floor: bool
    lambda_dead_rank: int | None
    lambda_min: float
    lambda_min_floor: float
    lambda_min_at_floor: bool
    lambda_2: float
    lambda_2_floor: float
    lambda_2_at_floor: bool
    lambda_mean: float
    lambda_max: float
    spectral_gap: float | None
    condition_number: float | None
    depth_decades: float | None
    depth_decades_float64: float | None
    dead_counts: dict[str, int]
    dead_counts_native: dict[str, int]
    algebraic_dead: int
    learned_dead: int
    effective_rank: float | None
    participation_ratio: float
    stable_rank: float
    schur_ratio: float | None
    schur_reference: float
    protocol: Protocol
    spectrum: Eigenvalues | None = None
    kfac: KFac | None = None
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class Twin(Figures):
    """The same figures for a random-init twin: same config and tokens, weights of the model's own initialiser."""

    seed: int


@dataclass(frozen=True, kw_only=True)
class GapFigure:
    """One init-to-trained change: trained minus the twins' mean, with the smallest and largest twin subtracted instead.

    Each is None where the quantity does not exist on one side (a depth of exactly zero variance).
    """

    change: float | None
    smallest: float | None
    largest: float | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Init-to-trained gap.

    Attributes:
        depth_decades: of the native depth.
        lambda_dead_decades: of log10 of the native variance along the tested direction.
        effective_rank: of the effective rank.
        dead_counts: of the float64 dead counts, by tau.
    """

    depth_decades: GapFigure
    lambda_dead_decades: GapFigure
    effective_rank: GapFigure
    dead_counts: dict[str, GapFigure]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and with what a measurement was made."""

    device: str
    dtype: str
    python: str
    platform: str
    libraries: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Measurement(Figures, Record):
    """One forward pass of a model: the result of ``measure``.

    Attributes:
        revision: revision of the model, where it has one.
        described_by: where the norm's description comes from: checkpoint (its files, as `read` reads them) | module
            (its own parameters).
        files: the files that were loaded.
        data: what the calibration tokens are.
        skipped_inputs: number of images or sounds that were left out because they cannot be read.
        seed: seed of everything random.
        affine: how gains and shifts were redrawn, or None.
        solver: eigensolver.
        environment: device, dtype and versions.
        seconds: wall time, loading included.
        twins: the random-init twins.
        gap: the init-to-trained gap; None without twins.
    """

    kind_of_record: ClassVar[str] = "deadreckon.measure/1"

    revision: str | None
    described_by: str
    files: list[FileStamp]
    data: str
    skipped_inputs: int
    seed: int
    affine: str | None
    solver: str
    environment: Environment
    seconds: float
    twins: list[Twin]
    gap: Gap | None

    def headline(self) -> list[tuple[str, str]]:
        """Model, norm, protocol and the alignment figures."""
        return [
            ("model", self.model),
            ("norm", f"{self.norm} ({self.kind}, d = {self.hidden_size})"),
            ("tokens", f"{self.tokens} ({self.tokens_per_dimension:.1f} per dimension)"),
            ("protocol", self.protocol.status),
            ("predicted dead / exact kernel", f"{self.predicted_dead} / {self.kernel_dim}"),
            ("alignment, subspace", f"{self.alignment:.6f}, {self.subspace_alignment:.6f}"),
            ("dead directions (float64)", ", ".join(f"{n} at {tau}" for tau, n in self.dead_counts.items())),
        ]


@dataclass(frozen=True, kw_only=True)
class Shard(Record):
    """One share of a measurement, not concluded: the result of ``measure --shard``.

    Attributes:
        revision: revision of the model, where it has one.
        norm: module path of the norm.
        kind: layernorm | rmsnorm.
        hidden_size: d.
        groups: groups that are normalised apart.
        eps: of the norm.
        gain_offset: what the module adds to its stored gain.
        dtype: of the norm's output.
        described_by: checkpoint | module.
        files: the files that were loaded.
        data: what the calibration tokens are.
        skipped_inputs: number of images or sounds that were left out because they cannot be read.
        seed: seed of everything random.
        affine: how gains and shifts were redrawn, or None.
        twins: seeds of the random-init twins that were measured too.
        shard: which share, i/n.
        tokens: tokens in this share.
        wanted_tokens: tokens asked for over all shares; None for all there are.
        distinct_inputs: number of distinct token ids in this share; None for other inputs.
        environment: device, dtype and versions.
        seconds: wall time, loading included.
        warnings: what limits the figures.
    """

    kind_of_record: ClassVar[str] = "deadreckon.shard/1"

    revision: str | None
    norm: str
    kind: str
    hidden_size: int
    groups: int
    eps: float | None
    gain_offset: float
    dtype: str
    described_by: str
    files: list[FileStamp]
    data: str
    skipped_inputs: int
    seed: int
    affine: str | None
    twins: list[int]
    shard: str
    tokens: int
    wanted_tokens: int | None
    distinct_inputs: int | None
    environment: Environment
    seconds: float
    warnings: list[str]

    def headline(self) -> list[tuple[str, str]]:
        """Model, norm, and how much of the whole this is."""
        return [
            ("model", self.model),
            ("norm", f"{self.norm} ({self.kind}, d = {self.hidden_size})"),
            ("shard", self.shard),
            ("tokens", str(self.tokens)),
        ]


@dataclass(frozen=True, kw_only=True)
class Demonstration(Record):
    """What was read and what was measured on the demo models: the result of ``demo``."""

    kind_of_record: ClassVar[str] = "deadreckon.demo/1"

    readings: list[Reading]
    measurements: list[Measurement]

    def headline(self) -> list[tuple[str, str]]:
        """One row a model."""
        return [
            (m.model, f"{m.kind}: {r.dead_count} dead predicted, {m.algebraic_dead + m.learned_dead} measured")
            for r, m in zip(self.readings, self.measurements, strict=True)
        ]
