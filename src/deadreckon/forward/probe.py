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

from deadreckon.kernel.norm import LAYERNORM, RMSNORM, Float64Array, Norm, NormKind

# Relative residual up to which an output counts as "this kind of norm". Many layers cast to float32 inside (6e-8 a
# rounding, a few roundings, and a mean subtraction that costs one digit), and the wrong kind is off by 0.1 and more.
TOLERANCE = 1e-5

_PLAIN = bool, int, float, str, tuple, type(None)
_TOKENS = 8
_SCALE = 30.0  # of the fitted tokens: eps <= 1e-2 then moves the output by less than TOLERANCE
_SMALL = tuple(10.0 ** (-k / 2) for k in range(2, 17))  # rms of the tokens that resolve eps in 1e-16 ... 1e-1


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

    response: _Response
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
            truth = _respond(_cpu_copy(module), width)
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
    response = _respond(probe_copy, width)
    if response is None:
        return None
    gain_name, offset = _match_gain(response.gain, values)
    shift_name = _match(response.shift, values)
    plain_shift = shift_name is not None or bool(np.all(np.abs(response.shift) <= TOLERANCE * _SCALE))
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


@dataclass(frozen=True)
class _Response:
    kind: NormKind
    groups: int
    eps: float
    gain: Float64Array
    shift: Float64Array


@torch.no_grad()
def _respond(module: nn.Module, width: int) -> _Response | None:
    """Fit the layer's answer to random tokens; None where no kind of norm fits."""
    generator = torch.Generator().manual_seed(width)
    base = torch.randn(_TOKENS, width, generator=generator, dtype=torch.float64, device="cpu")
    means = torch.randn(_TOKENS, 1, generator=generator, dtype=torch.float64, device="cpu")
    tokens = _SCALE * (base + 3 * means)
    moved = tokens[:1].clone()
    moved[0, 0] += 10 * _SCALE
    tiny = base[:1] / base[0].square().mean().sqrt() * torch.tensor(_SMALL, dtype=torch.float64, device="cpu")[:, None]
    # By NumPy: for so few numbers torch would first wake its threads, which takes longer than all the rest.
    x = torch.from_numpy(np.concatenate([tokens.numpy(), moved.numpy(), tiny.numpy()]))
    if _run(module, x[:1]) is None:  # one token first: some layers for images make far more than they are given
        return None
    y = _run(module, x)
    if y is None:
        return None
    y_tokens, y_moved, y_tiny = np.split(y.numpy(), [_TOKENS, _TOKENS + 1])
    if not np.isfinite(y_tokens).all():
        return None
    groups = _groups(y_tokens[0], y_moved[0])
    if groups is None:
        return None
    for kind in (LAYERNORM, RMSNORM):
        z = _normalise(tokens.numpy(), kind.centred, groups)
        gain, shift = _fit(z, y_tokens)
        if np.linalg.norm(y_tokens - (gain * z + shift)) <= TOLERANCE * np.linalg.norm(y_tokens - shift):
            first = slice(width // groups)  # each group has a mean square of its own
            small = _normalise(tiny.numpy(), kind.centred, groups)[:, first]
            eps = _eps(small, (y_tiny - shift)[:, first], gain[first], kind.centred, tiny.numpy()[:, first])
            return _Response(kind, groups, eps, gain, shift)
    return None


def _fit(z: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Slope and intercept of each coordinate of y over z, both (tokens, d)."""
    z_mean, y_mean = z.mean(0), y.mean(0)
    spread = ((z - z_mean) ** 2).sum(0)
    gain = ((z - z_mean) * (y - y_mean)).sum(0) / np.where(spread > 0, spread, np.inf)
    return gain, y_mean - gain * z_mean


def _normalise(x: Float64Array, centred: bool, groups: int) -> Float64Array:
    """Centred or not, divided by the root mean square of each group."""
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    if centred:
        grouped = grouped - grouped.mean(-1, keepdims=True)
    result: Float64Array = (grouped / np.sqrt((grouped**2).mean(-1, keepdims=True))).reshape(x.shape)
    return result


def _eps(z: Float64Array, y: Float64Array, gain: Float64Array, centred: bool, x: Float64Array) -> float:
    """The eps that explains how far small tokens are shrunk: shrinkage² = m / (m + eps), m their mean square."""
    model = gain * z
    shrinkage = (y * model).sum(1) / (model**2).sum(1)
    seen = x - x.mean(1, keepdims=True) if centred else x
    mean_square = (seen**2).mean(1)
    with np.errstate(all="ignore"):
        estimates = mean_square * (1 / shrinkage**2 - 1)
    usable = np.isfinite(estimates) & (shrinkage > 0.05) & (shrinkage < 0.999)
    if not usable.any():
        return 0.0
    best = np.argmin(np.where(usable, np.abs(shrinkage - 0.7), np.inf))  # half the denominator is eps: best conditioned
    return float(f"{estimates[best]:.3g}")


def _groups(y: Float64Array, moved: Float64Array) -> int | None:
    """How many groups are normalised separately: coordinate 0 of the input moves its own group only."""
    touched = np.abs(y - moved) > 1e-9 * np.abs(y).max()
    size = int(touched.sum())
    if size < 2 or y.size % size or not touched[:size].all():
        return None
    return y.size // size


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


def _run(module: nn.Module, x: Tensor) -> Tensor | None:
    """One forward over tokens (n, d), as a batch of one; None where the layer does not map them to (n, d)."""
    try:
        y = module(x.unsqueeze(0).clone())
    except Exception:  # any failure of a foreign forward means the same: not a plain norm
        return None
    y = y[0] if isinstance(y, tuple) and y else y  # some hand on what a quantised twin would need
    if not isinstance(y, Tensor) or y.shape != (1, *x.shape):
        return None
    return y[0].detach().to(torch.float64)


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
