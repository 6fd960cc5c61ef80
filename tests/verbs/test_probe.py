"""Every norm layer is screened right, whatever its formula, and a kernel is told from what only looks like one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import deadreckon
from deadreckon.errors import InputError, UsageError
from deadreckon.forward.lone_kernel import AT_FLOOR
from deadreckon.results.probe import Probe
from deadreckon.verbs.probe import probe

D = 48


class Formula(nn.Module):
    """gain * f(x) + shift, with gains and shifts in general position."""

    def __init__(self, f, *, gain=True, shift=True, offset=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.f, self.offset, self.hidden_size = f, offset, D
        self.weight = nn.Parameter(torch.randn(D, generator=generator).mul(0.5).exp()) if gain else None
        self.bias = nn.Parameter(torch.randn(D, generator=generator) * 0.1) if shift else None

    def forward(self, x):
        y = self.f(x)
        y = y if self.weight is None else y * (self.offset + self.weight)
        return y if self.bias is None else y + self.bias


def ln(x, kept=0.0, eps=1e-5):
    """LayerNorm that forgets to subtract a share `kept` of the mean."""
    centred = x - (1 - kept) * x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + eps)


def rms(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def l2(x):
    return x / x.norm(dim=-1, keepdim=True)


def partial_rms(x):
    return x / x[..., : D // 8].square().mean(-1, keepdim=True).sqrt()


def crms(x):
    """CRMSNorm: of the d + 1 coordinates that sum to zero only d are kept."""
    squares = x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()
    return x * torch.rsqrt(squares / (D + 1) + 1e-6)


def power(x):
    return x / x.abs().pow(4).mean(-1, keepdim=True).pow(0.25)


def dyt(x):
    return torch.tanh(0.5 * x)


def halves(x):
    return nn.functional.layer_norm(x.unflatten(-1, (2, D // 2)), (D // 2,)).flatten(-2)


class DyT(nn.Module):
    def __init__(self, size, alpha=0.5):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return torch.tanh(self.alpha * x) * self.weight + self.bias


class ScaleNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.g, self.hidden_size = nn.Parameter(torch.tensor(7.0)), D

    def forward(self, x):
        return self.g * l2(x)


class WeightNormed(nn.Module):
    """A LayerNorm followed by a weight-normed diagonal: the kernel survives, behind other parameters."""

    def __init__(self):
        super().__init__()
        self.norm, self.hidden_size = nn.LayerNorm(D), D
        self.scale = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(D, D, 1, groups=D))

    def forward(self, x):
        return self.scale(self.norm(x).unsqueeze(-1)).squeeze(-1)


def general(module):
    """Gains, shifts and running statistics in general position."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return module


def zeroed(module, count):
    with torch.no_grad():
        module.weight[:count] = 0.0
    return module


def held(found):
    return {each.name: each.holds for each in found.invariances if each.holds != "no"}


