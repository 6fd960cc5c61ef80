"""Models spread over devices and disk: the same numbers as on one device, within the memory that was granted."""

import collections
import gc
import json
import math
import os
import subprocess
import sys
import tempfile

import pytest
import torch

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.forward import draw, load, placement, room
from deadreckon.forward.tiny import tiny_config, tiny_model
from deadreckon.forward.tiny_inputs import tiny_inputs

CPU = torch.device("cpu")
MODEL_TYPES = [
    "gpt_neox",
    "llama",
    "opt",
    "falcon",
    "gemma3_text",
    "gemma4_text",
    "qwen3_5_moe_text",
    "dinov2",
    "bert",
]
LLAMA = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 120,
}


def tiny_type(model_type):
    """Class and config of a tiny model; skips where the installed transformers lacks it."""
    try:
        config = tiny_config(model_type)
    except UsageError:
        pytest.skip(f"no {model_type} in this transformers")
    return type(tiny_model(model_type)), config


def apart(model_class, config, seed=0, dtype=torch.float32, device_map=None):
    planned = draw.outline(model_class, config, dtype)
    return draw.draw_apart(planned, device_map or {"": "cpu"}, seed=seed, dtype=dtype)


def random_llama(config=LLAMA, **options):
    return load.random_model(
        "LlamaForCausalLM", "LlamaConfig", config, **{"seed": 0, "dtype": None, "device": CPU, **options}
    )


