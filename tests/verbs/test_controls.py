"""Negative controls on whole models: what the protocol check must catch, on gains near zero and on healthy ones.

On the trained model three gains are near zero, and a variance along the kernel stays tiny there whatever the norm does:
a check that looked at that variance alone would pass every one of these.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.anatomy import final_norm
from deadreckon.forward.calibration import given
from deadreckon.forward.collect import collect
from deadreckon.forward.conclude import conclude
from deadreckon.forward.protocol import protocol
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.spectrum import eigensolver
from deadreckon.forward.text import english_text, text_calibration
from deadreckon.forward.tiny import tiny_model
from deadreckon.kernel.norm import RMSNORM

TOKENS = 2048


def setting(model, calibration):
    site = final_norm(model, next(calibration.batches()))
    return model, calibration, site


@pytest.fixture(scope="module")
def trained(minilm):
    model = AutoModel.from_pretrained(minilm).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    return setting(
        model, text_calibration(tokenizer, [english_text()[:40000]], model.config, describe="", batch_size=8)
    )


@pytest.fixture(scope="module")
def healthy():
    torch.manual_seed(0)
    model = tiny_model("gpt_neox").eval()
    redraw_affine(model, "lognormal:0.5", 0)
    return setting(model, random_inputs(model, seed=0, batch_size=8))


@pytest.fixture(params=["trained", "healthy"])
def chosen(request):
    return request.getfixturevalue(request.param)


def checked(model, calibration, site, **changes):
    norm = dataclasses.replace(site.norm, **changes)
    statistics = collect(model, dataclasses.replace(site, norm=norm), calibration, tokens=TOKENS).statistics
    return protocol(statistics)


def test_right_description_passes(chosen):
    found = checked(*chosen)
    assert found.status == "ok"
    assert found.norm_residual < 0.5 * found.norm_tolerance


def test_gain_off_by_one_percent(chosen):
    gain = chosen[2].norm.gain
    found = checked(*chosen, gain=gain * (1 + 0.01 * np.cos(np.arange(gain.size))))
    assert found.status == "failed"
    assert 1e-3 < found.norm_residual < 1e-1
    # In float64 the wrong gain's own kernel is as dead as the right one's: only the residual tells.
    assert found.kernel_variance <= found.kernel_tolerance


def test_centring_dropped(chosen):
    found = checked(*chosen, kind=dataclasses.replace(chosen[2].norm.kind, centred=False))
    assert found.status == "failed"


def swapped(model, site):
    """The model with an RMSNorm of the same gain and shift where its final LayerNorm was."""

    class Rms(nn.Module):
        def forward(self, x):
            return nn.functional.rms_norm(x, x.shape[-1:], site.module.weight, site.norm.eps) + site.module.bias

    parent, _, name = site.path.rpartition(".")
    owner = model.get_submodule(parent)
    other = Rms()
    setattr(owner, name, other)
    return owner, name, other


def test_rmsnorm_swapped_in(chosen):
    model, calibration, site = chosen
    owner, name, other = swapped(model, site)
    try:
        found = checked(model, calibration, dataclasses.replace(site, module=other))
        assert found.status == "failed"
        assert found.norm_residual > 10 * found.norm_tolerance
        # And described as what it is, it passes, with no kernel predicted.
        honest = checked(model, calibration, dataclasses.replace(site, module=other), kind=RMSNORM)
        assert honest.status == "ok"
        assert honest.kernel_variance is None
    finally:
        setattr(owner, name, site.module)


def test_variance_alone_is_blind_on_the_trained_model(trained):
    """Why the check has two parts: with the norm swapped, the native variance along w is still under 1e-60."""
    model, calibration, site = trained
    owner, name, other = swapped(model, site)
    try:
        statistics = collect(model, dataclasses.replace(site, module=other), calibration, tokens=TOKENS).statistics
        figures = conclude(statistics, eigensolver("eigh"), 1e-6).figures
        assert figures["lambda_dead"] / figures["lambda_mean"] < 1e-50
        assert figures["protocol"].status == "failed"
    finally:
        setattr(owner, name, site.module)


def test_wrong_module(chosen):
    """The norm before the last block is a LayerNorm too, with a gain of its own."""
    model, calibration, site = chosen
    other = next(m for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m is not site.module)
    assert checked(model, calibration, dataclasses.replace(site, module=other)).status == "failed"


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "nemotron"])
def test_offset_ignored(model_type):
    torch.manual_seed(0)
    model = tiny_model(model_type).eval()
    redraw_affine(model, "lognormal:0.5", 0)
    chosen = setting(model, random_inputs(model, seed=0, batch_size=8))
    assert chosen[2].norm.gain_offset == 1
    assert checked(*chosen).status == "ok"
    found = checked(*chosen, gain=chosen[2].norm.gain - 1)
    assert found.status == "failed"
    assert found.norm_residual > 0.1


def test_pads_included_change_what_is_measured(trained):
    """Right-padded text: with the mask the pads are left out; without it they are counted, and the figures move."""
    model, _, site = trained
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (32, 96), generator=generator)
    mask = (torch.arange(96) < torch.randint(40, 80, (32, 1), generator=generator)).long()
    ids = ids * mask
    figures = {}
    for name, batch in {"left out": {"attention_mask": mask}, "included": {}}.items():
        statistics = collect(model, site, given([{"input_ids": ids, **batch}]), tokens=None).statistics
        figures[name] = conclude(statistics, eigensolver("eigh"), 1e-6).figures
    assert figures["left out"]["tokens"] == int(mask.sum())
    assert figures["included"]["tokens"] == 32 * 96
    assert abs(figures["included"]["lambda_max"] / figures["left out"]["lambda_max"] - 1) > 0.05
