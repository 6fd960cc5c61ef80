"""The probe must tell what a norm layer computes whatever its parameters are, and refuse what is not a plain norm."""

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deadreckon.forward import norm_response
from deadreckon.forward.probe import probe_norm, probe_norms


class Rms(nn.Module):
    """An RMSNorm written out: gain = offset + weight, in float32 inside as most implementations are."""

    def __init__(self, size: int, eps: float = 1e-6, offset: float = 0.0, shift: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size) - offset)
        self.shift = nn.Parameter(torch.zeros(size)) if shift else None
        self.variance_epsilon, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        z = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.variance_epsilon)
        y = (self.offset + self.weight.float()) * z
        return (y if self.shift is None else y + self.shift.float()).type_as(x)


class CentredNoAffine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)


class Grouped(nn.Module):
    """LayerNorm in each of two halves."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.size = nn.Parameter(torch.ones(size)), size

    def forward(self, x: Tensor) -> Tensor:
        halves = x.unflatten(-1, (2, self.size // 2))
        return nn.functional.layer_norm(halves, halves.shape[-1:]).flatten(-2) * self.weight


class Scale(nn.Module):
    """LayerScale: a vector of the right size that normalises nothing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Gated(Rms):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * nn.functional.silu(gate)


class AcrossTokens(Rms):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(1, keepdim=True))


