"""Published sizes and the trained RMSNorm: minutes on two cores with ``-m slow``, on an accelerator with ``-m gpu``."""

import dataclasses

import pytest
import torch

from deadreckon.forward import anatomy
from deadreckon.verbs.demo import demo
from deadreckon.verbs.measure import measure


@pytest.mark.slow
def test_trained_smollm2_has_no_dead_direction(smollm2):
    found = measure(smollm2, tokens=4608, twin=1)
    assert found.kind == "rmsnorm"
    assert (found.kernel_dim, found.predicted_dead, found.dead_counts["1e-06"]) == (0, 0, 0)
    assert found.protocol.status == "ok"
    assert found.protocol.kernel_variance is None
    # Random level is about sqrt(2/(pi d)) = 0.03; three of those would already be rare.
    assert found.alignment < 0.15
    assert found.twins[0].alignment < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pythia-160m", "vit-large"])
def test_redrawn_gains_at_published_size(name):
    plain, redrawn = (measure(f"random:{name}", affine=affine) for affine in (None, "lognormal:0.5"))
    assert plain.alignment >= 0.9999
    assert plain.alignment_uniform >= 0.9999  # nothing is tested there
    assert redrawn.alignment >= 0.9999
    assert redrawn.alignment_uniform < 0.95
    assert redrawn.protocol.status == "ok"


@pytest.mark.slow
def test_offset_ignored_on_a_published_gemma(monkeypatch):
    """A Gemma stores gain - 1: described without the 1 it must fail, as it must pass with it."""
    options = {"tokens": 2560, "affine": "lognormal:0.5"}
    assert measure("random:gemma-3-270m", **options).protocol.status == "ok"
    true = anatomy.probe_norm

    def forgetful(module, *arguments):
        probe = true(module, *arguments)
        return probe and dataclasses.replace(probe, gain=probe.gain - probe.gain_offset)

    monkeypatch.setattr(anatomy, "probe_norm", forgetful)
    assert measure("random:gemma-3-270m", **options).protocol.status == "failed"


@pytest.mark.slow
def test_demo(minilm, smollm2):
    shown = demo()
    assert [m.kind for m in shown.measurements] == ["layernorm", "rmsnorm"]
    assert [m.protocol.status for m in shown.measurements] == ["ok", "ok"]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "alignment"), [("float32", 0.9999), ("bfloat16", 0.9999)])
def test_large_model_on_an_accelerator(dtype, alignment):
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    found = measure("random:pythia-1.4b", affine="lognormal:0.5", dtype=dtype, device="cuda")
    assert found.protocol.status == "ok"
    assert found.alignment >= alignment
    assert found.alignment_uniform < 0.95
