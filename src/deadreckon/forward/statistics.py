"""What one pass must remember about a norm, in memory that does not grow with the number of tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deadreckon.errors import UsageError
from deadreckon.forward.memory import out_of_memory
from deadreckon.forward.moments import CHUNK, Centred, Moments, Variances
from deadreckon.forward.reference import ReferenceNorm
from deadreckon.kernel.norm import Norm
from deadreckon.kernel.subspace import DeadSubspace

ACCUMULATORS = ("native", "exact", "error", "projected", "projected_exact", "projected_error")


_SMALLEST_CHUNK = 64


class NormStatistics:
    """Covariances of a norm's output, as the model computed it and in float64, and the variances that need more digits.

    Variances along the tested directions come from projected tokens, because a covariance only resolves eigenvalues
    down to about d * u * lambda_max, far above what float64 tokens show.

    Attributes:
        norm: the norm as it was described.
        subspace: what its parameters predict.
        native: moments of the output as the model computed it.
        exact: moments of the norm recomputed in float64 from its input, without its shift.
        error: variances of the coordinates of the difference.
        tested: tested directions, orthonormal columns, shape (d, k).
        projected, projected_exact, projected_error: moments of the three along the tested directions, without shift.
        residual: sum of the squared errors, each token's in units of the magnification of its rounding.
        signal: sum of the squared native outputs without their shift.
        dtype: of the native output.
        kept: the native and exact outputs themselves, where a solver needs them.
    """

    def __init__(self, norm: Norm, device: torch.device, *, keep_tokens: bool = False) -> None:
        self.norm = norm
        self.subspace = DeadSubspace.of(norm)
        self.reference = ReferenceNorm(norm, device)
        size = norm.hidden_size
        self.tested = torch.from_numpy(self.subspace.tested_directions()).to(device)
        self.native, self.exact = (Moments(size, device) for _ in range(2))
        self.error = Variances(size, device)
        self.projected, self.projected_exact, self.projected_error = (
            Moments(self.tested.shape[1], device) for _ in range(3)
        )
        self.residual, self.signal = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.dtype = torch.float64
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep_tokens else None

    @property
    def count(self) -> int:
        """Number of tokens seen, N."""
        return self.native.count

    @torch.no_grad()
    def update(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add one batch: the norm's input and native output, each of shape (n, d).

        Where memory runs out, it goes on in smaller chunks: all of a chunk's memory is taken before any of it is added.

        Args:
            inputs: of the norm.
            outputs: what it made of them.

        Raises:
            UsageError: there is not even memory for a few tokens.
        """
        self.dtype = outputs.dtype
        start, chunk = 0, CHUNK
        while start < len(outputs):
            part = slice(start, start + chunk)
            try:
                self._add(inputs[part], outputs[part])
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if chunk <= _SMALLEST_CHUNK:
                    raise UsageError(
                        f"{self.norm.name}: no memory left on {self.tested.device} for the statistics of {chunk} "
                        "tokens: give a smaller batch_size (--batch-size)"
                    ) from None
                chunk //= 2
                continue
            start += chunk

    def _add(self, inputs: Tensor, outputs: Tensor) -> None:
        exact, magnified = self.reference(inputs)
        native = outputs.to(exact.device, torch.float64, copy=True)
        # Without the shift: w.shift is a constant, but its rounding would drown what is being looked for.
        native -= self.reference.shift
        error = native - exact
        kept = [] if self.kept is None else [(native + self.reference.shift, exact.clone())]
        residual = (torch.linalg.vector_norm(error, dim=-1).square_() / magnified).sum()
        signal = torch.linalg.vector_norm(native).square_()
        projections = [Centred.of(part @ self.tested, overwrite=True) for part in (native, exact, error)]
        shifted = Centred.of(native, overwrite=True)
        shifted.mean.add_(self.reference.shift)
        whole = [shifted, *(Centred.of(part, overwrite=True) for part in (exact, error))]

        for name, part in zip(ACCUMULATORS, [*whole, *projections], strict=True):
            getattr(self, name).add(part)
        self.residual += residual
        self.signal += signal
        if self.kept is not None:
            self.kept += kept

    def merge(self, other: NormStatistics) -> None:
        """Add everything that `other` has seen.

        Args:
            other: statistics of the same norm.

        Raises:
            UsageError: they are of another norm or dtype.
        """
        if not self.same_norm(other) or (self.count and other.count and self.dtype != other.dtype):
            raise UsageError(
                f"statistics of {other.norm.name} in {other.dtype} do not add to those of {self.norm.name} in "
                f"{self.dtype}: they are of other norms or gains"
            )
        if other.count:
            self.dtype = other.dtype
        for name in ACCUMULATORS:
            getattr(self, name).merge(getattr(other, name))
        self.residual += other.residual.to(self.residual.device)
        self.signal += other.signal.to(self.signal.device)
        if self.kept is not None and other.kept is not None:
            self.kept += other.kept

    def same_norm(self, other: NormStatistics) -> bool:
        """Whether `other` is about the same norm: kind, gain, shift and eps."""
        mine, theirs = self.norm, other.norm
        return (
            (mine.kind, mine.groups, mine.eps, mine.hidden_size)
            == (theirs.kind, theirs.groups, theirs.eps, theirs.hidden_size)
            and torch.equal(self.reference.gain.cpu(), other.reference.gain.cpu())
            and torch.equal(self.reference.shift.cpu(), other.reference.shift.cpu())
        )

    def state(self) -> dict[str, Tensor]:
        """Everything it has seen, as tensors on the CPU, for `restore`; the norm itself is not in it."""
        state = {"residual": self.residual.cpu(), "signal": self.signal.cpu()}
        for name in ACCUMULATORS:
            state.update({f"{name}.{key}": value for key, value in getattr(self, name).state().items()})
        return state

    def restore(self, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Take over what `state` has seen of the same norm, put out in `dtype`."""
        device = self.tested.device
        for name in ACCUMULATORS:
            empty = getattr(self, name)
            setattr(self, name, empty.from_state({key: state[f"{name}.{key}"] for key in empty.state()}, device))
        self.residual, self.signal = state["residual"].to(device), state["signal"].to(device)
        self.dtype = dtype
