"""Where the norm in question sits in a loaded model, found by what modules do, not by what they are called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.calibration import Batch, first_row, placed
from deadreckon.forward.evaluating import evaluating
from deadreckon.forward.memory import out_of_memory
from deadreckon.forward.placement import at_hand, input_device
from deadreckon.forward.probe import norm_candidates, probe_norm, probe_norms
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.kernel.norm import Norm

_LISTED = 12
_GAIN_SUFFIXES = (".weight", ".gamma", ".scale")


@dataclass(frozen=True)
class NormSite:
    """A norm in a model: the module, its path, and the plain description that its own parameters give."""

    path: str
    module: nn.Module
    norm: Norm

    def described(self, norm: Norm) -> NormSite:
        """The same module under the description that something else gives of it, a checkpoint's files say.

        Args:
            norm: the description; where it leaves eps open, the module's own stays.

        Returns:
            The site.

        Raises:
            InputError: the description is of a norm of another width.
        """
        if norm.hidden_size != self.norm.hidden_size:
            raise InputError(
                f"{norm.name} has {norm.hidden_size} gains in the files and {self.path} has {self.norm.hidden_size} in "
                "the model: the files describe another norm; name one with norm=... (--norm)"
            )
        eps = self.norm.eps if norm.eps is None else norm.eps
        return replace(self, norm=replace(norm, name=self.path, eps=eps))


def base_model(model: nn.Module) -> nn.Module:
    """The part of a transformers model that makes the hidden states, without its head; any other module as it is."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def run(model: nn.Module, batch: Batch) -> Any:
    """The model's output on one batch.

    Args:
        model: any module.
        batch: keyword arguments of its forward, on its device.

    Returns:
        Whatever the forward returns.

    Raises:
        UsageError: the forward failed: these are not inputs that it takes. Running out of memory passes unchanged.
    """
    try:
        return model(**batch)
    except Exception as error:  # whatever another project's model makes of its inputs
        if out_of_memory(error):
            raise  # the same inputs may run in smaller batches
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise UsageError(
            f"{type(model).__name__} does not run on {', '.join(batch)} ({reason}); pass batches=... of its own inputs"
        ) from error


def named_norm(model: nn.Module, name: str) -> NormSite:
    """The norm that a module path or the name of its gain tensor names; a unique ending of the path is enough.

    Args:
        model: any module.
        name: e.g. ``encoder.layer.5.output.LayerNorm`` or ``gpt_neox.final_layer_norm.weight``.

    Returns:
        The site.

    Raises:
        UsageError: no module, or several, end in that name, or it is not a norm.
    """
    wanted = name
    for suffix in _GAIN_SUFFIXES:
        wanted = wanted.removesuffix(suffix)
    modules = dict(model.named_modules())
    found = [wanted] if wanted in modules else [p for p in modules if p.endswith("." + wanted)]
    if not found:  # a checkpoint may spell the head's prefix, which the base model lacks: the longest rest is meant
        found = [p for p in modules if p and wanted.endswith("." + p)]
        found = [p for p in found if len(p) == max(map(len, found))]
    if len(found) != 1:
        raise UsageError(f"{name!r} names {len(found)} modules of {type(model).__name__}; {_choices(model)}")
    return _site(model, found[0])


def final_norm(model: nn.Module, batch: Batch) -> NormSite:
    """The norm whose output is the model's last hidden state, seen by running one row of `batch`.

    Args:
        model: a transformers model (with or without head), or any module that returns its last hidden state.
        batch: keyword arguments of its forward.

    Returns:
        The site.

    Raises:
        UsageError: no norm makes the last hidden state; the candidates are listed.
    """
    outputs: dict[str, Tensor] = {}
    inner: list[Any] = []
    handles = [base_model(model).register_forward_hook(lambda _m, _a, output: inner.append(output))]
    handles += [module.register_forward_hook(_keep(outputs, path)) for path, module in norm_candidates(model)]
    try:
        with torch.no_grad():
            output = run(model, placed(first_row(batch), input_device(model)))
    finally:
        for handle in handles:
            handle.remove()
    # A model with a head returns logits: then the part below its head has the hidden state.
    hidden = last_hidden_state(output if hasattr(output, "last_hidden_state") or not inner else inner[-1])
    if hidden is not None:
        for path, output in reversed(outputs.items()):
            if output.shape == hidden.shape and torch.allclose(
                output.to(hidden.device), hidden, rtol=0, atol=0, equal_nan=True
            ):
                return _site(model, path, hidden.shape[-1])
    raise UsageError(
        f"no norm of {type(model).__name__} makes its last hidden state: it ends un-normed, or changes what the norm "
        f"made; {_choices(model)}"
    )


