"""A norm recomputed in float64 from its input: the proof that a kernel is exact, and the yardstick of its rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from deadreckon.kernel.norm import Norm


class ReferenceNorm:
    """`norm` in float64 on `device`.

    Attributes:
        gain: effective gain, shape (d,).
        shift: shift, shape (d,); zeros where the norm has none.
    """

    def __init__(self, norm: Norm, device: torch.device) -> None:
        self.norm = norm
        self.gain = torch.from_numpy(norm.gain).to(device)
        shift = (
            torch.zeros(norm.hidden_size, dtype=torch.float64) if norm.shift is None else torch.from_numpy(norm.shift)
        )
        self.shift = shift.to(device)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Output before the shift is added, and how much the norm magnifies rounding.

        Args:
            inputs: shape (n, d), any real dtype; not changed.

        Returns:
            gain * z(x), shape (n, d), float64, and |x|^2/|x - mean|^2, shape (n,): the factor by which subtracting the
            mean magnifies relative rounding, squared.
        """
        x = inputs.to(self.gain.device, torch.float64, copy=True)
        whole = torch.linalg.vector_norm(x, dim=-1).square_()
        rest = whole
        x = x.reshape(len(inputs), self.norm.groups, -1)
        if self.norm.kind.centred:
            # Twice: what the rounding of the first mean leaves behind is itself a constant to subtract.
            x -= x.mean(-1, keepdim=True)
            x -= x.mean(-1, keepdim=True)
            rest = torch.linalg.vector_norm(x, dim=(-2, -1)).square_()
        if self.norm.kind.normalised:
            power = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
            x *= torch.rsqrt(power + (self.norm.eps or 0.0))
        x = x.reshape(len(inputs), -1)
        x *= self.gain
        return x, torch.where(rest > 0, whole / rest, torch.ones_like(whole))