def forward(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.fixture
def reads(monkeypatch):
    """How often each tensor was fetched from where it waits."""
    from accelerate.utils import OffloadedWeightsLoader

    count = collections.Counter()
    fetch = OffloadedWeightsLoader.__getitem__

    def counted(self, name):
        count[name] += 1
        return fetch(self, name)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
    return count


@pytest.fixture
def spill_folders(monkeypatch, tmp_path):
    """What is left in the temporary directory."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return lambda: sorted(folder.iterdir())


# What the user writes


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("cpu=500MB", {"cpu": 500_000_000}),
        (" cpu = 1.5 GiB , disk=7", {"cpu": 1_610_612_736, "disk": 7}),
        ("cpu=2kb", {"cpu": 2000}),
        ({"cpu": "20MB"}, {"cpu": 20_000_000}),
        ({"cpu": 20}, {"cpu": 20}),
    ],
)
def test_memory_limits(text, limits):
    assert placement.parse_max_memory(text) == limits


@pytest.mark.parametrize(
    "text", ["", ",", "cpu", "cpu=", "=4GB", "cpu=4XB", "cpu=-1", "gpu=4GB", "cpu=1,cpu=2", "cpu=1e9", "99=1GB", {}]
)
def test_memory_limits_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError):
        placement.parse_max_memory(text)


def test_memory_limits_of_gpus(monkeypatch):
    monkeypatch.setattr(placement, "resolve_device", torch.device)
    assert placement.parse_max_memory("0=40GB,cuda:1=1KB") == {0: 40_000_000_000, 1: 1000}
    with pytest.raises(UsageError, match="twice"):
        placement.parse_max_memory("0=1,cuda:0=2")


def test_max_memory_asks_for_the_auto_policy():
    place = placement.placement(max_memory="cpu=1GB")
    assert (place.device_map, place.max_memory) == ("auto", {"cpu": 10**9})
    assert placement.placement("cpu") == placement.Placement(CPU)


@pytest.mark.parametrize(
    "wish",
    [
        {"device": "cpu", "device_map": "auto"},
        {"device": "cpu", "max_memory": "cpu=1GB"},
        {"device_map": "cuda"},
        {"device_map": "fast"},
        {"device_map": {}},
        {"device_map": {"": "tpu"}},
        {"device_map": {"": 99}},
        {"device_map": {"": True}},
        {"device_map": {"": "meta"}},
        {"device_map": {"": "cpu"}, "max_memory": "cpu=1GB"},
        {"device": "cuda:99"},
        {"device": "meta"},
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wish):
    with pytest.raises(UsageError) as caught:
        placement.placement(**wish)
    assert caught.value.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none_is_refused():
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match=name):
            placement.placement(name)


def test_without_accelerate_only_device_maps_are_refused(monkeypatch):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    assert placement.placement("cpu").device == CPU
    with pytest.raises(UnreachableError, match="accelerate"):
        placement.placement(device_map="auto")


# Checkpoints partly on disk


def test_a_model_larger_than_the_memory_granted_gives_the_same_numbers(minilm, reads, spill_folders):
    plain = load.load_checkpoint(minilm, dtype=None, device=CPU).model
    assert room.bytes_of(plain) > 80e6
    spread = load.load_checkpoint(minilm, dtype=None, device=CPU, max_memory={"cpu": "20MB"}).model
    resident = sum(p.nbytes for p in spread.parameters() if not p.is_meta)
    assert resident <= 20e6
    assert placement.input_device(spread) == CPU
    ids = torch.arange(1000, 1064).reshape(2, 32)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert not reads
    assert torch.equal(forward(spread, inputs), forward(plain, inputs))
    waiting = [name for name, p in spread.named_parameters() if p.is_meta]
    assert dict.fromkeys(waiting, 1) == reads  # each once, the embeddings too
    assert sum(p.nbytes for p in spread.parameters() if not p.is_meta) == resident


@pytest.mark.parametrize("model_type", ["gpt_neox", "qwen3_5_moe_text", "t5", "gemma4_text"])
def test_each_weight_is_read_once_a_pass(model_type, tmp_path, reads, spill_folders):
    model_class, _ = tiny_type(model_type)
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    inputs = tiny_inputs(model)
    found = load.load_checkpoint(tmp_path, dtype=None, device=CPU, device_map={"": "disk"})
    assert type(found.model) is model_class
    assert not found.warnings
    for passes in (1, 2):
        assert torch.equal(forward(found.model, inputs), forward(model, inputs))
        assert set(reads.values()) == {passes}


@pytest.mark.parametrize("model_type", ["gpt_neox", "qwen3_5_moe_text"])  # experts are stored in another format
def test_temporary_files_live_as_long_as_the_model(model_type, tmp_path, spill_folders):
    tiny_type(model_type)
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "saved")
    inputs = tiny_inputs(model)
    named = tmp_path / "saved" / "step1.safetensors"  # of another name: read through a link in a temporary directory
    (tmp_path / "saved" / "model.safetensors").rename(named)
    found = load.load_checkpoint(named, dtype=None, device=CPU, device_map={"": "disk"})
    assert spill_folders()
    gc.collect()
    assert torch.equal(forward(found.model, inputs), forward(model, inputs))
    del found
    gc.collect()
    assert not spill_folders()


def test_no_temporary_files_stay_where_nothing_waits_on_disk(tmp_path, spill_folders):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "saved")
    found = load.load_checkpoint(tmp_path / "saved", dtype=None, device=CPU, device_map="auto", max_memory="cpu=1GB")
    assert not spill_folders()
    assert torch.equal(forward(found.model, tiny_inputs(model)), forward(model, tiny_inputs(model)))
    with pytest.raises(UsageError, match="device_map"):  # and none after an error
        load.load_checkpoint(tmp_path / "saved", dtype=None, device=CPU, device_map={"layers": "disk", "norm": "cpu"})
    gc.collect()
    assert not spill_folders()


def test_the_callers_map_and_limits_are_left_alone(tmp_path, spill_folders):
    tiny_model("llama").save_pretrained(tmp_path)
    limits, device_map = {"cpu": "100KB"}, {"": "disk"}
    load.load_checkpoint(tmp_path, dtype=None, device=CPU, max_memory=limits)
    load.load_checkpoint(tmp_path, dtype=None, device=CPU, device_map=device_map)
    assert (limits, device_map) == ({"cpu": "100KB"}, {"": "disk"})


@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_the_weights_of_a_norm_can_be_had_outside_a_pass(where, tmp_path, spill_folders):
    model = tiny_model("llama")
    with torch.no_grad():
        model.norm.weight += torch.arange(64)
    model.save_pretrained(tmp_path)
    for device_map in ({"": "disk"}, {"embed_tokens": "cpu", "layers": "disk", "rotary_emb": "cpu", "norm": where}):
        spread = load.load_checkpoint(tmp_path, dtype=None, device=CPU, device_map=device_map).model
        before = spread.norm.weight.device
        with placement.at_hand(spread.norm):
            taken = spread.norm.weight.detach()
        assert torch.equal(taken, model.norm.weight)
        assert spread.norm.weight.device == before
    with placement.at_hand(model.norm):  # not spread: nothing to do
        assert torch.equal(model.norm.weight, taken)


MEASURE_PEAK = """
import json, re, sys, torch, transformers, accelerate
from pathlib import Path
from deadreckon.forward import load
import transformers.models.gpt_neox.modeling_gpt_neox
def peak():  # not getrusage: a child starts with its parent's peak there
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
limit = json.loads(sys.argv[2])
model = load.load_checkpoint(Path(sys.argv[1]), dtype=None, device=torch.device("cpu"), max_memory=limit).model
with torch.no_grad():
    total = model(input_ids=torch.arange(5, 133)[None]).last_hidden_state.double().abs().sum()
print(json.dumps([peak() - before, float(total)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_stays_near_the_memory_granted(tmp_path):
    config = {"hidden_size": 768, "num_hidden_layers": 13, "num_attention_heads": 12, "vocab_size": 8000}
    config["intermediate_size"] = 3072
    model = load.random_model("GPTNeoXModel", "GPTNeoXConfig", config, seed=0, dtype=None, device=CPU)
    model.save_pretrained(tmp_path)
    size, block = room.bytes_of(model), room.bytes_of(model.layers[0])

    def measured(limit):
        command = [sys.executable, "-c", MEASURE_PEAK, str(tmp_path), json.dumps(limit)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout
        return json.loads(out.splitlines()[-1])

    whole, reference = measured(None)
    assert whole > 0.9 * size  # the control: without a limit it is all in memory
    for limit in (20_000_000, 100_000_000):
        peak, total = measured({"cpu": limit})
        # what may stay, one block coming and one going, and 50 MB of activations and of code that is paged in
        assert peak < limit + 2 * block + 50e6 < 0.7 * size
        assert total == reference


# Random weights drawn in place


def assert_same_distributions(one, other):
    """Parameter by parameter: equal where nothing is random, else mean and deviation within six standard errors.

    With n draws each, the difference of the means has standard error s sqrt(2/n), that of the deviations
    s sqrt((kurtosis - 1) / (2n)), where kurtosis is 3 for the normal law and less for the others that are in use.
    """
    theirs = dict(other.named_parameters())
    assert theirs.keys() == dict(one.named_parameters()).keys()
    for name, a in one.named_parameters():
        a, b = a.detach().double(), theirs[name].detach().double()
        assert a.shape == b.shape, name
        assert theirs[name].dtype == dict(one.named_parameters())[name].dtype, name
        if a.numel() == 1 or float(a.std()) == 0 or float(b.std()) == 0:
            assert torch.equal(a, b), name
            continue
        error = 6 * float(b.std()) / math.sqrt(a.numel())
        assert abs(float(a.mean() - b.mean())) < error * math.sqrt(2), name
        assert abs(float(a.std() - b.std())) < error, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_weights_drawn_in_place_are_like_those_of_the_ordinary_way(model_type, dtype):
    model_class, config = tiny_type(model_type)
    usual = draw.draw(model_class, config, seed=0, dtype=dtype, device=CPU)
    placed = apart(model_class, config, seed=1, dtype=dtype)
    assert type(placed) is type(usual)
    assert not placed.training
    buffers = dict(usual.named_buffers())
    assert buffers.keys() == dict(placed.named_buffers()).keys()
    for name, buffer in placed.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name
    assert_same_distributions(placed, usual)


def test_the_comparison_sees_a_wrong_deviation():
    model_class, config = tiny_type("llama")
    usual = draw.draw(model_class, config, seed=0, dtype=torch.float32, device=CPU)
    config.initializer_range *= 1.3
    with pytest.raises(AssertionError, match="weight"):
        assert_same_distributions(apart(model_class, config), usual)


def test_a_tensor_that_the_initialiser_leaves_out_is_not_used_as_it_is(monkeypatch):
    model_class, config = tiny_type("llama")

    class Forgetful(model_class):
        def _init_weights(self, module):
            if "RMSNorm" not in type(module).__name__:
                super()._init_weights(module)

    with pytest.raises(UsageError, match="layernorm"):
        apart(Forgetful, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_every_kind_of_tensor_can_be_told_to_be_undrawn(dtype):
    marked = draw._marked(torch.empty(3, 2, dtype=dtype, device="meta"), CPU)
    assert marked.dtype == dtype
    assert draw._is_marked(marked)
    marked[1:] = 1
    assert draw._is_marked(marked)  # in part
    marked[:] = 0
    assert not draw._is_marked(marked)


def test_the_seed_and_the_map_decide_the_weights():
    device_map = {"": "cpu"}
    one, again, other = (random_llama(device_map=device_map, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.layers[0].mlp.up_proj.weight, other.layers[0].mlp.up_proj.weight)
    assert not torch.equal(one.layers[0].mlp.up_proj.weight, one.layers[1].mlp.up_proj.weight)
    assert one.hf_device_map == device_map


def test_generators_are_left_alone():
    state = torch.random.get_rng_state()
    random_llama(device_map={"": "cpu"})
    assert torch.equal(torch.random.get_rng_state(), state)


def test_each_gpu_gets_a_stream_of_its_own():
    seeds = {draw._stream(seed, rank) for seed in range(50) for rank in range(8)}
    assert len(seeds) == 400
    assert draw._stream(7, 0) == 7


def test_weights_that_wait_in_main_memory_give_the_same_numbers(reads):
    # Two spellings of one device are two devices to the dispatcher: it offloads what is on "cpu" to the other.
    device_map = {"embed_tokens": CPU, "rotary_emb": CPU, "norm": CPU, "layers": "cpu"}
    spread = random_llama(device_map=device_map)
    plain = random_llama(device_map={"": "cpu"})
    inputs = tiny_inputs(plain)
    assert spread.layers[0].mlp.up_proj.weight.is_meta
    assert torch.equal(forward(spread, inputs), forward(plain, inputs))
    assert set(reads.values()) == {1}


def test_a_twin_follows_the_map_of_its_model():
    device_map = {"embed_tokens": CPU, "rotary_emb": CPU, "norm": CPU, "layers": "cpu"}
    model = random_llama(device_map=device_map, dtype=torch.bfloat16)
    one, again = load.twin(model, 3), load.twin(model, 3)
    assert type(one) is type(model)
    assert one.hf_device_map == model.hf_device_map
    inputs = tiny_inputs(one)
    assert forward(one, inputs).dtype == torch.bfloat16
    assert torch.equal(forward(one, inputs), forward(again, inputs))
    assert not torch.equal(forward(one, inputs), forward(model, inputs))


def test_tied_weights_stay_tied():
    config = tiny_config("t5")
    model = apart(type(tiny_model("t5")), config)
    assert model.shared.weight is model.encoder.embed_tokens.weight
    assert model.shared.weight is model.decoder.embed_tokens.weight


def test_random_weights_are_not_drawn_to_disk():
    with pytest.raises(UsageError, match=r"need .* kB, .* leaves .* kB to the disk.*allow more"):
        random_llama(max_memory={"cpu": "100KB"})
    with pytest.raises(UsageError, match="disk"):
        random_llama(device_map={"": "disk"})


def test_a_map_that_leaves_a_part_out_is_refused():
    with pytest.raises(UsageError, match=r"norm\.weight"):
        random_llama(device_map={"layers": "cpu", "embed_tokens": "cpu", "rotary_emb": "cpu"})


# Room


def test_bytes_of_a_model_count_tied_weights_once_and_need_no_memory():
    config = tiny_config("t5")
    model = tiny_model("t5")
    stored = {id(t): t.numel() * 4 for t in model.parameters()}
    assert room.bytes_of(model) == sum(stored.values()) + sum(b.nbytes for b in model.buffers())
    assert room.bytes_of(draw.outline(type(model), config, torch.float32)) == room.bytes_of(model)
    assert room.bytes_of(model, torch.bfloat16) < room.bytes_of(model)


@pytest.mark.parametrize("options", [{}, {"device_map": {"": "cpu"}}])
def test_an_absurd_model_is_refused_before_it_is_allocated(options):
    config = {**LLAMA, "hidden_size": 2**20, "num_hidden_layers": 2}
    with pytest.raises(UsageError, match=r"LlamaFor|LlamaModel") as caught:
        load.random_model("LlamaForCausalLM", "LlamaConfig", config, seed=0, dtype=None, device=CPU, **options)
    message = str(caught.value)
    # Two blocks of four square projections and three of d x 96, in float32.
    least = 2 * 4 * (4 * 2**40)
    assert f"{least / 1e12:.0f}"[:2] in message
    assert "free" in message
    assert "smaller model" in message


def test_what_would_fit_is_said(monkeypatch):
    size = room.bytes_of(random_llama())
    monkeypatch.setattr(room, "free_memory", lambda device: int(0.7 * size))
    with pytest.raises(UsageError, match=r"bfloat16 \(--dtype\) needs"):
        random_llama()
    random_llama(dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="twin"):
        load.twin(tiny_model("llama", vocab_size=4000), 0)


def test_a_config_whose_shapes_overflow_is_refused():
    with pytest.raises(UsageError, match="cannot be built"):
        draw.outline(*tiny_with("llama", hidden_size=2**62, num_attention_heads=1), torch.float32)


def tiny_with(model_type, **values):
    model_class, config = tiny_type(model_type)
    for name, value in values.items():
        setattr(config, name, value)
    return model_class, config


def test_unknown_room_is_no_reason_to_refuse(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert room.free_memory(CPU) is None
    assert random_llama() is not None


# On two GPUs


LARGER = {**LLAMA, "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 512}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
class TestTwoGpus:
    def balanced(self, seed=0):
        return random_llama(config=LARGER, device_map="balanced", seed=seed)

    def test_random_weights_are_drawn_where_they_stay(self):
        size = room.bytes_of(random_llama(config=LARGER))
        for gpu in (0, 1):
            torch.cuda.reset_peak_memory_stats(gpu)
        held = [torch.cuda.memory_allocated(gpu) for gpu in (0, 1)]
        one, again = self.balanced(), self.balanced()
        assert {p.device.index for p in one.parameters()} == {0, 1}
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
        for gpu in (0, 1):  # the second one whole beside half of the first would be 1.5
            assert torch.cuda.max_memory_allocated(gpu) - held[gpu] < 1.4 * size
        blocks = [block.mlp.up_proj.weight.detach().cpu() for block in one.layers]
        assert all(not torch.equal(a, b) for i, a in enumerate(blocks) for b in blocks[:i])
        assert_same_distributions(on_cpu(one), random_llama(config=LARGER, seed=1))

    def test_spread_and_whole_agree(self, tmp_path):
        model = self.balanced()
        plain = on_cpu(model)
        inputs = tiny_inputs(plain)
        plain.save_pretrained(tmp_path)
        expected = forward(plain.double(), inputs)
        moved = {name: value.to(placement.input_device(model)) for name, value in inputs.items()}
        # d terms a product, one block after another
        bound = 256 * len(plain.layers) * torch.finfo(torch.float32).eps * float(expected.abs().max())
        assert torch.allclose(forward(model, moved).cpu().double(), expected, rtol=0, atol=bound)
        loaded = load.load_checkpoint(tmp_path, dtype=None, device=torch.device("cuda"), device_map="balanced").model
        assert {p.device.index for p in loaded.parameters()} == {0, 1}
        assert torch.allclose(forward(loaded, moved).cpu().double(), expected, rtol=0, atol=bound)

    def test_weights_beyond_the_limits_wait_in_main_memory(self):
        limits = {0: room.bytes_of(random_llama(config=LARGER)) // 2, "cpu": "1GB"}
        model = random_llama(config=LARGER, max_memory=limits)
        assert "cpu" in model.hf_device_map.values()
        plain = type(model)(model.config).eval()
        state = {name: value for name, value in model.state_dict().items() if not value.is_meta}
        assert 0 < len(state) < len(plain.state_dict())
        assert torch.isfinite(forward(model, tiny_inputs(plain))).all()

    def test_a_twin_goes_to_the_same_gpus(self):
        model = self.balanced()
        twin = load.twin(model, 5)
        assert [p.device for p in twin.parameters()] == [p.device for p in model.parameters()]
        assert not torch.equal(twin.layers[0].mlp.up_proj.weight, model.layers[0].mlp.up_proj.weight)

    def test_generators_of_the_gpus_are_left_alone(self):
        states = [torch.cuda.get_rng_state(index) for index in (0, 1)]
        self.balanced()
        assert all(torch.equal(torch.cuda.get_rng_state(i), state) for i, state in enumerate(states))


def on_cpu(model):
    """The weights of a model on GPUs in one on the CPU."""
    plain = type(model)(model.config).to(next(model.parameters()).dtype).eval()
    plain.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    return plain
