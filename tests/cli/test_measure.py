"""Where and in what portions `measure` runs, as a user asks for it: the same figures, or one clear line."""

import json

import pytest
import torch

from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import LAYERS, WIDTH

U = torch.finfo(torch.float64).eps / 2
TOKENS = 1100


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A float64 model on disk: forwards of other sizes differ by float64 rounding alone."""
    folder = tmp_path_factory.mktemp("model")
    made = tiny_model("gpt_neox")
    redraw_affine(made, "lognormal:0.5", 0)
    made.double().save_pretrained(folder)
    return folder


@pytest.fixture
def measured(called, model):
    def call(*words):
        code, out, err = called("measure", model, "--tokens", TOKENS, "--json", *words)
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


def assert_same(found, expected):
    """An eigenvalue differs by at most d times what an entry of the covariance does, (N + m) u of the largest one."""
    scale = WIDTH * (TOKENS + 16 * LAYERS * WIDTH) * U * expected["lambda_max"]
    for name in ("tokens", "distinct_inputs", "norm", "dead_counts", "kernel_dim", "predicted_dead"):
        assert found[name] == expected[name], name
    for name in ("lambda_2", "lambda_mean", "lambda_max"):
        assert abs(found[name] - expected[name]) <= scale, name
    assert found["protocol"]["status"] == "ok"
    assert found["lambda_dead_float64_at_floor"]


def test_batch_size_does_not_change_the_figures(measured):
    auto = measured()
    assert auto["tokens"] == TOKENS
    for size in ("auto", "1", "2", "1000"):
        assert_same(measured("--batch-size", size), auto)


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "", "AUTO", "1e3", "²"])
def test_batch_sizes_that_make_no_sense(called, model, size):
    code, out, err = called("measure", model, "--tokens", TOKENS, f"--batch-size={size}")
    assert (code, out) == (2, "")
    assert "batch-size" in err
    assert repr(size) in err
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:77"])
def test_a_gpu_where_there_is_none(called, model, device):
    code, out, err = called("measure", model, "--tokens", TOKENS, "--device", device)
    assert (code, out) == (2, "")
    assert f"device '{device}' is not available" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["--max-memory", "cpu=100KB"], ["--device-map", "auto", "--max-memory", "cpu=0.2MB"]]
)
def test_a_model_larger_than_the_memory_granted_is_measured_from_disk(measured, words, monkeypatch):
    """Weights are read from disk as the forward needs them, those of the norm and of its float64 reference too."""
    from accelerate.utils import OffloadedWeightsLoader

    read, fetch = set(), OffloadedWeightsLoader.__getitem__
    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", lambda self, name: read.add(name) or fetch(self, name))
    plain = measured()
    assert not read
    spread = measured(*words)
    assert "final_layer_norm.weight" in read
    assert_same(spread, plain)
    assert (spread["described_by"], spread["files"]) == (plain["described_by"], plain["files"])


@pytest.mark.parametrize("policy", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_every_policy(measured, policy):
    assert_same(measured("--device-map", policy), measured("--device", "cpu"))


def test_a_block_norm_on_disk(measured):
    words = ["--norm", "layers.2.input_layernorm"]
    assert_same(measured(*words, "--max-memory", "cpu=100KB", "--batch-size", 1), measured(*words))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-memory", "nonsense"], "nonsense"),
        (["--max-memory", ""], "max_memory"),
        (["--max-memory", "cpu=4XB"], "4XB"),
        (["--max-memory", "tpu=1GB"], "tpu"),
        (["--max-memory", "cpu=1GB,cpu=2GB"], "twice"),
        (["--device-map", "nonsense"], "balanced"),
        (["--device-map", "cpu"], "--device"),
        (["--device-map", "auto", "--device", "cpu"], "one of the two"),
        (["--max-memory", "cpu=1GB", "--device", "cpu"], "one of the two"),
        (["--device", "auto:3"], "auto:3"),
        # Random weights are drawn in place, and there is no place on disk.
        (["--max-memory", "cpu=100KB", "--twin", "1"], "disk"),
    ],
)
def test_places_that_do_not_exist(called, model, words, says):
    code, out, err = called("measure", model, "--tokens", TOKENS, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_out_of_memory_at_one_row_is_one_line(called, model, monkeypatch):
    from transformers import GPTNeoXModel

    def forward(self, *args, **kwargs):
        if kwargs.get("use_cache") is False:  # the pass, not the search for the norm
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args, **kwargs)

    original = GPTNeoXModel.forward
    forward.__wrapped__ = original  # so that its signature is found
    monkeypatch.setattr(GPTNeoXModel, "forward", forward)
    code, out, err = called("measure", model, "--tokens", TOKENS)
    assert (code, out) == (2, "")
    assert "one row (input_ids (1, " in err
    assert "--dtype bfloat16" in err
    assert len(err.strip().splitlines()) == 1
