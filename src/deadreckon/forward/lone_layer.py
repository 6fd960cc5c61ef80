"""A private float64 copy of one layer, to be run by itself: on any tokens, with any parameters, in any layout.

Nothing is assumed about the formula. The original is never run and never written to; buffers of the copy are put back
before every run, so that running statistics do not make one run depend on the one before.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.norm import Float64Array

# Attributes by which layers call their number of coordinates.
_WIDTHS = ("normalized_shape", "num_features", "num_channels", "hidden_size")
# Two runs may differ by what threads make of a sum's order, not by more.
_REPEATABLE = 1e-12
_ROWS = 3  # of an image
TOKENS, BATCHED, CHANNELS_FIRST, IMAGE = "tokens", "batched", "channels_first", "image"


class LoneLayer:
    """A copy of a layer with a way to hand it tokens.

    Attributes:
        hidden_size: number of coordinates d.
        layout: how tokens are handed over, one of `LAYOUTS`.
        accepted: every layout that the layer takes and gives back.
    """

    def __init__(
        self,
        module: nn.Module,
        hidden_size: int | None = None,
        *,
        layout: str | None = None,
        training: bool = False,
        name: str = "the layer",
    ) -> None:
        if layout is not None and layout not in LAYOUTS:
            raise UsageError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
        self._name = name
        self._module = _private_copy(module, name).train(training)
        self._given = {n: p.detach().clone() for n, p in self._module.named_parameters() if p.is_floating_point()}
        self._buffers = {n: b.detach().clone() for n, b in self._module.named_buffers()}
        for part, tensors in (("parameter", self._given), ("buffer", self._buffers)):
            for tensor_name, value in tensors.items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    raise InputError(
                        f"{name}: {part} {tensor_name} is not finite; mend it, or probe a newly built layer"
                    )
        width = hidden_size if hidden_size is not None else told_width(module)
        if width is None:
            raise UsageError(f"{name}: nothing in it tells the hidden size; give hidden_size (--hidden-size)")
        self.hidden_size = width
        if self.hidden_size < 2:
            raise UsageError(f"{name}: the hidden size is {self.hidden_size}; a norm needs at least 2 coordinates")
        # Sequences of two lengths, neither of them d: no axis may be taken for another, nor fit by chance.
        self._lengths = [length for length in (7, 11, 13) if length != self.hidden_size][:2]
        self.layout, self.accepted = self._find_layout(layout)
        self._check_repeatable()

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters as they were given, in float64, by name."""
        return self._given

    def tokens(self, at_least: int) -> int:
        """The smallest number of tokens from `at_least` on that fills whole sequences and images."""
        unit = _ROWS * self._lengths[0]
        return -(-at_least // unit) * unit

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values of some parameters for the time of the context; all others are as given."""
        own = dict(self._module.named_parameters())
        with torch.no_grad():
            try:
                for name, value in values.items():
                    own[name].copy_(value)
                yield
            finally:
                for name in values:
                    own[name].copy_(self._given[name])

    def run(self, x: Float64Array) -> Float64Array:
        """What the layer puts out.

        Args:
            x: tokens, shape (n, d), n a multiple that `tokens` gives.

        Returns:
            The outputs, shape (n, d), in float64.

        Raises:
            InputError: the layer fails, changes the shape or puts out NaN or infinity.
        """
        try:
            y = self._run(torch.from_numpy(x), self.layout, self._lengths[0])
        except InputError:
            raise
        except Exception as error:  # whatever a foreign layer raises
            raise InputError(f"{self._name}: its forward fails: {type(error).__name__}: {_first_line(error)}") from None
        if not np.isfinite(y).all():
            raise InputError(
                f"{self._name} turns finite tokens into NaN or infinity; nothing can be said of such outputs"
            )
        return y

    def _run(self, x: Tensor, layout: str, length: int) -> Float64Array:
        arrange, restore = LAYOUTS[layout]
        handed = arrange(x, length)
        with torch.no_grad():
            for name, buffer in self._module.named_buffers():
                buffer.copy_(self._buffers[name])
            y = self._module(handed.clone())
        if not isinstance(y, Tensor):
            raise InputError(f"{self._name} puts out a {type(y).__name__}; a norm puts out one tensor: wrap the layer")
        if y.shape != handed.shape or not y.is_floating_point():
            raise InputError(
                f"{self._name} turns {tuple(handed.shape)} into {tuple(y.shape)} ({y.dtype}); a norm keeps the shape: "
                "probe the norm alone, and check the hidden size"
            )
        return restore(y.to("cpu", torch.float64), self.hidden_size).contiguous().numpy()

    def _check_repeatable(self) -> None:
        x = np.random.default_rng(0).standard_normal((self.tokens(4 * self.hidden_size), self.hidden_size))
        first, second = self.run(x), self.run(x)
        difference = float(np.abs(first - second).max())
        if difference > _REPEATABLE * np.abs(first).max():
            raise InputError(
                f"{self._name} answers the same tokens differently (by up to {difference:.1e}); probe it with its "
                "dropout or noise off (evaluation mode)"
            )

    def _find_layout(self, wanted: str | None) -> tuple[str, list[str]]:
        """The first layout that the layer takes; one that it warns about only if it takes no other."""
        generator = torch.Generator().manual_seed(0)
        size = (4 * _ROWS, self.hidden_size)
        trials = {
            length: torch.randn(length * size[0], size[1], generator=generator, dtype=torch.float64, device="cpu")
            for length in self._lengths
        }
        complaints: dict[str, Exception] = {}
        for strict in (True, False):
            accepted = []
            for layout in LAYOUTS if wanted is None else (wanted,):
                with warnings.catch_warnings():
                    warnings.simplefilter("error" if strict else "ignore", UserWarning)
                    try:
                        for length, x in trials.items():
                            self._run(x, layout, length)
                    except Exception as error:  # whatever a foreign layer raises on a shape that it does not know
                        complaints[layout] = error
                    else:
                        accepted.append(layout)
            if accepted:
                return accepted[0], accepted
        layout, complaint = next(iter(complaints.items()))
        if isinstance(complaint, InputError):
            raise complaint
        raise InputError(
            f"{self._name}: its forward fails on {_SHAPES[layout].format(d=self.hidden_size)} in float64"
            f"{'' if wanted else ' and on every other layout'}: {type(complaint).__name__}: {_first_line(complaint)}; "
            "check the hidden size, or wrap the layer in a module that takes one tensor"
        )


_Arrange = Callable[[Tensor, int], Tensor]
_Restore = Callable[[Tensor, int], Tensor]

LAYOUTS: dict[str, tuple[_Arrange, _Restore]] = {
    TOKENS: (lambda x, _: x, lambda y, _: y),
    BATCHED: (lambda x, t: x.reshape(-1, t, x.shape[-1]), lambda y, d: y.reshape(-1, d)),
    CHANNELS_FIRST: (
        lambda x, t: x.reshape(-1, t, x.shape[-1]).transpose(1, 2),
        lambda y, d: y.transpose(1, 2).reshape(-1, d),
    ),
    IMAGE: (
        lambda x, t: x.reshape(-1, _ROWS, t, x.shape[-1]).permute(0, 3, 1, 2),
        lambda y, d: y.permute(0, 2, 3, 1).reshape(-1, d),
    ),
}
_SHAPES = {
    TOKENS: "(tokens, {d})",
    BATCHED: "(batch, tokens, {d})",
    CHANNELS_FIRST: "(batch, {d}, tokens)",
    IMAGE: "(batch, {d}, height, width)",
}


def layout_shape(layout: str, hidden_size: int | str = "d") -> str:
    """A layout as a shape in words, e.g. ``(batch, d, tokens)``."""
    return _SHAPES[layout].format(d=hidden_size)


def _private_copy(module: nn.Module, name: str) -> nn.Module:
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise InputError(f"{name} is lazy: its parameters are made by its first input; run it once, then probe it")
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise InputError(f"{name} has parameters on the meta device; probe a layer that holds numbers")
    # Tensors that torch's older reparametrisations keep as attributes are results of a graph, which cannot be copied.
    results = [v for part in module.modules() for v in vars(part).values() if isinstance(v, Tensor) and v.grad_fn]
    try:
        twin = copy.deepcopy(module, {id(value): value.detach().clone() for value in results})
    except Exception as error:  # a foreign class may refuse in any way
        raise InputError(
            f"{name} cannot be copied ({type(error).__name__}: {_first_line(error)}); probe a newly built layer"
        ) from None
    for part in twin.modules():
        part.__dict__.pop("forward", None)  # instance-level wrappers (device hooks) belong to the original
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = getattr(part, kind)
            for key, hook in list(hooks.items()):
                # An observer's hook would see the copy run; torch's own reparametrisations are part of the layer.
                if not type(hook).__module__.startswith("torch.nn.utils"):
                    del hooks[key]
    return twin.to("cpu", torch.float64)


def told_width(module: nn.Module) -> int | None:
    """The number of coordinates that a layer tells, by an attribute or by tensors of one size; None: it does not."""
    for attribute in _WIDTHS:
        value = getattr(module, attribute, None)
        if isinstance(value, tuple | list) and len(value) == 1:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return value
    tensors = (*module.parameters(), *module.buffers())
    sizes = {tensor.numel() for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 1}
    return sizes.pop() if len(sizes) == 1 else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
