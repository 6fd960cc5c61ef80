"""``probe``: screen a norm layer, whatever its formula, for directions of its output that never vary."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.invariances import Behaviour, behaviour
from deadreckon.forward.lone_kernel import AT_FLOOR, NullSpace, Outputs, draw_tokens, null_space, run_all
from deadreckon.forward.lone_layer import CHANNELS_FIRST, TOKENS, LoneLayer, layout_shape
from deadreckon.forward.lone_parameters import Dependence, kernel_dependence
from deadreckon.kernel.norm import Float64Array
from deadreckon.results.probe import Invariance, KernelDirection, Probe
from deadreckon.results.reading import Coordinate

_SHOWN_DIRECTIONS = 8
_SHOWN_COORDINATES = 6
_FLOAT64 = 1e-12  # a layer with more noise than that goes through a shorter format


def probe(
    module: nn.Module,
    hidden_size: int | None = None,
    *,
    layout: str | None = None,
    training: bool = False,
    seed: int = 0,
    name: str | None = None,
) -> Probe:
    """The linear kernel of a norm layer's output, with what it depends on, and the layer's invariances.

    A private float64 copy is run on random tokens of several distributions; nothing is assumed about its formula, and
    the module is left as it was.

    Args:
        module: the layer: one tensor in, one of the same shape out.
        hidden_size: number of coordinates d, where the layer does not tell.
        layout: tokens | batched | channels_first | image; None: the first of these that the layer takes.
        training: run it in training mode (batch statistics) instead of evaluation mode.
        seed: of tokens and parameter draws.
        name: how to call it; its class by default.

    Returns:
        The record; its `vectors` hold an orthonormal basis of the kernel, shape (d, kernel_dim), as ``kernel``.

    Raises:
        UsageError: it is no module, or its hidden size is not to be told.
        InputError: it fails on every layout, changes the shape, answers at random, or holds NaN or infinity.
    """
    started = time.perf_counter()
    if not isinstance(module, nn.Module):
        raise UsageError(f"a torch.nn.Module is probed, not a {type(module).__name__}: give an instance of the layer")
    name = name or type(module).__name__
    layer = LoneLayer(module, hidden_size, layout=layout, training=training, name=name)
    tokens = draw_tokens(layer.tokens(2 * layer.hidden_size + 64), layer.hidden_size, seed)
    outputs = run_all(layer, tokens, seed + 1)
    space = null_space(list(outputs.values()))
    redrawn = kernel_dependence(layer, space, seed + 2)
    noise = float(np.sqrt((outputs["gaussian"].noise ** 2).sum() / layer.hidden_size))
    seen = behaviour(layer, noise, seed + 3)
    record = Probe(
        model=name,
        hidden_size=layer.hidden_size,
        layout=layer.layout,
        layouts=layer.accepted,
        training=training,
        parameters=list(layer.parameters),
        tokens=len(tokens["gaussian"]),
        seed=seed,
        kernel_dim=space.dim,
        inherent_dim=redrawn.inherent_dim,
        directions=[_direction(w, outputs) for w in space.basis.T[:_SHOWN_DIRECTIONS]],
        largest_dead=space.largest_dead,
        dead_floor=space.dead_floor,
        smallest_live=space.smallest_live,
        live_floor=space.live_floor,
        gap=space.gap,
        undetermined=space.undetermined,
        by_distribution={name: null_space([part]).dim for name, part in outputs.items()},
        by_draw=redrawn.dims,
        depends_on=redrawn.depends_on,
        kernel_form=_form(redrawn),
        invariances=[
            Invariance(name=key, holds=seen.holds(key), deviation=value) for key, value in seen.deviations.items()
        ],
        elementwise=seen.elementwise,
        mixes_tokens=seen.mixes_tokens,
        quadratic_constraints=seen.quadrics,
        noise=noise,
        verdict=_verdict(space, redrawn),
        says=_in_words(space, redrawn, seen),
        notes=_notes(layer, seen, redrawn),
        torch=torch.__version__,
        seconds=time.perf_counter() - started,
    )
    return record.with_vectors(lambda: {"kernel": space.basis})


def _direction(vector: Float64Array, outputs: dict[str, Outputs]) -> KernelDirection:
    order = np.argsort(-np.abs(vector), kind="stable")[:_SHOWN_COORDINATES]
    constants = [float(vector @ part.mean) for part in outputs.values()]
    # What rounding may make of w.y: that of the products, and of the layer itself.
    rounding = max(
        2.0**-52 * vector.size * float(np.abs(vector) @ np.abs(part.mean))
        + part.scale * float(np.linalg.norm(part.noise @ vector))
        for part in outputs.values()
    )
    return KernelDirection(
        participation_ratio=float(1.0 / np.sum(vector**4)),
        top=[Coordinate(index=int(i), weight=float(vector[i])) for i in order if vector[i] != 0.0],
        constant=float(np.median(constants)) if np.ptp(constants) <= AT_FLOOR * rounding else None,
    )


def _form(redrawn: Dependence) -> str | None:
    """The kernel as a formula; None without a kernel or where none fits."""
    if not redrawn.inherent_dim or (redrawn.depends_on and redrawn.inverse_of is None):
        return None
    if redrawn.whole:
        return "every direction"
    where = {None: "a fixed space", 1: "all coordinates"}.get(
        redrawn.groups, f"each of {redrawn.groups} equal contiguous groups of coordinates"
    )
    if redrawn.inverse_of is None:
        return where if redrawn.groups is None else f"the same weight on {where}"
    gain = f"(1 + {redrawn.inverse_of})" if redrawn.offset else redrawn.inverse_of
    return f"1/{gain} times {where}" if redrawn.groups is None else f"1/{gain} over {where}"


def _verdict(space: NullSpace, redrawn: Dependence) -> str:
    if redrawn.inherent_dim is None or space.dim is None:
        return "undetermined"
    if redrawn.inherent_dim:
        return "inherent"
    return "parameters" if space.dim else "none"


def _in_words(space: NullSpace, redrawn: Dependence, seen: Behaviour) -> str:
    verdict = _verdict(space, redrawn)
    curved = ""
    dim = space.dim or 0
    if seen.quadrics:
        one = seen.quadrics == 1
        curved = (
            f"; its outputs also obey {seen.quadrics} quadratic constraint{'' if one else 's'} (a sphere or an "
            "ellipsoid), which no linear map that follows can see"
        )
    if verdict == "undetermined":
        return (
            "undetermined: some direction's variance is neither rounding nor clear of it, for the parameters given or "
            f"for others{curved}"
        )
    if verdict == "inherent":
        count = redrawn.inherent_dim or 0
        more = f"; {dim - count} more come from the values of its parameters" if dim > count else ""
        dead = "out_features" if count == 1 else f"{count} x out_features"
        return (
            f"brings inherent singular structure: {count} direction{'' if count == 1 else 's'} of its output never "
            f"var{'ies' if count == 1 else 'y'}, for all inputs and parameters tried, so every linear map that reads "
            f"it has {dead} dead directions (with a bias that takes w.y back, or where w.y is zero){more}{curved}"
        )
    if verdict == "parameters":
        return (
            f"brings no singular structure of its own: the {dim} dead direction{'' if dim == 1 else 's'} "
            f"here come{'s' if dim == 1 else ''} from the values of its parameters and go"
            f"{'es' if dim == 1 else ''} with them{curved}"
        )
    return f"brings none: every direction of its output varies{curved}"


def _notes(layer: LoneLayer, seen: Behaviour, redrawn: Dependence) -> list[str]:
    notes = []
    if layer.layout == TOKENS and CHANNELS_FIRST in layer.accepted:
        notes.append(
            f"the layer also takes {layout_shape(CHANNELS_FIRST)}, where it may see more than one position at a time: "
            f"probe that with layout {CHANNELS_FIRST}"
        )
    if seen.noise > _FLOAT64:
        notes.append(
            f"the layer computes with relative errors of {seen.noise:.0e} even in float64: a near-kernel below some "
            "thousand times that is not told from a kernel"
        )
    if seen.mixes_tokens:
        notes.append("its outputs depend on the other tokens of the batch")
    notes += [f"left out, since the layer cannot be run so: {failure}" for failure in redrawn.failed]
    return notes
