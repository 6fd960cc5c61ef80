"""The residual stream, node by node, against the hidden states that the model hands out."""

import math

import pytest
import torch
from torch import nn

from deadreckon.forward.blocks import find_block_stacks
from deadreckon.forward.moments import Moments
from deadreckon.forward.stream import StreamMoments, node_spectra
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import VOCABULARY, WIDTH

U = torch.finfo(torch.float64).eps / 2
ROWS, LENGTH = 40, 12


def inputs(model, rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator)}
    return {"input_ids": torch.randint(5, VOCABULARY - 8, (rows, LENGTH), generator=generator)}


def stack_of(model, given):
    tensors = {name: value[:1].clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    return find_block_stacks(model, tensors)[-1]


def follow(model, keep=None, **given):
    stream = StreamMoments(stack_of(model, given))
    stream.keep = keep
    with stream.watching():
        output = model(**given)
    return stream, output


def direct(hidden, keep=None):
    rows = hidden.double().flatten(0, -2) if keep is None else hidden.double()[keep]
    return rows.T @ rows, rows


def same(found, expected, count):
    # The same float32 numbers in float64 sums of N terms, in another order.
    size = expected.diagonal().sqrt()
    return bool(((found - expected).abs() <= 2 * (count + 8) * U * torch.outer(size, size)).all())


@pytest.fixture(scope="module", params=["gpt_neox", "llama", "vit", "bert"])
def followed(request):
    model = tiny_model(request.param)
    given = inputs(model)
    stream, output = follow(model, output_hidden_states=True, **given)
    return model, given, stream, [hidden.detach() for hidden in output.hidden_states]


def test_grams_are_those_of_the_hidden_states(followed):
    _, _, stream, hidden = followed
    assert len(stream.stack.blocks) == len(hidden) - 1 == len(stream.nodes) - 1
    for index, expected in enumerate(hidden[:-1]):  # the last one has been through the final norm
        gram, rows = direct(expected)
        moments = stream.nodes[index - 1]
        assert moments.count == len(rows)
        assert same(moments.gram(), gram, len(rows))
        assert stream.dtypes[index - 1] == torch.float32
    assert not same(stream.nodes[0].gram(), direct(hidden[0])[0], moments.count)


def test_ends_of_the_spectra_against_singular_values(followed):
    _, _, stream, hidden = followed
    found = node_spectra(stream.nodes, stream.dtypes)
    assert [node.index for node in found] == sorted(stream.nodes)
    for node, expected in zip(found[:-1], hidden, strict=False):
        rows = direct(expected)[1]
        sigma = torch.linalg.svdvals(rows) / len(rows) ** 0.5
        assert abs(node.sigma_min - float(sigma[-1])) <= node.sigma_min_error + node.sigma_floor
        assert node.sigma_floor <= 1e-6 * float(sigma[0])
        assert 0.95 * float(sigma[0]) <= node.sigma_max <= float(sigma[0]) * (1 + WIDTH * U)
        above = sigma[sigma > 2 * node.sigma_floor]  # the variance within a factor of four
        # An eigenvalue moves by d u lambda_max, its logarithm by that over itself, the mean of log sigma by half.
        moved = float((WIDTH * U * sigma[0] ** 2 / above**2).mean())
        assert node.sigma_geomean == pytest.approx(float(above.log().mean().exp()), rel=moved + 1e-12)
        along = float((rows @ node.direction).norm()) / len(rows) ** 0.5
        assert along == pytest.approx(node.sigma_min, rel=1e-6, abs=node.sigma_floor)
        assert node.sigma_min <= node.sigma_geomean <= node.sigma_max


def test_masked_positions_do_not_count(followed):
    model, given, _, hidden = followed
    keep = torch.ones(hidden[0].shape[:2], dtype=torch.bool)
    keep[::2, 3:] = False
    wrong = keep.roll(1, 0)
    right, shifted = (follow(model, mask, **given)[0].nodes for mask in (keep, wrong))
    for index, expected in enumerate(hidden[:-1]):
        gram, rows = direct(expected, keep)
        assert right[index - 1].count == len(rows) == int(keep.sum())
        assert same(right[index - 1].gram(), gram, len(rows))
        assert shifted[index - 1].count == len(rows)
        assert not same(shifted[index - 1].gram(), gram, len(rows))


def test_batches_add_up(followed):
    model, given, stream, _ = followed
    name, values = next(iter(given.items()))
    parts = StreamMoments(stream.stack)
    with parts.watching():
        for part in values.split([7, 1, ROWS - 8]):
            model(**{name: part})
    for index, moments in stream.nodes.items():
        gram = moments.gram()
        # The model itself rounds each row alike or not, by some float32 units of its size.
        assert (parts.nodes[index].gram() - gram).abs().max() <= 1e-4 * gram.diagonal().max()
        assert parts.nodes[index].count == moments.count


class Careless(nn.Module):
    """Blocks that overwrite what they were given, and what they gave."""

    class Block(nn.Module):
        def __init__(self, tuples):
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)
            self.tuples = tuples

        def forward(self, stream):
            stream += self.linear(stream)
            return (stream, None) if self.tuples else stream

    def __init__(self, tuples=False):
        super().__init__()
        self.layers = nn.ModuleList(self.Block(tuples) for _ in range(3))
        self.seen = []

    def forward(self, stream):
        for block in self.layers:
            self.seen.append(stream.clone())
            stream = block(stream)
            stream = stream[0] if isinstance(stream, tuple) else stream
        self.seen.append(stream.clone())
        return stream.zero_()


