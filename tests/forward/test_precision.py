"""Floors against experiments: what rounding really leaves where nothing should be."""

import pytest
import torch

from deadreckon.forward.precision import AT_FLOOR, at_floor, gram_floor, storage_floor, unit_roundoff

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def direction(size, participation, seed=0):
    """A unit vector spread over `participation` of `size` coordinates, unevenly."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(size, dtype=torch.float64)
    weights[torch.randperm(size, generator=generator)[:participation]] = 0.5 + torch.rand(
        participation, generator=generator, dtype=torch.float64
    )
    return weights / weights.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("participation", [2, 7, 64])
@pytest.mark.parametrize("scales", ["even", "uneven"])
def test_storage_floor_is_what_rounding_leaves(dtype, participation, scales):
    size, count = 64, 4000
    generator = torch.Generator().manual_seed(1)
    u = direction(size, participation)
    x = torch.randn(count, size, generator=generator, dtype=torch.float64)
    if scales == "uneven":
        x *= torch.logspace(-1, 1, size, dtype=torch.float64)
    x -= torch.outer(x @ u, u)
    assert (x @ u).norm() <= 1e-12 * x.norm()
    stored = x.to(dtype).double()
    measured = float((stored @ u).norm())
    floor = float(storage_floor(dtype, stored.square().sum(0), u))
    # ulp^2/x^2 is not quite log-uniform for a normal draw: within 0.75 and 1.5 of its mean, so a fifth in sigma.
    assert measured == pytest.approx(floor, rel=0.2)
    # The size of a whole vector's rounding is another matter: the control.
    assert unit_roundoff(dtype) * float(x.norm()) > 4 * measured


def test_storage_floor_of_a_coordinate_that_is_zero_is_zero():
    squares = torch.tensor([0.0, 5.0], dtype=torch.float64)
    assert storage_floor(torch.bfloat16, squares, torch.tensor([1.0, 0.0], dtype=torch.float64)) == 0
    assert storage_floor(torch.bfloat16, squares, torch.tensor([0.0, 1.0], dtype=torch.float64)) > 0


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24), (torch.float64, 53)]
)
def test_unit_roundoff_is_half_an_ulp_of_one(dtype, bits):
    assert unit_roundoff(dtype) == 2.0**-bits


def test_gram_floor_bounds_what_an_eigensolve_of_a_singular_gram_returns():
    size = 200
    x = torch.randn(1000, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0] *= 1e4
    x[:, -20:] = x[:, :20] @ torch.randn(20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.linalg.eigvalsh(x.T @ x)
    floor = gram_floor(float(values[-1]), size)
    assert values[:20].abs().max() <= floor
    assert values[20] > 1e3 * floor
    assert gram_floor(-2.0, size) == gram_floor(2.0, size) == size * 2.0**-52


def test_at_floor_is_within_a_factor_of_it():
    assert at_floor(AT_FLOOR * 2.0, 2.0)
    assert not at_floor(AT_FLOOR * 2.01, 2.0)
    assert at_floor(0.0, 0.0)
    assert at_floor(-1e-20, 0.0)
    assert not at_floor(float("nan"), 1.0)
