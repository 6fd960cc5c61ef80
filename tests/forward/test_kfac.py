"""The K-FAC factor of a norm's readers along its dead direction, against tokens in hand."""

import numpy as np
import pytest
import torch

import deadreckon
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.anatomy import final_norm
from deadreckon.forward.capture import capture
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["gpt_neox", "llama"])
def test_against_the_tokens(model_type):
    model = tiny_model(model_type)
    redraw_affine(model, "lognormal:0.5", 0)
    batches = [next(random_inputs(model, seed=3, batch_size=2).batches())]
    found = deadreckon.measure(model, batches=batches, kfac=True)
    site = final_norm(model, batches[0])
    with capture(site.module, site.path) as captured:
        model(**batches[0])
        y = captured.take()[1].flatten(0, -2).double().numpy()
    w = found.vectors["tested"][:, 0]
    shift = np.zeros(len(w)) if site.norm.shift is None else site.norm.shift
    constant = float(w @ shift)
    whole = np.concatenate([y, np.ones((len(y), 1))], 1)
    factor = whole.T @ whole / len(y)
    values = np.linalg.eigvalsh(factor)
    view = found.kfac
    # A sum of N products is right to N units of rounding of its largest term, here the largest eigenvalue.
    floor = len(y) * np.finfo(float).eps * values[-1]
    assert view.constant == pytest.approx(constant, rel=1e-12)
    assert view.eigenvalue_min == pytest.approx(values[0], abs=floor)
    assert view.eigenvalue_2 == pytest.approx(values[1], abs=floor)
    assert view.eigenvalue_mean == pytest.approx(values.mean())
    assert view.eigenvalue_max == pytest.approx(values[-1])
    along = np.append(w, -constant) / np.hypot(1, constant)
    assert view.homogeneous_quotient == pytest.approx(along @ factor @ along, rel=1e-6, abs=floor)
    assert view.bias_free_quotient == pytest.approx(w @ (y.T @ y / len(y)) @ w, rel=1e-6, abs=floor)
    if model_type == "gpt_neox":
        assert view.homogeneous_quotient <= 1e-11 * view.eigenvalue_mean
        assert view.bias_free_quotient == pytest.approx(constant**2, rel=1e-5)  # far from zero: the factor hides it
        assert view.alignment == pytest.approx(1, abs=1e-6)
    else:
        assert view.homogeneous_quotient >= 1e-3 * view.eigenvalue_mean


def test_only_where_it_is_asked_for():
    model = tiny_model("gpt2")
    with torch.no_grad():
        assert deadreckon.measure(model, tokens=300).kfac is None
