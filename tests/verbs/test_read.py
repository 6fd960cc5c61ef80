"""What a reading reports, against the gains that were written."""

import numpy as np
import pytest
import torch

import deadreckon
from deadreckon.errors import InputError, UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.tiny import tiny_model

GAIN = np.array([0.5, -0.25, 2.0, 1.0, 3.0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = tiny_model("gpt_neox", head=True)
    redraw_affine(model, "lognormal:0.5", 0)
    directory = tmp_path_factory.mktemp("saved")
    model.save_pretrained(directory)
    return directory, model.base_model.final_layer_norm


def test_a_saved_model_is_read_as_it_was(saved):
    directory, norm = saved
    gain, shift = (t.detach().double().numpy() for t in (norm.weight, norm.bias))
    w = (1 / gain) / np.linalg.norm(1 / gain)
    found = deadreckon.read(directory)
    assert (found.kind, found.kernel_dim, found.dead_count, found.zero_gains) == ("layernorm", 1, 1, 0)
    assert found.final_norm.endswith("final_layer_norm.weight")
    assert found.beta_projection == pytest.approx(w @ shift, rel=1e-12)
    assert found.direction.participation_ratio == pytest.approx(1 / (w**4).sum(), rel=1e-12)
    assert found.direction.top[0].index == int(np.abs(w).argmax())
    assert found.median_gain == pytest.approx(np.median(np.abs(gain)), rel=1e-12)
    assert np.allclose(found.vectors["gpt_neox.final_layer_norm.kernel"][:, 0], w, rtol=0, atol=1e-14)
    assert found.bytes_read > 0


def test_stamp_follows_the_parameters(saved, tmp_path):
    torch.manual_seed(1)
    other = tiny_model("gpt_neox", head=True)
    redraw_affine(other, "lognormal:0.5", 1)
    other.save_pretrained(tmp_path)
    first, again, second = (deadreckon.read(d).files[0].sha256 for d in (saved[0], saved[0], tmp_path))
    assert first == again != second


def test_magnitudes_of_gains_of_both_signs():
    for gain in (GAIN, GAIN[:4]):
        found = deadreckon.read(gain, kind="layernorm")
        magnitudes = np.abs(gain)
        assert (found.smallest_gain, found.largest_gain) == (magnitudes.min(), magnitudes.max())
        assert found.median_gain == np.median(magnitudes)
    assert found.direction.top[0].index == 1
    assert found.direction.top[0].weight < 0


def test_what_the_caller_says_wins(saved):
    shifted = deadreckon.read(saved[0], gain_offset=1.0)
    assert shifted.smallest_gain == pytest.approx(deadreckon.read(saved[0]).smallest_gain + 1)
    rms = deadreckon.read(saved[0], kind="rmsnorm")
    assert (rms.kernel_dim, rms.evidence[0].name, rms.evidence[0].says) == (0, "given", "rmsnorm")
    assert deadreckon.read(GAIN - 1, kind="rmsnorm", gain_offset=1.0).smallest_gain == 0.25


def test_tau_reaches_the_count_and_the_basis():
    gain = np.r_[1e-2, 1e-2, np.ones(15)]
    for tau, dead in ((1e-6, 1), (1e-2, 2)):
        found = deadreckon.read(gain, kind="layernorm", tau=tau)
        assert (found.tau, found.dead_count, found.vectors["gain.predicted_dead"].shape[1]) == (tau, dead, dead)


def test_zero_gains_leave_no_single_direction():
    found = deadreckon.read([0.0, 1.0, 0.0, 2.0], kind="layernorm")
    assert (found.kernel_dim, found.zero_gains, found.direction, found.beta_projection) == (2, 2, None, None)


def test_published_configurations_are_read_without_a_file():
    found = deadreckon.read("random:pythia-160m")
    assert (found.kernel_dim, found.hidden_size, found.bytes_read, found.files) == (1, 768, 0, [])
    with pytest.raises(UsageError, match="no norm"):
        deadreckon.read("random:pythia-160m", norm="nothing")


def test_an_array_needs_its_kind_and_finite_numbers():
    with pytest.raises(UsageError, match="kind"):
        deadreckon.read(GAIN)
    with pytest.raises(InputError, match="entry 1"):
        deadreckon.read([1.0, float("nan")], kind="rmsnorm")