@pytest.mark.parametrize("tuples", [False, True])
def test_what_is_overwritten_later_was_seen_as_it_was(tuples):
    torch.manual_seed(0)
    model = Careless(tuples)
    stream, _ = follow(model, stream=torch.randn(8, 20, WIDTH))
    for index, seen in enumerate(model.seen[-len(stream.nodes) :]):  # after the pass that found the blocks
        assert same(stream.nodes[index - 1].gram(), direct(seen)[0], 160)


def test_a_stream_of_few_distinct_inputs_is_at_its_floor():
    model = tiny_model("llama")  # rotary positions: before the first block there are as many vectors as ids
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 5 + 20, (ROWS, LENGTH), generator=generator)
    stream, output = follow(model, input_ids=ids, output_hidden_states=True)
    first, second = node_spectra(stream.nodes, stream.dtypes)[:2]
    assert first.whole
    assert first.sigma_min <= first.sigma_floor
    sigma = torch.linalg.svdvals(direct(output.hidden_states[0])[1]) / (ROWS * LENGTH) ** 0.5
    # The zeros are not in the geometric mean.
    assert first.sigma_geomean == pytest.approx(float(sigma[:20].log().mean().exp()), rel=1e-9)
    assert not second.whole
    assert second.sigma_min > second.sigma_floor


@pytest.mark.parametrize("zeros", [1, 3])
def test_one_dead_direction_is_left_out_of_the_mean(zeros):
    """A factorisation may well succeed on what rounding made of a zero; its logarithm must not count."""
    size, count = 128, 2000
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, -zeros:] = rows[:, :zeros]
    moments = Moments(size, centred=False)
    moments.update(rows)
    found = node_spectra({0: moments}, {0: torch.float64})[0]
    sigma = torch.linalg.svdvals(rows)[:-zeros] / count**0.5
    assert found.whole
    assert found.sigma_min <= found.sigma_floor
    assert found.sigma_geomean == pytest.approx(float(sigma.log().mean().exp()), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_direction_that_only_rounding_of_the_stream_fills_is_left_out_too(dtype):
    """Far above what the Gram resolves, so it is certified as it is; it says nothing about the stream."""
    size, count = 128, 2000
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, size, generator=generator, dtype=torch.float64)
    dead = torch.nn.functional.normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=0)
    rows = (rows - torch.outer(rows @ dead, dead)).to(dtype)
    moments = Moments(size, centred=False)
    moments.update(rows)
    found = node_spectra({0: moments}, {0: dtype})[0]
    sigma = torch.linalg.svdvals(rows.double()) / count**0.5
    assert found.whole
    assert found.sigma_min == pytest.approx(found.sigma_floor, rel=0.2)
    assert found.sigma_min == pytest.approx(float(sigma[-1]), rel=1e-6)
    assert found.sigma_geomean == pytest.approx(float(sigma[:-1].log().mean().exp()), rel=1e-9)
    # Its logarithm among them, as a factorisation alone has it, would be seen.
    assert found.sigma_geomean > 1.02 * float(sigma.log().mean().exp())


@pytest.mark.parametrize("size", [1, 2, 7, 15, 63, 64, 65, 300])
def test_every_size_of_stream(size):
    rows = torch.randn(1200, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments(size, centred=False)
    moments.update(rows)
    found = node_spectra({3: moments}, {3: torch.float64})[0]
    sigma = torch.linalg.svdvals(rows) / 1200**0.5
    assert found.index == 3
    assert abs(found.sigma_min - float(sigma[-1])) <= found.sigma_min_error + found.sigma_floor
    assert found.sigma_geomean == pytest.approx(float(sigma.log().mean().exp()), rel=1e-9)
    assert 0.95 * float(sigma[0]) <= found.sigma_max <= float(sigma[0]) * (1 + 8 * size * U)


def test_nodes_of_several_sizes_and_one_of_zeros():
    nodes = {}
    for index, size in enumerate([64, 96, 64, 96, 64, 64]):
        nodes[index] = Moments(size, centred=False)
        nodes[index].update(torch.randn(900, size, generator=torch.Generator().manual_seed(index)) * (index != 2))
    found = node_spectra(nodes, dict.fromkeys(nodes, torch.float32))
    assert [node.index for node in found] == [0, 1, 2, 3, 4, 5]
    assert [node.whole for node in found] == [False, False, True, False, False, False]
    assert (found[2].sigma_min, found[2].sigma_max, found[2].sigma_geomean) == (0, 0, 0)
    for node in found[:2] + found[3:]:
        sigma = torch.linalg.eigvalsh(nodes[node.index].gram() / 900).clamp(min=0).sqrt()
        assert abs(node.sigma_min - float(sigma[0])) <= node.sigma_min_error + node.sigma_floor
        assert math.isfinite(node.sigma_geomean)


def test_hooks_leave_with_the_context_and_with_an_error():
    model = tiny_model("gpt_neox")

    def hooks():
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    before = hooks()
    stream = StreamMoments(stack_of(model, inputs(model)))
    with stream.watching():
        assert hooks() == before + len(stream.stack.blocks) + 1
    assert hooks() == before
    with pytest.raises(KeyError, match="broken"), stream.watching():
        raise KeyError("broken")
    assert hooks() == before
    model(**inputs(model))
    assert stream.nodes == {}
