"""The matrices that write to a checkpoint's residual stream: by the names of MLPs, or without names by their shapes.

Without names only the rectangles of MLPs are safe, shapes (d, m) and (m, d) that occur together: one of the two
writes. Squares do not show which side is which, and embeddings and heads have no partner.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deadreckon.checkpoint.format import Checkpoint, TensorEntry
from deadreckon.checkpoint.matrices import sample
from deadreckon.checkpoint.naming import layer_order
from deadreckon.kernel.fingerprint import Fingerprint, combine, fingerprint

LAYERS = 6
"""Matrices of a group that are read, spread evenly over the layers."""

SHIFTLESS_VECTORS = 4
"""Vectors of length d in a block at most for its writers to be taken as they are stored: two norms, or four where
there are norms behind the branches. More are shifts, biases or LayerScale, and these may scale what is written."""

_SMALLEST = 32
_WRITER = re.compile(
    r"(?:.*[./])?(?:down_proj|dense_4h_to_h|fc2|fc_out|lin2|linear2|c_proj|w2|wo|ffn_output|ffn_down|output\.dense"
    r"|mlp\.proj_out|mlp\.fc_2|DenseReluDense\.wo)\.weight"
)
_LAYER_SCALE = re.compile(r"(?:layer_?scale|lambda|gamma|ls)_?2(?:\.\w+)?")


@dataclass(frozen=True)
class Writers:
    """What was found of the writers of a stream.

    Attributes:
        fingerprint: of their effective matrices.
        tensors: how they are named, or their shape.
        named: whether names said which matrices write.
        scaled: whether a LayerScale was multiplied in.
        plain: whether nothing unseen can scale what is written, as far as shapes tell.
    """

    fingerprint: Fingerprint
    tensors: str
    named: bool
    scaled: bool = False
    plain: bool = True

    @property
    def says(self) -> str:
        """layernorm | rmsnorm | undetermined."""
        said = self.fingerprint.says
        return "undetermined" if said == "rmsnorm" and not (self.named or self.plain) else said


def find_writers(checkpoint: Checkpoint, hidden_size: int | None = None) -> Writers | None:
    """The fingerprint of a checkpoint's writers.

    Args:
        checkpoint: an opened checkpoint whose entries are at hand; a few matrices of it are read in part.
        hidden_size: width of the stream, where known.

    Returns:
        What was found; None where no matrix can be told to write, or none can be read.

    Raises:
        InputError: the file ends too early.
        UnreachableError: it cannot be read.
    """
    entries = list(checkpoint.tensors.values())
    matrices = [e for e in entries if len(e.shape) == 2 and min(e.shape) >= _SMALLEST and e.shape[0] != e.shape[1]]
    lengths = Counter(e.shape[0] for e in entries if len(e.shape) == 1)
    named = [e for e in matrices if _WRITER.fullmatch(e.name)]
    width = hidden_size or _commonest_width(named or matrices, lengths)
    named = [e for e in named if width in e.shape]
    return _by_name(checkpoint, named, width) if named else _by_shape(checkpoint, matrices, width, lengths)


def _by_name(checkpoint: Checkpoint, entries: Sequence[TensorEntry], width: int) -> Writers | None:
    scales = _layer_scales(checkpoint)
    found, scaled = [], False
    for entry in _spread(entries):
        values = sample(checkpoint, entry, entry.shape.index(width))
        if values is None:
            continue
        scale = scales.get(_block(entry.name))
        if scale is not None and checkpoint.tensors[scale].shape == (width,):
            values, scaled = checkpoint.vector(scale)[:, None] * values, True
        found.append(fingerprint(values))
    if not found:
        return None
    name = re.sub(r"(?<=[./])\d+(?=[./])", "*", entries[0].name)
    return Writers(combine(found), name, named=True, scaled=scaled)


def _by_shape(
    checkpoint: Checkpoint, matrices: Sequence[TensorEntry], width: int, lengths: Mapping[int, int]
) -> Writers | None:
    shapes = Counter(e.shape for e in matrices if width in e.shape)
    pairs = [shape for shape in shapes if shape[0] == width and shape[::-1] in shapes]
    if not pairs:
        return None
    shape = max(pairs, key=lambda s: s[1] * (shapes[s] + shapes[s[::-1]]))
    groups = []
    for wanted in (shape, shape[::-1]):
        chosen = _spread([e for e in matrices if e.shape == wanted])
        read = [sample(checkpoint, e, wanted.index(width)) for e in chosen]
        groups.append([fingerprint(values) for values in read if values is not None])
    if not all(groups):
        return None
    writes = _writing(list(map(combine, groups)), shapes[shape], shapes[shape[::-1]])
    blocks = min(shapes[shape], shapes[shape[::-1]])
    plain = lengths[width] <= SHIFTLESS_VECTORS * blocks + 1
    return Writers(writes, f"shapes {shape} and {shape[::-1]}", named=False, plain=plain)


def _writing(groups: Sequence[Fingerprint], first: int, second: int) -> Fingerprint:
    """The fingerprint of the group that writes, of two with so many matrices."""
    # A gated MLP has two readers to a writer. Otherwise either may write: the smaller statistic counts (readers have no
    # cause to avoid 1), and that a LayerNorm is ruled out has to hold for both.
    if first != second and max(first, second) == 2 * min(first, second):
        return groups[0] if first < second else groups[1]
    smaller = min(groups, key=lambda group: group.statistic)
    return replace(smaller, p_left_behind=max(group.p_left_behind for group in groups))


def _commonest_width(matrices: Sequence[TensorEntry], lengths: Mapping[int, int]) -> int:
    """The size that most vectors have among those of the matrices' axes, and then most matrices."""
    axes = Counter(size for entry in matrices for size in entry.shape)
    return max(axes, key=lambda size: (lengths[size], axes[size]), default=0)


def _layer_scales(checkpoint: Checkpoint) -> dict[str, str]:
    """The vector that scales the MLP's output, by block."""
    return {
        block: n for n in checkpoint.tensors if (block := _block(n)) and _LAYER_SCALE.fullmatch(n[len(block) + 1 :])
    }


def _block(name: str) -> str:
    """The name up to the last number that counts blocks."""
    found = re.match(r"(?:.*\.)?\d+(?=\.)", name)
    return found[0] if found else ""


def _spread(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    ordered = sorted(entries, key=lambda entry: layer_order(entry.name))
    step = max(1.0, len(ordered) / LAYERS)
    return [ordered[int(step * (i + 0.5))] for i in range(min(LAYERS, len(ordered)))]
