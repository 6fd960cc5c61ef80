"""The measuring verb on real modules: trained weights, tiny architectures, the caller's own inputs."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from deadreckon.checkpoint.find import find_norms
from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.anatomy import named_norm, norms_like
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.results.measurement import Measurement
from deadreckon.results.schema import json_schema
from deadreckon.verbs.measure import measure


def ids(model, rows=64, length=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = 10, model.config.get_text_config().vocab_size
    return [{"input_ids": torch.randint(low, high, (rows, length), generator=generator)}]


@pytest.fixture(scope="module")
def neox():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny_model("gpt_neox")
        redraw_affine(model, "lognormal:0.5", 0)
    return model.eval()


@pytest.fixture(scope="module")
def trained(minilm):
    """MiniLM over 16k tokens of English, with two twins: the main job."""
    return measure(minilm, tokens=16384, twin=2)


def test_trained_minilm_has_the_three_dead_directions_that_its_gain_predicts(trained):
    assert trained.protocol.status == "ok"
    assert trained.tokens == 16384
    assert (trained.kernel_dim, trained.predicted_dead) == (1, 3)
    assert trained.largest_principal_angle <= 1e-6
    assert trained.subspace_alignment >= 1 - 1e-9
    assert set(trained.dead_counts.values()) == {3}
    assert (trained.algebraic_dead, trained.learned_dead) == (3, 0)
    assert trained.lambda_dead_at_floor
    # |gain^-1|^2 is about 4e64 here: in its own unit the float64 variance is rounding squared.
    assert trained.protocol.kernel_variance <= 1e-24
    assert not trained.bottom_simple


def test_random_init_twins_of_minilm_align(trained):
    assert [twin.seed for twin in trained.twins] == [1, 2]
    for twin in trained.twins:
        assert twin.alignment >= 0.9999
        assert twin.protocol.status == "ok"
        assert (twin.tokens, twin.distinct_inputs) == (trained.tokens, trained.distinct_inputs)
    # What near-zero gains do to the depth is far more than what any seed does.
    assert trained.gap.depth_decades.smallest > 30
    assert trained.gap.depth_decades.largest - trained.gap.depth_decades.smallest < 1
    assert trained.gap.dead_counts["1e-06"].change == 2


def test_record_round_trips_and_matches_its_schema(trained):
    jsonschema = pytest.importorskip("jsonschema")
    data = json.loads(trained.to_json())
    jsonschema.validate(data, json_schema(Measurement))
    assert Measurement.from_dict(data) == dataclasses.replace(trained)
    assert "NaN" not in trained.to_json()
    assert {stamp.name for stamp in trained.files} == {"config.json", "model.safetensors"}
    assert trained.vectors["predicted_dead"].shape == (384, 3)
    with pytest.raises(InputError, match="tokens"):
        Measurement.from_dict({**data, "tokens": "many"})


def test_same_seed_same_numbers(neox):
    first, second = (measure(neox, tokens=512, seed=3, twin=1).to_dict() for _ in range(2))
    third = measure(neox, tokens=512, seed=4, twin=1).to_dict()
    for figures in (first, second, third):
        figures.pop("seconds")
    assert first == second
    assert first["lambda_max"] != third["lambda_max"]


ARCHITECTURES = {
    "gpt_neox": "layernorm",
    "nemotron": "layernorm",  # stores gain - 1
    "albert": "layernorm",  # one norm for all layers
    "llama": "rmsnorm",
    "gemma2": "rmsnorm",  # stores gain - 1
    "t5": "rmsnorm",  # an encoder-decoder
}


@pytest.mark.parametrize(("model_type", "kind"), ARCHITECTURES.items())
def test_redrawn_gains_show_gain_and_uniform_direction_apart(model_type, kind):
    torch.manual_seed(1)
    model = tiny_model(model_type)
    redraw_affine(model, "lognormal:0.5", 1)
    found = measure(model.eval(), tokens=1200)
    assert found.kind == kind
    assert found.protocol.status == "ok"
    if kind == "layernorm":
        assert found.alignment >= 0.9999
        assert found.alignment_uniform < 0.99
        assert found.lambda_dead_at_floor
    else:
        assert found.kernel_dim == found.predicted_dead == 0
        assert found.lambda_dead > 1e-3 * found.lambda_mean


def test_images_need_no_tokenizer():
    torch.manual_seed(0)
    model = tiny_model("vit")
    redraw_affine(model, "lognormal:0.5", 1)
    found = measure(model.eval(), tokens=1024)
    assert found.data.startswith("random pixels")
    assert found.distinct_inputs is None
    assert found.alignment >= 0.9999
    assert found.alignment_uniform < 0.99


def embeddings_inputs(model, kind):
    generator = torch.Generator().manual_seed(7)
    table = model.get_input_embeddings().weight.detach()
    shape = (48, 24)
    if kind == "random ids":
        return table[torch.randint(10, len(table), shape, generator=generator)]
    if kind == "one id with noise":
        rows = table[17].expand(*shape, -1)
        return rows + 0.1 * table.std() * torch.randn(rows.shape, generator=generator)
    rows = table[torch.randint(10, len(table), shape, generator=generator)]
    return rows * torch.logspace(-3, 3, shape[1])[:, None]


@pytest.mark.parametrize("kind", ["random ids", "one id with noise", "scaled 1e-3 to 1e3"])
def test_same_direction_is_dead_for_any_input_distribution(neox, kind):
    reference = measure(neox, tokens=1000)
    found = measure(neox, batches=[{"inputs_embeds": embeddings_inputs(neox, kind)}])
    assert np.array_equal(found.vectors["tested"], reference.vectors["tested"])
    assert found.protocol.status == "ok"
    assert found.protocol.kernel_variance <= 1e-24
    assert found.lambda_dead_at_floor
    assert found.alignment >= 0.9999


def padded_batches(model, pads):
    batch = dict(ids(model)[0])
    mask = torch.ones_like(batch["input_ids"])
    if pads:
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.zeros(64, pads, dtype=torch.long)], 1)
        mask = torch.cat([mask, torch.zeros(64, pads, dtype=torch.long)], 1)
    return [{**batch, "attention_mask": mask}]


def test_pads_are_left_out_and_would_change_the_figures(neox):
    """A causal model's tokens do not see pads that follow: the figures must not either; without the mask they do."""
    without, padded = measure(neox, batches=padded_batches(neox, 0)), measure(neox, batches=padded_batches(neox, 8))
    assert padded.tokens == without.tokens == 64 * 24
    assert padded.distinct_inputs == without.distinct_inputs
    for name in ("lambda_mean", "lambda_max", "effective_rank"):
        # Other shapes round differently inside the model: float32 over 4 layers of d = 64.
        assert getattr(padded, name) == pytest.approx(getattr(without, name), rel=1e-5)
    wrong = measure(neox, batches=[{"input_ids": padded_batches(neox, 8)[0]["input_ids"]}])
    assert wrong.tokens == 64 * 32
    assert abs(wrong.lambda_max / without.lambda_max - 1) > 1e-2


