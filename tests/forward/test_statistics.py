"""The figures of a pass: what must hold for every input, and what must go red when the wrong norm is measured."""

import numpy as np
import pytest
import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.conclude import conclude
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.spectrum import eigensolver
from deadreckon.forward.statistics import NormStatistics
from deadreckon.kernel.norm import LAYERNORM, RMSNORM, Norm

D, N = 48, 4000
CPU = torch.device("cpu")


def layer(kind="layernorm", *, gains="healthy", shift=True, seed=0):
    """A norm layer with redrawn parameters, float32 as models have them."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.LayerNorm(D, bias=shift) if kind == "layernorm" else nn.RMSNorm(D, eps=1e-6)
    gain = torch.exp(0.5 * torch.randn(D, generator=generator))
    if gains == "near zero":
        gain[:3] = torch.tensor([4.8e-33, 6.0e-33, 1.5e-9])
    if gains == "zero":
        gain[[3, 30]] = 0.0
    with torch.no_grad():
        module.weight.copy_(gain)
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(0.1 * torch.randn(D, generator=generator))
    return module


def tokens(kind="normal", seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(N, D, generator=generator)
    return {
        "normal": draw,
        "mean 10 spreads away": draw + 10,
        "tiny": draw * 1e-3,
        "huge": draw * 1e3,
        "low rank with noise": draw[:, :1] * torch.randn(D, generator=generator) + 0.01 * draw.flip(0),
        "heavy tails": draw**5,
        "one massive coordinate": torch.where(torch.arange(D) == 7, 1e3 * draw, draw),
    }[kind]


def figures(module, x, norm=None, solver="eigh", tau=1e-6):
    norm = norm or probe_norm(module).norm("n")
    statistics = NormStatistics(norm, CPU, keep_tokens=solver == "svd")
    with torch.no_grad():
        for part in x.split(700):
            statistics.update(part, module(part))
    return conclude(statistics, eigensolver(solver), tau).figures


@pytest.mark.parametrize("gains", ["healthy", "near zero", "zero"])
@pytest.mark.parametrize(
    "inputs",
    ["normal", "mean 10 spreads away", "tiny", "huge", "low rank with noise", "heavy tails", "one massive coordinate"],
)
def test_kernel_is_dead_for_every_input(gains, inputs):
    found = figures(layer(gains=gains), tokens(inputs))
    assert found["protocol"].status == "ok", found["protocol"].why
    assert found["protocol"].kernel_variance <= 1e-24
    assert found["kernel_dim"] == {"healthy": 1, "near zero": 1, "zero": 2}[gains]
    # Nothing but rounding along it, as the model computes it: the norm's own error explains the variance.
    assert found["lambda_dead_at_floor"]
    assert found["lambda_dead_float64"] <= 1e-24 * found["lambda_mean"]


@pytest.mark.parametrize("gains", ["healthy", "near zero", "zero"])
def test_predicted_and_measured_dead_subspace_agree(gains):
    found = figures(layer(gains=gains), tokens())
    assert found["predicted_dead"] == {"healthy": 1, "near zero": 3, "zero": 2}[gains]
    assert found["largest_principal_angle_float64"] <= 1e-6
    assert found["subspace_alignment"] >= 1 - 1e-9
    assert found["dead_counts"]["1e-06"] == found["predicted_dead"] == found["algebraic_dead"]
    assert found["learned_dead"] == 0
    assert found["bottom_simple"] is (gains == "healthy")


def test_uniform_direction_fails_where_gains_are_uneven():
    found = figures(layer(), tokens())
    assert found["alignment"] >= 0.9999
    assert found["alignment_uniform"] < 0.95


def test_rmsnorm_has_no_kernel_and_its_candidate_is_alive():
    found = figures(layer("rmsnorm"), tokens())
    assert (found["kernel_dim"], found["predicted_dead"], found["tested"]) == (0, 0, "candidate")
    assert found["protocol"].status == "ok"
    assert found["protocol"].kernel_variance is None
    assert not found["lambda_dead_at_floor"]
    assert found["largest_principal_angle"] is None
    assert found["lambda_dead"] > 0.01 * found["lambda_mean"]


def test_learned_dead_direction_is_told_from_the_algebraic_one():
    """An input that never leaves a hyperplane kills a direction that no gain predicts."""
    x = tokens().double()
    z = x - x.mean(-1, keepdim=True)
    blocked = torch.zeros(D, dtype=torch.float64)
    blocked[10], blocked[11] = 1, -1  # orthogonal to 1, so the mean subtraction does not touch it
    x = z - torch.outer(z @ blocked, blocked) / 2
    found = figures(layer().double(), x)
    assert found["dead_counts"]["1e-06"] == 2
    assert (found["algebraic_dead"], found["learned_dead"]) == (1, 1)


CONTROLS = {
    "gain off by 1%": lambda n: Norm("n", n.kind, n.gain * (1 + 0.01 * np.cos(np.arange(D))), n.shift, eps=n.eps),
    "offset ignored": lambda n: Norm("n", n.kind, n.gain - 1.0, n.shift, eps=n.eps),
    "kind swapped": lambda n: Norm("n", RMSNORM if n.kind is LAYERNORM else LAYERNORM, n.gain, n.shift, eps=n.eps),
    "shift of another norm": lambda n: Norm("n", n.kind, n.gain, np.roll(n.shift, 1), eps=n.eps),
}


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("gains", ["healthy", "near zero", "zero"])
def test_wrong_description_fails_the_protocol(control, gains):
    module = layer(gains=gains)
    right = probe_norm(module).norm("n")
    found = figures(module, tokens("mean 10 spreads away"), norm=CONTROLS[control](right))
    assert found["protocol"].status == "failed"
    assert found["protocol"].why
    assert figures(module, tokens("mean 10 spreads away"))["protocol"].status == "ok"


@pytest.mark.parametrize("control", ["gain off by 1%", "offset ignored", "kind swapped"])
def test_wrong_description_of_an_rmsnorm_fails_the_protocol(control):
    module = layer("rmsnorm")
    wrong = CONTROLS[control](probe_norm(module).norm("n"))
    assert figures(module, tokens("mean 10 spreads away"), norm=wrong)["protocol"].status == "failed"


def test_centring_dropped_goes_red():
    """Second moments about zero, not the mean, read (w.shift)^2 along the kernel: the direction is not dead there."""
    module = layer()
    norm = probe_norm(module).norm("n")
    statistics = NormStatistics(norm, CPU)
    with torch.no_grad():
        statistics.update(tokens(), module(tokens()))
    assert conclude(statistics, eigensolver("eigh"), 1e-6).figures["alignment"] >= 0.9999
    mean = statistics.native.mean
    statistics.native.upper += statistics.native.count * torch.outer(mean, mean)
    assert conclude(statistics, eigensolver("eigh"), 1e-6).figures["alignment"] < 0.999


@pytest.mark.parametrize("gains", ["healthy", "near zero", "zero"])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_direct_svd_agrees_with_the_accumulated_covariance(gains, kind):
    module = layer(kind, gains=gains)
    one, other = figures(module, tokens()), figures(module, tokens(), solver="svd")
    scale = D * torch.finfo(torch.float64).eps * one["lambda_max"]
    for key in ("lambda_min", "lambda_2", "lambda_mean", "lambda_max"):
        assert abs(one[key] - other[key]) <= scale, key
    for key in ("dead_counts", "dead_counts_native", "algebraic_dead", "predicted_dead", "lambda_dead"):
        assert one[key] == other[key], key
    assert abs(one["subspace_alignment"] - other["subspace_alignment"]) <= 1e-7


def test_bfloat16_reads_its_rounding_and_proves_the_kernel_in_float64():
    module = layer().to(torch.bfloat16)
    found = figures(module, tokens().to(torch.bfloat16))
    assert found["protocol"].status == "ok"
    assert found["protocol"].kernel_variance <= 1e-24
    assert found["lambda_dead_at_floor"]
    assert 1e-8 < found["lambda_dead"] / found["lambda_mean"] < 1e-3
    assert found["lambda_dead_float64"] / found["lambda_mean"] < 1e-28


def test_values_at_the_floor_make_no_ratios():
    found = figures(layer(), tokens())
    assert found["lambda_min"] <= 4 * found["lambda_min_floor"]
    assert found["spectral_gap"] is None
    assert found["condition_number"] is None
    alive = figures(layer("rmsnorm"), tokens())
    assert alive["spectral_gap"] == pytest.approx(alive["lambda_2"] / alive["lambda_min"])


def test_variance_along_the_kernel_is_not_read_from_the_covariance():
    """w C w has the floor of the covariance, about u times the largest eigenvalue; the projected tokens do not."""
    module = layer().double()
    statistics = NormStatistics(probe_norm(module).norm("n"), CPU)
    with torch.no_grad():
        statistics.update(tokens().double(), module(tokens().double()))
    w = statistics.tested[:, 0]
    from_covariance = abs(float(w @ statistics.exact.covariance() @ w))
    from_tokens = conclude(statistics, eigensolver("eigh"), 1e-6).figures["lambda_dead_float64"]
    assert from_tokens < 1e-30
    assert from_covariance > 10 * from_tokens


def test_too_few_tokens_are_refused_and_few_are_warned_of():
    with pytest.raises(UsageError, match="N - 1 <= d"):
        figures(layer(), tokens()[: D + 1])
    assert any("tokens per dimension" in w for w in figures(layer(), tokens()[: 3 * D])["warnings"])


def test_schur_ratio_of_independent_rounding_is_near_its_reference_and_of_a_copy_is_one():
    """Along w lies rounding alone; make it a linear function of the rest, and regression explains all of it."""
    module = layer(shift=False).double()
    norm = probe_norm(module).norm("n")
    x = tokens().double()
    with torch.no_grad():
        y = module(x)
    w = NormStatistics(norm, CPU).tested[:, 0]
    noise = 1e-6 * torch.randn(N, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    other = torch.linalg.svd(w[None]).Vh[1]
    for added, low, high in ((noise, 0.0, 3 * (D - 1) / (N - 1)), (1e-6 * (y @ other)[:, None], 0.999, 1.0 + 1e-9)):
        statistics = NormStatistics(norm, CPU)
        statistics.update(x, y + added * w)
        assert conclude(statistics, eigensolver("eigh"), 1e-6).figures["schur_ratio"] is None  # float64: two floors
        statistics.dtype = torch.float32
        ratio = conclude(statistics, eigensolver("eigh"), 1e-6).figures["schur_ratio"]
        assert low <= ratio <= high