def norms_like(model: nn.Module, norm: Norm) -> list[NormSite]:
    """The norms of a model that have the gain of another, to the rounding of a 16-bit dtype.

    Args:
        model: any module.
        norm: a description, from a checkpoint's files for example.

    Returns:
        The sites; several where gains are alike (at initialisation all are).
    """
    found = []
    for path, probe in probe_norms(model).items():
        candidate = probe.norm(path)
        if candidate is not None and candidate.hidden_size == norm.hidden_size:
            tolerance = torch.finfo(torch.bfloat16).eps * np.abs(norm.gain).max()
            if np.abs(candidate.gain - norm.gain).max() <= tolerance:
                found.append(NormSite(path, model.get_submodule(path), candidate))
    return found


def norms_of(model: nn.Module, select: str | None = None) -> list[Norm]:
    """The norms of a module as plain data.

    Args:
        model: a transformers model, or a norm layer by itself.
        select: None for the norm that makes the last hidden state; ``all`` for every other besides; or one by name.

    Returns:
        The norms, the one of the last hidden state first.

    Raises:
        UsageError: no norm makes the last hidden state, or `select` names none.
    """
    alone = probe_norm(model)
    if alone is not None and (norm := alone.norm(type(model).__name__)) is not None:
        return [norm]
    if select not in {None, "all"}:
        return [named_norm(model, str(select)).norm]
    with evaluating(model):
        final = final_norm(model, next(random_inputs(model, seed=0, batch_size=1).batches()))
    if select is None:
        return [final.norm]
    others = ((path, probe.norm(path, "block")) for path, probe in probe_norms(model).items())
    return [final.norm, *(norm for path, norm in others if norm is not None and path != final.path)]


def last_hidden_state(output: Any) -> Tensor | None:
    """The last hidden state in a model's output, whatever form that takes."""
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        hidden = output[0] if isinstance(output, tuple) and output else output
    return hidden if isinstance(hidden, Tensor) else None


def _keep(outputs: dict[str, Tensor], path: str) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.pop(path, None)  # re-inserted: the order is that of the last firings
            outputs[path] = output.clone()

    return hook


def _site(model: nn.Module, path: str, width: int | None = None) -> NormSite:
    """The norm at a path; a norm without parameters does not know its own width, the hidden state does."""
    module = model.get_submodule(path)
    with at_hand(module):
        probe = probe_norm(module, width or _config_width(model))
    norm = probe.norm(path) if probe else None
    if norm is None:
        raise UsageError(f"{path} ({type(module).__name__}) is not a plain norm; {_choices(model)}")
    return NormSite(path, module, norm)


def _config_width(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    width = getattr(config.get_text_config(), "hidden_size", None) if hasattr(config, "get_text_config") else None
    return width if isinstance(width, int) else None


def _choices(model: nn.Module) -> str:
    paths = list(probe_norms(model))
    if not paths:
        return "this model has no norm at all"
    shown = paths[-_LISTED:]
    return f"choose with norm=... (--norm) one of its {len(paths)} norms, e.g. {', '.join(shown)}"


def check_same_width(site: NormSite, tensor: Tensor) -> None:
    """Check that a captured tensor has the norm's width.

    Raises:
        InputError: it has another.
    """
    if tensor.shape[-1] != site.norm.hidden_size:
        raise InputError(
            f"{site.path} ran on {tensor.shape[-1]} coordinates and has {site.norm.hidden_size} gains: "
            "it does not act on the last dimension"
        )
