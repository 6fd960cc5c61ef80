"""Loading: the weights that are asked for, or a clear error; twins that share everything but the weights."""

import json
import shutil

import pytest
import torch
from torch import nn

from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.forward import load, placement
from deadreckon.forward.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = tiny_model("gpt_neox", head=True)
    model.save_pretrained(tmp_path)
    return tmp_path, model.base_model


def loaded(path, **options):
    return load.load_checkpoint(path, **{"dtype": None, "device": CPU, **options})


def same(a, b):
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_directory_and_file_give_the_base_model_with_its_weights(saved):
    directory, base = saved
    for path in (directory, directory / "model.safetensors"):
        found = loaded(path)
        assert type(found.model) is type(base)
        assert same(found.model, base)
        assert not found.model.training
        assert not found.warnings


def test_a_file_of_another_name_is_the_one_that_is_loaded(saved):
    directory, base = saved
    other = tiny_model("gpt_neox", head=True)
    shutil.copy(directory / "model.safetensors", directory / "step100.safetensors")
    other.save_pretrained(directory)
    assert same(loaded(directory / "step100.safetensors").model, base)
    assert same(loaded(directory).model, other.base_model)


def test_dtype_is_the_stored_one_unless_asked_for(saved):
    directory, base = saved
    base.to(torch.bfloat16).save_pretrained(directory)
    assert next(loaded(directory).model.parameters()).dtype == torch.bfloat16
    assert next(loaded(directory, dtype=torch.float32).model.parameters()).dtype == torch.float32


def test_weights_of_another_architecture_are_refused_not_drawn_at_random(saved):
    directory, _ = saved
    config = tiny_model("llama").config
    config.save_pretrained(directory)
    with pytest.raises(InputError, match="not in the checkpoint"):
        loaded(directory)


def test_missing_weights_are_told(saved):
    from safetensors.torch import load_file, save_file

    directory, _ = saved
    tensors = load_file(directory / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("final_layer_norm.bias")))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert any("final_layer_norm.bias" in warning for warning in loaded(directory).warnings)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_damaged_config_gets_one_clear_error(saved, content):
    directory, _ = saved
    (directory / "config.json").write_text(content)
    with pytest.raises((UnreachableError, InputError)) as caught:
        loaded(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_beside_the_weights_does_not_run(saved, tmp_path):
    directory, _ = saved
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnreachableError):
        loaded(directory)
    assert not (tmp_path / "ran").exists()


def test_twins_share_everything_but_the_weights():
    model = tiny_model("bert").to(torch.float64)
    one, again, other = load.twin(model, 1), load.twin(model, 1), load.twin(model, 2)
    assert same(one, again)
    assert not same(one, other)
    assert type(one) is type(model)
    assert {n: (v.shape, v.dtype) for n, v in one.state_dict().items()} == {
        n: (v.shape, v.dtype) for n, v in model.state_dict().items()
    }
    weight = one.encoder.layer[0].output.dense.weight
    # The model's own initialiser: normal with the config's range, not torch's default for a Linear.
    assert float(weight.detach().std()) == pytest.approx(model.config.initializer_range, rel=0.1)
    assert (one.encoder.layer[0].output.LayerNorm.weight == 1).all()


def test_twin_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    load.twin(tiny_model("bert"), 1)
    torch.random.set_rng_state(state)
    load.random_model(
        "GPT2LMHeadModel", "GPT2Config", {"n_embd": 8, "n_layer": 1, "n_head": 1}, seed=0, dtype=None, device=CPU
    )
    assert torch.equal(torch.random.get_rng_state(), state)


def test_twin_of_a_module_without_config_is_refused():
    with pytest.raises(UsageError, match="config"):
        load.twin(nn.LayerNorm(4), 0)


def test_random_model_of_a_class_that_is_not_installed_is_refused():
    with pytest.raises(UsageError, match="NoSuchModel"):
        load.random_model("NoSuchModel", "GPT2Config", {}, seed=0, dtype=None, device=CPU)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:x"])
def test_device_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match="device"):
        placement.resolve_device(name)


def test_dtype_names():
    assert load.resolve_dtype("auto") is None
    assert load.resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(UsageError, match="int8"):
        load.resolve_dtype("int8")
