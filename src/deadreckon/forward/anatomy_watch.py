"""The anatomy of a small module, found by watching one forward pass and confirmed by moving its parameters.

Nothing is read off names. A linear map reads a norm where what it is given *is* the norm's output; whether its weight
serves nothing else, whether anything else sees the norm, and which means go unseen, is decided by steps that must leave
the outputs alone, taken one at a time on a private copy whose parameters are random.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.anatomy import last_hidden_state
from deadreckon.forward.fed import LinearMap, canonical_names, fed_by, linear_maps, watch
from deadreckon.forward.probe import NormProbe, probe_norms
from deadreckon.forward.watching import redraw
from deadreckon.kernel.anatomy import Anatomy, NormSite, Reader, Writer

# Steps are of size one or more on parameters of size one: what matters moves log-probabilities by 1e-3 and more. Many
# models round to float32 inside, whatever they are given: what does not matter moves them by up to 1e-6.
_UNMOVED = 2e-5
_LARGEST = 20_000_000  # parameters of a module that is copied and run a hundred times


def watch_anatomy(model: nn.Module, inputs: Mapping[str, Any]) -> Anatomy:
    """The norms, readers and writers of a small module.

    Args:
        model: any module whose output has logits or a last hidden state. It is left as it was.
        inputs: keyword inputs under which it runs.

    Returns:
        The anatomy, with the module's own parameter names.

    Raises:
        UsageError: the module is large, or puts out neither logits nor a hidden state.
    """
    size = sum(p.numel() for p in model.parameters())
    if size > _LARGEST:
        raise UsageError(
            f"{type(model).__name__} has {size:,} parameters: only a small one can be watched by moving it"
        )
    return _Watcher(model, inputs).anatomy()


class _Watcher:
    """One private copy, its parameters by name, and what its modules were given and made."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self.model = copy.deepcopy(model).to(torch.float64).eval()
        self.inputs = {k: v.double() if torch.is_floating_point(v) else v for k, v in inputs.items()}
        self.generator = torch.Generator().manual_seed(2)
        self.parameters = dict(self.model.named_parameters())
        self.names = canonical_names(self.model)
        self.probes = probe_norms(self.model)
        self._redraw()
        self.watched = watch(self.model, self.inputs)
        self.logits = self.watched.logits
        self.base = self._outputs()

    def anatomy(self) -> Anatomy:
        """Everything that was found."""
        maps = [m for m in linear_maps(self.model, self.watched) if m.path not in self.probes]
        sites = [site for path, probe in self.probes.items() if (site := self._site(path, probe, maps)) is not None]
        covered = {m.weight for m in maps} | {self.names[n] for n in self._norm_tensors()}
        writers = [writer for m in maps if (writer := self._writer(m)) is not None]
        written = {writer.weight for writer in writers}
        tables = [n for n, p in self.parameters.items() if n not in written and self._free_rows(n, p, covered)]
        return Anatomy(
            tensors={name: tuple(p.shape) for name, p in self.parameters.items()},
            norms=tuple(sites),
            writers=tuple(writers),
            tables=tuple(tables),
            ties={name: to for name, to in self.names.items() if name != to},
            output="hidden_state" if self.logits is None else "logits",
        )

    def _redraw(self) -> None:
        redraw(self.model, self.probes)
        norms = self._norm_tensors()
        with torch.no_grad():
            for name, p in self.parameters.items():
                if name not in norms:
                    noise = torch.randn(p.shape, generator=self.generator, dtype=torch.float64)
                    p.copy_(noise / p.shape[-1] ** 0.5 if p.dim() > 1 else 0.4 + 0.2 * noise)

    def _norm_tensors(self) -> set[str]:
        leaves = {
            f"{path}.{leaf}" for path, probe in self.probes.items() for leaf in (probe.gain_name, probe.shift_name)
        }
        return leaves & self.names.keys()

    def _outputs(self) -> Tensor:
        with torch.no_grad():
            output = self.model(**self.inputs)
        if self.logits is not None:
            return torch.log_softmax(output["logits"].double(), -1)
        hidden = last_hidden_state(output)
        if hidden is None:
            raise UsageError(f"{type(self.model).__name__} puts out neither logits nor a last hidden state")
        return hidden.double()

    def _moved(self, step: Mapping[str, Tensor], base: Tensor | None = None) -> bool:
        """Whether a step of parameters is seen in the outputs."""
        kept = {name: self.parameters[name].detach().clone() for name in step}
        try:
            with torch.no_grad():
                for name, delta in step.items():
                    self.parameters[name].add_(delta)
            return self._differs(self._outputs(), base)
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.parameters[name].copy_(value)

    def _differs(self, outputs: Tensor, base: Tensor | None = None) -> bool:
        base = self.base if base is None else base
        return not bool((outputs - base).abs().max() <= _UNMOVED * max(1.0, float(base.abs().max())))

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _site(self, path: str, probe: NormProbe, maps: list[LinearMap]) -> NormSite | None:
        fed = fed_by(maps, [m for _, m in self.watched.calls.get(path, ()) if m is not None])
        gain, shift = (
            self.names.get(f"{path}.{leaf}") if leaf else None for leaf in (probe.gain_name, probe.shift_name)
        )
        if not fed or (probe.gain_name and (gain is None or probe.gain_offset is None)):
            return None
        width = probe.hidden_size
        readers = tuple(
            Reader(m.weight, m.bias, m.input_first, self._is_free(m, gain, shift, probe, width)) for m in fed
        )
        paths = [m.path for m in fed]
        closed = not self._seen(path, paths, 1 + 0.3 * torch.rand(width, generator=self.generator), self._random(width))
        flat = torch.ones(width, dtype=torch.float64)
        return NormSite(
            name=path,
            kind=probe.kind.name,
            gain=gain,
            shift=shift,
            hidden_size=width,
            offset=float(probe.gain_offset or 0.0),
            groups=probe.groups,
            readers=readers,
            closed=closed,
            mean_closed=closed or not self._seen(path, paths, flat, 0.7 * flat),
        )

    def _is_free(self, m: LinearMap, gain: str | None, shift: str | None, probe: NormProbe, width: int) -> bool:
        """Whether a reader's column is seen, and goes unseen once the norm's coordinate is switched off."""
        weight = self.parameters[m.weight]
        outputs = weight.shape[-1] if m.input_first else weight.shape[0]

        def step(columns: Tensor) -> dict[str, Tensor]:
            delta = self._random(outputs)[:, None] * columns
            return {m.weight: delta.T if m.input_first else delta}

        column = torch.zeros(width, dtype=torch.float64)
        column[0] = 1.0
        if not self._moved(step(column)):
            return False  # nothing depends on it in this pass: nothing is known about it
        if gain is None:
            return probe.kind.centred and shift is None and not self._moved(step(torch.ones_like(column)))
        off = {gain: -column * (self.parameters[gain].detach() + (probe.gain_offset or 0.0))}
        if shift is not None:
            off[shift] = -column * self.parameters[shift].detach()
        with torch.no_grad():
            for name, delta in off.items():
                self.parameters[name].add_(delta)
            try:
                return not self._moved(step(column), self._outputs())
            finally:
                for name, delta in off.items():
                    self.parameters[name].sub_(delta)

    def _seen(self, path: str, readers: list[str], scale: Tensor, shift: Tensor) -> bool:
        """Whether anything but the readers sees a norm's output being scaled and shifted."""
        with ExitStack() as stack:

            def changed(_: nn.Module, _args: Any, made: Tensor) -> Tensor:
                return made * scale + shift

            def undone(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
                back = [(v - shift) / scale if isinstance(v, Tensor) and i == 0 else v for i, v in enumerate(args)]
                return tuple(back), kwargs

            stack.callback(self.model.get_submodule(path).register_forward_hook(changed).remove)
            for reader in readers:
                module = self.model.get_submodule(reader)
                stack.callback(module.register_forward_pre_hook(undone, with_kwargs=True).remove)
            return self._differs(self._outputs())

    def _writer(self, m: LinearMap) -> Writer | None:
        weight = self.parameters[m.weight]
        outputs = weight.shape[-1] if m.input_first else weight.shape[0]
        if outputs < 2 or not self._moved({m.weight: self._random(*weight.shape)}):
            return None
        row = self._random(weight.numel() // outputs)
        whole = row.repeat(outputs, 1)
        freedom = "none"
        if not self._moved({m.weight: whole.T if m.input_first else whole.reshape(weight.shape)}):
            freedom = "rows"
        elif m.makes_logits and not self._moved({m.weight: torch.ones_like(weight)}):
            freedom = "entries"
        bias = m.bias if m.bias is not None and (freedom != "none" or m.makes_logits) else None
        if bias is not None and self._moved({bias: torch.ones_like(self.parameters[bias])}):
            bias = None
        if freedom == "none" and bias is None:
            return None
        return Writer(m.weight, bias, m.input_first, m.makes_logits, freedom)

    def _free_rows(self, name: str, parameter: Tensor, covered: set[str]) -> bool:
        """Whether a constant in every row of a table goes unseen, though the table is used."""
        if name in covered or parameter.dim() < 2 or parameter.shape[-1] < 2:
            return False
        rows = self._random(*parameter.shape[:-1], 1).expand(parameter.shape)
        return self._moved({name: self._random(*parameter.shape)}) and not self._moved({name: rows})
