"""The projection of one norm and its readers against the same in 200 digits, where gains and constants are extreme."""

from itertools import product

import mpmath
import numpy as np
import pytest
import torch

from deadreckon.errors import InputError, UsageError
from deadreckon.forward.dead_span import project_off
from deadreckon.kernel.anatomy import Anatomy, NormSite, Reader, Writer
from deadreckon.kernel.census import dead_parameters
from deadreckon.kernel.norm import Norm, norm_kind

WIDTH, OUTPUTS = 4, (3, 2)
SHAPES = {"gain": (WIDTH,), "shift": (WIDTH,), "w0": (OUTPUTS[0], WIDTH), "b0": (OUTPUTS[0],),
          "w1": (OUTPUTS[1], WIDTH), "b1": (OUTPUTS[1],)}  # fmt: skip
EPSILON = np.finfo(float).eps


def build(gain, shift, biases, writers=()):
    """Families and parameters of a LayerNorm with two readers."""
    readers = tuple(Reader(f"w{i}", f"b{i}" if biased else None) for i, biased in enumerate(biases))
    names = ["gain", "shift", *(r.weight for r in readers), *(r.bias for r in readers if r.bias)]
    site = NormSite("norm", "layernorm", "gain", "shift", WIDTH, readers=readers, closed=True)
    anatomy = Anatomy({n: SHAPES[n] for n in names}, (site,), tuple(writers))
    norm = Norm("norm", norm_kind("layernorm"), np.array(gain), np.array(shift))
    generator = torch.Generator().manual_seed(0)
    values = {n: torch.randn(SHAPES[n], generator=generator, dtype=torch.float64) for n in SHAPES}
    values |= {"gain": torch.tensor(gain, dtype=torch.float64), "shift": torch.tensor(shift, dtype=torch.float64)}
    step = {n: torch.randn(SHAPES[n], generator=generator, dtype=torch.float64) for n in names}
    return dead_parameters(anatomy, {"norm": norm}), values, step, readers


def exact_directions(values, readers):
    """All dead directions of a LayerNorm without zero gains, as name -> object array, from the definition."""

    def exact(name):
        return np.vectorize(mpmath.mpf, otypes=[object])(values[name].numpy())

    gain, shift, unit = exact("gain"), exact("shift"), np.eye(WIDTH).astype(object)
    kernel = 1 / gain
    kernel = kernel / mpmath.sqrt((kernel**2).sum())
    constant = (kernel * shift).sum()
    for reader in readers:
        for row in np.eye(SHAPES[reader.weight][0]).astype(object):
            if reader.bias is not None:
                yield {reader.weight: np.outer(row, kernel), reader.bias: -constant * row}
            elif constant == 0:
                yield {reader.weight: np.outer(row, kernel)}
    for i in range(WIDTH):
        yield {"gain": gain * unit[i], "shift": shift * unit[i]} | {
            r.weight: -exact(r.weight) * unit[i] for r in readers
        }
        if constant != 0 or all(r.bias for r in readers):
            step = {"shift": unit[i]}
            for r in readers:
                moved = -exact(r.weight) @ unit[i]
                step |= {r.bias: moved} if r.bias else {r.weight: np.outer(moved, kernel / constant)}
            yield step


def exact_projection(directions, step):
    """The projection by Gram-Schmidt in 200 digits."""

    def flat(direction):
        parts = [direction.get(n, np.zeros(v.shape, dtype=object)) for n, v in step.items()]
        return np.concatenate([np.asarray(p, dtype=object).ravel() for p in parts])

    rest = flat({n: np.vectorize(mpmath.mpf, otypes=[object])(v.numpy()) for n, v in step.items()})
    basis = []
    for direction in directions:
        vector = flat(direction)
        for other in basis:
            vector = vector - (vector * other).sum() * other
        size = mpmath.sqrt((vector**2).sum())
        basis.append(vector / size)
        rest = rest - (rest * basis[-1]).sum() * basis[-1]
    return rest.astype(float), len(basis)


def flat(step):
    return torch.cat([v.flatten() for v in step.values()]).numpy()


