"""Collect one norm's inputs and outputs over a pass, then conclude: alignment, depth, dead counts, protocol check."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.moments import Moments
from deadreckon.forward.reference import ReferenceNorm
from deadreckon.forward.spectrum import Eigensolver, Spectrum
from deadreckon.kernel.norm import Float64Array, Norm
from deadreckon.kernel.subspace import DeadSubspace
from deadreckon.results.measurement import Protocol

TAUS = (1e-2, 1e-4, 1e-6, 1e-8)
# A norm's forward rounds a handful of times (mean, variance, scale, gain, shift): a right one was seen at about one
# unit.
_ROUNDINGS = 8
# Far above the squared rounding of float64 along the kernel (about 1e-32 here), far below that of float32 (1e-14).
_KERNEL_TOLERANCE = 1e-24
# A variance within this factor of its floor is that floor: the two standard deviations differ by less than their own
# size.
_AT_FLOOR = 4.0


class Conclusion(NamedTuple):
    """Field names and values of `results.Figures`, and the vectors behind them as NumPy arrays."""

    figures: dict[str, Any]
    vectors: dict[str, Float64Array]


class NormStatistics:
    """Everything that one pass must remember about a norm: three covariances and their exact projections.

    Variances along the tested directions come from projected tokens, because a covariance only resolves
    eigenvalues down to about d * u * lambda_max, far above what float64 tokens show.
    """

    def __init__(self, norm: Norm, device: torch.device, *, keep_tokens: bool = False) -> None:
        self.subspace = DeadSubspace.of(norm)
        self.reference = ReferenceNorm(norm, device)
        size = norm.hidden_size
        self.native, self.exact, self.error = (Moments(size, device) for _ in range(3))
        self.tested = torch.from_numpy(self.subspace.tested_directions()).to(device)
        self.projected, self.projected_exact, self.projected_error = (
            Moments(self.tested.shape[1], device) for _ in range(3)
        )
        self.residual = 0.0
        self.signal = 0.0
        self.dtype = torch.float64
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep_tokens else None

    def update(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add one batch: the norm's input and native output, each of shape (n, d)."""
        device = self.tested.device
        self.dtype = outputs.dtype
        native = outputs.to(device, torch.float64)
        inputs = inputs.to(device)
        exact = self.reference.unshifted(inputs)
        unshifted = native - self.reference.shift
        error = unshifted - exact
        # Subtracting a mean that dwarfs the spread magnifies rounding, token by token: each error counts in that unit.
        magnified = self.reference.magnification(inputs)
        self.residual += float((error.square().sum(-1) / magnified).sum())
        self.signal += float(unshifted.square().sum())
        self.native.update(native)
        self.exact.update(exact)
        self.error.update(error)
        # Projected without the shift: w.shift is a constant, but its rounding would drown what is being looked for.
        self.projected.update(unshifted @ self.tested)
        self.projected_exact.update(exact @ self.tested)
        self.projected_error.update(error @ self.tested)
        if self.kept is not None:
            self.kept.append((native, exact))

    def protocol(self) -> Protocol:
        """Whether the module that ran is the norm that was read, and has its kernel."""
        unit = max(torch.finfo(self.dtype).eps, torch.finfo(torch.float32).eps) / 2
        tolerance = _ROUNDINGS * unit
        residual = math.sqrt(self.residual / self.signal) if self.signal > 0 else math.sqrt(self.residual)
        variance = self._kernel_variance() if self.subspace.kernel_dim else None
        why = []
        if not residual <= tolerance:
            why.append(
                f"the module's output differs from the norm that was read by {residual:.1e} (rounding explains "
                f"{tolerance:.1e}): wrong module, kind, gain or gain offset, or dropout is on"
            )
        if variance is not None and not variance <= _KERNEL_TOLERANCE:
            why.append(
                f"the predicted kernel carries variance {variance:.1e} in float64 (rounding explains "
                f"{_KERNEL_TOLERANCE:.0e}): it is not exact on these inputs"
            )
        return Protocol(
            status="failed" if why else "ok",
            norm_residual=residual,
            norm_tolerance=tolerance,
            kernel_variance=variance,
            kernel_tolerance=_KERNEL_TOLERANCE,
            why="; ".join(why),
        )

    def _kernel_variance(self) -> float:
        """Largest float64 variance along a kernel direction, in the unit in which rounding has size u^2."""
        variances = self.projected_exact.covariance().diagonal()
        # Along a direction w of a group, w.y = sum(z)/|gain^-1|; along a zero gain, w.y = gain * z.
        columns = self.tested.T
        support = columns != 0
        sizes = support.sum(1).to(torch.float64)
        gain = self.reference.gain.expand_as(columns).abs()
        reach = torch.where(support, gain * columns.abs(), torch.zeros_like(gain)).amax(1)  # 1/|gain^-1|, or 0
        mean = self.exact.covariance().diagonal().mean()
        unit = torch.where(reach > 0, reach.square() * sizes, mean)
        return float(torch.where(variances > 0, variances / unit, torch.zeros_like(variances)).max())

    def conclude(self, solver: Eigensolver, tau: float) -> Conclusion:
        """The figures that follow from what was collected.

        Args:
            solver: turns covariances into spectra.
            tau: tolerance of the predicted dead subspace and of the algebraic/learned split.

        Returns:
            The figures, and the tested directions, predicted dead subspace, spectra and bottom eigenvectors.

        Raises:
            UsageError: too few tokens to tell a dead direction from a missing one.
        """
        size, count = self.subspace.hidden_size, self.native.count
        if count - 1 <= size:
            raise UsageError(
                f"{count} tokens in {size} dimensions: with N - 1 <= d the covariance is singular by counting alone; "
                f"give at least {4 * size} tokens"
            )
        kept = [None, None] if self.kept is None else [torch.cat(batches) for batches in zip(*self.kept, strict=True)]
        native, exact = (solver.solve(m, k) for m, k in zip((self.native, self.exact), kept, strict=True))
        noise = (native.eigenvectors.T @ self.error.covariance() * native.eigenvectors.T).sum(1) + native.floor
        lambdas = native.eigenvalues
        at_floor = bool(lambdas[0] <= _AT_FLOOR * noise[0])
        dead = float(_largest_eigenvalue(self.projected.covariance()))
        dead_floor = float(_largest_eigenvalue(self.projected_error.covariance()))
        dead_exact = float(_largest_eigenvalue(self.projected_exact.covariance()))
        predicted = torch.from_numpy(self.subspace.dead_basis(tau)).to(self.tested.device)
        width = max(1, predicted.shape[1])
        # An eigenvector means something when its gap exceeds what rounding may have moved the two eigenvalues by.
        simple = bool(size == 1 or lambdas[1] - lambdas[0] > _AT_FLOOR * (noise[0] + noise[1]))
        dead_total = exact.dead_count(tau)
        algebraic = self._algebraic(predicted, exact.mean, tau)
        uniform = torch.full((size, 1), size**-0.5, dtype=torch.float64, device=self.tested.device)
        protocol = self.protocol()
        figures = {
            "hidden_size": size,
            "kind": self.subspace.kind.name,
            "tokens": count,
            "tokens_per_dimension": count / size,
            "tau": tau,
            "kernel_dim": self.subspace.kernel_dim,
            "predicted_dead": predicted.shape[1],
            "tested": "kernel" if self.subspace.kernel_dim else "candidate",
            "alignment": _alignment(self.tested, native.eigenvectors[:, :1]),
            "alignment_uniform": _alignment(uniform, native.eigenvectors[:, :1]),
            "alignment_float64": _alignment(self.tested, exact.eigenvectors[:, :1]),
            "bottom_simple": simple,
            "subspace_alignment": _alignment(self.tested, native.eigenvectors[:, :width], every=True),
            "largest_principal_angle": _largest_angle(predicted, native.eigenvectors),
            "largest_principal_angle_float64": _largest_angle(predicted, exact.eigenvectors),
            "lambda_dead": dead,
            "lambda_dead_floor": dead_floor,
            "lambda_dead_float64": dead_exact,
            # The floor is the deviation from the norm that was read: a wrong norm deviates without being rounding.
            "lambda_dead_at_floor": protocol.status == "ok" and dead <= _AT_FLOOR * dead_floor,
            "lambda_dead_rank": int((lambdas < dead).sum()),
            "lambda_min": float(lambdas[0]),
            "lambda_min_floor": float(noise[0]),
            "lambda_2": float(lambdas[min(1, size - 1)]),
            "lambda_mean": native.mean,
            "lambda_max": float(lambdas[-1]),
            "spectral_gap": None if at_floor else float(lambdas[min(1, size - 1)] / lambdas[0]),
            "condition_number": None if at_floor else float(lambdas[-1] / lambdas[0]),
            "depth_decades": _decades(native.mean, dead),
            "depth_decades_float64": _decades(exact.mean, dead_exact),
            "dead_counts": {f"{t:.0e}": exact.dead_count(t) for t in TAUS},
            "dead_counts_native": {f"{t:.0e}": native.dead_count(t) for t in TAUS},
            "algebraic_dead": algebraic,
            "learned_dead": dead_total - algebraic,
            "effective_rank": native.effective_rank(),
            "participation_ratio": native.participation_ratio(),
            "stable_rank": native.stable_rank(),
            "schur_ratio": self._schur_ratio(native, predicted, dead),
            "schur_reference": (size - 1) / (count - 1),
            "protocol": protocol,
            "warnings": self._warnings(exact, simple=simple),
        }
        vectors = {
            "tested": self.tested,
            "predicted_dead": predicted,
            "bottom_eigenvectors": native.eigenvectors[:, :width],
            "eigenvalues": native.eigenvalues,
            "eigenvalues_float64": exact.eigenvalues,
        }
        return Conclusion(figures, {name: tensor.cpu().numpy() for name, tensor in vectors.items()})

    def _algebraic(self, predicted: Tensor, mean: float, tau: float) -> int:
        """How many of the dead directions lie in the subspace that the gain predicts."""
        if predicted.shape[1] == 0:
            return 0
        values = torch.linalg.eigvalsh(predicted.T @ self.exact.covariance() @ predicted)
        return int((values <= tau * mean).sum())

    def _schur_ratio(self, native: Spectrum, predicted: Tensor, dead: float) -> float | None:
        """1 - S/lambda_dead, S what is left of Var(w.y) after regression on what is outside the dead subspace."""
        if self.tested.shape[1] != 1 or dead <= 0.0 or self.dtype == torch.float64:  # float64: a ratio of two floors
            return None
        covariance = self.native.covariance()
        excluded = predicted if predicted.shape[1] else self.tested
        projector = torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
        projector = projector - excluded @ excluded.T
        cross = projector @ (covariance @ self.tested[:, 0])
        # The excluded directions get the mean variance, so that the system is regular and leaves them out of the
        # answer.
        system = projector @ covariance @ projector + native.mean * (excluded @ excluded.T)
        solution, info = torch.linalg.solve_ex(system, cross)
        return None if info else float(cross @ solution) / dead

    def _warnings(self, exact: Spectrum, *, simple: bool) -> list[str]:
        size, count = self.subspace.hidden_size, self.native.count
        found = []
        if count < 4 * size:
            found.append(
                f"only {count / size:.1f} tokens per dimension: small eigenvalues are biased low; use at least 4"
            )
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


def _largest_angle(predicted: Tensor, eigenvectors: Tensor) -> float | None:
    """Largest principal angle, radians, between `predicted` and as many bottom eigenvectors; None where it is empty."""
    width = predicted.shape[1]
    if width == 0:
        return None
    bottom = eigenvectors[:, :width]
    # By the sine: arccos of a cosine cannot see angles under 1e-8.
    rest = predicted - bottom @ (bottom.T @ predicted)
    return math.asin(min(1.0, float(torch.linalg.matrix_norm(rest, 2))))


def _decades(mean: float, value: float) -> float | None:
    return math.log10(mean / value) if value > 0 and mean > 0 else None
