"""Every small figure stands beside its floor: on a LayerNorm it is at it, on an RMSNorm above, whatever the solver."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from deadreckon.forward.conclude import conclude
from deadreckon.forward.precision import AT_FLOOR
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.spectrum import eigensolver
from deadreckon.forward.statistics import NormStatistics
from deadreckon.kernel.norm import Norm

D, N = 300, 2000
U = torch.finfo(torch.float64).eps / 2


def statistics_of(kind, dtype=torch.float32, wrong=0.0, zeros=()):
    generator = torch.Generator().manual_seed(0)
    module = nn.LayerNorm(D) if kind == "layernorm" else nn.RMSNorm(D, eps=1e-6)
    with torch.no_grad():
        module.weight.copy_(torch.exp(0.5 * torch.randn(D, generator=generator)))
        module.weight[list(zeros)] = 0
        if kind == "layernorm":
            module.bias.copy_(0.1 * torch.randn(D, generator=generator))
    x = (torch.randn(N, D, generator=generator) + 2).to(dtype)
    module = module.to(dtype)
    norm = probe_norm(module).norm("n")
    if wrong:
        norm = Norm("n", norm.kind, norm.gain * (1 + wrong * np.cos(np.arange(D))), norm.shift, eps=norm.eps)
    statistics = NormStatistics(norm, torch.device("cpu"))
    with torch.no_grad():
        statistics.update(x, module(x))
    return statistics


def figures(statistics, solver="eigh"):
    return conclude(statistics, eigensolver(solver), 1e-6).figures


@pytest.mark.parametrize("solver", ["eigh", "bottom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layernorm_is_at_its_floors_and_an_rmsnorm_is_not(solver, dtype):
    layer, rms = (figures(statistics_of(kind, dtype), solver) for kind in ("layernorm", "rmsnorm"))
    for name in ("lambda_dead", "lambda_dead_float64", "lambda_min"):
        assert layer[f"{name}_at_floor"]
        assert layer[name] <= AT_FLOOR * layer[f"{name}_floor"]
        assert not rms[f"{name}_at_floor"]
        assert rms[name] > AT_FLOOR * rms[f"{name}_floor"] > 0
    for found in (layer, rms):
        assert not found["lambda_2_at_floor"]
        assert found["lambda_2"] > AT_FLOOR * found["lambda_2_floor"] > 0
    assert layer["spectral_gap"] is None is layer["condition_number"]
    assert rms["spectral_gap"] == pytest.approx(rms["lambda_2"] / rms["lambda_min"])
    # The floor is not so wide that it takes everything in: far below what a living direction has.
    assert layer["lambda_dead_float64_floor"] <= 1e-24 * layer["lambda_mean"]
    assert layer["lambda_2_floor"] <= 1e-4 * layer["lambda_2"]


def test_a_second_dead_direction_is_at_its_floor():
    found = figures(statistics_of("layernorm", zeros=(3, 30)))
    assert found["lambda_min_at_floor"]
    assert found["lambda_2_at_floor"]
    assert not found["bottom_simple"]


def test_a_wrong_gain_is_not_at_the_floor():
    right, wrong = (figures(statistics_of("layernorm", wrong=w)) for w in (0.0, 0.01))
    assert right["lambda_dead_at_floor"]
    assert not wrong["lambda_dead_at_floor"]


def test_angle_to_the_bottom_in_units_of_what_the_solver_may_turn():
    """Davis and Kahan: sin(angle) <= d u lambda_max / gap, the angle's floor; what the model itself turns comes on top.

    The eigenvector of a LayerNorm in float64 is the predicted one but for that; in float32 output rounding moves the
    covariance by cov(error), which has its own share; a gain off by 1e-2 turns the prediction by about as much.
    """
    statistics = statistics_of("layernorm")
    found = figures(statistics)
    values = torch.linalg.eigvalsh(statistics.exact.covariance())
    floor = D * U * float(values[-1]) / float(values[1] - values[0])
    assert found["largest_principal_angle_float64_floor"] == pytest.approx(max(math.asin(floor), D**0.5 * U), rel=1e-6)
    assert found["largest_principal_angle_float64"] <= found["largest_principal_angle_float64_floor"]
    assert found["largest_principal_angle"] > found["largest_principal_angle_floor"]
    wrong = figures(statistics_of("layernorm", wrong=0.01))
    assert wrong["largest_principal_angle_floor"] < 1e-9 < 1e-3 < wrong["largest_principal_angle"] < 0.05
    # Of float64 the wrong norm is recomputed with the wrong gain: its kernel is the predicted one.
    assert wrong["largest_principal_angle_float64"] <= wrong["largest_principal_angle_float64_floor"]


def test_without_a_prediction_there_is_no_angle_and_no_floor():
    found = figures(statistics_of("rmsnorm"))
    for which in ("", "_float64"):
        assert found[f"largest_principal_angle{which}"] is None
        assert found[f"largest_principal_angle{which}_floor"] is None


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_the_bottom_alone_says_what_the_whole_spectrum_says(kind):
    statistics = statistics_of(kind, torch.bfloat16)
    whole, part = (figures(statistics, solver) for solver in ("eigh", "bottom"))
    assert part["effective_rank"] is None is part["schur_ratio"]
    assert whole["effective_rank"] > 1
    if kind == "layernorm":
        assert whole["schur_ratio"] is not None
        assert part["lambda_dead_rank"] == whole["lambda_dead_rank"]
    elif whole["lambda_dead_rank"] >= 8:
        assert part["lambda_dead_rank"] is None
    # lambda_max is from below to a few hundredths; what is above a hundredth of the mean is an upper bound, not exact.
    from_above = {"lambda_max", "stable_rank", "condition_number", "lambda_2", "lambda_min", "spectral_gap"}
    unequal = {"effective_rank", "schur_ratio", "lambda_dead_rank", "protocol", "warnings", "spectrum"}
    assert whole.keys() == part.keys()
    assert 0.95 * whole["lambda_max"] <= part["lambda_max"] <= whole["lambda_max"] * (1 + D * U)
    assert part["lambda_2"] >= whole["lambda_2"] * (1 - 1e-9)
    if kind == "rmsnorm":  # its bottom eigenvalue is alive: no certificate, and its vector is not one of C
        unequal |= {name for name in whole if name.startswith(("alignment", "subspace", "lambda_min", "lambda_2"))}
        unequal |= {"bottom_simple", "largest_principal_angle_floor"}
    for name in whole.keys() - from_above - unequal:
        expected = whole[name]
        if not isinstance(expected, float):
            assert part[name] == expected, name
        elif name.endswith("floor"):  # they are of the size of lambda_max
            assert part[name] == pytest.approx(expected, rel=0.5), name
        elif name.startswith("largest_principal_angle"):
            assert part[name] == pytest.approx(expected, rel=1e-3, abs=2 * whole[f"{name}_floor"]), name
        else:
            assert part[name] == pytest.approx(expected, rel=1e-3, abs=1e-30), name