# name -> layer, kernel_dim, inherent_dim, what the kernel moves with
LAYERS = {
    "LayerNorm": (lambda: general(nn.LayerNorm(D)), 1, 1, ["weight"]),
    "LayerNorm without shift": (lambda: general(nn.LayerNorm(D, bias=False)), 1, 1, ["weight"]),
    "LayerNorm without parameters": (lambda: nn.LayerNorm(D, elementwise_affine=False), 1, 1, []),
    "LayerNorm, gain 1 + w": (lambda: Formula(ln, offset=1.0), 1, 1, ["weight"]),
    "LayerNorm with zero gains": (lambda: zeroed(general(nn.LayerNorm(D)), 5), 5, 1, ["weight"]),
    "LayerNorm in float32": (lambda: Formula(lambda x: ln(x.float()).to(x.dtype)), 1, 1, ["weight"]),
    "centring alone": (lambda: Formula(lambda x: x - x.mean(-1, keepdim=True)), 1, 1, ["weight"]),
    "LayerNorm, then weight norm": (
        WeightNormed,
        1,
        1,
        ["norm.weight", "scale.parametrizations.weight.original0"],
    ),
    "LayerNorm in two halves": (lambda: Formula(halves), 2, 2, ["weight"]),
    "GroupNorm": (lambda: general(nn.GroupNorm(4, D)), 4, 4, ["weight"]),
    "softmax": (lambda: Formula(lambda x: x.softmax(-1), gain=False, shift=False), 1, 1, []),
    "RMSNorm": (lambda: general(nn.RMSNorm(D)), 0, 0, []),
    "RMSNorm with zero gains": (lambda: zeroed(general(nn.RMSNorm(D)), 5), 5, 0, []),
    "RMSNorm in float32": (lambda: Formula(lambda x: rms(x.float()).to(x.dtype)), 0, 0, []),
    "L2 norm": (lambda: Formula(l2), 0, 0, []),
    "ScaleNorm": (ScaleNorm, 0, 0, []),
    "pRMSNorm": (lambda: Formula(partial_rms), 0, 0, []),
    "CRMSNorm": (lambda: Formula(crms), 0, 0, []),
    "power norm": (lambda: Formula(power), 0, 0, []),
    "DyT": (lambda: DyT(D), 0, 0, []),
    "BatchNorm": (lambda: general(nn.BatchNorm1d(D)), 0, 0, []),
    "identity": (lambda: Formula(lambda x: x), 0, 0, []),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_has_the_dimension_that_theory_gives(name):
    make, kernel, inherent, moves = LAYERS[name]
    found = probe(make())
    assert (found.kernel_dim, found.inherent_dim, found.undetermined) == (kernel, inherent, 0)
    expected = "inherent" if inherent else "parameters" if kernel else "none"
    assert found.verdict == expected
    assert found.vectors["kernel"].shape == (D, kernel)
    # An SVD alone would not part the kernel of an RMSNorm, which mean-centred tokens make, from the layer's own.
    if kernel == 0 and name not in {"DyT", "softmax"}:
        assert found.by_distribution["centred"] == 1
    if inherent:
        assert set(found.depends_on) == set(moves)
    assert found.gap > (1e4 if "float32" in name else 1e12)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_kernel_of_a_layernorm_is_the_inverse_of_its_gain(scale):
    module = Formula(ln)
    with torch.no_grad():
        module.weight[3] *= scale
    found = probe(module)
    gain = module.weight.detach().double().numpy()
    expected = (1 / gain) / np.linalg.norm(1 / gain)
    kernel = found.vectors["kernel"][:, 0]
    # In coordinates scaled to one size the null vector is off by noise over the next singular value; scaling back
    # stretches that by at most the ratio of the gains.
    tolerance = AT_FLOOR * found.dead_floor / found.smallest_live * gain.max() / gain.min()
    assert np.linalg.norm(kernel - expected * (expected @ kernel)) <= tolerance < 1e-8
    assert found.kernel_form == "1/weight over all coordinates"
    shift = module.bias.detach().double().numpy()
    assert abs(found.directions[0].constant) == pytest.approx(abs(expected @ shift), abs=1e-12)
    uniform = np.full(D, D**-0.5)
    assert np.linalg.norm(kernel - uniform * (uniform @ kernel)) > 0.1


@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (Formula(ln, offset=1.0), "1/(1 + weight) over all coordinates"),
        (general(nn.GroupNorm(4, D)), "1/weight over each of 4 equal contiguous groups of coordinates"),
        (nn.LayerNorm(D, elementwise_affine=False), "the same weight on all coordinates"),
        (WeightNormed(), None),
        (general(nn.RMSNorm(D)), None),
        (Formula(lambda x: 0 * x), "every direction"),
        # A mean over even coordinates alone: a fixed space, but not one of contiguous groups.
        (Formula(lambda x: x - x[..., ::2].mean(-1, keepdim=True)), "1/weight times a fixed space"),
    ],
)
def test_the_formula_of_the_kernel(layer, form):
    assert probe(layer).kernel_form == form


