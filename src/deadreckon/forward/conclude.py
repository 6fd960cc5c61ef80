"""The figures that follow from the statistics of a pass: alignment, depth, dead counts, each with its floor."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.precision import AT_FLOOR, UNIT_ROUNDOFF, at_floor
from deadreckon.forward.protocol import protocol, rounding_unit
from deadreckon.forward.spectrum import Eigensolver, Spectrum, eigensolver
from deadreckon.forward.statistics import NormStatistics
from deadreckon.kernel.norm import Float64Array
from deadreckon.results.measurement import Eigenvalues

TAUS = (1e-2, 1e-4, 1e-6, 1e-8)
_SMALLEST, _BETWEEN, _LARGEST = 24, 64, 12  # ranks that are kept of a spectrum


class Conclusion(NamedTuple):
    """Field names and values of `results.Figures`, and the vectors behind them as NumPy arrays."""

    figures: dict[str, Any]
    vectors: dict[str, Float64Array]


def conclude(statistics: NormStatistics, solver: Eigensolver, tau: float) -> Conclusion:
    """The figures that follow from what was collected.

    Args:
        statistics: of one norm over a pass.
        solver: turns covariances into spectra.
        tau: tolerance of the predicted dead subspace and of the algebraic/learned split.

    Returns:
        The figures, and the tested directions, predicted dead subspace, spectra and bottom eigenvectors.

    Raises:
        UsageError: too few tokens to tell a dead direction from a missing one.
    """
    subspace, tested, count = statistics.subspace, statistics.tested, statistics.count
    size = subspace.hidden_size
    if count - 1 <= size:
        raise UsageError(
            f"{count} tokens in {size} dimensions: with N - 1 <= d the covariance is singular by counting alone; "
            f"give at least {4 * size} tokens"
        )
    predicted = torch.from_numpy(subspace.dead_basis(tau)).to(tested.device)
    width = max(1, predicted.shape[1])
    native, exact = _spectra(statistics, solver, at_least=min(width + 1, size))
    lambdas = native.eigenvalues
    second = min(1, size - 1)
    noise = _noise(statistics, native.eigenvectors) + native.floor
    bottom_at_floor = at_floor(float(lambdas[0]), float(noise[0]))
    dead, dead_floor, dead_exact = (
        float(_largest_eigenvalue(moments.covariance()))
        for moments in (statistics.projected, statistics.projected_error, statistics.projected_exact)
    )
    # The sum of d rounded terms: relative errors of size u in each, independent, in the direction's own unit.
    exact_floor = size * UNIT_ROUNDOFF**2 * float(rounding_unit(statistics).max())
    # An eigenvector means something when its gap exceeds what rounding may have moved the two eigenvalues by.
    simple = bool(size == 1 or lambdas[1] - lambdas[0] > AT_FLOOR * (noise[0] + noise[1]))
    dead_total = exact.dead_count(tau)
    algebraic = _algebraic(statistics, predicted, exact.mean, tau)
    uniform = torch.full((size, 1), size**-0.5, dtype=torch.float64, device=tested.device)
    check = protocol(statistics)
    rank = int((lambdas < dead).sum())
    figures = {
        "hidden_size": size,
        "kind": subspace.kind.name,
        "tokens": count,
        "tokens_per_dimension": count / size,
        "tau": tau,
        "kernel_dim": subspace.kernel_dim,
        "predicted_dead": predicted.shape[1],
        "tested": "kernel" if subspace.kernel_dim else "candidate",
        "alignment": _alignment(tested, native.eigenvectors[:, :1]),
        "alignment_uniform": _alignment(uniform, native.eigenvectors[:, :1]),
        "alignment_float64": _alignment(tested, exact.eigenvectors[:, :1]),
        "bottom_simple": simple,
        "subspace_alignment": _alignment(tested, native.eigenvectors[:, :width], every=True),
        "largest_principal_angle": _largest_angle(predicted, native),
        "largest_principal_angle_floor": _angle_floor(predicted, native),
        "largest_principal_angle_float64": _largest_angle(predicted, exact),
        "largest_principal_angle_float64_floor": _angle_floor(predicted, exact),
        "lambda_dead": dead,
        "lambda_dead_floor": dead_floor,
        # The floor is the deviation from the norm that was read: a wrong norm deviates without being rounding.
        "lambda_dead_at_floor": check.status == "ok" and at_floor(dead, dead_floor),
        "lambda_dead_float64": dead_exact,
        "lambda_dead_float64_floor": exact_floor,
        "lambda_dead_float64_at_floor": at_floor(dead_exact, exact_floor),
        "lambda_dead_rank": rank if native.rest is None or rank < len(lambdas) else None,
        "lambda_min": float(lambdas[0]),
        "lambda_min_floor": float(noise[0]),
        "lambda_min_at_floor": bottom_at_floor,
        "lambda_2": float(lambdas[second]),
        "lambda_2_floor": float(noise[second]),
        "lambda_2_at_floor": at_floor(float(lambdas[second]), float(noise[second])),
        "lambda_mean": native.mean,
        "lambda_max": native.largest,
        "spectral_gap": None if bottom_at_floor else float(lambdas[second] / lambdas[0]),
        "condition_number": None if bottom_at_floor else native.largest / float(lambdas[0]),
        "depth_decades": _decades(native.mean, dead),
        "depth_decades_float64": _decades(exact.mean, dead_exact),
        "dead_counts": {f"{t:.0e}": exact.dead_count(t) for t in TAUS},
        "dead_counts_native": {f"{t:.0e}": native.dead_count(t) for t in TAUS},
        "algebraic_dead": algebraic,
        "learned_dead": dead_total - algebraic,
        "effective_rank": native.effective_rank(),
        "participation_ratio": native.participation_ratio(),
        "stable_rank": native.stable_rank(),
        "schur_ratio": _schur_ratio(statistics, native, predicted, dead),
        "schur_reference": (size - 1) / (count - 1),
        "protocol": check,
        "spectrum": _sampled(native, exact, noise),
        "warnings": _warnings(count, exact, simple=simple),
    }
    vectors = {
        "tested": tested,
        "predicted_dead": predicted,
        "bottom_eigenvectors": native.eigenvectors[:, :width],
        "eigenvalues": native.eigenvalues,
        "eigenvalues_float64": exact.eigenvalues,
    }
    return Conclusion(figures, {name: tensor.cpu().numpy() for name, tensor in vectors.items()})


def _spectra(statistics: NormStatistics, solver: Eigensolver, at_least: int) -> list[Spectrum]:
    kept: list[Tensor | None] = [None, None]
    if statistics.kept is not None:
        kept = [torch.cat(batches) for batches in zip(*statistics.kept, strict=True)]
    moments = (statistics.native, statistics.exact)
    spectra = solver.solve_all(moments, kept)
    if min(len(spectrum.eigenvalues) for spectrum in spectra) < at_least:
        spectra = eigensolver("eigh").solve_all(moments, kept)
    return spectra


def _noise(statistics: NormStatistics, vectors: Tensor) -> Tensor:
    """Variance that the norm's own rounding has along unit vectors (columns), shape (k,)."""
    # Measured along the tested directions; elsewhere the errors of different coordinates are taken as independent.
    inside = statistics.tested.T @ vectors
    along = (inside * (statistics.projected_error.covariance() @ inside)).sum(0)
    outside = vectors - statistics.tested @ inside
    return along + statistics.error.variance() @ outside.square()


