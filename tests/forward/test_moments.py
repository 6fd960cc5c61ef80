"""Streaming moments: independent of how the tokens come, and exact where a product of uncentred sums is not."""

from fractions import Fraction

import pytest
import torch

from deadreckon.errors import UsageError
from deadreckon.forward.moments import Centred, Moments, Variances

U = torch.finfo(torch.float64).eps / 2


def of(tokens, sizes=None):
    moments = Moments(tokens.shape[1])
    for part in tokens.split(sizes or len(tokens)):
        moments.update(part)
    return moments


@pytest.fixture
def tokens():
    return torch.randn(3000, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [1, 7, 1000, [1, 2999], [2999, 1], [0, 1500, 0, 1500]])
def test_same_for_every_partition(tokens, sizes):
    whole, parts = of(tokens), of(tokens, sizes)
    # N additions of terms of size |y|^2 ~ 1: N u relative to N is u a term, in a sum of N.
    assert parts.count == whole.count
    assert (parts.scatter() - whole.scatter()).abs().max() <= 4 * 3000 * U * whole.scatter().diagonal().max()
    assert torch.allclose(parts.covariance(), torch.cov(tokens.T), rtol=0, atol=1e-12)


def test_merge_is_the_update_of_both(tokens):
    left, right = of(tokens[:1000]), of(tokens[1000:])
    left.merge(right)
    empty = Moments(24)
    empty.merge(left)
    assert empty.count == 3000
    assert torch.allclose(empty.covariance(), torch.cov(tokens.T), rtol=0, atol=1e-12)


def test_a_mean_that_dwarfs_the_spread_costs_no_digits(tokens):
    """Massive activations: one coordinate 1e8 times the rest. The textbook formula loses everything there."""
    offset = torch.zeros(24, dtype=torch.float64)
    offset[5] = 1e8
    shifted = of(tokens + offset, 100).covariance()
    truth = torch.cov((tokens + offset).T - offset[:, None])
    # What rounding the inputs at 1e8 leaves: ulp(1e8)/2 ~ 7e-9 a value, against a spread of 1.
    assert (shifted - truth).abs().max() <= 1e-7
    naive = ((tokens + offset).T @ (tokens + offset) - 3000 * torch.outer(*[(tokens + offset).mean(0)] * 2)) / 2999
    assert (naive - truth).abs().max() > 1e-2  # the control


def test_float32_input_is_accumulated_in_float64(tokens):
    single = tokens.to(torch.float32)
    assert torch.allclose(of(single, 11).covariance(), torch.cov(single.double().T), rtol=0, atol=1e-12)


def test_covariance_of_one_vector_is_refused():
    moments = Moments(3)
    moments.update(torch.ones(1, 3))
    with pytest.raises(UsageError, match="two"):
        moments.covariance()


# Against exact arithmetic: floats are rational numbers.


def exactly(rows):
    """Scatter about the mean and Gram of `rows`, without any rounding but the last."""
    columns = [[Fraction(value) for value in column] for column in rows.double().T.tolist()]
    centred = [[value - sum(column) / len(column) for value in column] for column in columns]
    return (
        torch.tensor(
            [[float(sum(a * b for a, b in zip(left, right, strict=True))) for right in part] for left in part],
            dtype=torch.float64,
        )
        for part in (centred, columns)
    )


def bounds(rows, scatter, gram):
    """Rounding of both: sums of N products; the mean's error d moves the scatter by N d d^T, a merge by N d |step|."""
    count = len(rows)
    spread, size = scatter.diagonal().sqrt(), gram.diagonal().sqrt()
    mean_error = count * U * rows.double().abs().amax(0)
    cross = torch.outer(mean_error, spread) * count**0.5
    slack = (count + 8) * U
    return (
        slack * torch.outer(spread, spread) + count * torch.outer(mean_error, mean_error) + 2 * (cross + cross.T),
        2 * slack * torch.outer(size, size),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [None, 9])
def test_massive_coordinate_and_mean_against_exact_arithmetic(dtype, sizes):
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 1] *= 1e4
    rows[:, 3] += 1e4
    rows = rows.to(dtype)
    scatter, gram = exactly(rows)
    found = of(rows, sizes)
    scatter_bound, gram_bound = bounds(rows, scatter, gram)
    assert ((found.scatter() - scatter).abs() <= scatter_bound).all()
    assert ((found.gram() - gram).abs() <= gram_bound).all()
    # The bound is far below the smallest variance, so that it says something about it.
    assert scatter_bound[0, 0] <= 1e-10 * scatter[0, 0]
    uncentred = Moments(5, centred=False)
    uncentred.update(rows)
    assert ((uncentred.gram() - gram).abs() <= gram_bound).all()


def test_gram_is_the_direct_product(tokens):
    shifted = tokens + torch.linspace(0, 50, 24)
    direct = shifted.T @ shifted
    size = direct.diagonal().sqrt()
    assert ((of(shifted, 100).gram() - direct).abs() <= 2 * 3008 * U * torch.outer(size, size)).all()
    assert (of(shifted).scatter() - direct).abs().max() > 0.1 * direct.max()  # the mean is in it