class Squashed(Rms):
    """Normalised, then bent: no gain explains it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class ExponentialGain(Rms):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.weight * self.weight.exp()


SIZE = 24


@pytest.mark.parametrize(
    ("module", "kind", "offset", "gain", "shift", "eps", "groups"),
    [
        (nn.LayerNorm(SIZE), "layernorm", 0, "weight", "bias", 1e-5, 1),
        (nn.LayerNorm(SIZE, eps=1e-12), "layernorm", 0, "weight", "bias", 1e-12, 1),
        (nn.LayerNorm(SIZE, bias=False, eps=1e-3), "layernorm", 0, "weight", None, 1e-3, 1),
        (nn.LayerNorm(SIZE, elementwise_affine=False), "layernorm", 0, None, None, 1e-5, 1),
        (CentredNoAffine(), "layernorm", 0, None, None, 1e-5, 1),
        (nn.RMSNorm(SIZE, eps=1e-6), "rmsnorm", 0, "weight", None, 1e-6, 1),
        (Rms(SIZE), "rmsnorm", 0, "weight", None, 1e-6, 1),
        (Rms(SIZE, eps=1e-8, shift=True), "rmsnorm", 0, "weight", "shift", 1e-8, 1),
        (Rms(SIZE, offset=1.0), "rmsnorm", 1, "weight", None, 1e-6, 1),
        (Grouped(SIZE), "layernorm", 0, "weight", None, 1e-5, 2),
        (Rms(2), "rmsnorm", 0, "weight", None, 1e-6, 1),
        (nn.LayerNorm(2), "layernorm", 0, "weight", "bias", 1e-5, 1),
    ],
    ids=str,
)
def test_what_a_norm_computes(module, kind, offset, gain, shift, eps, groups):
    probe = probe_norm(module)
    assert probe is not None
    assert (probe.kind.name, probe.gain_offset, probe.gain_name, probe.shift_name) == (kind, offset, gain, shift)
    assert probe.groups == groups
    assert probe.eps == pytest.approx(eps, rel=0.01)  # three digits, or the attribute's own value
    assert np.array_equal(probe.gain, np.ones(probe.hidden_size))
    assert (probe.shift is None) == (shift is None)


@pytest.mark.parametrize(
    "module",
    [
        Scale(SIZE),
        Gated(SIZE),
        AcrossTokens(SIZE),
        Squashed(SIZE),
        nn.Linear(SIZE, SIZE),
        nn.BatchNorm1d(SIZE).eval(),
        nn.GroupNorm(1, SIZE),
        nn.Identity(),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Embedding(3, SIZE),
        nn.LayerNorm((2, SIZE)),
        nn.LayerNorm(1),
        nn.Sequential(nn.LayerNorm(SIZE), nn.GELU()),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_is_no_plain_norm(module):
    assert probe_norm(module) is None


HOSTILE = st.sampled_from([0.0, -0.0, 1e-33, 1e-38, -1e-20, 1.5e-9, 1e30, -0.6, 1.0, 3.0])


@settings(max_examples=40, deadline=None)
@given(values=st.lists(HOSTILE, min_size=3, max_size=12), offset=st.sampled_from([0.0, 1.0]), centred=st.booleans())
def test_kind_offset_and_gains_do_not_depend_on_the_true_gains(values, offset, centred):
    stored = torch.tensor(values, dtype=torch.float32)
    module = nn.LayerNorm(len(values), bias=False) if centred else Rms(len(values), offset=offset)
    with torch.no_grad():
        module.weight.copy_(stored)
    probe = probe_norm(module)
    assert probe is not None
    assert probe.kind.name == ("layernorm" if centred else "rmsnorm")
    assert probe.gain_offset == (0.0 if centred else offset)
    assert np.array_equal(probe.gain, stored.double().numpy() + (0.0 if centred else offset))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_read_exactly(dtype):
    module = nn.LayerNorm(SIZE).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.3, 2.0, SIZE))
        module.bias.copy_(torch.linspace(-1, 1, SIZE))
    probe = probe_norm(module)
    assert np.array_equal(probe.gain, module.weight.detach().double().numpy())
    assert np.array_equal(probe.shift, module.bias.detach().double().numpy())


def test_a_gain_that_is_another_function_of_its_tensor_is_said_to_be_one():
    module = ExponentialGain(SIZE)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.1, 1.2, SIZE))
    probe = probe_norm(module)
    assert probe.gain_offset is None
    assert probe.gain_name == "weight"
    # Read off the layer's answers, which are float32 inside: a few roundings of 6e-8.
    assert np.allclose(probe.gain, module.weight.detach().double().exp().numpy(), rtol=1e-5)


def test_a_forgotten_offset_would_show():
    """Negative control: the same stored tensor under both conventions gives different effective gains."""
    plain, shifted = Rms(SIZE), Rms(SIZE, offset=1.0)
    with torch.no_grad():
        plain.weight.fill_(0.25)
        shifted.weight.fill_(0.25)
    assert np.all(probe_norm(plain).gain == 0.25)
    assert np.all(probe_norm(shifted).gain == 1.25)


def test_the_module_is_left_as_it_was():
    torch.manual_seed(3)
    module, fired = nn.LayerNorm(SIZE).to(torch.float16).train(), []
    module.register_forward_hook(lambda *_: fired.append(1))
    before, random_state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    probe_norm(module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.training
    assert module.weight.dtype == torch.float16
    assert not fired
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def test_on_the_meta_device_everything_but_the_values_is_found():
    with torch.device("meta"):
        module = Rms(SIZE, offset=1.0, shift=True)
        probe = probe_norm(module)
    assert (probe.kind.name, probe.gain_offset, probe.shift_name) == ("rmsnorm", 1.0, "shift")
    assert probe.gain is None
    assert probe.shift is None
    assert probe.norm("x") is None
    assert module.weight.is_meta


class HandsOnMore(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x), None


class MakesAnOuterProduct(nn.Module):
    """As batch norms of images do when they are given tokens: far larger than the input."""

    token_counts: ClassVar[list[int]] = []  # of the class: what is run is a copy

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        self.token_counts.append(x.shape[1])
        return x[..., None] * self.weight


def test_a_norm_may_return_more_than_its_output():
    assert probe_norm(HandsOnMore(SIZE)).kind.name == "layernorm"


def test_a_layer_that_makes_something_of_another_shape_is_run_on_one_token_only():
    assert probe_norm(MakesAnOuterProduct()) is None
    assert set(MakesAnOuterProduct.token_counts) == {1}


def test_as_plain_data():
    norm = probe_norm(nn.LayerNorm(SIZE)).norm("a.b", "head")
    assert (norm.name, norm.role, norm.kind.name, norm.eps) == ("a.b", "head", "layernorm", 1e-5)
    assert norm.hidden_size == SIZE


def test_norms_of_a_model_are_found_by_what_they_do():
    model = nn.ModuleDict(
        {
            "first": nn.LayerNorm(SIZE),
            "scale": Scale(SIZE),
            "block": nn.ModuleDict({"linear": nn.Linear(SIZE, SIZE), "oddly_named": Rms(SIZE), "gate": Gated(SIZE)}),
            "bare_norm": nn.LayerNorm(SIZE, elementwise_affine=False),
        }
    )
    model["again"] = model["first"]  # shared: appears once
    assert list(probe_norms(model)) == ["first", "block.oddly_named", "bare_norm"]
    assert [probe.kind.name for probe in probe_norms(model).values()] == ["layernorm", "rmsnorm", "layernorm"]


class Switched(nn.Module):
    """One class, four behaviours: by a flag, by a function that was handed over, by a fixed tensor."""

    def __init__(self, offset=0.0, centre=True, after=torch.clone, scale=None):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16))
        self.offset, self.centre, self.after = offset, centre, after
        if scale is not None:
            self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True) if self.centre else x
        y = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return self.after(y * (self.weight + self.offset)) * getattr(self, "scale", 1.0)


def test_layers_of_one_build_are_run_once_and_no_others_are_taken_for_them(monkeypatch):
    layers = [
        *(Switched() for _ in range(5)),
        Switched(offset=1.0),
        Switched(centre=False),
        Switched(after=lambda y: 2 * y),
        Switched(after=lambda y: 3 * y),
        Switched(scale=4.0),
        Switched(scale=5.0),
    ]
    runs = []
    monkeypatch.setattr(
        norm_response, "_run", lambda module, x, run=norm_response._run: runs.append(module) or run(module, x)
    )
    together = probe_norms(nn.ModuleList(layers))
    # Once with one token and once with all: a behaviour each, and where a factor leaves no closed form, the true gains.
    assert len(runs) == 2 * (7 + 4)
    for (name, found), layer in zip(together.items(), layers, strict=True):
        alone = probe_norm(layer)
        assert (found.kind, found.gain_offset, found.gain_name) == (alone.kind, alone.gain_offset, alone.gain_name), (
            name
        )
        assert np.array_equal(found.gain, alone.gain)
        factor = float(getattr(layer, "scale", layer.after(torch.ones(()))))
        assert np.allclose(found.gain, factor * (layer.weight.detach().double().numpy() + layer.offset), rtol=1e-6)
