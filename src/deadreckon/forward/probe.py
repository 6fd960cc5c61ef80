"""What a norm layer computes, found by running the layer alone.

The parameters of a private copy are set to known random values, so that kind, gain offset and eps can be decided
whatever the true parameters are (gains of 1e-33 and zeros included); the true parameters are read afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadreckon.forward.norm_response import SCALE, TOLERANCE, Response, respond
from deadreckon.kernel.norm import Float64Array, Norm, NormKind

_PLAIN = bool, int, float, str, tuple, type(None)


@dataclass(frozen=True)
class NormProbe:
    """What one norm layer computes: ``y = gain * z(x) + shift``.

    Attributes:
        kind: layernorm (``z`` has its mean subtracted) or rmsnorm.
        hidden_size: number of coordinates d.
        groups: equal contiguous groups that are normalised separately.
        eps: the constant under the square root, as the layer behaves.
        gain_name: the tensor of the layer that holds the gain; None: the layer has none.
        shift_name: the tensor that holds the shift; None: the layer has none.
        gain_offset: gain minus stored tensor (0 or 1 in practice); None: the gain is some other function of the tensor.
        gain: effective gain, shape (d,), float64; None when the parameters are on the meta device.
        shift: effective shift, shape (d,), float64; None when there is none or it is on the meta device.
    """

    kind: NormKind
    hidden_size: int
    groups: int
    eps: float
    gain_name: str | None
    shift_name: str | None
    gain_offset: float | None
    gain: Float64Array | None
    shift: Float64Array | None

    def norm(self, name: str, role: str = "final") -> Norm | None:
        """The same layer as plain data.

        Args:
            name: the module's path.
            role: final | head | encoder | decoder | vision | block.

        Returns:
            The norm; None when the parameters are on the meta device.

        Raises:
            InputError: a parameter is not finite.
        """
        if self.gain is None:
            return None
        offset = self.gain_offset or 0.0
        return Norm(name, self.kind, self.gain, self.shift, role, offset, self.groups, self.eps)


def probe_norm(module: nn.Module, hidden_size: int | None = None) -> NormProbe | None:
    """What `module` computes, if it is a plain norm over the last dimension.

    The copy is run in float64 on the CPU; each output coordinate is fitted as ``gain_j z_j(x) + shift_j`` over random
    tokens, with and without mean subtraction, and exactly one of the two can fit. The module is left as it was.

    Args:
        module: the layer. On the meta device everything but the true parameters is found.
        hidden_size: d, needed only where the layer has no tensor of that size and no ``normalized_shape``.

    Returns:
        The probe; None where the layer is not a plain norm: it needs further arguments, mixes tokens, does not
        normalise, or cannot be run.
    """
    return _probe(module, hidden_size, {})


def probe_norms(model: nn.Module) -> dict[str, NormProbe]:
    """Every plain norm inside `model`, by module path, with what it computes.

    Candidates are found by structure (a module without parameterised children whose own parameters are vectors of one
    size, or one without parameters whose class calls itself a norm) and confirmed by running them: LayerScale vectors,
    position biases and gated norms drop out there. A module that is reached by several paths appears once.

    Args:
        model: any module; it is left as it was.

    Returns:
        Path within `model` -> probe, in the order of registration.
    """
    known: dict[_Build, _Behaviour | None] = {}  # a large model has hundreds of norms of one build
    return {
        name: probe for name, module in norm_candidates(model) if (probe := _probe(module, None, known)) is not None
    }


def norm_candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that may be norms, by structure alone: what `probe_norms` goes on to run.

    Args:
        model: any module.

    Yields:
        Path and module: those without parameterised children whose own parameters are one or two vectors of one size,
        and those without parameters whose class calls itself a norm.
    """
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if any(True for child in module.children() for _ in child.parameters()):
            continue
        vectors = 0 < len(own) <= 2 and all(p.dim() == 1 for p in own) and len({p.numel() for p in own}) == 1
        if vectors or (not own and "norm" in type(module).__name__.lower()):
            yield name, module


_Build = tuple[Any, ...]


@dataclass(frozen=True)
class _Behaviour:
    """What a layer does with parameters that are known, and which of them its gain and shift are."""

    response: Response
    gain_name: str | None
    gain_offset: float | None
    shift_name: str | None
    plain_shift: bool


