"""``dead_directions`` and ``project_out``: a module's dead directions one by one, and a step without all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.dead_span import project_off
from deadreckon.kernel.anatomy import Anatomy
from deadreckon.kernel.census import REASONS, DeadParameters, dead_parameters
from deadreckon.kernel.families import Family
from deadreckon.verbs.census import Subject, norm_of, subject_of_module


@dataclass(frozen=True, eq=False)
class DeadDirection:
    """One direction of the parameters along which nothing that the model puts out changes.

    Attributes:
        reason: its family, as the census names it.
        index: which of that family's, from 0: ``FAMILY:INDEX`` of the census.
        counted_under: the tensor that it is counted under.
        tensors: the direction by parameter name, each in the parameter's shape, in float64 on the CPU: it is dead to
            the digits that it has, and bfloat16 has few.
    """

    reason: str
    index: int
    counted_under: str
    tensors: dict[str, Tensor]


class DeadDirections:
    """The dead directions of a module at its current parameters, as many as the census counts; made when asked for.

    The module's structure is found once; its parameters are read anew by every call, so one object serves a whole run.

    Attributes:
        model: the module; it is never changed.
    """

    def __init__(self, model: nn.Module, *, reason: str | None = None, tensor: str | None = None) -> None:
        if isinstance(model, DeadDirections):
            raise UsageError("the dead directions of a module are asked for, not of its DeadDirections: use `of`")
        self.model = model
        self._subject: Subject = subject_of_module(model)
        self._reason, self._tensor = reason, tensor

    def of(self, reason: str | None = None, *, tensor: str | None = None) -> DeadDirections:
        """Some of the directions.

        Args:
            reason: only those of this family, e.g. ``gain_scaling``.
            tensor: only those that are counted under this tensor.

        Returns:
            The selection. What it selects among is all directions, whatever this object selects.

        Raises:
            UsageError: there is no such family or parameter.
        """
        if reason is not None and reason not in REASONS:
            raise UsageError(f"no family {reason!r}: choose one of {', '.join(REASONS)}")
        if tensor is not None and tensor not in self._subject.anatomy.tensors:
            raise UsageError(f"{self._subject.name} has no parameter {tensor!r}{self._tied(tensor)}")
        chosen = object.__new__(DeadDirections)
        chosen.model, chosen._subject, chosen._reason, chosen._tensor = self.model, self._subject, reason, tensor
        return chosen

    def __len__(self) -> int:
        return sum(family.dimensions for family, _ in self._families())

    def __iter__(self) -> Iterator[DeadDirection]:
        for family, before in self._families():
            for place in range(family.dimensions):
                yield self._direction(family, before, place)

    def __getitem__(self, index: int) -> DeadDirection:
        place = range(len(self))[index]
        for family, before in self._families():
            if place < family.dimensions:
                return self._direction(family, before, place)
            place -= family.dimensions
        raise IndexError(index)

    def project_out(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A step of the parameters without its dead component: the orthogonal projection off all dead directions.

        Args:
            params: as for the function `project_out`.

        Returns:
            As of the function `project_out`.

        Raises:
            UsageError: a name, shape or dtype is wrong, or these are only some of the directions.
            InputError: a number is not finite.
        """
        if self._reason is not None or self._tensor is not None:
            raise UsageError("families overlap, so they are projected out together: call project_out on all directions")
        parameters = dict(self.model.named_parameters())
        for name, value in params.items():
            self._check(name, value, parameters)
        families = self._counted(self._subject.anatomy.moving(params)).families
        return project_off(families, parameters.__getitem__, params)

    def _check(self, name: str, value: Tensor, parameters: Mapping[str, Tensor]) -> None:
        if name not in parameters:
            raise UsageError(f"{self._subject.name} has no parameter {name!r}{self._tied(name)}")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise UsageError(f"{name}: a tensor of real numbers is needed, in the shape of the parameter")
        if value.shape != parameters[name].shape:
            raise UsageError(
                f"{name}: the step has shape {tuple(value.shape)}, the parameter {tuple(parameters[name].shape)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{name}: the step is not finite; leave it out or mend it before it is projected")

    def _tied(self, name: str) -> str:
        tied = (self._subject.anatomy.ties or {}).get(name)
        return f"; it is tied: name it {tied}" if tied else "; take the names of model.named_parameters()"

    def _counted(self, anatomy: Anatomy) -> DeadParameters:
        return dead_parameters(
            anatomy, {site.name: norm_of(self._subject, site) for site in self._subject.anatomy.norms}
        )

    def _families(self) -> Iterator[tuple[Family, int]]:
        """The selected families, each with the number of its reason's directions before it."""
        before = dict.fromkeys(REASONS, 0)
        for family in self._counted(self._subject.anatomy).families:
            if self._reason in {None, family.reason} and self._tensor in {None, family.tensor}:
                yield family, before[family.reason]
            before[family.reason] += family.dimensions

    def _direction(self, family: Family, before: int, place: int) -> DeadDirection:
        if self._subject.tensor is None:
            raise UsageError(f"{self._subject.name} has no weights")
        step = family.direction(place, self._subject.tensor)
        tensors = {name: torch.from_numpy(value.copy()) for name, value in step.items()}
        return DeadDirection(family.reason, before + place, family.tensor, tensors)


def dead_directions(model: nn.Module) -> DeadDirections:
    """The exactly dead parameter directions of a module at its current parameters, one by one.

    Args:
        model: a loaded module. It is never changed.

    Returns:
        An iterable with a length, the census's count, and items: `DeadDirection` by `DeadDirection`, independent of
        each other but not orthogonal.

    Raises:
        UsageError: no anatomy is known for the model.
    """
    return DeadDirections(model)


def project_out(params: Mapping[str, Tensor], model: nn.Module | DeadDirections) -> dict[str, Tensor]:
    """A step of the parameters without its dead component: the orthogonal projection off all dead directions.

    The directions are those at the model's current parameters. Parameters that `params` does not name are held: only
    what is dead without moving them is projected out, so a step of some parameters stays one of those.

    Args:
        params: a gradient, an update, a noise draw or a difference of two models: parameter name (as
            ``model.named_parameters()`` has it) -> tensor of the parameter's shape. It is not changed.
        model: the module, or its `dead_directions`, which saves finding its structure at every step.

    Returns:
        The projected step under the same names, computed in float64, in the dtypes and on the devices of `params`. A
        tensor that no direction moves is returned as it is.

    Raises:
        UsageError: a name, shape or dtype is wrong, or no anatomy is known for the model.
        InputError: a number is not finite, or a norm's parameters span more orders of magnitude than float64 resolves.
    """
    dead = model if isinstance(model, DeadDirections) else DeadDirections(model)
    return dead.project_out(params)