def _sampled(native: Spectrum, exact: Spectrum, noise: Tensor) -> Eigenvalues:
    """The eigenvalues that a record keeps."""
    size, known = native.size, min(len(native.eigenvalues), len(exact.eigenvalues))
    ranks = kept_ranks(size) if known == size else list(range(1, known + 1))
    at = torch.tensor(ranks, device=noise.device) - 1
    values = [spectrum.eigenvalues[at].tolist() for spectrum in (native, exact)]
    floors: list[float | None] = noise[at].tolist()
    if known < size:
        ranks, floors = [*ranks, size], [*floors, None]
        values = [[*found, spectrum.largest] for found, spectrum in zip(values, (native, exact), strict=True)]
    return Eigenvalues(ranks=ranks, native=values[0], float64=values[1], native_floor=floors, float64_floor=exact.floor)


def kept_ranks(size: int) -> list[int]:
    """Ranks, from 1, in which a record keeps the eigenvalues of a whole spectrum.

    Args:
        size: d.

    Returns:
        Both ends without a gap and even steps of log(rank) between them, ascending.
    """
    between = {round(_SMALLEST * (size / _SMALLEST) ** (step / _BETWEEN)) for step in range(_BETWEEN)}
    ends = {*range(1, _SMALLEST + 1), *range(size - _LARGEST + 1, size + 1)}
    return sorted(rank for rank in between | ends if 1 <= rank <= size)


