"""Redrawn gains: log-normal and effective, whatever offset a module stores them with."""

import pytest
import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward.affine import parse_affine, redraw_affine
from deadreckon.forward.load import load_checkpoint
from deadreckon.forward.probe import probe_norms
from deadreckon.forward.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["gpt_neox", "gemma2", "nemotron", "llama"])
def test_effective_gains_are_lognormal_for_every_norm(model_type):
    model = tiny_model(model_type, hidden_size=512) if model_type != "gemma2" else tiny_model(model_type)
    count = redraw_affine(model, "lognormal:0.5", 0)
    probes = probe_norms(model)
    assert count == sum(probe.gain_name is not None for probe in probes.values())
    logs = torch.cat([torch.from_numpy(probe.gain).log() for probe in probes.values()])
    # Standard errors of mean and deviation of n normal draws; five of them, and the float32 store costs 1e-7.
    n = logs.numel()
    assert abs(float(logs.mean())) < 5 * 0.5 / n**0.5
    assert abs(float(logs.std()) - 0.5) < 5 * 0.5 / (2 * n) ** 0.5
    shifts = [torch.from_numpy(probe.shift) for probe in probes.values() if probe.shift_name]
    if shifts:
        assert abs(float(torch.cat(shifts).std()) - 0.1) < 5 * 0.1 / (2 * torch.cat(shifts).numel()) ** 0.5


def test_same_seed_same_draw():
    one, two, three = tiny_model("gpt_neox"), tiny_model("gpt_neox"), tiny_model("gpt_neox")
    for model, seed in ((one, 0), (two, 0), (three, 1)):
        redraw_affine(model, "lognormal:0.5", seed)
    assert torch.equal(one.final_layer_norm.weight, two.final_layer_norm.weight)
    assert not torch.equal(one.final_layer_norm.weight, three.final_layer_norm.weight)


@pytest.mark.parametrize(
    "spec", ["", "lognormal", "lognormal:", "lognormal:0", "lognormal:-1", "normal:1", "lognormal:nan"]
)
def test_malformed_specs_are_refused(spec):
    with pytest.raises(UsageError, match="lognormal:SIGMA"):
        parse_affine(spec)


def with_parts_on_disk(folder, parts):
    tiny_model("llama").save_pretrained(folder)
    places = dict.fromkeys(["embed_tokens", "rotary_emb", "norm", *(f"layers.{i}" for i in range(4))], "cpu")
    places.update(dict.fromkeys(parts, "disk"))
    return load_checkpoint(folder, dtype=None, device=torch.device("cpu"), device_map=places).model


@pytest.mark.parametrize("where", [["layers.2"], ["norm"], ["embed_tokens", "layers.3"]])
def test_norms_that_wait_elsewhere_are_refused_and_the_others_left_alone(where, tmp_path):
    model = with_parts_on_disk(tmp_path, where)
    before = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    with pytest.raises(UsageError, match=rf"{where[-1]}.*wait.*disk"):
        redraw_affine(model, "lognormal:0.5", 0)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_weights_on_disk_that_are_no_norms_do_not_matter(tmp_path):
    model = with_parts_on_disk(tmp_path, ["embed_tokens"])
    assert redraw_affine(model, "lognormal:0.5", 0) == 9


def test_a_model_without_gains_is_refused():
    with pytest.raises(UsageError, match="no norm"):
        redraw_affine(nn.Linear(3, 3), "lognormal:0.5", 0)