GAINS = [
    [0.5, 1.0, -1.5, 2.0],
    [1e-9, 0.5, 1.0, 2.0],
    [4.8e-33, 6.0e-33, 1.5e-9, 0.6],
    [1e-38, 0.5, 1e3, 2.0],
]
SHIFTS = [[0.3, -0.2, 0.5, 0.7], [0.0] * 4]


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize(("gain", "shift"), list(product(GAINS, SHIFTS)))
def test_as_in_200_digits_however_small_a_gain(gain, shift, biases):
    found, values, step, readers = build(gain, shift, biases)
    with mpmath.workdps(200):
        expected, count = exact_projection(exact_directions(values, readers), step)
    assert count == found.dimensions
    rest = project_off(found.families, values.__getitem__, step)
    # Backward stable: a few roundings of the step's size and of the directions', which float64 input resolves to
    # |W| / min(1, constant) at worst; the constants here are at least 0.1.
    assert np.abs(flat(rest) - expected).max() <= 64 * EPSILON * np.linalg.norm(flat(step)) * 10


def with_constant(size):
    return build([0.5, 1.0, -1.5, 2.0], [0.3 * size, -0.2 * size, 0.5 * size, 0.7 * size], (False,))


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_a_small_constant_costs_its_digits_and_no_more(size):
    """W q w^T / c: what rounding leaves of W q where it is zero grows as 1/c. The reader here has fewer outputs than
    inputs, so that there is such a q."""
    found, values, step, readers = with_constant(size)
    with mpmath.workdps(200):
        expected, _ = exact_projection(exact_directions(values, readers), step)
    rest = project_off(found.families, values.__getitem__, step)
    assert np.abs(flat(rest) - expected).max() <= 64 * EPSILON / (0.1 * size) * np.linalg.norm(flat(step))


@pytest.mark.parametrize(
    "built", [with_constant(1e-9), with_constant(1e-12), build([1e-200, 0.5, 1e3, 2.0], SHIFTS[0], (True, True))]
)
def test_what_float64_cannot_resolve_is_refused(built):
    found, values, step, _ = built
    with pytest.raises(InputError, match=r"norm: .* orders of magnitude"):
        project_off(found.families, values.__getitem__, step)


def test_a_reader_that_writes_before_a_norm_loses_its_rows_mean_too():
    found, values, step, _ = build(GAINS[0], SHIFTS[0], (True, True), [Writer("w0", "b0")])
    rest = project_off(found.families, values.__getitem__, step)
    directions = torch.stack(
        [
            torch.cat([torch.as_tensor(d.get(n, np.zeros(v.shape))).flatten() for n, v in step.items()])
            for f in found.families
            for i in range(f.dimensions)
            for d in [f.direction(i, lambda name: values[name].numpy())]
        ]
    )
    expected = torch.linalg.lstsq(directions.T, torch.as_tensor(flat(step))[:, None]).solution
    expected = torch.as_tensor(flat(step)) - (directions.T @ expected)[:, 0]
    # lstsq loses the condition number of the directions
    tolerance = 64 * EPSILON * np.linalg.cond(directions.numpy()) * np.linalg.norm(flat(step))
    assert np.abs(flat(rest) - expected.numpy()).max() <= tolerance
    assert abs(float(rest["w0"].mean(0).abs().max())) <= 8 * EPSILON


@pytest.mark.parametrize("writer", [Writer("w0", None), Writer("w0", None, freedom="entries")])
def test_what_is_not_known_how_to_project_is_refused(writer):
    found, values, step, _ = build(GAINS[0], SHIFTS[0], (True, True), [writer])
    with pytest.raises(UsageError, match="free in part"):
        project_off(found.families, values.__getitem__, step)


def test_weights_that_are_not_finite_are_named():
    found, values, step, _ = build(GAINS[0], SHIFTS[0], (True, True))
    values["w1"][0, 0] = torch.nan
    with pytest.raises(InputError, match=r"norm: .* not finite"):
        project_off(found.families, values.__getitem__, step)