def test_a_basis_of_groups_has_one_direction_a_group():
    module = general(nn.GroupNorm(4, D))
    basis = probe(module).vectors["kernel"]
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), rtol=0, atol=4 * D * 2.0**-52)
    width = D // 4
    assert [set(np.flatnonzero(np.abs(w) > 1e-9) // width) for w in basis.T] == [{0}, {1}, {2}, {3}]


def test_tiny_gains_do_not_pass_for_a_kernel():
    module = general(nn.LayerNorm(D, bias=False))
    with torch.no_grad():
        module.weight[:3] = torch.tensor([1e-33, 1e-20, 1e-9])
    found = probe(module)
    assert found.kernel_dim == 1
    assert found.directions[0].top[0].index == 0


class Gate(nn.Module):
    """Subtracts the mean unless a weight is zero: a kernel of most parameters, but not of all."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        return x - x.mean(-1, keepdim=True) * (self.weight != 0).all()


def test_a_kernel_that_zeros_undo_is_not_inherent():
    found = probe(Gate())
    assert (found.kernel_dim, found.inherent_dim, found.verdict) == (1, 0, "parameters")
    assert found.by_draw == {"redrawn": 1, "redrawn again": 1, "zeros in weight": 0}


@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-9])
def test_a_mean_subtraction_that_is_slightly_broken_is_no_kernel(share):
    found = probe(Formula(lambda x: ln(x, share)))
    assert (found.kernel_dim, found.inherent_dim, found.verdict) == (0, 0, "none")
    # Shifted tokens have the largest mean, 30 beside a spread of 1, which comes through with share * sqrt(d).
    assert 0.1 * share < found.smallest_live < 30 * share * D**0.5


def test_where_rounding_hides_it_nothing_is_said():
    assert probe(Formula(lambda x: ln(x, 1e-14))).verdict == "undetermined"
    single = probe(Formula(lambda x: ln(x.float(), 1e-6).to(x.dtype)))
    assert single.verdict in {"undetermined", "inherent"}
    assert any("relative errors" in note for note in single.notes)
    half = probe(Formula(lambda x: ln(x.bfloat16()).to(x.dtype)))
    assert (half.kernel_dim, half.inherent_dim, half.verdict) == (None, None, "undetermined")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_measured_in_the_format_that_the_layer_computes_in(dtype):
    noise = probe(Formula(lambda x: ln(x.to(dtype)).to(x.dtype))).noise
    # Rounding once to unit roundoff u leaves u/sqrt(12) ... u of error; a norm rounds a handful of times.
    unit = torch.finfo(dtype).eps / 2
    assert unit / 12**0.5 < noise < 5 * unit


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: general(nn.LayerNorm(D)), {"shift_invariant": "exact", "scale_invariant": "to_eps", "odd": "exact"}),
        (lambda: Formula(rms), {"scale_invariant": "to_eps", "odd": "exact"}),
        (lambda: Formula(l2), {"scale_invariant": "exact", "odd": "exact"}),
        (lambda: DyT(D), {"odd": "exact", "permutation_equivariant": "exact"}),
        (
            lambda: Formula(lambda x: x, gain=False, shift=False),
            dict.fromkeys(("shift_equivariant", "scale_equivariant", "odd", "permutation_equivariant"), "exact"),
        ),
        (lambda: Formula(torch.abs), {"even": "exact"}),
    ],
)
def test_invariances(layer, expected):
    found = held(probe(layer()))
    assert {name: found.get(name) for name in expected} == expected
    assert set(found) - set(expected) <= {"scale_equivariant"}  # of abs


def test_batch_norm_mixes_tokens_in_training_only():
    module = general(nn.BatchNorm1d(D))
    evaluated, trained = probe(module), probe(module, training=True)
    assert (evaluated.mixes_tokens, trained.mixes_tokens) == (False, True)
    assert (evaluated.kernel_dim, trained.kernel_dim) == (0, 0)
    assert evaluated.elementwise
    assert trained.elementwise
    assert held(trained)["shift_invariant"] == "exact"
    assert "shift_invariant" not in held(evaluated)


class Running(nn.Module):
    """Subtracts a running mean, which every run in training mode moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))
        self.hidden_size = D

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


def test_no_run_depends_on_the_one_before():
    module = Running()
    found = probe(module, training=True)
    assert (found.kernel_dim, found.mixes_tokens) == (0, True)
    assert not module.mean.any()


@pytest.mark.parametrize(
    ("layer", "count"),
    [(Formula(ln), 1), (Formula(rms), 1), (ScaleNorm(), 1), (general(nn.GroupNorm(4, D)), 4), (DyT(D), 0)],
)
def test_spheres_are_named_and_are_no_kernels(layer, count):
    found = probe(layer)
    assert found.quadratic_constraints == count
    assert ("quadratic constraint" in found.says) == bool(count)