@pytest.mark.parametrize("sizes", [1, 7, 64])
def test_figures_do_not_depend_on_the_batches(neox, sizes):
    whole = measure(neox, batches=ids(neox))
    parts = measure(neox, batches=[{"input_ids": part} for part in ids(neox)[0]["input_ids"].split(sizes)])
    assert parts.tokens == whole.tokens
    assert parts.lambda_max == pytest.approx(whole.lambda_max, rel=1e-5)
    assert parts.dead_counts == whole.dead_counts


def test_model_is_left_as_it_was(neox):
    model = tiny_model("bert")
    model.train()
    model.encoder.layer[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    state = torch.random.get_rng_state()
    measure(model, tokens=600, twin=1, affine="lognormal:0.5")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_a_plain_module_and_its_own_batches():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

        def forward(self, x):
            return self.norm(self.mix(x))

    found = measure(Plain(), batches=[{"x": torch.randn(40, 10, 16)} for _ in range(3)])
    assert (found.norm, found.tokens, found.kernel_dim) == ("norm", 1200, 1)
    assert found.alignment >= 0.9999


def test_one_shot_batches_serve_twins_too(neox):
    found = measure(neox, batches=(batch for batch in ids(neox) * 2), twin=1)
    assert found.tokens == found.twins[0].tokens == 2 * 64 * 24
    assert found.twins[0].spectrum.native[0] == found.twins[0].lambda_min != found.lambda_min


def test_block_norm_by_name_also_as_a_checkpoint_spells_it(neox):
    for name in ("layers.1.input_layernorm", "gpt_neox.layers.1.input_layernorm.weight"):
        assert measure(neox, batches=ids(neox), norm=name).norm == "layers.1.input_layernorm"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"tokens": 40}, UsageError, "N - 1 <= d"),
        ({"tokens": 600, "norm": "layers.9.nothing"}, UsageError, "choose with norm"),
        ({"tokens": 600, "norm": "layers.0.mlp"}, UsageError, "not a plain norm"),
        ({"tokens": 600, "solver": "magic"}, UsageError, "eigh"),
        ({"tokens": 600, "affine": "lognormal:0.5"}, UsageError, "twin"),
        ({"tokens": 600, "affine": "uniform:1", "twin": 1}, UsageError, "lognormal"),
        ({"tokens": 600, "data": "text"}, UsageError, "tokenizer"),
        ({"tokens": 600, "data": "noise"}, UsageError, "random"),
        ({"tokens": 600, "twin": -1}, UsageError, "twin"),
        ({"tokens": 600, "tau": 2.0}, UsageError, "tau"),
        ({"batches": []}, UsageError, "no batches"),
    ],
)
def test_bad_requests_get_one_clear_error(neox, options, error, says):
    with pytest.raises(error, match=says):
        measure(neox, **options)