def _probe(module: nn.Module, hidden_size: int | None, known: dict[_Build, _Behaviour | None]) -> NormProbe | None:
    """The probe of one layer; layers of a build that is `known` are not run again."""
    width = _width(module, hidden_size)
    if width is None or width < 2:
        return None
    build = _build(module, width)
    if build is None or build not in known:
        behaviour = _behave(module, width)
        if build is not None:
            known[build] = behaviour
    else:
        behaviour = known[build]
    if behaviour is None:
        return None
    gain = shift = None
    true = {name: tensor.detach() for name, tensor in _own_tensors(module)}
    if not any(tensor.is_meta for tensor in true.values()):
        stored = {name: value.to("cpu", torch.float64).numpy() for name, value in true.items()}
        if behaviour.gain_offset is None or not behaviour.plain_shift:  # no closed form: what its true tensors make
            truth = respond(_cpu_copy(module), width)
            if truth is None:
                return None
            gain, shift = truth.gain, None if behaviour.plain_shift else truth.shift
        elif behaviour.gain_name:
            gain = stored[behaviour.gain_name] + behaviour.gain_offset
        else:
            gain = np.full(width, float(_snap(behaviour.response.gain.mean())))
        if behaviour.shift_name is not None:
            shift = stored[behaviour.shift_name].copy()
    return NormProbe(
        kind=behaviour.response.kind,
        hidden_size=width,
        groups=behaviour.response.groups,
        eps=_named_eps(module, behaviour.response.eps),
        gain_name=behaviour.gain_name,
        shift_name=behaviour.shift_name,
        gain_offset=behaviour.gain_offset,
        gain=gain,
        shift=shift,
    )


def _behave(module: nn.Module, width: int) -> _Behaviour | None:
    generator = torch.Generator().manual_seed(0)
    values = {name: 0.5 + _uniform(generator, v.numel()) for name, v in _own_tensors(module) if v.dim() == 1}
    probe_copy = _cpu_copy(module)
    _fill(probe_copy, values)
    response = respond(probe_copy, width)
    if response is None:
        return None
    gain_name, offset = _match_gain(response.gain, values)
    shift_name = _match(response.shift, values)
    plain_shift = shift_name is not None or bool(np.all(np.abs(response.shift) <= TOLERANCE * SCALE))
    return _Behaviour(response, gain_name, offset, shift_name, plain_shift)


def _build(module: nn.Module, width: int) -> _Build | None:
    """Everything that the answer to known parameters can depend on; None where other tensors are part of it."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if any(tensor.dim() != 1 or not tensor.is_floating_point() for _, tensor in tensors):
        return None
    attributes = [
        (
            type(part),
            *((k, v if isinstance(v, _PLAIN) else id(v)) for k, v in sorted(vars(part).items()) if k[0] != "_"),
        )
        for part in module.modules()
    ]
    return (width, *((name, tensor.numel()) for name, tensor in tensors), *attributes)


def _match_gain(gain: Float64Array, known: dict[str, Tensor]) -> tuple[str | None, float | None]:
    """The tensor that the gain is made of, and gain - tensor where that is a constant."""
    if np.ptp(gain) <= TOLERANCE * np.abs(gain).max():
        return None, 0.0
    for name, values in known.items():
        difference = gain - values.numpy() if values.numel() == gain.size else np.array([np.inf, 0.0])
        if np.ptp(difference) <= 10 * TOLERANCE:
            return name, float(_snap(difference.mean()))
    related = {n: abs(np.corrcoef(gain, v.numpy())[0, 1]) for n, v in known.items() if v.numel() == gain.size}
    return (max(related, key=lambda name: related[name]) if related else None), None


def _match(vector: Float64Array, known: dict[str, Tensor]) -> str | None:
    """The tensor that equals `vector`."""
    for name, values in known.items():
        if values.numel() == vector.size and np.abs(vector - values.numpy()).max() <= 10 * TOLERANCE:
            return name
    return None


def _snap(value: float) -> float:
    """The nearest integer if `value` is one up to the tolerance, else `value`."""
    return round(value) if abs(value - round(value)) <= 10 * TOLERANCE else value


def _named_eps(module: nn.Module, measured: float) -> float:
    """The measured eps, in the exact spelling of an attribute of the layer that agrees with it."""
    for value in vars(module).values():
        if isinstance(value, float) and value > 0 and abs(value - measured) <= 0.01 * value:
            return value
    return measured


def _cpu_copy(module: nn.Module) -> nn.Module:
    """A float64 copy on the CPU, without the hooks of the original."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        part.__dict__.pop("forward", None)  # instance-level wrappers (device hooks) belong to the original
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(part, hooks).clear()
    on_meta = any(tensor.is_meta for _, tensor in _own_tensors(twin))
    twin = twin.to_empty(device="cpu") if on_meta else twin.to("cpu")
    return twin.to(torch.float64).eval()


def _fill(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in _own_tensors(module):
        if name in values:
            tensor.data = values[name].clone()


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and buffers; a few layers keep a fixed gain as a buffer."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor


def _width(module: nn.Module, hidden_size: int | None) -> int | None:
    sizes = {tensor.numel() for _, tensor in _own_tensors(module) if tensor.dim() == 1 and tensor.numel() > 1}
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, int) or (isinstance(shape, tuple | list) and len(shape) == 1):
        sizes.add(shape if isinstance(shape, int) else int(shape[0]))
    if len(sizes) > 1 or (shape is not None and not sizes):
        return None
    return sizes.pop() if sizes else (hidden_size or 16)


def _uniform(generator: torch.Generator, size: int) -> Tensor:
    return torch.rand(size, generator=generator, dtype=torch.float64, device="cpu")
