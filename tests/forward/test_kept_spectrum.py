"""The eigenvalues that a record keeps: the right ones, with floors, few enough whatever the size."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from deadreckon.forward.conclude import conclude, kept_ranks
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.spectrum import eigensolver
from deadreckon.forward.statistics import NormStatistics
from deadreckon.results.saved import record_of
from deadreckon.verbs.measure import measure


@pytest.mark.parametrize("size", [1, 2, 24, 37, 384, 5120, 20_000])
def test_kept_ranks_are_few_reach_both_ends_and_leave_no_wide_gap(size):
    ranks = kept_ranks(size)
    assert ranks == sorted(set(ranks))
    assert (ranks[0], ranks[-1]) == (1, size)
    assert ranks[:24] == list(range(1, min(24, size) + 1))
    assert ranks[-12:] == list(range(max(1, size - 11), size + 1))
    assert len(ranks) <= 24 + 12 + 64
    # A step of log(rank) is a 64th of the way from 24 to d; rounding to whole ranks adds one rank at most.
    assert all(after <= before * max(1, size / 24) ** (1 / 64) + 1 for before, after in itertools.pairwise(ranks))


def concluded(size, solver, count=None):
    generator = torch.Generator().manual_seed(0)
    module = nn.LayerNorm(size)
    with torch.no_grad():
        module.weight.copy_(torch.exp(0.5 * torch.randn(size, generator=generator)))
        module.weight[:2] = 1e-4
    x = torch.randn(count or 6 * size, size, generator=generator)
    statistics = NormStatistics(probe_norm(module).norm("n"), torch.device("cpu"), keep_tokens=solver == "svd")
    with torch.no_grad():
        y = module(x)
    statistics.update(x, y)
    return conclude(statistics, eigensolver(solver), 1e-6).figures, np.linalg.eigvalsh(np.cov(y.double().numpy().T))


@pytest.mark.parametrize("solver", ["eigh", "svd", "bottom"])
def test_the_kept_eigenvalues_are_those_of_their_ranks(solver):
    size = 320  # large enough for the bottom solver to spare the rest
    figures, truth = concluded(size, solver)
    kept = figures["spectrum"]
    assert len({len(kept.ranks), len(kept.native), len(kept.float64), len(kept.native_floor)}) == 1
    assert kept.ranks[0] == 1
    assert kept.ranks[-1] == size
    assert kept.native[0] == figures["lambda_min"]
    assert kept.native[1] == figures["lambda_2"]
    assert kept.native[-1] == figures["lambda_max"]
    assert kept.native_floor[:2] == [figures["lambda_min_floor"], figures["lambda_2_floor"]]
    assert kept.float64_floor > 0
    expected = truth[np.array(kept.ranks) - 1]
    exact = expected <= 1e-2 * truth.mean()  # above it the bottom solver gives upper bounds
    floor = 4 * size * 2.0**-53 * truth[-1]  # of a covariance in float64
    if solver != "bottom":
        exact[:] = True
        assert len(kept.ranks) > 80
    else:
        assert len(kept.ranks) == 9
        assert kept.native_floor[-1] is None
        assert (np.array(kept.native)[:-1] >= expected[:-1] - floor).all()
    assert np.abs(np.array(kept.native) - expected)[exact] == pytest.approx(0, abs=1e-3 * expected[exact].max() + floor)
    dead = np.array(kept.float64) <= 1e-6 * figures["lambda_mean"]
    assert dead.sum() == figures["dead_counts"]["1e-06"] == 2  # two gains of 1e-4: the kernel lies in their plane


def test_the_floor_is_the_noise_of_the_norm_that_is_seen_along_its_kernel():
    """Between native and float64 the dead eigenvalue differs by rounding: of the size that its floor says."""
    figures, _ = concluded(64, "svd", 40 * 64)
    kept = figures["spectrum"]
    assert kept.float64[0] < 1e-3 * kept.native[0]
    assert kept.native_floor[0] / 4 < kept.native[0] < 4 * kept.native_floor[0]
    # Where the output varies, it is no floor that the value sits on.
    assert kept.native[-1] > 1e6 * kept.native_floor[-1]


def test_records_that_keep_none_still_load():
    module = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    batches = [{"input": torch.randn(64, 8, generator=torch.Generator().manual_seed(0))}]
    data = measure(module, batches=batches).to_dict()
    assert record_of(data).spectrum.ranks == list(range(1, 9))
    del data["spectrum"]
    assert record_of(data).spectrum is None
