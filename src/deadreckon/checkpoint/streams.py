"""What bounds a model's residual stream, gathered by name from a checkpoint or a loaded module."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Protocol

import numpy as np

from deadreckon.checkpoint.columns import column_maxima, columns_readable
from deadreckon.checkpoint.format import Checkpoint
from deadreckon.checkpoint.naming import matches
from deadreckon.checkpoint.stream_table import Stream, stream_of_config, stream_of_gguf
from deadreckon.errors import InputError
from deadreckon.kernel.norm import Float64Array, Norm, check_parameter, effective_gain, norm_kind
from deadreckon.kernel.stream_bound import NoBound, StreamParts, write_bound

_TEXT_TOWER = re.compile(r"language|text|llm")
_OTHER_TOWER = re.compile(r"vision|visual|image|video|audio")


class Tensors(Protocol):
    """Named tensors, wherever they lie."""

    @property
    def where(self) -> str:
        """How to name the whole in an error."""

    @property
    def names(self) -> Collection[str]:
        """The names of all of them."""

    def vector(self, name: str) -> Float64Array:
        """One vector in float64, all finite."""

    def column_maxima(self, name: str, *, normalised: bool) -> Float64Array | str:
        """Largest magnitude in each column of a matrix (of rows of unit root mean square), or why it has none."""


class CheckpointTensors:
    """The tensors of an opened checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.where, self.names = checkpoint, str(checkpoint.path), checkpoint.tensors.keys()

    def vector(self, name: str) -> Float64Array:
        """One vector in float64, all finite."""
        return self.checkpoint.vector(name)

    def column_maxima(self, name: str, *, normalised: bool) -> Float64Array | str:
        """Largest magnitude in each column of a matrix, read by slices, or why it has none."""
        entry = self.checkpoint.tensors[name]
        if not columns_readable(entry):
            return f"{name} is stored as {entry.dtype}, an integer or quantised type"
        return column_maxima(self.checkpoint, name, normalised=normalised)


def find_stream(checkpoint: Checkpoint) -> StreamParts | NoBound:
    """What bounds the residual stream of a checkpoint's (text) model.

    Args:
        checkpoint: an opened checkpoint; the norms that write, the block scalars and the embedding are read from it.

    Returns:
        The parts, or why there is no such bound.

    Raises:
        InputError: a tensor that the architecture has is missing or damaged.
        UnreachableError: a shard is missing.
    """
    stream = stream_of_gguf(checkpoint) if checkpoint.format == "gguf" else stream_of_config(checkpoint.config)
    return stream if isinstance(stream, NoBound) else gather_stream(CheckpointTensors(checkpoint), stream)


def gather_stream(tensors: Tensors, stream: Stream) -> StreamParts:
    """Read what bounds a stream.

    Args:
        tensors: where to read.
        stream: how it is made up.

    Returns:
        The parts. The embedding is left out, with the reason, where it does not hold plain numbers.

    Raises:
        InputError: a tensor that the architecture has is missing or damaged.
    """
    return _Gatherer(tensors, stream).parts()