def test_layouts():
    assert probe(nn.BatchNorm2d(D)).layout == "image"
    assert probe(nn.InstanceNorm1d(D)).layout == "channels_first"  # (n, d) it takes too, but with a warning
    tokens, image = probe(nn.GroupNorm(4, D)), probe(nn.GroupNorm(4, D), layout="image")
    assert (tokens.layout, tokens.inherent_dim) == ("tokens", 4)
    assert (image.layout, image.inherent_dim, image.mixes_tokens) == ("image", 0, True)
    assert any("channels_first" in note for note in tokens.notes)


@pytest.mark.parametrize("training", [False, True])
def test_the_module_is_left_as_it_was(training):
    module = general(nn.BatchNorm1d(D)).train()
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(module.state_dict())
    probe(module, training=training)
    assert module.training
    assert not seen
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert next(module.parameters()).dtype == torch.float32
    assert next(module.parameters()).requires_grad


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normed", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
def test_reparametrisations_stay_alive_in_the_copy(normed):
    """The older of the two lives in a hook, and keeps a tensor that cannot be copied."""
    found = probe(normed(nn.Linear(D, D)), D)
    magnitude = found.parameters[1]
    assert (found.kernel_dim, found.by_draw[f"zeros in {magnitude}"]) == (0, D // 3)


def test_random_states_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    probe(nn.LayerNorm(8))
    drawn = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert drawn == (torch.rand(1), np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_small_widths(size):
    assert probe(general(nn.LayerNorm(size))).inherent_dim == 1
    assert probe(general(nn.RMSNorm(size))).inherent_dim == 0


def test_the_record_is_its_json():
    found = deadreckon.probe(nn.LayerNorm(8))
    assert found.schema == "deadreckon.probe/1"
    assert Probe.from_dict(found.to_dict()) == found
    assert found.to_dict() == deadreckon.probe(nn.LayerNorm(8)).to_dict() | {"seconds": found.seconds}


class Two(nn.Module):
    def forward(self, x):
        return x, x


class Gated(nn.Module):
    def forward(self, x, gate):
        return x * gate


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


@pytest.mark.parametrize(
    ("layer", "options", "error", "says"),
    [
        (lambda: "LayerNorm", {}, UsageError, "torch.nn.Module"),
        (lambda: nn.LayerNorm, {}, UsageError, "an instance"),
        (lambda: Formula, {}, UsageError, "an instance"),
        (lambda: nn.Tanh(), {}, UsageError, "give hidden_size"),
        (lambda: nn.LayerNorm(8), {"hidden_size": 1}, UsageError, "at least 2"),
        (lambda: nn.LayerNorm(8), {"layout": "rows"}, UsageError, "choose one of tokens"),
        (lambda: nn.LayerNorm(7), {"hidden_size": 9}, InputError, "check the hidden size"),
        (lambda: nn.LayerNorm(11), {"hidden_size": 9}, InputError, "check the hidden size"),
        (lambda: nn.Linear(8, 4), {"hidden_size": 8}, InputError, "keeps the shape"),
        (lambda: Two(), {"hidden_size": 8}, InputError, "puts out a tuple"),
        (lambda: Gated(), {"hidden_size": 8}, InputError, "missing 1 required positional argument"),
        (lambda: Root(), {"hidden_size": 8}, InputError, "NaN or infinity"),
        (lambda: nn.Dropout(), {"hidden_size": 8, "training": True}, InputError, "answers the same tokens differently"),
        (lambda: nn.LazyBatchNorm1d(), {"hidden_size": 8}, InputError, "lazy"),
        (lambda: nn.LayerNorm(8, device="meta"), {}, InputError, "meta device"),
    ],
)
def test_bad_layers_are_refused_with_a_reason(layer, options, error, says):
    with pytest.raises(error, match=says):
        probe(layer(), **options)


def test_parameters_that_are_not_finite_are_named():
    module = nn.LayerNorm(8)
    with torch.no_grad():
        module.weight[2] = float("nan")
    with pytest.raises(InputError, match="parameter weight is not finite"):
        probe(module)
