"""Where a norm's kernel meets a weight: the linear maps that read a norm, in a loaded model of any size."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadreckon.errors import UsageError
from deadreckon.forward.calibration import Batch
from deadreckon.forward.fed import LinearMap, Watched, fed_by, linear_maps, same, watch
from deadreckon.forward.outputs import outputs_of
from deadreckon.forward.placement import at_hand
from deadreckon.forward.probe import norm_candidates, probe_norm
from deadreckon.kernel.anatomy import NormSite
from deadreckon.kernel.families import LiveNorm
from deadreckon.kernel.norm import Float64Array, Norm

HEAD = "head"
ALL = "all"
_LISTED = 8
_SEEN = 1e-2  # relative; the change that is looked for is of order one, rounding in bfloat16 of order 4e-3


@dataclass(frozen=True, eq=False)
class Site:
    """A reader of a norm, or all readers of one norm whose weights move together.

    Attributes:
        name: ``head``, or the path of the reader, of several joined by " + ".
        norm_path: path of the norm.
        norm: its parameters.
        shift_name: the norm's parameter that holds the shift; None: it has none.
        moved: the readers whose weights move along the kernel.
        others: further readers of the norm, whose biases make up for a moved shift.
        vector: w, shape (d,): the kernel direction, or gain^-1 normalised where there is no kernel.
        constant: c = w.shift.
        remedy: what takes the constant away: ``bias`` | ``shift`` | ``nothing`` (c is zero) | ``none`` (there is no
            way: no bias, and something besides linear maps sees the norm).
        has_kernel: whether the norm has one.
        virtual: whether a weight serves elsewhere too, so that the step is one of an untied copy.
        direct: whether the logits can be had from the norm's input alone, by norm and head.
    """

    name: str
    norm_path: str
    norm: Norm
    shift_name: str | None
    moved: tuple[LinearMap, ...]
    others: tuple[LinearMap, ...]
    vector: Float64Array
    constant: float
    remedy: str
    has_kernel: bool
    virtual: bool
    direct: bool


@torch.no_grad()
def find_sites(model: nn.Module, batch: Batch, wanted: str | Sequence[str] = HEAD) -> list[Site]:
    """The readers of norms in a model, seen in a forward pass of few tokens.

    Args:
        model: in evaluation mode.
        batch: keyword inputs on its device; few, since everything is kept.
        wanted: ``head``, ``all``, or dotted parts of paths, e.g. ``layers.3.mlp``.

    Returns:
        The sites in the order of the model's modules.

    Raises:
        UsageError: the model has no head, or nothing is of that name; the nearest are offered.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    watched = watch(model, batch)
    maps = list(linear_maps(model, watched))
    norms = {path: [m for _, m in watched.calls[path] if m is not None] for path in _norm_paths(model, watched)}
    if watched.logits is not None and not any(m.makes_logits for m in maps):  # something follows the head
        embeddings = getattr(model, "get_output_embeddings", lambda: None)()
        maps = [replace(m, makes_logits=model.get_submodule(m.path) is embeddings) for m in maps]
    heads = [m.path for m in maps if m.makes_logits]
    if names == [HEAD]:  # a large model has too many norms and maps to compare each with each
        norms = {path: made for path, made in norms.items() if fed_by([m for m in maps if m.makes_logits], made)}
    fed = {path: readers for path, made in norms.items() if (readers := fed_by(maps, made))}
    read = {m.path for readers in fed.values() for m in readers}
    chosen = read if names == [ALL] else {p for n in names for p in _matching(n, read, heads, model, watched)}
    sites = []
    for path, readers in fed.items():
        if any(m.path in chosen for m in readers):
            sites += _Norm(model, batch, watched, path, readers).sites(chosen)
    if not sites:
        raise UsageError(f"no reader among {', '.join(sorted(chosen)[:_LISTED])} is fed by a plain norm")
    return sites


def weight_of(model: nn.Module, reader: LinearMap) -> nn.Parameter:
    """A reader's weight, as it is stored."""
    weight = model.get_submodule(reader.path).weight
    if not isinstance(weight, nn.Parameter):
        raise UsageError(f"{reader.path} has no plain weight")
    return weight


def _norm_paths(model: nn.Module, watched: Watched) -> list[str]:
    return [path for path, _ in norm_candidates(model) if path in watched.calls]


def _matching(name: str, read: set[str], heads: list[str], model: nn.Module, watched: Watched) -> list[str]:
    """The readers that a name means."""
    if name == HEAD:
        if watched.logits is None:
            raise UsageError(
                f"{type(model).__name__} has no head: it puts out no logits. Name its readers, or all of them, with "
                "site='all' (--site all); their output metric is the Gaussian one"
            )
        if not set(heads) & read:
            why = "no linear map's output is its logits" if not heads else f"no norm alone feeds {heads[0]}"
            raise UsageError(f"the head of {type(model).__name__} cannot be found ({why}); name a reader (--site all)")
        return [path for path in heads if path in read]
    dotted = f".{name.strip('.')}."
    if found := [path for path in read if dotted in f".{path}."]:
        return found
    # Compared by their endings: the user seldom writes a path's beginning.
    parts = name.count(".") + 1
    endings = {".".join(path.split(".")[-parts:]): path for path in read}
    near = [endings[e] for e in difflib.get_close_matches(name, endings, n=3, cutoff=0.3)]
    offered = near or sorted(read)[:_LISTED]
    exists = any(dotted in f".{path}." for path, _ in model.named_modules())
    why = "reads no norm through a plain weight (it may be quantised)" if exists else "does not exist"
    nearest = f"the nearest are {', '.join(offered)}" if offered else "and no linear map reads a norm in this model"
    raise UsageError(f"site {name!r} {why} in {type(model).__name__}; {nearest}, or head, or all")


