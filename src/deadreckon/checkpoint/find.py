"""Finding a checkpoint's norms: the atlas says what is sought, the file's own names say where it lies.

Names moved between versions and differ by wrapper, so known spellings are tried first and then matched from their end,
segment by segment. What the atlas does not know is never guessed: the candidates are listed instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from deadreckon.checkpoint.adapter import adapter_note
from deadreckon.checkpoint.atlas import Architecture, NormRow, StackRow, lookup, lookup_text, why_absent
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.gguf_norms import gguf_architecture
from deadreckon.checkpoint.naming import GAINS, SHIFTS, canonical, in_block, layer_order, matches, with_last
from deadreckon.checkpoint.timm_norms import timm_architecture
from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.norm import Norm, effective_gain, norm_kind

_NORM_LIKE = re.compile(r"norm|(^|[._])ln([._\d]|$)", re.IGNORECASE)
_TEXT_TOWER = re.compile(r"language|text|llm")
_LISTED = 12


def find_norms(
    checkpoint: Checkpoint, select: str | None = None, *, kind: str | None = None, gain_offset: float | None = None
) -> list[Norm]:
    """The norms of a checkpoint, with their parameters.

    Args:
        checkpoint: an opened checkpoint; only the norms' own tensors are read from it.
        select: None for the norms that end a stream or feed the output layer; ``all`` for every block's norms besides;
            otherwise the name of one norm or of its gain's tensor (a unique ending of it is enough).
        kind: layernorm | rmsnorm, in place of what the architecture and the tensors say.
        gain_offset: what to add to the stored gain, in place of what the architecture says.

    Returns:
        The norms. The first is the one that makes the base model's last hidden state; the others follow by role (head,
        encoder, vision, block in layer order). Where the stream ends without a norm and only a pooled token is normed,
        that one stands alone. The names are those of the file, without the parameter's own.

    Raises:
        UsageError: the architecture is unknown or has no final norm, or `select` names nothing or several norms, or the
            kind cannot be told; the message lists what there is to choose from.
        InputError: a norm that must be there is missing, or its tensors are not what they should be.
    """
    if checkpoint.format == "onnx":  # the graph itself says what its norms are
        from deadreckon.checkpoint.onnx_norms import onnx_norms

        return onnx_norms(checkpoint, select, kind=kind, gain_offset=gain_offset)
    finder = _Finder(checkpoint, kind, gain_offset)
    if select is not None and select != "all":
        return [finder.named(select)]
    norms = finder.ends()
    return norms + finder.blocks({norm.name for norm in norms}) if select == "all" else norms


class _Finder:
    """One search: the checkpoint, its vectors by canonical name, its architecture, and what the user said."""

    def __init__(self, checkpoint: Checkpoint, kind: str | None, gain_offset: float | None) -> None:
        self.checkpoint, self.kind, self.gain_offset = checkpoint, kind, gain_offset
        # By name alone: asking for an entry would read the header of its shard, of which a large model has many.
        self.vectors = {canonical(name): name for name in checkpoint.tensors}
        self.architecture: Architecture | None
        if checkpoint.format == "gguf":
            self.architecture = gguf_architecture(checkpoint, self.vectors)
        else:
            self.architecture = lookup(checkpoint.config) or timm_architecture(checkpoint.config, self.vectors)

    def ends(self) -> list[Norm]:
        """The norms that end a stream, or feed the output layer."""
        if self.architecture is None:
            name = self.checkpoint.architecture or self.checkpoint.config.get("architecture")
            if adapter := adapter_note(self.checkpoint.path):
                raise UsageError(f"{self.checkpoint.path}: {adapter}. Of norms, {self._choices()}")
            what = f"the atlas does not know the architecture {name!r}" if name else "there is no config naming one"
            if why := why_absent(name):
                what += f" (when it was built: {why})"
            raise UsageError(f"{self.checkpoint.path}: {what}; {self._choices()}")
        norms = self._ends_of(self.architecture)
        if not norms and (text := lookup_text(self.checkpoint.config)) is not None:
            norms = self._ends_of(text)  # the language model alone, under the composite's config
        if not norms:
            raise self._nothing_found(self.architecture)
        return norms

    def blocks(self, known: set[str]) -> list[Norm]:
        """Every other norm that the architecture has, in layer order."""
        found: dict[str, NormRow] = {}
        for row in self.architecture.others if self.architecture else ():
            for name in row.names:
                stems = self._ending_in(name, row.gain) or self._ending_in(name, row.gain, loose=True)
                found |= {stem: row for stem in stems if stem not in found}
        leaves = (*GAINS, *SHIFTS)
        ours = (f"{stem}.{leaf}" for stem in found for leaf in leaves)
        self.checkpoint.prefetch([self.vectors[name] for name in ours if name in self.vectors])
        return [self._read(stem, found[stem], "block") for stem in sorted(found, key=layer_order) if stem not in known]

    def named(self, name: str) -> Norm:
        """The one norm of that name."""
        tensor = self._tensor_named(name)
        stem, _, leaf = tensor.rpartition(".")
        stem = stem if leaf in GAINS else tensor
        row, role = self._row_of(stem)
        return self._read(stem, row or NormRow(stem, (stem,), "", leaf, None), role, tensor)

    def _ends_of(self, architecture: Architecture) -> list[Norm]:
        several = sum(stack.norm is not None for stack in architecture.stacks) > 1
        norms: list[Norm] = []
        for stack in architecture.stacks:
            if stack.norm is None or (several and not self._has_tower(stack.norm)):
                continue
            norm = self._end(stack, stack.norm)
            if norm is None and not norms:
                raise self._missing(stack.norm, stack.layers)
            norms += [norm] if norm is not None else []  # a side tower may be cut short: what was asked for is there
        if architecture.head is not None and (stem := self._locate(architecture.head, None)) is not None:
            norms.insert(1, self._read(stem, architecture.head, "head"))
        return norms

    def _end(self, stack: StackRow, row: NormRow) -> Norm | None:
        if row.gain is None:
            if stack.hidden_size is None:
                raise UsageError(
                    f"{self.checkpoint.path}: the final norm has no parameters and the config does not say the hidden "
                    "size; add it to config.json"
                )
            kind = norm_kind(self.kind or row.kind)
            return Norm(row.module, kind, np.ones(stack.hidden_size), role=stack.role, groups=row.groups, eps=row.eps)
        stem = self._locate(row, stack.layers)
        if stem is None:
            return None
        norm = self._read(stem, row, stack.role)
        if stack.hidden_size is not None and norm.hidden_size != stack.hidden_size:
            raise InputError(
                f"{self.checkpoint.path}: {stem}.{row.gain} has {norm.hidden_size} gains and the config says a hidden "
                f"size of {stack.hidden_size}; the config belongs to another checkpoint"
            )
        return norm

    def _read(self, stem: str, row: NormRow, role: str, tensor: str | None = None) -> Norm:
        """Read one norm's tensors; what the user said wins over the row, and the row over the tensors."""
        path = self.checkpoint.path
        gain_name = self.vectors[tensor or f"{stem}.{row.gain}"]
        shift_name = next((self.vectors[n] for leaf in SHIFTS if (n := f"{stem}.{leaf}") in self.vectors), None)
        if shift_name is None and row.shift is not None:
            raise InputError(
                f"{path}: {stem} has a gain and no {row.shift}, which its architecture has; the file is incomplete"
            )
        kind = self.kind or row.kind or ("layernorm" if shift_name else "")
        if kind in ("", "undetermined"):
            seen = "no shift" if shift_name is None else "a shift"
            raise UsageError(
                f"{path}: {stem} has a gain and {seen}, and the atlas does not know it, so its kind cannot be told: "
                "say --kind layernorm or --kind rmsnorm (and --gain-offset 1 if it stores gain - 1)"
            )
        offset = row.offset if self.gain_offset is None else self.gain_offset
        self.checkpoint.prefetch([gain_name] if shift_name is None else [gain_name, shift_name])
        gain = effective_gain(self.checkpoint.vector(gain_name), offset, what=f"{path}: {gain_name}")
        shift = None if shift_name is None else self.checkpoint.vector(shift_name)
        return Norm(stem, norm_kind(kind), gain, shift, role, float(offset), row.groups, row.eps)

    def _locate(self, row: NormRow, layers: int | None) -> str | None:
        """The norm's name in this file, None where it is not there."""
        names = sorted((with_last(name, layers) for name in row.names), key=lambda name: -name.count("."))
        for name in names:
            if f"{name}.{row.gain}" in self.vectors:
                return name
        for name, loose in ((name, loose) for loose in (False, True) for name in names):
            found = self._ending_in(name, row.gain, loose=loose)
            if "{last}" in name:  # the config does not say how many blocks there are: the last one in the file
                found = sorted(found, key=layer_order)[-1:]
            if len(found) > 1:
                found = [stem for stem in found if not in_block(stem.removesuffix(name))] or found
            if len(found) > 1:
                found = [stem for stem in found if _TEXT_TOWER.search(stem)] or found
            if len(found) > 1:
                raise UsageError(
                    f"{self.checkpoint.path}: {len(found)} norms may be the final one: {_list(found)}; "
                    "choose with --norm NAME"
                )
            if found:
                return found[0]
        return None

    def _ending_in(self, pattern: str, leaf: str | None, *, loose: bool = False) -> list[str]:
        """Names in this file that end in the pattern, without the leaf."""
        stems = (name.removesuffix(f".{leaf}") for name in self.vectors if name.endswith(f".{leaf}"))
        return [stem for stem in stems if matches(stem, pattern, loose=loose)]

    def _has_tower(self, row: NormRow) -> bool:
        """Whether the file holds anything of the part of the model that the norm belongs to."""
        towers = {re.split(r"\.(?:\{last\}|\d+)\.", name)[0].rpartition(".")[0] for name in row.names}
        return "" in towers or any(f".{tower}." in f".{name}" for name in self.checkpoint.tensors for tower in towers)

    def _row_of(self, stem: str) -> tuple[NormRow | None, str]:
        """What the atlas knows about a norm of that name, and its role."""
        if self.architecture is None:
            return None, "final"
        ends = [(s.norm, s.role, s.layers) for s in self.architecture.stacks if s.norm and s.norm.gain]
        ends += [(self.architecture.head, "head", None)] if self.architecture.head else []
        for row, role, layers in ends:
            if self._locate(row, layers) == stem:
                return row, role
        return next(
            (row for row in self.architecture.others if any(matches(stem, name) for name in row.names)), None
        ), "block"

    def _tensor_named(self, name: str) -> str:
        """The (canonical) vector that a user's name means."""
        wanted = canonical(name)
        stem, _, leaf = wanted.rpartition(".")
        if leaf in SHIFTS and f"{stem}.weight" in self.vectors:
            return f"{stem}.weight"
        spellings = [wanted, *(f"{wanted}.{leaf}" for leaf in GAINS)]
        for spelling in spellings:
            if spelling in self.vectors:
                return spelling
        endings = [n for n in self.vectors if any(n.endswith(f".{spelling}") for spelling in spellings)]
        if len(endings) == 1:
            return endings[0]
        path = self.checkpoint.path
        if endings:
            raise UsageError(f"{path}: {name!r} names {len(endings)} norms; choose one of {_list(endings)}")
        from difflib import get_close_matches

        near = get_close_matches(wanted, {n.rpartition(".")[0] for n in self.vectors}, n=3, cutoff=0.8)
        hint = f"did you mean {' or '.join(near)}?" if near else self._choices()
        raise UsageError(f"{path}: no vector named {name!r}; {hint}")

    def _choices(self) -> str:
        """What there is to choose from: norms outside the blocks first, then from the last block backwards."""
        stems = [stem for n in self.vectors if n.endswith(GAINS) and _NORM_LIKE.search(stem := n.rpartition(".")[0])]
        stems = sorted(sorted(stems, key=layer_order, reverse=True), key=in_block)
        if not stems:
            return "it holds no tensor that looks like a norm's gain"
        return f"choose with --norm NAME --kind layernorm|rmsnorm [--gain-offset 1], NAME one of {_list(stems)}"

    def _nothing_found(self, architecture: Architecture) -> InputError | UsageError:
        main = architecture.stacks[0] if architecture.stacks else None
        if main is not None and main.norm is not None:
            return self._missing(main.norm, main.layers)
        why = f" ({main.why})" if main and main.why else ""
        return UsageError(
            f"{self.checkpoint.path}: a {architecture.model_type} with these settings ends un-normed{why}: it has no "
            f"final norm; {self._choices()}"
        )

    def _missing(self, row: NormRow, layers: int | None) -> InputError:
        sought = " or ".join(f"{with_last(name, layers)}.{row.gain}" for name in row.names)
        return InputError(
            f"{self.checkpoint.path}: no tensor {sought}: the file is incomplete, or its tensors are renamed; "
            f"{self._choices()}"
        )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
