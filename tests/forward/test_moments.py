"""Streaming moments: independent of how the tokens come, and exact where a product of uncentred sums is not."""

import pytest
import torch

from deadreckon.errors import UsageError
from deadreckon.forward.moments import Moments

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
