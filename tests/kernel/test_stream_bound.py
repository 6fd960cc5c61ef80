"""The bound of a residual stream, against streams that are made to reach it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.norm import LAYERNORM, RMSNORM, Norm, NormKind
from deadreckon.kernel.stream_bound import (
    NoBound,
    StreamParts,
    dead_coordinates,
    rounding_factor,
    stream_bound,
    write_bound,
)

U64 = 2.0**-53


def normed(norm, x):
    """What a norm makes of x, eps = 0, group by group."""
    parts = x.reshape(*x.shape[:-1], norm.groups, -1)
    if norm.kind.centred:
        parts = parts - parts.mean(-1, keepdims=True)
    z = (parts / np.sqrt((parts**2).mean(-1, keepdims=True))).reshape(x.shape)
    return norm.gain * z + (0 if norm.shift is None else norm.shift)


@given(
    st.sampled_from([RMSNORM, LAYERNORM]),
    st.integers(2, 9),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_no_input_passes_the_bound_of_a_norm_and_a_coordinate_axis_reaches_it(kind, size, groups, shifted, seed):
    rng = np.random.default_rng(seed)
    d = size * groups
    norm = Norm("n", kind, rng.normal(size=d), rng.normal(size=d) if shifted else None, groups=groups)
    bound = write_bound(norm)
    # Heavy tails come near the axes, where the bound is.
    x = rng.standard_cauchy(size=(50, d))
    grouped = x.reshape(50, groups, size)
    # What is left of a subtracted mean's rounding is relative to x, not to the difference.
    cancelled = np.abs(grouped).max() / grouped.std(-1).min() if kind.centred else 1
    assert (np.abs(normed(norm, x)) <= bound * (1 + 8 * (d + cancelled) * U64)).all()
    signs = np.where(norm.gain * (1 if norm.shift is None else norm.shift) < 0, -1.0, 1.0)
    reached = np.abs(np.array([normed(norm, _axis(j, d, size, kind) * signs[j])[j] for j in range(d)]))
    np.testing.assert_allclose(reached, bound, rtol=1e-9)


def _axis(j, d, size, kind):
    """The coordinate axis, with something in the other groups, which would be 0/0 otherwise."""
    x = np.zeros(d)
    x[::size] = 1.0
    x[j // size * size : (j // size + 1) * size] = 0.0
    x[j] = 1.0
    return x


def drawn(seed, blocks, writes, d):
    rng = np.random.default_rng(seed)
    norms = [[Norm("n", RMSNORM, rng.lognormal(0, 1, d)) for _ in range(writes)] for _ in range(blocks)]
    table = rng.normal(size=(7, d))
    return norms, table, rng.normal(size=blocks), rng


@given(st.integers(1, 5), st.integers(1, 3), st.integers(2, 12), st.integers(0, 2**31))
def test_no_stream_passes_the_bound(blocks, writes, d, seed):
    norms, table, scalars, rng = drawn(seed, blocks, writes, d)
    bound = stream_bound(np.abs(table).max(0), [sum(map(write_bound, block)) for block in norms], scalars)
    h = table
    slack = 1 + (8 * d + 4 * blocks * (writes + 2)) * U64
    assert (np.abs(h) <= bound[0]).all()
    for block, scalar, row in zip(norms, scalars, bound[1:], strict=True):
        for norm in block:
            h = h + normed(norm, h @ rng.normal(size=(d, d)) + rng.standard_cauchy(size=h.shape))
        h = h * scalar
        assert (np.abs(h) <= row * slack).all()


def test_a_stream_whose_every_write_points_at_one_coordinate_reaches_the_bound():
    norms, table, scalars, _ = drawn(0, 4, 2, 6)
    bound = stream_bound(np.abs(table).max(0), [sum(map(write_bound, block)) for block in norms], scalars)
    for j in range(6):
        token = np.abs(table[:, j]).argmax()
        h, axis = table[token].copy(), np.eye(6)[j]
        for block, scalar, row in zip(norms, scalars, bound[1:], strict=True):
            for norm in block:
                h = h + normed(norm, axis * np.sign(h[j]))
            h = h * scalar
            assert abs(h[j]) == pytest.approx(row[j], rel=1e-12)
    # Negative control: the same without one write is passed.
    short = [sum(map(write_bound, block[: 1 if index == 2 else 2])) for index, block in enumerate(norms)]
    assert (stream_bound(np.abs(table).max(0), short, scalars)[-1] < bound[-1]).all()


def test_the_recursion_is_the_sum_over_blocks():
    rng = np.random.default_rng(3)
    e, w, s = rng.random(5), rng.random((4, 5)), rng.normal(size=4)
    after = [np.prod(np.abs(s[block:])) for block in range(4)]
    whole = after[0] * e + sum(product * write for product, write in zip(after, w, strict=True))
    np.testing.assert_allclose(stream_bound(e, w, s)[-1], whole, rtol=1e-14)
    np.testing.assert_allclose(stream_bound(e, w)[-1], e + w.sum(0), rtol=1e-14)


def test_zero_is_exact_and_tolerance_is_relative_to_the_median():
    writes = np.array([[1.0, 0.0, 2.0, 1e-9], [1.0, 0.0, 2.0, 1e-9]])
    row = stream_bound(np.zeros(4), writes, [0.5, 2.0])[-1]
    assert row[1] == 0.0
    assert dead_coordinates(row, 0.0).tolist() == [False, True, False, False]
    assert dead_coordinates(row, 1e-6).tolist() == [False, True, False, True]
    assert dead_coordinates(1e30 * row, 1e-6).tolist() == [False, True, False, True]
    assert stream_bound(np.ones(4), writes, [0.0, 1.0])[1].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (([1.0, 2.0], [[1.0]]), "shape"),
        (([1.0], [1.0]), "shape"),
        (([1.0], [[1.0]], [1.0, 1.0]), "scalars"),
        (([1.0], [[1.0]], [np.nan]), "scalars"),
        (([-1.0], [[1.0]]), "negative"),
        (([1.0], [[np.inf]]), "finite"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, names):
    with pytest.raises(InputError, match=names):
        stream_bound(*arguments)


def test_a_norm_that_does_not_normalise_bounds_nothing():
    with pytest.raises(UsageError, match="does not normalise"):
        write_bound(Norm("n", NormKind("affine", centred=False, normalised=False), np.ones(3)))


def test_rounding_factor():
    assert rounding_factor(0, 2, 4, 0.0) == 1.0
    assert rounding_factor(10, 2, 64, 2.0**-24) == pytest.approx(1 + (43 + 36) * 2.0**-24, rel=1e-9)
    assert rounding_factor(10, 2, 64, 2.0**-8) > rounding_factor(10, 2, 64, 2.0**-24)


def test_without_an_embedding_the_bound_is_of_the_writes():
    parts = StreamParts("x", np.ones((3, 2)), None, None, 1.0, ("a", "b"), "because")
    assert parts.bound().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert NoBound("because").why == "because"
