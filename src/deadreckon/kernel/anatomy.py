"""A model's norms, what reads them and what writes before them, as plain data: what the census counts from.

A checkpoint (through the committed table) and a watched module both boil down to this.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True)
class Reader:
    """A linear map that is fed by a norm and by nothing else.

    Attributes:
        weight: its weight.
        bias: its bias; None: it has none.
        input_first: whether the weight is stored (in, out) rather than (out, in).
        free: whether the weight serves nothing else; a head tied to an embedding does not.
    """

    weight: str
    bias: str | None
    input_first: bool = False
    free: bool = True


@dataclass(frozen=True)
class NormSite:
    """A norm and its readers.

    Attributes:
        name: the norm's module path.
        kind: layernorm | rmsnorm.
        gain: the tensor that holds the gain; None: it has none.
        shift: the tensor that holds the shift; None: it has none.
        hidden_size: d.
        offset: what the module adds to the stored gain.
        groups: contiguous groups that are normalised separately.
        readers: the linear maps fed by it.
        closed: whether nothing but the readers sees its output.
        mean_closed: whether a constant added to every coordinate of its output is seen by nothing but the readers,
            because what else sees it (a residual path) is read by mean-subtracting norms alone.
    """

    name: str
    kind: str
    gain: str | None
    shift: str | None
    hidden_size: int
    offset: float = 0.0
    groups: int = 1
    readers: tuple[Reader, ...] = ()
    closed: bool = False
    mean_closed: bool = False


@dataclass(frozen=True)
class Writer:
    """A map (linear, or a convolution of patches) whose output's mean over the coordinates nothing can see.

    Attributes:
        weight: its weight.
        bias: its bias; None: it has none.
        input_first: whether the weight is stored (in, out) rather than (out, ...).
        softmax: whether the mean goes unseen because a softmax follows, not because norms subtract it.
        freedom: what of the weight is free: rows (the same row added to every one) | entries (one number added to every
            entry: all that is left where the weight is an embedding too) | none (only the bias).
    """

    weight: str
    bias: str | None
    input_first: bool = False
    softmax: bool = False
    freedom: str = "rows"


@dataclass(frozen=True)
class Anatomy:
    """A model as the census sees it.

    Attributes:
        tensors: shape of every parameter by name, a tied one once.
        norms: the norms that have readers or can be compensated.
        writers: the maps whose output mean is free.
        tables: embeddings, positions and single tokens of which every row's mean is free, shape (..., d).
        ties: other name -> name in `tensors` of the same parameter.
        output: logits under a softmax | hidden_state: what must not change.
    """

    tensors: Mapping[str, tuple[int, ...]]
    norms: tuple[NormSite, ...] = ()
    writers: tuple[Writer, ...] = ()
    tables: tuple[str, ...] = ()
    ties: Mapping[str, str] | None = None
    output: str = "logits"

    @property
    def parameters(self) -> int:
        """The number of parameters P, tied ones once."""
        return sum(prod(shape) for shape in self.tensors.values())

    def outputs_of(self, part: Reader | Writer) -> int:
        """Output features of a map."""
        return self.tensors[part.weight][-1 if part.input_first else 0]

    def inputs_of(self, part: Reader | Writer) -> int:
        """Input features of a map; of a convolution, all that one output coordinate sees."""
        return prod(self.tensors[part.weight]) // self.outputs_of(part)

    def moving(self, names: Container[str]) -> Anatomy:
        """The same model with only some of its parameters free to move.

        A reader whose bias is held becomes a reader without one, and so on. A norm's gain counts as held where its
        shift is, because the one does not scale without the other.

        Args:
            names: the parameters that move.

        Returns:
            The anatomy, with the shapes of all parameters.
        """

        def kept(name: str | None) -> str | None:
            return name if name in names else None

        norms = [
            replace(
                site,
                gain=kept(site.gain) if site.shift is None or site.shift in names else None,
                shift=kept(site.shift),
                readers=tuple(replace(r, bias=kept(r.bias), free=r.free and r.weight in names) for r in site.readers),
            )
            for site in self.norms
        ]
        writers = [
            replace(w, bias=kept(w.bias), freedom=w.freedom if w.weight in names else "none") for w in self.writers
        ]
        tables = [name for name in self.tables if name in names]
        return replace(self, norms=tuple(norms), writers=tuple(writers), tables=tuple(tables))