def _algebraic(statistics: NormStatistics, predicted: Tensor, mean: float, tau: float) -> int:
    """How many of the dead directions lie in the subspace that the gain predicts."""
    if predicted.shape[1] == 0:
        return 0
    values = torch.linalg.eigvalsh(predicted.T @ statistics.exact.covariance() @ predicted)
    return int((values <= tau * mean).sum())


def _schur_ratio(statistics: NormStatistics, native: Spectrum, predicted: Tensor, dead: float) -> float | None:
    """1 - S/lambda_dead, S what is left of Var(w.y) after regression on what is outside the dead subspace."""
    tested = statistics.tested
    # In float64 it is a ratio of two floors; and a solver that spares the whole spectrum spares this solve too.
    if tested.shape[1] != 1 or dead <= 0.0 or statistics.dtype == torch.float64 or native.rest is not None:
        return None
    covariance = statistics.native.covariance()
    excluded = predicted if predicted.shape[1] else tested
    projector = torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
    projector = projector - excluded @ excluded.T
    cross = projector @ (covariance @ tested[:, 0])
    # The excluded directions get the mean variance, so that the system is regular and leaves them out of the answer.
    system = projector @ covariance @ projector + native.mean * (excluded @ excluded.T)
    solution: Tensor
    solution, info = torch.linalg.solve_ex(system, cross)
    if bool(info):
        return None
    return float(torch.dot(cross, solution)) / dead


def _warnings(count: int, exact: Spectrum, *, simple: bool) -> list[str]:
    size = exact.size
    found = []
    if count < 4 * size:
        found.append(f"only {count / size:.1f} tokens per dimension: small eigenvalues are biased low; use at least 4")
    if not simple:
        found.append("the bottom eigenvalue is not simple: read subspace_alignment, not alignment")
    blind = [f"{t:.0e}" for t in TAUS if t * exact.mean < exact.floor]
    if blind:
        found.append(f"dead counts at {', '.join(blind)} are below what float64 resolves here")
    return found


def _largest_eigenvalue(covariance: Tensor) -> Tensor:
    """The largest eigenvalue of a small covariance (the variance itself when it is 1 x 1)."""
    return covariance[0, 0] if covariance.shape == (1, 1) else torch.linalg.eigvalsh(covariance)[-1]


def _alignment(directions: Tensor, basis: Tensor, *, every: bool = False) -> float:
    """Cosine of the smallest (`every`: largest) principal angle between two spans (orthonormal columns)."""
    return float(torch.linalg.matrix_norm(basis.T @ directions, -2 if every else 2))


def _largest_angle(predicted: Tensor, spectrum: Spectrum) -> float | None:
    """Largest principal angle, radians, between `predicted` and as many bottom eigenvectors; None where it is empty."""
    width = predicted.shape[1]
    if width == 0:
        return None
    bottom = spectrum.eigenvectors[:, :width]
    # By the sine: arccos of a cosine cannot see angles under 1e-8.
    rest = predicted - bottom @ (bottom.T @ predicted)
    return math.asin(min(1.0, float(torch.linalg.matrix_norm(rest, 2))))


def _angle_floor(predicted: Tensor, spectrum: Spectrum) -> float | None:
    """Angle by which the solver's own error may have turned the bottom eigenvectors, radians (Davis and Kahan 1970)."""
    width = predicted.shape[1]
    if width == 0 or width == spectrum.size:
        return None
    gap = float(spectrum.eigenvalues[width] - spectrum.eigenvalues[width - 1])
    turned = math.asin(min(1.0, spectrum.floor / gap)) if gap > 0 else math.pi / 2
    return max(turned, math.sqrt(spectrum.size) * UNIT_ROUNDOFF)


def _decades(mean: float, value: float) -> float | None:
    return math.log10(mean / value) if value > 0 and mean > 0 else None
