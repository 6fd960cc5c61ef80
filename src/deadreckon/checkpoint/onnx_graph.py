"""The norms in an ONNX graph: fused nodes, and the primitive operations that older exporters write one as.

What a norm is shows in the graph itself. A mean of squares under a root normalises; where what is squared had its own
mean subtracted it is a LayerNorm, else an RMSNorm. The norm that ends the stream is the one that an output depends on
and no other norm does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deadreckon.checkpoint.onnx import Node, OnnxCheckpoint

# Fused nodes: kind, and which inputs are gain and shift.
_FUSED = {
    "LayerNormalization": ("layernorm", 1, 2),
    "SkipLayerNormalization": ("layernorm", 2, 3),
    "RMSNormalization": ("rmsnorm", 1, None),
    "SimplifiedLayerNormalization": ("rmsnorm", 1, None),
    "SkipSimplifiedLayerNormalization": ("rmsnorm", 2, None),
}
_THROUGH = ("Cast", "Identity")
_CHAIN_LIMIT = 16
_CONSUMERS_LIMIT = 32  # of one value, looked at: a hostile graph could make each norm look at all nodes


@dataclass(frozen=True)
class GraphNorm:
    """One norm of a graph.

    Attributes:
        kind: layernorm | rmsnorm.
        gain: name of the stored gain; None where it has none, or one that the graph computes.
        shift: name of the stored shift, or None.
        offset: what the graph adds to the stored gain.
        eps: the constant under the root, where it is stored.
        seen: the node, or what showed in the primitive operations.
        output: the first of the graph's outputs that is made from it, where no other norm is; None for those of blocks.
    """

    kind: str
    gain: str | None
    shift: str | None
    offset: float
    eps: float | None
    seen: str
    output: int | None = None


def graph_norms(graph: OnnxCheckpoint) -> list[GraphNorm]:
    """The norms over the last axis, in the graph's order.

    Args:
        graph: an opened ONNX file.

    Returns:
        The norms.

    Raises:
        InputError: a constant that decides is damaged.
        UnreachableError: a file of external data is missing.
    """
    return _Search(graph).norms()


class _Search:
    """The graph with its links in both directions."""

    def __init__(self, graph: OnnxCheckpoint) -> None:
        self.graph = graph
        self.producer: dict[str, Node] = {}
        self.consumers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            self.producer |= dict.fromkeys(filter(None, node.outputs), node)
            for name in filter(None, dict.fromkeys(node.inputs)):
                self.consumers[name].append(node)

    def norms(self) -> list[GraphNorm]:
        """Every norm; for those that end a stream, of which output."""
        found = []  # the norm, the values it takes, the value it makes
        for node in self.graph.nodes:
            if node.op in _FUSED and node.outputs and (norm := self._fused(node)):
                found.append((norm, node.inputs, node.outputs[0]))
            elif node.op == "ReduceMean" and node.outputs and (built := self._built(node)):
                norm, out = built
                found.append((norm, node.inputs, out))
        output = self._first_outputs()
        live = [(norm, taken, out) for norm, taken, out in found if out in output]
        before: set[str] = set()
        self._add_needed(before, (name for _, taken, _ in live for name in taken))
        return [replace(norm, output=output.get(out)) if out not in before else norm for norm, _, out in found]

    def _first_outputs(self) -> dict[str, int]:
        """For every value that an output is made from the first such output."""
        first: dict[str, int] = {}
        seen: set[str] = set()
        for index, name in enumerate(self.graph.outputs):
            first |= dict.fromkeys(self._add_needed(seen, [name]), index)
        return first

    def _add_needed(self, seen: set[str], names: Iterable[str]) -> list[str]:
        """Add the values that these are made from, themselves included, to those seen; which were new."""
        new = [name for name in dict.fromkeys(names) if name and name not in seen]
        seen.update(new)
        for value in new:  # which grows
            node = self.producer.get(value)
            fresh = [name for name in dict.fromkeys(node.inputs) if name and name not in seen] if node else ()
            seen.update(fresh)
            new.extend(fresh)
        return new

    def _fused(self, node: Node) -> GraphNorm | None:
        kind, gain_at, shift_at = _FUSED[node.op]
        numbers = self.graph.attributes(node)
        eps = numbers.get("epsilon", 1e-5)
        gain, offset = self._vector(_input(node, gain_at))
        shift, _ = self._vector(_input(node, shift_at)) if shift_at is not None else (None, 0.0)
        return GraphNorm(kind, gain, shift, offset, eps if isinstance(eps, float) else None, f"a {node.op} node")

    def _built(self, mean: Node) -> tuple[GraphNorm, str] | None:
        """The norm whose mean of squares this is, and the value that it makes."""
        square = self._source(_input(mean, 0))
        if square is None or len(square.inputs) != 2 or not self._over_last_axis(mean):
            return None
        if not (square.op == "Pow" and self._is(_input(square, 1), 2.0)) and not (
            square.op == "Mul" and len(set(square.inputs)) == 1
        ):
            return None
        centred = self._subtracts_mean(_input(square, 0))
        value, rooted, eps = mean.outputs[0], False, None
        for _ in range(_CHAIN_LIMIT):
            step = self._next(value, rooted)
            if step is None:
                break
            if rooted and step.op == "Mul" and (found := self._constant_side(step, value))[0]:
                gain, offset = found
                out, shift = self._shifted(step.outputs[0])
                return self._made(centred, gain, shift, offset, eps), out
            if step.op == "Add" and eps is None:
                eps = next((c[0] for n in step.inputs if (c := self.graph.scalars(n)) and len(c) == 1), None)
            rooted = rooted or step.op == "Sqrt" or step.op == "Pow"
            value = step.outputs[0]
        return (self._made(centred, None, None, 0.0, eps), value) if rooted else None

    def _made(self, centred: bool, gain: str | None, shift: str | None, offset: float, eps: float | None) -> GraphNorm:
        how = "the mean is subtracted before squaring" if centred else "what is squared has no mean subtracted"
        return GraphNorm("layernorm" if centred else "rmsnorm", gain, shift, offset, eps, how)

    def _next(self, value: str, rooted: bool) -> Node | None:
        """The next operation from the mean of squares towards the gain."""
        allowed: Callable[[Node], bool]
        if rooted:
            allowed = lambda node: node.op in ("Mul", "Div", "Reciprocal", *_THROUGH)  # noqa: E731
        else:
            allowed = lambda node: (  # noqa: E731
                node.op in ("Sqrt", *_THROUGH)
                or (node.op == "Add" and any(self.graph.scalars(name) for name in node.inputs))
                or (node.op == "Pow" and any(self._is(_input(node, 1), power) for power in (0.5, -0.5)))
            )
        users = [node for node in self.consumers.get(value, ())[:_CONSUMERS_LIMIT] if node.outputs]
        steps = [node for node in users if len(node.inputs) <= 2 and allowed(node)]
        # Where a gain is behind one of several it is that way: a normalised vector may also feed something else.
        return next(
            (n for n in steps if n.op == "Mul" and self._constant_side(n, value)[0]), steps[0] if steps else None
        )

    def _constant_side(self, node: Node, value: str) -> tuple[str | None, float]:
        """The stored vector that a node combines with a value."""
        others = [name for name in node.inputs if name != value]
        return self._vector(others[0]) if len(others) == 1 else (None, 0.0)

    def _shifted(self, value: str) -> tuple[str, str | None]:
        """What comes out once a stored vector is added, and that vector; the value itself where none is."""
        out = value
        for _ in range(2):
            users = self.consumers.get(out, ())
            if len(users) != 1 or not users[0].outputs:
                break
            if users[0].op == "Add" and (shift := self._constant_side(users[0], out)[0]):
                return users[0].outputs[0], shift
            if users[0].op not in _THROUGH:
                break
            out = users[0].outputs[0]
        return value, None

    def _subtracts_mean(self, value: str) -> bool:
        node = self._source(value)
        if node is None or node.op != "Sub":
            return False
        mean = self._source(_input(node, 1))
        return (
            mean is not None and mean.op == "ReduceMean" and self._root(_input(mean, 0)) == self._root(node.inputs[0])
        )

    def _over_last_axis(self, mean: Node) -> bool:
        axes = self.graph.attributes(mean).get("axes") or self.graph.scalars(_input(mean, 1))
        # How many axes there are is not said: a single one that is not the first is taken to be the last.
        return isinstance(axes, list) and len(axes) == 1 and axes[0] not in (0,)

    def _is(self, name: str, value: float) -> bool:
        return self.graph.scalars(name) == [value]

    def _root(self, value: str) -> str:
        """The value before casts."""
        for _ in range(_CHAIN_LIMIT):
            node = self.producer.get(value)
            if node is None or node.op not in _THROUGH:
                break
            value = _input(node, 0)
        return value

    def _source(self, value: str) -> Node | None:
        return self.producer.get(self._root(value))

    def _vector(self, value: str) -> tuple[str | None, float]:
        """The stored vector behind a value, and what the graph adds to it."""
        name, offset = self._root(value), 0.0
        node = self.producer.get(name)
        if node is not None and node.op == "Add" and len(node.inputs) == 2:
            for one, other in (node.inputs, node.inputs[::-1]):
                if (number := self.graph.scalars(other)) and len(number) == 1:
                    name, offset = self._root(one), float(number[0])
        shape = self.graph.shape(name)
        return (name, offset) if shape is not None and len(shape) == 1 and shape[0] > 1 else (None, 0.0)


def _input(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""