@pytest.mark.parametrize("size", [24, 700])  # one tile and several
@pytest.mark.parametrize("centred", [True, False])
def test_tiles_and_chunks_leave_nothing_out(size, centred):
    rows = torch.randn(5000, size, generator=torch.Generator().manual_seed(3)) + 1  # more than a chunk
    moments = Moments(size, centred=centred)
    moments.update(rows)
    direct = rows.double().T @ rows.double()
    assert (moments.gram() - direct).abs().max() <= 2 * 5008 * U * float(direct.diagonal().max())
    assert torch.equal(moments.scatter(), moments.scatter().T)


def test_merging_is_associative_to_rounding(tokens):
    shifted = tokens + 1e4 * torch.eye(24, dtype=torch.float64)[5]

    def three():
        return [of(part) for part in shifted.split([10, 2000, 990])]

    a, b, c = three()
    a.merge(b)
    a.merge(c)
    left, (a, b, c) = a, three()
    b.merge(c)
    a.merge(b)
    assert left.count == a.count == 3000
    spread = a.scatter().diagonal().sqrt()
    # As in `bounds`: each merge rounds relative to the spread, and moves by the rounding of the mean at 1e4.
    mean_error = 3 * U * shifted.abs().amax(0)
    cross = torch.outer(mean_error, spread) * 3000**0.5
    bound = 3008 * U * torch.outer(spread, spread) + 2 * (cross + cross.T)
    assert ((left.scatter() - a.scatter()).abs() <= bound).all()
    assert ((left.mean - a.mean).abs() <= 2 * mean_error + 4 * U).all()


@pytest.mark.parametrize("centred", [True, False])
def test_state_comes_back_bit_for_bit(tokens, centred):
    moments = Moments(24, centred=centred)
    moments.update(tokens)
    again = Moments.from_state(moments.state())
    assert (again.count, again.centred) == (3000, centred)
    for which in ("scatter", "gram"):
        assert torch.equal(getattr(again, which)(), getattr(moments, which)())
    assert torch.equal(again.mean, moments.mean)
    # And neither is a view of the other, nor goes on differently.
    kept = moments.state()
    before = kept["mean"].clone(), kept["scatter"].clone()
    taken = Moments.from_state(kept)
    for one in (again, moments):
        one.update(tokens[:100])
    taken.update(tokens[:50])
    assert torch.equal(again.gram(), moments.gram())
    assert torch.equal(kept["scatter"], before[1])
    if centred:
        assert taken.count == 3050


def test_moments_about_the_origin_have_only_a_gram(tokens):
    origin = Moments(24, centred=False)
    origin.update(tokens)
    with pytest.raises(UsageError, match="centred"):
        origin.covariance()
    for left, right in ((origin, of(tokens)), (of(tokens), origin), (of(tokens), Moments(23))):
        with pytest.raises(UsageError, match="do not add"):
            left.merge(right)
    more = Moments(24, centred=False)
    more.update(tokens[:100])
    more.merge(origin)
    direct = tokens.T @ tokens + tokens[:100].T @ tokens[:100]
    assert (more.gram() - direct).abs().max() <= 2 * 3108 * U * float(direct.diagonal().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centred", [True, False])
def test_inputs_are_neither_changed_nor_remembered(tokens, dtype, centred):
    rows = tokens.to(dtype)
    kept = rows.clone()
    moments = Moments(24, centred=centred)
    moments.update(rows)
    assert torch.equal(rows, kept)
    before = moments.gram()
    rows.zero_()
    assert torch.equal(moments.gram(), before)
    moments.gram().zero_()
    moments.scatter().zero_()
    assert torch.equal(moments.gram(), before)
    batch = Centred.of(kept)
    batch.rest.zero_()
    assert kept.abs().max() > 0


def test_moments_that_broke_off_are_spoiled_for_good(tokens, monkeypatch):
    moments = of(tokens[:1000])
    whole = of(tokens[:1000])

    def fails(upper, vectors):
        upper += 1
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("deadreckon.forward.moments.add_gram", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            moments.update(tokens[1000:])
    for _ in range(2):
        for use in (moments.scatter, moments.covariance, moments.gram, moments.state):
            with pytest.raises(UsageError, match="broke off"):
                use()
        with pytest.raises(UsageError, match="broke off"):
            whole.merge(moments)
        with pytest.raises(UsageError, match="broke off"):
            moments.move_to(whole.mean)  # before processes add theirs up
        moments.update(tokens[:10])  # one that ends well does not mend it
    assert torch.equal(whole.scatter(), of(tokens[:1000]).scatter())


def test_variances_are_the_diagonal(tokens):
    shifted = tokens + 1e4 * torch.eye(24, dtype=torch.float64)[5]
    left, right, empty = Variances(24), Variances(24), Variances(24)
    for part in shifted[:1000].split(300):
        left.add(Centred.of(part))
    right.add(Centred.of(shifted[1000:]))
    left.merge(right)
    left.merge(empty)
    empty.merge(Variances(24))
    assert (left.count, empty.count) == (3000, 0)
    expected = of(shifted).covariance().diagonal()
    # Sums of N squares, and the mean's rounding at 1e4 in each merge, against a step of a standard deviation.
    bound = 2 * 3008 * U * expected + 8 * 3000 * U * shifted.abs().amax(0) * expected.sqrt() / 1000**0.5
    assert ((left.variance() - expected).abs() <= bound).all()
    again = Variances.from_state(left.state())
    again.add(Centred.of(tokens[:5]))
    assert torch.equal(Variances.from_state(left.state()).variance(), left.variance())
    assert again.count == 3005
    assert left.count == 3000
