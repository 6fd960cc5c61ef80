"""What changed between the norms of two checkpoints: the result of ``diff``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deadreckon.results.record import Record


@dataclass(frozen=True, kw_only=True)
class NormChange:
    """What changed in one norm.

    Attributes:
        norm: its name, that of the first checkpoint.
        role: final | head | encoder | decoder | vision | block.
        kernel_angle: largest principal angle between the exact kernels, radians; pi/2 where their dimensions differ, 0
            where neither has one.
        dead_angle: the same of the predicted dead subspaces at `tau`.
        dead_count_before: predicted number of dead directions of the first.
        dead_count_after: of the second.
        died: coordinates whose gain is dead in the second alone: its square at most tau times the mean eigenvalue.
        came_alive: coordinates whose gain is dead in the first alone.
        gain_change: largest change of a gain, relative to the first's median magnitude.
        gain_changed_at: the coordinate of that change.
        shift_change: largest change of a shift, absolute; null where neither has one.
    """

    norm: str
    role: str
    kernel_angle: float
    dead_angle: float
    dead_count_before: int
    dead_count_after: int
    died: list[int]
    came_alive: list[int]
    gain_change: float
    gain_changed_at: int
    shift_change: float | None


@dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """The norms of two checkpoints side by side: the result of ``diff``.

    Attributes:
        other: the second checkpoint as it was named.
        tau: tolerance of what counts as dead.
        kind_before: kind of the first's final norm, as ``classify`` concludes.
        kind_after: of the second's.
        kind_change: 1 where they differ, else 0.
        kernel_angle: of the final norms, radians.
        dead_angle: of the final norms, radians.
        largest_kernel_angle: over all norms.
        dead_count_change: predicted dead directions of the second's final norm less those of the first's.
        died: number of gains that died, over all norms.
        came_alive: number of gains that came alive, over all norms.
        largest_gain_change: over all norms, relative.
        largest_shift_change: over all norms, absolute; None without shifts.
        fingerprint_before: R of the first's writers; None where they were not told or not read.
        fingerprint_after: R of the second's.
        fingerprint_change: the second less the first.
        compared: all norms | end norms, where the two files name the norms of their blocks differently.
        norms: every norm that was compared, the final one first.
        failed: the conditions asked to fail on that hold.
    """

    kind_of_record: ClassVar[str] = "deadreckon.diff/1"

    other: str
    tau: float
    kind_before: str
    kind_after: str
    kind_change: int
    kernel_angle: float
    dead_angle: float
    largest_kernel_angle: float
    dead_count_change: int
    died: int
    came_alive: int
    largest_gain_change: float
    largest_shift_change: float | None
    fingerprint_before: float | None
    fingerprint_after: float | None
    fingerprint_change: float | None
    compared: str
    norms: list[NormChange]
    failed: list[str]

    def headline(self) -> list[tuple[str, str]]:
        """Both models, and what changed most."""
        return [
            ("models", f"{self.model} -> {self.other}"),
            ("kind", f"{self.kind_before} -> {self.kind_after}"),
            ("kernel angle", f"{self.kernel_angle:.3g}"),
            ("gains died, came alive", f"{self.died}, {self.came_alive}"),
        ]