class _Gatherer:
    """One reading: the tensors, the stream, and where its blocks were found among the names."""

    def __init__(self, tensors: Tensors, stream: Stream) -> None:
        self.tensors, self.stream, self.names = tensors, stream, tensors.names
        self.prefix, self.blocks = self._locate()

    def parts(self) -> StreamParts:
        stream = self.stream
        norms = self._norms()
        multiplier = abs(stream.number("write_scale"))
        bounds = [[self._bound(self._of_block(block, norm), norm) for norm in norms] for block in range(self.blocks)]
        width = bounds[0][0].size
        for block, of_block in enumerate(bounds):
            for norm, bound in zip(norms, of_block, strict=True):
                if bound.size != width:
                    raise InputError(
                        f"{self.tensors.where}: {self._of_block(block, norm)} has {bound.size} gains and the first "
                        f"norm that writes has {width}: they cannot write to one stream"
                    )
        writes = multiplier * np.array(bounds).sum(1)
        scalars = None
        if (scalar := stream.row.get("scalar")) is not None:
            names = [self._of_block(block, stream.name(scalar)) for block in range(self.blocks)]
            scalars = np.array([self._scalar(name) for name in names])
        scale = abs(stream.embedding_scale(width))
        embedding = self._embedding(width, scale)
        return StreamParts(
            architecture=stream.architecture,
            writes=writes,
            scalars=scalars,
            embedding=None if isinstance(embedding, str) else embedding,
            embedding_scale=scale,
            norms=tuple(self._of_block("*", norm) for norm in norms),
            why_no_embedding=embedding if isinstance(embedding, str) else None,
            text_only=stream.composite,
        )

    def _locate(self) -> tuple[str, int]:
        """The prefix of the text model's blocks and their number."""
        sought = f"{self.stream.name(self.stream.row['writes'][0])}.weight"
        blocks, rest = re.escape(self.stream.blocks), re.escape(sought)
        pattern = re.compile(rf"(?:(?P<prefix>.*)\.)?{blocks}\.(?P<block>\d+)\.{rest}")
        found: dict[str, set[int]] = {}
        for name in self.names:
            if match := pattern.fullmatch(name):
                found.setdefault(match["prefix"] or "", set()).add(int(match["block"]))
        towers = [prefix for prefix in found if not _OTHER_TOWER.search(prefix)]
        towers = [prefix for prefix in towers if _TEXT_TOWER.search(prefix)] or towers
        if len(towers) != 1:
            what = f"{len(towers)} stacks of blocks have" if towers else "no block has"
            raise InputError(
                f"{self.tensors.where}: {what} a tensor {self.stream.blocks}.*.{sought}, which every block of a "
                f"{self.stream.architecture} has once; the file is incomplete, or its tensors are renamed"
            )
        count = self.stream.layers if self.stream.layers is not None else max(found[towers[0]]) + 1
        return towers[0], count

    def _of_block(self, block: int | str, rest: str) -> str:
        return ".".join(part for part in (self.prefix, self.stream.blocks, str(block), rest) if part)

    def _norms(self) -> list[str]:
        """The norms that write, as these tensors spell them; those of an option where the model has it."""
        stream = self.stream
        norms = [stream.name(norm) for norm in stream.row["writes"]]
        for norm, when in stream.row.get("write_if", {}).items():
            signs = tuple(f".{stream.name(part)}.weight" for part in (norm, when["beside"]))
            blocks = self._of_block("", "")
            there = any(name.startswith(f"{blocks}.") and name.endswith(signs) for name in self.names)
            if there or stream.config.get(when["key"]):
                norms.append(stream.name(norm))
        return norms

    def _bound(self, name: str, part: str) -> Float64Array:
        """Bound of what one norm writes."""
        stored = self._vector(f"{name}.weight")
        row = next((row for row in self.stream.norms if any(matches(self._plain(part), n) for n in row.names)), None)
        if row is None and self.stream.gguf is None:
            raise InputError(f"{self.tensors.where}: the atlas has no norm {part} of a {self.stream.architecture}")
        shift = self.tensors.vector(f"{name}.bias") if f"{name}.bias" in self.names else None
        offset, kind, groups = (row.offset, row.kind, row.groups) if row else (0.0, "rmsnorm", 1)
        gain = effective_gain(stored, offset, what=f"{self.tensors.where}: {name}.weight")
        return write_bound(Norm(name, norm_kind(kind), gain, shift, "block", offset, groups))

    def _plain(self, part: str) -> str:
        """A block's norm by the name that the atlas has for it in the model itself."""
        return f"{self.stream.blocks}.0.{part}"

    def _scalar(self, name: str) -> float:
        value = self._vector(name)
        if value.size != 1:
            raise InputError(f"{self.tensors.where}: {name} has {value.size} entries; a block's scalar is one number")
        return float(value[0])

    def _vector(self, name: str) -> Float64Array:
        self._need(name)
        return self.tensors.vector(name)

    def _need(self, name: str) -> None:
        if name not in self.names:
            raise InputError(
                f"{self.tensors.where}: no tensor {name}, which a {self.stream.architecture} of {self.blocks} blocks "
                "has; the file is incomplete, or its config belongs to another model"
            )

    def _embedding(self, width: int, scale: float) -> Float64Array | str:
        """Bound of the stream before the first block, or why there is none."""
        row = self.stream.row
        stems = row.get("embedding", ["embed_tokens"]) if self.stream.gguf is None else self.stream.gguf["embedding"]
        stems = [".".join(part for part in (self.prefix, stem) if part) for stem in stems]
        stem = next((stem for stem in stems if f"{stem}.weight" in self.names), stems[0])
        self._need(f"{stem}.weight")
        maxima = self.tensors.column_maxima(f"{stem}.weight", normalised=row.get("embedding_norm", False))
        if isinstance(maxima, str):
            return maxima
        if maxima.size != width:
            raise InputError(
                f"{self.tensors.where}: {stem}.weight has rows of {maxima.size} entries and the norms that write to "
                f"the stream have {width} gains"
            )
        bound = check_parameter(scale * maxima, f"{self.tensors.where}: {stem}.weight, scaled")
        if (vector := row.get("embedding_vector")) is not None:  # a token whose vector lies beside the table, unscaled
            others = [name for s in stems if (name := f"{s}.{vector}") in self.names]
            self._need(others[0] if others else f"{stem}.{vector}")
            bound = np.max([bound, *(np.abs(self.tensors.vector(name)) for name in others)], axis=0)
        return bound