class _Norm:
    """One norm with its readers, while its sites are made."""

    def __init__(self, model: nn.Module, batch: Batch, watched: Watched, path: str, readers: list[LinearMap]) -> None:
        self.model, self.batch, self.watched, self.path, self.readers = model, batch, watched, path, readers
        with at_hand(model.get_submodule(path)):
            self.probe = probe_norm(model.get_submodule(path), readers[0].given[0].shape[-1])

    def sites(self, chosen: set[str]) -> list[Site]:
        """The sites of the readers that were chosen; none where this is no plain norm."""
        norm = self.probe.norm(self.path) if self.probe else None
        if norm is None or self.probe is None:
            return []
        plain = NormSite(self.path, norm.kind.name, None, None, norm.hidden_size)
        live = LiveNorm.of(plain, norm)
        has_kernel = live.kernel.shape[1] > 0
        vector = live.kernel[:, 0] if has_kernel else _inverse_gain(norm.gain)
        shift = np.zeros(norm.hidden_size) if norm.shift is None else norm.shift
        constant = float(vector @ shift)
        free = [m for m in self.readers if m.bias is None]
        wanted = [m for m in self.readers if m.path in chosen]
        groups: list[tuple[tuple[LinearMap, ...], str]] = [
            ((m,), "nothing" if constant == 0.0 else "bias") for m in wanted if m.bias or constant == 0.0
        ]
        if constant != 0.0 and (unbiased := [m for m in wanted if m.bias is None]):
            closed = self.probe.shift_name is not None and not self._seen()
            groups += [(tuple(free), "shift")] if closed else [((m,), "none") for m in unbiased]
        return [self._site(norm, vector, constant, moved, remedy, has_kernel) for moved, remedy in groups]

    def _site(
        self,
        norm: Norm,
        vector: Float64Array,
        constant: float,
        moved: tuple[LinearMap, ...],
        remedy: str,
        has_kernel: bool,
    ) -> Site:
        head = len(moved) == 1 and moved[0].makes_logits
        uses: dict[int, int] = {}
        for _, parameter in self.model.named_parameters(remove_duplicate=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
        return Site(
            name=HEAD if head else " + ".join(m.path for m in moved),
            norm_path=self.path,
            norm=norm,
            shift_name=self.probe.shift_name if self.probe else None,
            moved=moved,
            others=tuple(m for m in self.readers if m not in moved) if remedy == "shift" else (),
            vector=vector,
            constant=constant,
            remedy=remedy,
            has_kernel=has_kernel,
            virtual=any(uses[id(weight_of(self.model, m))] > 1 for m in moved),
            direct=head and self._is_direct(moved[0]),
        )

    def _is_direct(self, head: LinearMap) -> bool:
        """Whether norm and head alone give the logits from the norm's input."""
        calls = self.watched.calls[self.path]
        made, logits = calls[0][1], self.watched.logits
        if len(calls) != 1 or len(head.given) != 1 or made is None or logits is None:
            return False
        return same(head.given[0], made) and any(
            m is not None and same(m, logits) for _, m in self.watched.calls[head.path]
        )

    def _seen(self) -> bool:
        """Whether anything but the readers sees the norm's output being scaled and shifted."""
        base, _ = outputs_of(self.watched.output)
        width = self.readers[0].given[0].shape[-1]
        generator = torch.Generator().manual_seed(0)
        given = self.readers[0].given[0]
        scale = (1.5 + 0.3 * torch.rand(width, generator=generator)).to(given)
        size = given.float().square().mean().sqrt()
        shift = torch.randn(width, generator=generator).to(given) * size.to(given)

        def changed(_: nn.Module, _args: Any, made: Tensor) -> Tensor:
            return made * scale + shift

        def restored(reader: LinearMap) -> Any:
            calls = iter(reader.given)

            def undone(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
                return (next(calls, args[0]), *args[1:]), kwargs

            return undone

        with ExitStack() as stack:
            stack.callback(self.model.get_submodule(self.path).register_forward_hook(changed).remove)
            for reader in self.readers:
                module = self.model.get_submodule(reader.path)
                stack.callback(module.register_forward_pre_hook(restored(reader), with_kwargs=True).remove)
            moved, _ = outputs_of(self.model(**self.batch))
        change = (moved.double() - base.double()).abs().max()
        return not bool(change <= _SEEN * base.double().abs().max())


def _inverse_gain(gain: Float64Array) -> Float64Array:
    inverse = np.abs(gain).min() / gain
    return np.asarray(inverse / np.linalg.norm(inverse))