def test_mask_of_another_shape_is_refused(neox):
    batch = {**ids(neox)[0], "attention_mask": torch.ones(64, 1, 24, 24)}
    with pytest.raises(UsageError, match="mask"):
        measure(neox, batches=[batch], norm="final_layer_norm")


def test_empty_and_missing_text_are_refused(minilm, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(InputError, match=r"empty\.txt"):
        measure(minilm, text=[empty])
    with pytest.raises(UnreachableError, match=r"none\.txt"):
        measure(minilm, text=[tmp_path / "none.txt"])
    short = tmp_path / "short.txt"
    short.write_text("A few words are not enough. " * 10)
    with pytest.raises(UsageError, match="N - 1 <= d"):
        measure(minilm, text=[short])


def test_inputs_that_do_not_reach_the_norm_are_refused(neox):
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.used = nn.LayerNorm(8), nn.LayerNorm(8)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(UsageError, match="unused did not run"):
        measure(Headless(), batches=[{"x": torch.randn(100, 8)}], norm="unused")


def test_a_checkpoint_is_verified_as_its_files_describe_it(tmp_path, monkeypatch):
    """The pass checks what was read: an offset that reading gets wrong must not pass because the module has it."""
    torch.manual_seed(0)
    model = tiny_model("gemma2")
    redraw_affine(model, "lognormal:0.5", 0)
    model.save_pretrained(tmp_path)
    found = measure(tmp_path, tokens=600)
    assert (found.described_by, found.protocol.status) == ("checkpoint", "ok")

    def forgetful(*arguments):
        return [dataclasses.replace(norm, gain=norm.gain - norm.gain_offset) for norm in find_norms(*arguments)]

    monkeypatch.setattr("deadreckon.verbs.subjects.find_norms", forgetful)
    assert measure(tmp_path, tokens=600).protocol.status == "failed"


def test_an_architecture_outside_the_atlas_is_described_by_its_module(tmp_path, monkeypatch):
    model = tiny_model("gpt_neox")
    model.save_pretrained(tmp_path)

    def unknown(*arguments):
        raise UsageError("not in the atlas")

    monkeypatch.setattr("deadreckon.verbs.subjects.find_norms", unknown)
    found = measure(tmp_path, tokens=600)
    assert (found.described_by, found.protocol.status) == ("module", "ok")


@pytest.mark.parametrize("damage", ["truncated", "pickle", "not there"])
def test_damaged_weights_get_the_error_of_reading(tmp_path, damage):
    tiny_model("gpt_neox").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        weights.unlink()
    if damage == "pickle":
        torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises((InputError, UnreachableError)) as caught:
        measure(tmp_path, tokens=600)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt"])
def test_torch_files_are_measured(tmp_path, name):
    """A directory with pytorch_model.bin, and a state dict under a name of its own."""
    model = tiny_model("gpt_neox")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / name)
    found = measure(tmp_path if name == "pytorch_model.bin" else tmp_path / name, tokens=600)
    assert (found.described_by, found.protocol.status) == ("checkpoint", "ok")
    assert name in [stamp.name for stamp in found.files]


