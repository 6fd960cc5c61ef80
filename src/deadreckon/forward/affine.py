"""Redraw gains and shifts: at plain random init every gain is 1, 1/sqrt(d) passes for gain^-1 and nothing is tested."""

from __future__ import annotations

import re

import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.probe import probe_norms

_SHIFT_SCALE = 0.1


def parse_affine(spec: str) -> float:
    """The spread sigma of ``lognormal:SIGMA``.

    Args:
        spec: what ``--affine`` was given.

    Returns:
        SIGMA.

    Raises:
        UsageError: another form, or a spread that is not positive.
    """
    match = re.fullmatch(r"lognormal:(\d+(?:\.\d+)?)", spec)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"affine {spec!r}: write lognormal:SIGMA with SIGMA > 0, e.g. lognormal:0.5")
    return float(match[1])


def redraw_affine(model: nn.Module, spec: str, seed: int) -> int:
    """Give every norm log-normal effective gains (median 1) and normal shifts (standard deviation 0.1), in place.

    Args:
        model: a randomly initialised model.
        spec: ``lognormal:SIGMA``.
        seed: seed of the draw.

    Returns:
        Number of norms redrawn.

    Raises:
        UsageError: the spec is malformed, the model has no norm with parameters, or a norm's wait elsewhere.
    """
    sigma, probes = parse_affine(spec), probe_norms(model)
    for path in probes:
        # Outside of a forward pass these are shapes: what is written to them is lost.
        if any(parameter.is_meta for parameter in model.get_submodule(path).parameters(recurse=False)):
            raise UsageError(
                f"{path}: its weights wait in main memory or on disk until it runs, and cannot be redrawn there: leave "
                "affine out (--affine), or allow more memory where the model computes"
            )
    generator = torch.Generator().manual_seed(seed)
    redrawn = 0
    for path, probe in probes.items():
        module = model.get_submodule(path)
        if probe.gain_name is not None and probe.gain_offset is not None:
            gain = torch.exp(sigma * torch.randn(probe.hidden_size, generator=generator, dtype=torch.float64))
            _assign(module, probe.gain_name, gain - probe.gain_offset)
            redrawn += 1
        if probe.shift_name is not None:
            shift = _SHIFT_SCALE * torch.randn(probe.hidden_size, generator=generator, dtype=torch.float64)
            _assign(module, probe.shift_name, shift)
    if not redrawn:
        raise UsageError(f"{type(model).__name__} has no norm with a gain: --affine has nothing to redraw")
    return redrawn


def _assign(module: nn.Module, name: str, values: torch.Tensor) -> None:
    with torch.no_grad():
        tensor = getattr(module, name)
        tensor.copy_(values.to(tensor.dtype))
