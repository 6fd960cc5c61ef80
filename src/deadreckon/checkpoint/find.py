"""Finding a checkpoint's norms: the atlas says what is sought, the file's own names say where it lies.

Names moved between versions and differ by wrapper, so known spellings are tried first and then matched from their end,
segment by segment. What the atlas does not know is never guessed: the candidates are listed instead.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from deadreckon.checkpoint.atlas import Architecture, NormRow, StackRow, gguf_naming, lookup, lookup_text
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.norm import Norm, effective_gain, norm_kind

_GAINS, _SHIFTS = ("weight", "gamma", "scale"), ("bias", "beta")
_ALIASES = {"gamma": "weight", "beta": "bias"}  # files converted from TensorFlow
_NORM_LIKE = re.compile(r"norm|(^|[._])ln([._\d]|$)|gamma", re.IGNORECASE)
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
    finder = _Finder(checkpoint, kind, gain_offset)
    if select not in {None, "all"}:
        return [finder.named(str(select))]
    norms = finder.main()
    if select == "all":
        norms += finder.blocks({norm.name for norm in norms})
    return norms


@dataclass
class _Finder:
    """One search: the checkpoint, its vectors by name, and what the user said."""

    checkpoint: Checkpoint
    kind: str | None
    gain_offset: float | None

    def __post_init__(self) -> None:
        self.vectors = {_canonical(name): name for name, e in self.checkpoint.tensors.items() if len(e.shape) == 1}
        self.architecture = self._gguf_architecture() if self._is_gguf else lookup(self.checkpoint.config)

    @property
    def _is_gguf(self) -> bool:
        return self.checkpoint.format == "gguf"

    def main(self) -> list[Norm]:
        """The norms that end a stream, or feed the output layer."""
        if self.architecture is None:
            name = self.checkpoint.architecture
            what = f"the atlas does not know the architecture {name!r}" if name else "its config names no architecture"
            raise UsageError(f"{self.checkpoint.path}: {what}; {self._choices()}")
        norms = self._ends(self.architecture)
        if not norms and (text := lookup_text(self.checkpoint.config)) is not None:
            norms = self._ends(text)  # the language model alone, under the composite's config
        if not norms:
            raise self._nothing_found(self.architecture)
        return norms

    def blocks(self, known: set[str]) -> list[Norm]:
        """Every other norm that the architecture has, in layer order."""
        rows = self.architecture.others if self.architecture else ()
        found = {}
        for row in rows:
            for stem in self._matching(row.names, row.gain or "weight"):
                if stem not in known:
                    found.setdefault(stem, row)
        return [self._read(stem, found[stem], "block") for stem in sorted(found, key=_natural)]

    def named(self, name: str) -> Norm:
        """The one norm of that name."""
        gain = self._gain_named(name)
        stem, _, leaf = gain.rpartition(".")
        if leaf not in _GAINS:
            stem = gain
        row, role = self._row_of(stem)
        if row is None:
            row = NormRow(module=stem, names=(stem,), kind="", gain=leaf, shift=None)
        return self._read(stem, replace(row, gain=leaf), role, gain)

    def _ends(self, architecture: Architecture) -> list[Norm]:
        several = sum(stack.norm is not None for stack in architecture.stacks) > 1
        norms = []
        for stack in architecture.stacks:
            if stack.norm is None or (several and not self._has_tower(stack.norm)):
                continue
            norms.append(self._end(stack, stack.norm))
        if architecture.head is not None and (stem := self._locate(architecture.head, None)) is not None:
            norms.insert(min(1, len(norms)), self._read(stem, architecture.head, "head"))
        return norms

    def _end(self, stack: StackRow, row: NormRow) -> Norm:
        path = self.checkpoint.path
        if row.gain is None:
            if stack.hidden_size is None:
                raise UsageError(f"{path}: its final norm has no parameters and its config does not say the hidden size")
            kind = norm_kind(self.kind or row.kind)
            return Norm(row.module, kind, np.ones(stack.hidden_size), role=stack.role, groups=row.groups, eps=row.eps)
        stem = self._locate(row, stack.layers)
        if stem is None:
            sought = " or ".join(f"{_spell(name, stack.layers)}.{row.gain}" for name in row.names)
            raise InputError(f"{path}: no tensor {sought}: the file is incomplete, or renamed; {self._choices()}")
        norm = self._read(stem, row, stack.role)
        if stack.hidden_size is not None and norm.hidden_size != stack.hidden_size:
            raise InputError(
                f"{path}: {stem}.{row.gain} has {norm.hidden_size} gains and the config says a hidden size of "
                f"{stack.hidden_size}; the config belongs to another checkpoint"
            )
        return norm

    def _read(self, stem: str, row: NormRow, role: str, gain: str | None = None) -> Norm:
        """Read one norm's tensors; what the user said wins over the row, and the row over the tensors."""
        gain_name = self.vectors[gain or f"{stem}.{row.gain}"]
        shift_name = next((self.vectors[n] for leaf in _SHIFTS if (n := f"{stem}.{leaf}") in self.vectors), None)
        if shift_name is None and row.shift is not None:
            raise InputError(
                f"{self.checkpoint.path}: {stem} has a gain and no {row.shift}, which its architecture has; "
                "the file is incomplete"
            )
        kind = self.kind or row.kind or ("layernorm" if shift_name else "")
        if not kind:
            raise UsageError(
                f"{self.checkpoint.path}: {stem} has a gain and no shift, and its architecture is not in the atlas, so "
                "its kind cannot be told: say --kind layernorm or --kind rmsnorm (and --gain-offset 1 if it stores gain - 1)"
            )
        offset = row.offset if self.gain_offset is None else self.gain_offset
        values = effective_gain(self.checkpoint.vector(gain_name), offset, what=f"{self.checkpoint.path}: {gain_name}")
        shift = None if shift_name is None else self.checkpoint.vector(shift_name)
        return Norm(stem, norm_kind(kind), values, shift, role, float(offset), row.groups, row.eps)

    def _locate(self, row: NormRow, layers: int | None) -> str | None:
        """The norm's name in this file, None where it is not there."""
        names = sorted((_spell(name, layers) for name in row.names), key=lambda name: -name.count("."))
        for name in names:
            if f"{name}.{row.gain}" in self.vectors:
                return name
        for name in names:
            found = self._matching([name], row.gain or "weight")
            if "{last}" in name:  # the config does not say how many blocks there are: the last one in the file
                found = sorted(found, key=_natural)[-1:]
            for better in (lambda n: not re.search(r"\.\d+\.", n.removesuffix(name)), lambda n: _TEXT_TOWER.search(n)):  # noqa: B023
                if len(found) > 1:
                    found = [n for n in found if better(n)] or found
            if len(found) > 1:
                raise UsageError(
                    f"{self.checkpoint.path}: {len(found)} norms may be the final one: {', '.join(found[:_LISTED])}; "
                    "choose with --norm NAME"
                )
            if found:
                return found[0]
        return None

    def _matching(self, patterns: Iterable[str], leaf: str) -> list[str]:
        """Names in this file that end in one of the patterns, without the leaf."""
        joined = "|".join(_regex(pattern) for pattern in patterns)
        matcher = re.compile(rf"((?:.*\.)?(?:{joined}))\.{re.escape(leaf)}")
        return [match[1] for name in self.vectors if (match := matcher.fullmatch(name))]

    def _has_tower(self, row: NormRow) -> bool:
        """Whether the file holds anything of the part of the model that the norm belongs to."""
        towers = {re.split(r"\.(?:\{last\}|\*)\.", name)[0].rpartition(".")[0] or name for name in row.names}
        joined = "|".join(re.escape(tower) for tower in towers)
        matcher = re.compile(rf"(?:.*\.)?(?:{joined})\..*")
        return any(matcher.fullmatch(name) for name in self.checkpoint.tensors)

    def _row_of(self, stem: str) -> tuple[NormRow | None, str]:
        """What the atlas knows about a norm of that name, and its role."""
        if self.architecture is None:
            return None, "final"
        ends = [(s.norm, s.role, s.layers) for s in self.architecture.stacks if s.norm]
        ends += [(self.architecture.head, "head", None)] if self.architecture.head else []
        for row, role, layers in ends:
            if row.gain and self._locate(row, layers) == stem:
                return row, role
        for row in self.architecture.others:
            if any(re.fullmatch(rf"(?:.*\.)?{_regex(pattern)}", stem) for pattern in row.names):
                return row, "block"
        return None, "block"

    def _gain_named(self, name: str) -> str:
        """The (canonical) tensor that a user's name means."""
        wanted = _canonical(name)
        stem, _, leaf = wanted.rpartition(".")
        if leaf in _SHIFTS and (f"{stem}.weight" in self.vectors):
            wanted = f"{stem}.weight"
        spellings = [wanted, *(f"{wanted}.{leaf}" for leaf in _GAINS)]
        for spelling in spellings:
            if spelling in self.vectors:
                return spelling
        endings = [n for n in self.vectors if any(n.endswith(f".{spelling}") for spelling in spellings)]
        if len(endings) == 1:
            return endings[0]
        if endings:
            raise UsageError(f"{self.checkpoint.path}: {name!r} names {len(endings)} norms: {', '.join(endings[:_LISTED])}")
        near = difflib.get_close_matches(wanted, [n.rpartition(".")[0] for n in self.vectors], n=3)
        hint = f"did you mean {', '.join(near)}?" if near else self._choices()
        raise UsageError(f"{self.checkpoint.path}: no vector named {name!r}; {hint}")

    def _choices(self) -> str:
        """What there is to choose from, norms outside the blocks first."""
        stems = [n.rpartition(".")[0] for n in self.vectors if n.endswith(_GAINS) and _NORM_LIKE.search(n.rpartition(".")[0])]
        stems.sort(key=_natural, reverse=True)
        stems.sort(key=lambda stem: bool(re.search(r"\.\d+(\.|$)", stem)))
        if not stems:
            return "it holds no tensor that looks like a norm's gain"
        more = f" and {len(stems) - _LISTED} more" if len(stems) > _LISTED else ""
        return (
            f"choose with --norm NAME --kind layernorm|rmsnorm [--gain-offset 1] from {', '.join(stems[:_LISTED])}{more}"
        )

    def _nothing_found(self, architecture: Architecture) -> InputError | UsageError:
        path, main = self.checkpoint.path, architecture.stacks[0] if architecture.stacks else None
        if main is None or main.norm is None:
            why = f" ({main.why})" if main and main.why else ""
            return UsageError(f"{path}: a {architecture.model_type} with these settings ends un-normed{why}; {self._choices()}")
        sought = " or ".join(f"{_spell(name, main.layers)}.{main.norm.gain}" for name in main.norm.names)
        return InputError(f"{path}: no tensor {sought}: the file is incomplete, or renamed; {self._choices()}")

    def _gguf_architecture(self) -> Architecture:
        """What llama.cpp's own naming and metadata say, in the terms of an atlas row."""
        naming, config, name = gguf_naming(), self.checkpoint.config, self.checkpoint.architecture or "unknown"
        row = lookup({"model_type": name})
        eps = {kind: config.get(f"{name}.{key}") for kind, key in naming["kinds"].items()}
        kinds = [kind for kind, value in eps.items() if value is not None]
        known = row.stacks[0].norm.kind if row and row.stacks and row.stacks[0].norm else ""
        kind = kinds[0] if len(kinds) == 1 else known
        size, layers = (_whole(config.get(f"{name}.{naming[key]}")) for key in ("hidden_size", "layers"))
        value = eps.get(kind)
        base = NormRow("", (), kind, "weight", None, eps=float(value) if isinstance(value, int | float) else None)
        stacks: list[StackRow] = []
        for stack in naming["stacks"]:
            found = next((stem for name in stack["names"] if (stem := self._gguf_stem(name, layers))), None)
            if found and all(stack["role"] != other.role for other in stacks):
                width = size if stack["role"] != "vision" else None
                end = replace(base, module=found, names=(found,))
                stacks.append(StackRow(stack["role"], end, hidden_size=width, layers=layers))
        if not stacks:
            bare = row is not None and row.final is not None and row.final.gain is None
            end = replace(base, module="output_norm", names=("output_norm",), gain=None if bare else "weight")
            stacks.append(StackRow("final", end, hidden_size=size, layers=layers))
        others = replace(base, names=tuple(naming["blocks"]))
        return Architecture(name, tuple(stacks), others=(others,))

    def _gguf_stem(self, name: str, layers: int | None) -> str | None:
        """A name of the GGUF vocabulary in this file; these are never wrapped, so endings do not count."""
        if f"{_spell(name, layers)}.weight" in self.vectors:
            return _spell(name, layers)
        # The count may include blocks of other uses: the last one in the file that has such a norm.
        indexed = [n for n in self._matching([name], "weight") if re.fullmatch(_regex(name), n)]
        return max(indexed, key=_natural, default=None) if "{last}" in name else None


def _canonical(name: str) -> str:
    stem, dot, leaf = name.rpartition(".")
    return f"{stem}{dot}{_ALIASES.get(leaf, leaf)}"


def _spell(name: str, layers: int | None) -> str:
    return name if layers is None else name.replace("{last}", str(layers - 1))


def _regex(pattern: str) -> str:
    """A pattern of the atlas as a regular expression."""
    wild = {"*": r"\d+", "{last}": r"\d+", "{norm}": r"\w*norm\w*"}
    return r"\.".join(wild.get(segment, re.escape(segment)) for segment in pattern.split("."))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