def test_an_onnx_graph_is_not_run(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x3a\x00")  # a version and an empty graph
    with pytest.raises(UsageError, match="an ONNX graph is read and classified, not run here"):
        measure(tmp_path / "model.onnx", tokens=600)


def test_a_model_whose_encoder_is_called_model_is_found(tmp_path):
    """The attribute that usually holds the model below a head may hold a part that ends before the norm."""
    model = tiny_model("dinov3_vit")
    model.save_pretrained(tmp_path)
    found = measure(tmp_path, tokens=600, twin=1)
    assert (found.norm, found.protocol.status, found.twins[0].protocol.status) == ("norm", "ok", "ok")


def test_inputs_that_a_model_does_not_take_are_one_clear_error():
    with pytest.raises(UsageError, match=r"pass batches"):
        measure(tiny_model("lxmert"), tokens=600)
    with pytest.raises(UsageError, match=r"choose with norm="):  # two towers, neither of which is the last
        measure(tiny_model("clip"), tokens=600)
    assert measure(tiny_model("clip"), tokens=600, norm="text_model.final_layer_norm").protocol.status == "ok"
    with pytest.raises(UsageError, match=r"does not run on nonsense"):
        measure(tiny_model("bert"), batches=[{"nonsense": torch.ones(1)}])
    with pytest.raises(UsageError, match="mapping"):
        measure(tiny_model("bert"), batches=[torch.ones(1)])


def test_seed_of_the_name_is_the_seed():
    one, other = (measure(f"random:opt-125m#{seed}", tokens=1000, affine="lognormal:0.5") for seed in (1, 2))
    assert (one.seed, other.seed) == (1, 2)
    assert not np.array_equal(one.vectors["tested"], other.vectors["tested"])


def test_a_diverged_model_is_told_so():
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.layers[1].mlp.dense_4h_to_h.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="diverged"):
        measure(model, tokens=600)


def test_opt_350m_style_model_ends_unnormed():
    model = tiny_model("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    with pytest.raises(UsageError, match="un-normed"):
        measure(model, batches=[tiny_inputs(model)])


@pytest.mark.slow
def test_a_norm_may_be_named_as_the_file_names_it(smollm2):
    found = measure(smollm2, norm="blk.3.ffn_norm.weight", tokens=1200)
    assert found.norm == "layers.3.post_attention_layernorm"
    assert (found.kind, found.protocol.status, found.described_by) == ("rmsnorm", "ok", "checkpoint")


def test_norms_are_told_apart_by_their_gains():
    model = tiny_model("gpt_neox")
    redraw_affine(model, "lognormal:0.5", 0)
    wanted = named_norm(model, "final_layer_norm").norm
    assert [site.path for site in norms_like(model, wanted)] == ["final_layer_norm"]
    other = dataclasses.replace(wanted, gain=wanted.gain * (1 + 0.05 * np.cos(np.arange(wanted.hidden_size))))
    assert norms_like(model, other) == []
    assert len(norms_like(tiny_model("gpt_neox"), dataclasses.replace(wanted, gain=np.ones_like(wanted.gain)))) > 1
