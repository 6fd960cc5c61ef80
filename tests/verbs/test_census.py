"""census from names, files and modules: counts by formula, the torch-free path, bad input."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from deadreckon import census
from deadreckon.checkpoint.anatomy_table import model_types
from deadreckon.checkpoint.zoo import zoo_entry, zoo_names
from deadreckon.errors import DeadreckonError, UsageError
from deadreckon.forward.tiny import tiny_model
from deadreckon.kernel.census import REASONS

# A map follows its last block, before the head: its class has rows, this setting has none.
COVERED = [n for n in zoo_names() if zoo_entry(n).model_type in model_types() and n != "opt-350m"]


def test_gpt2_by_formula():
    layers, d, positions = 12, 768, 1024
    counted = census("random:gpt2")
    assert counted.parameters == 124_439_808
    assert counted.by_reason == dict.fromkeys(REASONS, 0) | {
        "reader_with_bias": layers * (3 * d + 4 * d),
        "gain_scaling": 2 * layers * d,
        "shift_absorption": 2 * layers * d,
        "writer_mean": layers * (d + 1 + 4 * d + 1),
        "embedding_mean": positions,
        "softmax_shift": 1,
    }
    assert counted.rlct_upper_bound == (counted.parameters - counted.dead_dimensions) / 2


def test_pythia_by_formula_before_and_after_its_shifts_move():
    layers, d, words = 12, 768, 50304
    counted = census("random:pythia-160m")
    assert counted.by_reason["reader_without_beta"] == words  # the head, while beta is zero
    assert counted.by_reason["softmax_shift"] == d - 1  # one of them is the kernel's already
    assert counted.generic_dead_dimensions == counted.dead_dimensions - words + d + 1
    assert counted.by_reason["embedding_mean"] == words
    assert counted.layernorm_kernel_share == (7 * layers * d + words) / counted.parameters


def test_rmsnorm_keeps_gain_scaling_and_the_softmax():
    counted = census("random:llama-3.1-8b")
    assert {k: v for k, v in counted.by_reason.items() if v} == {"gain_scaling": 65 * 4096, "softmax_shift": 4096}
    assert counted.layernorm_kernel_share == 0


@pytest.mark.parametrize("name", COVERED)
def test_every_covered_entry_of_the_zoo_is_counted(name):
    counted = census(f"random:{name}")
    assert counted.parameters == zoo_entry(name).parameters
    assert 0 < counted.dead_dimensions < counted.parameters


def test_the_others_are_refused():
    for name in set(zoo_names()) - set(COVERED):
        with pytest.raises(UsageError, match="no anatomy known"):
            census(f"random:{name}")


def test_without_torch_and_fast():
    code = "import sys, deadreckon; deadreckon.census('random:gpt2-xl'); assert 'torch' not in sys.modules"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - started < 2.0  # 0.5 s on an idle machine; this one may be shared


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("model_type", model_types())
def test_a_saved_model_and_the_module_agree(model_type, head, tmp_path):
    model = tiny_model(model_type, head=head)
    model.save_pretrained(tmp_path)
    filed, loaded = census(tmp_path), census(model)
    assert filed.by_reason == loaded.by_reason
    assert filed.parameters == loaded.parameters == sum(p.numel() for p in model.parameters())


def test_a_small_module_of_ones_own_is_watched():
    class Own(nn.Module):
        main_input_name = "input_ids"

        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, input_ids):
            return {"nothing": input_ids}

    with pytest.raises(UsageError, match="no anatomy known"):
        census(Own())


def test_minilm(minilm):
    counted = census(minilm)
    layers, d = 6, 384
    assert counted.output == "hidden_state"
    assert counted.by_reason["reader_with_bias"] == layers * (3 * d + 4 * d)
    assert counted.by_reason["writer_mean"] == layers * (d + 1 + 4 * d + 1)
    assert counted.by_reason["embedding_mean"] == 30522 + 512 + 2
    assert counted.by_reason["shift_absorption"] == 2 * layers  # towards the mean only: each norm has a residual path


def test_an_emitted_direction_is_dead(called, tmp_path):
    model = tiny_model("gpt2", head=True)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "m")
    model = model.double()
    inputs = torch.arange(10, 20)[None]

    def log_probabilities():
        with torch.no_grad():
            return torch.log_softmax(model(input_ids=inputs).logits, -1)

    before = log_probabilities()
    for family in ("reader_with_bias:7", "writer_mean:3", "embedding_mean:2", "shift_absorption:5", "softmax_shift:0"):
        code, _, _ = called("census", tmp_path / "m", "--emit", family, "--save", tmp_path / "x.safetensors")
        assert code == 0
        step = load_file(tmp_path / "x.safetensors")
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, delta in step.items():
                parameters[name].add_(torch.from_numpy(delta))
        # 64 roundings of entries up to 1, through four blocks of width 64
        assert float((log_probabilities() - before).abs().max()) < 64 * 64 * np.finfo(float).eps * 64
        with torch.no_grad():
            for name, delta in step.items():
                parameters[name].sub_(torch.from_numpy(delta))


def test_the_command_prints_the_record(called):
    code, out, err = called("census", "random:gpt2", "--json")
    printed = json.loads(out)
    assert code == 0
    assert not err
    assert printed["dead_dimensions"] == sum(printed["by_reason"].values())
    code, out, _ = called("census", "random:gpt2")
    assert code == 0
    assert "reader_with_bias" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random:gpt2", "--emit", "writer_mean"], "--save FILE"),
        (["random:gpt2", "--emit", "writer_mean", "--save", "x"], "FAMILY:INDEX"),
        (["random:gpt2", "--emit", "nothing:0", "--save", "x"], "no family"),
        (["random:gpt2", "--emit", "writer_mean:99999999", "--save", "x"], "does not exist"),
        (["random:gpt2", "--emit", "joint_weight_beta:0", "--save", "x"], "none of that family"),
        (["random:gpt2", "--emit", "gain_scaling:0", "--save", "x"], "no weights"),
        (["random:gpt2", "--save", "x"], "--emit"),
        (["random:qwen3-30b-a3b"], "no anatomy known"),
        (["random:gpt3"], "zoo"),
        (["./nowhere"], "no such file"),
    ],
)
def test_bad_input_gets_one_line(called, arguments, message):
    code, out, err = called("census", *arguments)
    assert code in {2, 3}
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_a_gguf_file_is_refused(smollm2):
    with pytest.raises(DeadreckonError, match="GGUF"):
        census(smollm2)


def test_what_is_no_model_is_refused():
    with pytest.raises(UsageError, match="loaded module"):
        census(np.ones(3))
    with pytest.raises(UsageError, match="no parameters"):
        census(nn.Identity())
