"""Bounds of residual streams from files, against the modules that were saved."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from deadreckon.checkpoint.source import open_model
from deadreckon.checkpoint.stream_table import TABLE_PATH, stream_of_config
from deadreckon.checkpoint.streams import find_stream
from deadreckon.errors import InputError, UnreachableError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.stream_bound import stream_of_module
from deadreckon.forward.tiny import tiny_model
from deadreckon.kernel.stream_bound import NoBound

TYPES = ("gemma2", "gemma3", "gemma4_text", "gemma4", "glm4", "t5gemma", "t5gemma2")


def model_of(name):
    model = tiny_model(name, head=True)
    redraw_affine(model, "lognormal:0.5", 0)
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("layer_scalar"):
                buffer.fill_(0.5)
    return model


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gemma4")
    model_of("gemma4_text").save_pretrained(directory)
    return directory


def same(parts, other):
    np.testing.assert_array_equal(parts.writes, other.writes)
    np.testing.assert_array_equal(parts.embedding, other.embedding)
    assert (parts.scalars is None) == (other.scalars is None)
    assert parts.scalars is None or parts.scalars.tolist() == other.scalars.tolist()
    assert (parts.embedding_scale, parts.architecture, parts.text_only) == (
        other.embedding_scale,
        other.architecture,
        other.text_only,
    )


@pytest.mark.parametrize("name", TYPES)
def test_a_file_says_what_the_module_says(name, tmp_path):
    model = model_of(name)
    model.save_pretrained(tmp_path)
    same(find_stream(open_model(tmp_path)), stream_of_module(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_of_half_precision_say_the_same(dtype, tmp_path):
    model = model_of("gemma4_text").to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    checkpoint = open_model(tmp_path)
    same(find_stream(checkpoint), stream_of_module(model))
    (
        tmp_path
        / json.loads((tmp_path / "model.safetensors.index.json").read_bytes())["weight_map"][
            "model.layers.2.layer_scalar"
        ]
    ).unlink()
    with pytest.raises(UnreachableError, match="no such file"):
        find_stream(open_model(tmp_path))


@pytest.mark.parametrize(("name", "why"), [("llama", "no norm"), ("gpt2", "no norm"), ("bert", "ends in a norm")])
def test_other_streams_get_a_reason(name, why, tmp_path):
    tiny_model(name).save_pretrained(tmp_path)
    found = find_stream(open_model(tmp_path))
    assert isinstance(found, NoBound)
    assert why in found.why


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}, "mix four streams"),
        ({"model_type": "diffusion_gemma"}, "its own predictions"),
        ({"model_type": "llava", "text_config": {"model_type": "gemma2"}}, "no norm has bounded|not verified"),
        ({"model_type": "some_new_vlm", "text_config": {"model_type": "gemma2"}}, "not verified"),
        ({"model_type": "some_new_model"}, "does not know"),
        ({}, "does not know"),
    ],
)
def test_a_config_whose_stream_was_not_verified_gets_a_reason(config, why):
    found = stream_of_config(config)
    assert isinstance(found, NoBound)
    assert re.search(why, found.why), found.why


def damaged(directory, tmp_path, change, **config):
    """A copy of a checkpoint whose tensors, and settings, were changed."""
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    settings = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **config}))
    return open_model(tmp_path)


B = "model.layers.2."


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda t: t.pop(B + "layer_scalar"), r"no tensor model\.layers\.2\.layer_scalar"),
        (lambda t: t.pop(B + "post_feedforward_layernorm.weight"), r"no tensor .*\.2\.post_feedforward_layernorm"),
        (lambda t: t.pop(B + "post_per_layer_input_norm.weight"), r"no tensor .*post_per_layer_input_norm"),
        (lambda t: t.pop("model.embed_tokens.weight"), r"no tensor model\.embed_tokens\.weight"),
        (lambda t: t.update({B + "layer_scalar": np.ones(2, "f4")}), "one number"),
        (lambda t: t.update({B + "layer_scalar": np.full(1, np.nan, "f4")}), "finite"),
        (lambda t: t.update({B + "post_attention_layernorm.weight": np.ones(32, "f4")}), "one stream"),
        (lambda t: t.update({B + "post_attention_layernorm.weight": np.ones((8, 8), "f4")}), "vector"),
        (lambda t: t.update({"model.embed_tokens.weight": np.ones((9, 32), "f4")}), "rows of 32"),
        (lambda t: t.update({"model.embed_tokens.weight": np.full((9, 64), np.inf, "f4")}), "finite"),
        (lambda t: t.update({f"model.text.layers.{i}.post_attention_layernorm.weight": np.ones(4, "f4") for i in "0"})
         or t.update({"llm.layers.0.post_attention_layernorm.weight": np.ones(4, "f4")}), "2 stacks"),
        (lambda t: [t.pop(n) for n in list(t) if "post_attention" in n], "no block has"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_gets_one_clear_error(gemma4, tmp_path, change, names):
    with pytest.raises(InputError, match=names) as raised:
        find_stream(damaged(gemma4, tmp_path, change))
    assert str(tmp_path) in str(raised.value)


def test_a_config_of_more_blocks_than_the_file_has_is_refused(gemma4, tmp_path):
    with pytest.raises(InputError, match="config belongs to another model"):
        find_stream(damaged(gemma4, tmp_path, lambda t: None, num_hidden_layers=10**9))


def test_an_optional_write_is_counted_where_the_file_has_it_and_missed_where_the_config_has_it(gemma4, tmp_path):
    def without(tensors):
        for name in [n for n in tensors if "per_layer" in n]:
            del tensors[name]

    kept = find_stream(damaged(gemma4, tmp_path / "a", lambda t: None, hidden_size_per_layer_input=None))
    assert len(kept.norms) == 3
    assert len(find_stream(damaged(gemma4, tmp_path / "b", without, hidden_size_per_layer_input=0)).norms) == 2
    with pytest.raises(InputError, match="post_per_layer_input_norm"):
        find_stream(damaged(gemma4, tmp_path / "c", without))


def test_an_embedding_without_plain_numbers_is_left_out_with_the_reason(gemma4, tmp_path):
    name = "model.embed_tokens.weight"
    checkpoint = damaged(gemma4, tmp_path, lambda t: t.update({name: np.ones((9, 64), np.int8)}))
    parts = find_stream(checkpoint)
    assert parts.embedding is None
    assert "stored as I8" in parts.why_no_embedding
    assert (parts.bound()[0] == 0).all()
    assert (parts.bound()[-1] > 0).all()


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "gemma4", "glm4", "olmo2", "exaone4"])
@pytest.mark.parametrize("plain", [True, False])
def test_gguf_files_say_the_same_in_their_own_words(architecture, plain, tmp_path):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    table = rng.normal(size=(9, 64)).astype("f4")
    quant = None if plain else gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", table if plain else gguf.quants.quantize(table, quant), raw_dtype=quant)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    naming = gguf.get_tensor_name_map(arch, 2)
    row = json.loads(TABLE_PATH.read_bytes())["rows"][
        {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}.get(architecture, architecture)
    ]
    gains = {}
    for block in range(2):
        for norm in (*row["writes"], *row.get("write_if", {})):
            name = naming.get_name(f"model.layers.{block}.{norm}")  # as the converter names it
            gains[block, norm] = rng.normal(size=64).astype("f4")
            writer.add_tensor(f"{name}.weight", gains[block, norm])
        if "scalar" in row:
            name = naming.get_name(f"model.layers.{block}.{row['scalar']}")
            writer.add_tensor(f"{name}.weight", np.full(1, 0.25 + block, "f4"))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    parts = find_stream(open_model(path))
    for block in range(2):
        # sqrt(64) times the gains as they are: the converter has added what the module would.
        wanted = 8 * sum(np.abs(g.astype(float)) for (b, _), g in gains.items() if b == block)
        np.testing.assert_allclose(parts.writes[block], wanted, rtol=1e-14)
    assert (parts.scalars is None) == ("scalar" not in row)
    assert parts.scalars is None or parts.scalars.tolist() == [0.25, 1.25]
    if plain:
        scale = 8 if row.get("embedding_scale") else 1
        np.testing.assert_array_equal(parts.embedding, scale * np.abs(table.astype(float)).max(0))
    else:
        assert parts.embedding is None
        assert "Q8_0" in parts.why_no_embedding


def test_other_gguf_files_get_a_reason(smollm2, tmp_path, put, build):
    assert "no norm has bounded" in find_stream(open_model(smollm2)).why
    for architecture, why in (("afmoe", "GGUF files spell"), ("nonsense", "does not know")):
        pair = build.gguf_string("general.architecture") + b"\x08\0\0\0" + build.gguf_string(architecture)
        assert why in find_stream(open_model(put("x.gguf", build.gguf(pair, 1)))).why
