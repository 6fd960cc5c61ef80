"""Forward-mode derivatives through a model: fused attention and grouped products of experts have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

_PLAIN = "eager"
_SWITCHES = {"_attn_implementation_internal": {_PLAIN, "sdpa"}, "_experts_implementation_internal": {_PLAIN}}
_FUSED = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
_HALVES = (torch.bfloat16, torch.float16)
_WEIGHTS = ("weight", "qweight", "_packed_params")


@contextmanager
def forward_mode(model: nn.Module) -> Iterator[None]:
    """Attention and experts in operations that have forward-mode derivatives, for the time of the context.

    Args:
        model: its configs' choice of implementation is set, and set back as it was; hooks keep the derivatives of
            its fused norms in 16 bits, which some versions of torch make float32, to their own dtype.

    Yields:
        Nothing.
    """
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    before: list[tuple[Any, str, Any]] = []
    try:
        for config in configs.values():
            for switch, plain in _SWITCHES.items():
                value = getattr(config, switch, None)
                if value is not None and value not in plain:
                    before.append((config, switch, value))
                    setattr(config, switch, _PLAIN)
        with sdpa_kernel(SDPBackend.MATH), ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, _FUSED):
                    stack.callback(module.register_forward_hook(_in_own_dtype).remove)
            yield
    finally:
        for config, switch, value in before:
            setattr(config, switch, value)


def _in_own_dtype(_: nn.Module, args: Any, made: Tensor) -> Tensor:
    # The value has the right dtype and the derivative has not: one that goes there and back again has both.
    return made.to(torch.float32).to(made.dtype) if made.dtype in _HALVES else made


def without_derivative(model: nn.Module, readers: list[str], run: Callable[[], Tensor]) -> list[str]:
    """Modules with weights that put out nothing of a derivative that enters them: quantised kernels say nothing of it.

    Args:
        model: in evaluation mode.
        readers: paths of modules whose outputs are given a derivative.
        run: runs the model.

    Returns:
        Their paths; none where every module passes derivatives on.
    """
    found: list[str] = []

    def start(_: nn.Module, _args: Any, made: Tensor) -> Tensor:
        value = _tangent(made)[0]
        tangent: Tensor = forward_ad.make_dual(value, torch.ones_like(value))  # type: ignore[no-untyped-call]
        return tangent

    def check(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            outputs = made if isinstance(made, tuple | list) else [made]
            lost = not any(_moves(value) for value in outputs)
            if lost and path not in (*readers, *found) and any(_moves(value) for value in given):
                found.append(path)

        return hook

    with ExitStack() as stack, torch.no_grad(), forward_ad.dual_level():
        for path, module in model.named_modules():
            weights = any(hasattr(module, name) for name in _WEIGHTS) or any(b.dim() > 1 for b in module.buffers())
            if path and weights and not any(True for child in module.children() for _ in child.parameters()):
                stack.callback(module.register_forward_hook(check(path), with_kwargs=True).remove)
        for path in readers:
            stack.callback(model.get_submodule(path).register_forward_hook(start).remove)
        run()
    return found


def _tangent(value: Tensor) -> tuple[Tensor, Tensor | None]:
    parts = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return parts.primal, parts.tangent


def _moves(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and _tangent(value)[1] is not None
