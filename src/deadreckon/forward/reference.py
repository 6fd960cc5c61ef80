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

    def unshifted(self, inputs: Tensor) -> Tensor:
        """Output before the shift is added, gain * z(x), for inputs of shape (n, d)."""
        x = self._centred(inputs)
        if self.norm.kind.normalised:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + (self.norm.eps or 0.0))
        unshifted: Tensor = self.gain * x.flatten(-2)
        return unshifted

    def magnification(self, inputs: Tensor) -> Tensor:
        """Factor by which subtracting the mean magnifies relative rounding, squared, shape (n,): |x|^2/|x - mean|^2."""
        whole, rest = (x.square().sum((-1, -2)) for x in (self._grouped(inputs), self._centred(inputs)))
        return torch.where(rest > 0, whole / rest, torch.ones_like(whole))

    def _grouped(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.gain.device, torch.float64).reshape(*inputs.shape[:-1], self.norm.groups, -1)

    def _centred(self, inputs: Tensor) -> Tensor:
        x = self._grouped(inputs)
        if self.norm.kind.centred:
            # Twice: what the rounding of the first mean leaves behind is itself a constant to subtract.
            x = x - x.mean(-1, keepdim=True)
            x = x - x.mean(-1, keepdim=True)
        return x
