"""What one task takes of a machine."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class Resources(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one task takes.

    Attributes:
        cpus: threads of torch and NumPy, and cores declared to Ray. Figures are equal to the last bit where it is.
        gpus: GPUs declared to Ray; a fraction lets tasks share one. In-process tasks see all there are.
        memory: main memory declared to Ray, e.g. 8GB.
    """

    cpus: Annotated[int, Meta(ge=1)] = 1
    gpus: Annotated[float, Meta(ge=0)] = 0.0
    memory: Annotated[int, Meta(ge=1)] | str | None = None
