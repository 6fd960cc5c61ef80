"""Solvers against prescribed spectra; single-number summaries against their definitions."""

import math

import pytest
import torch

from deadreckon.errors import UsageError
from deadreckon.forward.moments import Moments
from deadreckon.forward.spectrum import Eigensolver, Spectrum, eigensolver, register_eigensolver

U = torch.finfo(torch.float64).eps / 2


def prescribed(sigma, count=500, seed=0):
    """Centred tokens whose covariance has exactly these eigenvalues (squares of sigma)."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(count, len(sigma), generator=generator, dtype=torch.float64)
    left, _ = torch.linalg.qr(draw - draw.mean(0))
    right, _ = torch.linalg.qr(torch.randn(len(sigma), len(sigma), generator=generator, dtype=torch.float64))
    return left * torch.tensor(sigma, dtype=torch.float64) @ right.T * (count - 1) ** 0.5, right


@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_prescribed_spectrum_is_recovered_above_the_floor(name):
    sigma = [10.0 ** (-k / 2) for k in range(16)]
    tokens, right = prescribed(sigma)
    moments = Moments(len(sigma))
    moments.update(tokens)
    spectrum = eigensolver(name).solve(moments, tokens)
    truth = torch.tensor(sigma, dtype=torch.float64).square().flip(0)
    assert (spectrum.eigenvalues - truth).abs().max() <= 8 * U * len(sigma)
    overlap = (spectrum.eigenvectors[:, -1] @ right[:, 0]).abs()
    assert overlap >= 1 - 1e-12


def test_svd_resolves_what_a_covariance_cannot():
    tokens, _ = prescribed([1.0, 1e-3, 1e-11])
    moments = Moments(3)
    moments.update(tokens)
    svd, eigh = eigensolver("svd").solve(moments, tokens), eigensolver("eigh").solve(moments, None)
    assert float(svd.eigenvalues[0]) == pytest.approx(1e-22, rel=1e-3)
    assert svd.floor < 1e-22 < eigh.floor


def test_svd_without_tokens_is_refused():
    with pytest.raises(UsageError, match="tokens"):
        eigensolver("svd").solve(Moments(3), None)


def test_summaries_of_a_flat_and_of_a_one_dimensional_spectrum():
    flat = Spectrum(torch.ones(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64), 0.0)
    assert flat.effective_rank() == pytest.approx(8)
    assert flat.participation_ratio() == pytest.approx(8)
    assert flat.stable_rank() == pytest.approx(8)
    lone = Spectrum(torch.tensor([-1e-20, 0.0, 5.0], dtype=torch.float64), torch.eye(3, dtype=torch.float64), 0.0)
    assert (lone.effective_rank(), lone.participation_ratio(), lone.stable_rank()) == (1.0, 1.0, 1.0)
    assert lone.dead_count(1e-6) == 2
    nothing = Spectrum(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), 0.0)
    assert (nothing.effective_rank(), nothing.participation_ratio(), nothing.stable_rank()) == (0.0, 0.0, 0.0)


def test_effective_rank_is_of_singular_values_not_of_eigenvalues():
    spectrum = Spectrum(torch.tensor([1.0, 9.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64), 0.0)
    assert spectrum.effective_rank() == pytest.approx(math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))))


def test_a_solver_can_be_added():
    class Diagonal(Eigensolver):
        def solve(self, moments, tokens):
            values, order = moments.covariance().diagonal().sort()
            return Spectrum(values, torch.eye(len(values), dtype=torch.float64)[:, order], 0.0)

    register_eigensolver("diagonal", Diagonal())
    moments = Moments(2)
    moments.update(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    assert eigensolver("diagonal").solve(moments, None).eigenvalues.shape == (2,)
    with pytest.raises(UsageError, match="diagonal"):
        eigensolver("nonsense")
