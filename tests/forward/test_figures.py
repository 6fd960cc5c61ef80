"""Every figure of a pass against NumPy, on bfloat16, where native and float64 output differ in every one of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from deadreckon.forward.conclude import _largest_eigenvalue, conclude
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.protocol import protocol
from deadreckon.forward.reference import ReferenceNorm
from deadreckon.forward.spectrum import eigensolver
from deadreckon.forward.statistics import NormStatistics
from deadreckon.kernel.norm import LAYERNORM, Norm, NormKind

D, N = 32, 3000
CPU = torch.device("cpu")


def layer(dtype, kind="layernorm"):
    generator = torch.Generator().manual_seed(0)
    module = nn.LayerNorm(D) if kind == "layernorm" else nn.RMSNorm(D, eps=1e-6)
    with torch.no_grad():
        module.weight.copy_(torch.exp(0.5 * torch.randn(D, generator=generator)))
        if kind == "layernorm":
            module.bias.copy_(0.1 * torch.randn(D, generator=generator))
    return module.to(dtype)


def run(module, x, norm=None):
    norm = norm or probe_norm(module).norm("n")
    statistics = NormStatistics(norm, CPU)
    with torch.no_grad():
        y = module(x)
    statistics.update(x, y)
    return norm, statistics, y.double().numpy()


def by_hand(norm, x):
    """The norm in float64 by NumPy, without its shift."""
    z = x.double().numpy()
    z = z - z.mean(-1, keepdims=True) if norm.kind.centred else z
    return norm.gain * z / np.sqrt((z**2).mean(-1, keepdims=True) + norm.eps)


@pytest.fixture(scope="module")
def x():
    return (torch.randn(N, D, generator=torch.Generator().manual_seed(1)) + 3).to(torch.bfloat16)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_against_numpy(x, kind):
    module = layer(torch.bfloat16, kind)
    norm, statistics, y = run(module, x)
    found = conclude(statistics, eigensolver("eigh"), 1e-6).figures
    exact = by_hand(norm, x)
    error = y - exact - (0 if norm.shift is None else norm.shift)
    w = (1 / norm.gain) / np.linalg.norm(1 / norm.gain)
    native, float64 = np.cov(y.T), np.cov(exact.T)
    lambdas, vectors = np.linalg.eigh(native)
    lambdas64, vectors64 = np.linalg.eigh(float64)
    close = {"rel": 1e-6, "abs": 1e-12}
    assert found["lambda_dead"] == pytest.approx(np.var(y @ w, ddof=1), **close)
    assert found["lambda_dead_floor"] == pytest.approx(np.var(error @ w, ddof=1), **close)
    assert found["lambda_min"] == pytest.approx(lambdas[0], **close)
    assert found["lambda_2"] == pytest.approx(lambdas[1], **close)
    assert found["lambda_mean"] == pytest.approx(lambdas.mean(), **close)
    assert found["lambda_max"] == pytest.approx(lambdas[-1], **close)
    # Measured along w, with independent coordinates elsewhere.
    inside, outside = w @ vectors[:, 0], vectors[:, 0] - w * (w @ vectors[:, 0])
    noise = inside**2 * np.var(error @ w, ddof=1) + outside**2 @ np.var(error, axis=0, ddof=1)
    assert found["lambda_min_floor"] == pytest.approx(noise, **close)
    assert found["alignment"] == pytest.approx(abs(w @ vectors[:, 0]), **close)
    assert found["alignment_float64"] == pytest.approx(abs(w @ vectors64[:, 0]), **close)
    assert found["alignment_uniform"] == pytest.approx(abs(vectors[:, 0].sum()) / D**0.5, **close)
    assert found["lambda_dead_rank"] in {int((lambdas < np.var(y @ w, ddof=1)).sum()) + k for k in (-1, 0, 1)}
    assert found["depth_decades"] == pytest.approx(math.log10(lambdas.mean() / np.var(y @ w, ddof=1)), rel=1e-6)
    for tau in (1e-2, 1e-4, 1e-6, 1e-8):
        assert found["dead_counts"][f"{tau:.0e}"] == int((lambdas64 <= tau * lambdas64.mean()).sum())
        assert found["dead_counts_native"][f"{tau:.0e}"] == int((lambdas <= tau * lambdas.mean()).sum())
    assert found["participation_ratio"] == pytest.approx(lambdas.sum() ** 2 / (lambdas**2).sum(), rel=1e-6)
    assert found["stable_rank"] == pytest.approx(lambdas.sum() / lambdas[-1], rel=1e-6)
    assert found["schur_reference"] == pytest.approx((D - 1) / (N - 1))
    if kind == "layernorm":
        # The two outputs disagree on what is dead, and each count is its own.
        assert found["dead_counts"]["1e-06"] == 1 != found["dead_counts_native"]["1e-06"]
        assert (found["algebraic_dead"], found["learned_dead"]) == (1, 0)
        assert found["depth_decades_float64"] > 25 > 10 > found["depth_decades"]
        assert found["largest_principal_angle"] == pytest.approx(math.acos(abs(w @ vectors[:, 0])), rel=1e-3)
        assert found["largest_principal_angle_float64"] < 1e-6 < found["largest_principal_angle"]
    else:
        assert found["lambda_dead_rank"] > 0
        assert not found["lambda_dead_at_floor"]  # four decades above it, though bfloat16
        assert found["lambda_dead"] < 1e6 * found["lambda_dead_floor"]


def test_schur_ratio_is_the_explained_share_of_a_regression(x):
    norm, statistics, y = run(layer(torch.bfloat16), x)
    w = (1 / norm.gain) / np.linalg.norm(1 / norm.gain)
    others = np.linalg.svd(w[None])[2][1:].T
    centred = y - y.mean(0)
    target, predictors = centred @ w, centred @ others
    left = target - predictors @ np.linalg.lstsq(predictors, target, rcond=None)[0]
    found = conclude(statistics, eigensolver("eigh"), 1e-6).figures["schur_ratio"]
    assert found == pytest.approx(1 - left.var() / target.var(), rel=1e-6, abs=1e-9)


def test_residual_is_relative_to_what_the_mean_magnifies_token_by_token(x):
    norm, statistics, y = run(layer(torch.bfloat16), x)
    rows = x.double().numpy()
    magnified = (rows**2).sum(1) / ((rows - rows.mean(1, keepdims=True)) ** 2).sum(1)
    error = y - norm.shift - by_hand(norm, x)
    expected = math.sqrt(((error**2).sum(1) / magnified).sum() / ((y - norm.shift) ** 2).sum())
    found = protocol(statistics)
    assert found.norm_residual == pytest.approx(expected, rel=1e-6)
    assert found.norm_tolerance == 8 * torch.finfo(torch.bfloat16).eps / 2


def test_one_token_with_a_huge_mean_does_not_blind_the_check(x):
    module = layer(torch.float32)
    norm = probe_norm(module).norm("n")
    single = x.float().clone()
    single[0] += 1e6
    wrong = Norm("n", norm.kind, norm.gain * (1 + 0.01 * np.cos(np.arange(D))), norm.shift, eps=norm.eps)
    assert protocol(run(module, single)[1]).status == "ok"
    failed = run(module, single, wrong)[1]
    assert protocol(failed).status == "failed"
    assert not conclude(failed, eigensolver("eigh"), 1e-6).figures["lambda_dead_at_floor"]


def test_a_gain_off_by_a_hundred_thousandth_is_seen_in_float32(x):
    module = layer(torch.float32)
    norm = probe_norm(module).norm("n")
    wrong = Norm("n", norm.kind, norm.gain * (1 + 3e-5 * np.cos(np.arange(D))), norm.shift, eps=norm.eps)
    assert protocol(run(module, x.float())[1]).status == "ok"
    assert protocol(run(module, x.float(), wrong)[1]).status == "failed"


def test_variance_along_the_kernel_in_its_own_unit(x):
    """In units of d/|gain^-1|^2: planted noise is found with its size, and fails the check by itself."""
    norm, statistics, _ = run(layer(torch.float32), x.float())
    assert protocol(statistics).status == "ok"
    noise = 1e-9 * torch.randn(N, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    statistics.projected_exact.update(noise)
    found = protocol(statistics)
    variance = float(statistics.projected_exact.covariance())
    assert found.kernel_variance == pytest.approx(variance * float((1 / norm.gain**2).sum()) / D, rel=1e-9)
    assert found.status == "failed"
    assert "kernel" in found.why


def test_nan_never_passes(x):
    _, statistics, _ = run(layer(torch.float32), x.float())
    statistics.residual = float("nan")
    assert protocol(statistics).status == "failed"


def test_angle_of_a_wrong_gain_is_the_angle_between_the_kernels(x):
    module = layer(torch.float32)
    norm = probe_norm(module).norm("n")
    gain = norm.gain * (1 + 0.01 * np.cos(np.arange(D)))
    found = run(module, x.float(), Norm("n", norm.kind, gain, norm.shift, eps=norm.eps))[1]
    angle = conclude(found, eigensolver("eigh"), 1e-6).figures["largest_principal_angle"]
    right, wrong = (1 / g / np.linalg.norm(1 / g) for g in (norm.gain, gain))
    assert angle == pytest.approx(math.acos(right @ wrong), rel=1e-3)


def test_largest_of_several_directions():
    assert float(_largest_eigenvalue(torch.diag(torch.tensor([1.0, 5.0])))) == pytest.approx(5)
    assert float(_largest_eigenvalue(torch.tensor([[3.0]]))) == 3


def test_reference_of_groups_and_of_a_norm_that_only_centres(x):
    gain = np.arange(1.0, D + 1)
    rows = x.double().numpy().reshape(N, 4, -1)
    z = rows - rows.mean(-1, keepdims=True)
    grouped = (z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5)).reshape(N, D) * gain
    found = ReferenceNorm(Norm("n", LAYERNORM, gain, groups=4, eps=1e-5), CPU)(x)[0]
    assert np.allclose(found.numpy(), grouped, rtol=1e-13, atol=0)
    centring = NormKind("centring", centred=True, normalised=False)
    rows = x.double().numpy()
    only = ReferenceNorm(Norm("n", centring, gain), CPU)(x)[0]
    assert np.allclose(only.numpy(), (rows - rows.mean(-1, keepdims=True)) * gain, rtol=0, atol=1e-13 * D)


def test_a_huge_mean_leaves_no_sum_behind():
    """One subtraction leaves the mean's own rounding, 1e8 times magnified; two leave rounding of the spread."""
    draw = torch.randn(200, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 1e8
    z = ReferenceNorm(Norm("n", LAYERNORM, np.ones(D), eps=0.0), CPU)(draw)[0]
    assert float(z.sum(-1).abs().max()) <= 8 * D * torch.finfo(torch.float64).eps
