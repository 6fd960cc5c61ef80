"""Safetensors files against the format's own library, and how little of them is read."""

import json
import os
import struct
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from deadreckon.checkpoint.safetensors import SafetensorsCheckpoint
from deadreckon.errors import InputError, UnreachableError

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}


def small_model(dtype, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(shape).astype(dtype)
        for name, shape in {
            "model.embed.weight": (50, 16),
            "model.layers.0.norm.weight": (16,),
            "model.layers.0.mlp.weight": (64, 16),
            "model.norm.weight": (16,),
            "model.empty": (0,),
            "model.scalar": (),
        }.items()
    }


def split(tensors, directory, shards):
    """Save as transformers does: numbered shards and an index."""
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def header_bytes(path):
    return 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shards", [0, 1, 3])
def test_agrees_with_the_library(name, shards, tmp_path):
    tensors = small_model(DTYPES[name])
    if shards:
        split(tensors, tmp_path, shards)
    else:
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = SafetensorsCheckpoint.open(tmp_path)
    assert set(checkpoint.tensors) == set(tensors)
    assert len(checkpoint.tensors) == len(tensors)
    for key, values in tensors.items():
        entry = checkpoint.tensors[key]
        assert (entry.dtype, entry.shape) == (name, values.shape)
        assert entry.path.read_bytes()[entry.start : entry.stop] == values.tobytes()
    for key in ("model.norm.weight", "model.layers.0.norm.weight"):
        np.testing.assert_array_equal(checkpoint.vector(key), tensors[key].astype(np.float64))


@pytest.mark.parametrize(("name", "dtype"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_a_gain_really_stored_in_eight_bits(name, dtype, tmp_path):
    gain = np.array([0.5, 1.0, 1.5, -3.5]).astype(dtype)
    path = tmp_path / "x.safetensors"
    save_file({"norm.weight": gain}, path)
    assert SafetensorsCheckpoint.open(path).tensors["norm.weight"].dtype == name
    np.testing.assert_array_equal(SafetensorsCheckpoint.open(path).vector("norm.weight"), [0.5, 1.0, 1.5, -3.5])
    save_file({"norm.weight": gain, "norm.weight_scale_inv": np.ones(1, np.float32)}, path)
    with pytest.raises(InputError, match=r"x.safetensors: tensor 'norm.weight' .* in 'norm.weight_scale_inv'"):
        SafetensorsCheckpoint.open(path).vector("norm.weight")


def test_minilm(minilm):
    checkpoint = SafetensorsCheckpoint.open(minilm)
    assert checkpoint.architecture == "bert"
    assert checkpoint.config["hidden_size"] == 384
    vectors = 0
    with safe_open(minilm / "model.safetensors", "np") as oracle:
        assert set(checkpoint.tensors) == set(oracle.keys())
        for name, entry in checkpoint.tensors.items():
            stored = oracle.get_slice(name)
            assert (entry.dtype, entry.shape) == (stored.get_dtype(), tuple(stored.get_shape()))
            if len(entry.shape) == 1:
                np.testing.assert_array_equal(checkpoint.vector(name), oracle.get_tensor(name).astype(np.float64))
                vectors += 1
    assert vectors > 50


def test_only_config_header_and_the_vector_are_read(minilm):
    checkpoint = SafetensorsCheckpoint.open(minilm)
    opened = (minilm / "config.json").stat().st_size + header_bytes(minilm / "model.safetensors")
    assert checkpoint.bytes_read == opened
    checkpoint.vector("encoder.layer.5.output.LayerNorm.weight")
    assert checkpoint.bytes_read == opened + 384 * 4


def test_a_shard_costs_its_header_when_it_is_first_needed(tmp_path):
    tensors = small_model("<f4")
    weight_map = split(tensors, tmp_path, 3)
    index = (tmp_path / "model.safetensors.index.json").stat().st_size
    checkpoint = SafetensorsCheckpoint.open(tmp_path)
    assert "model.norm.weight" in checkpoint.tensors
    assert "model.norm.bias" not in checkpoint.tensors
    assert sorted(checkpoint.tensors) == sorted(tensors)
    assert checkpoint.bytes_read == index
    needed = index + header_bytes(tmp_path / weight_map["model.norm.weight"]) + 16 * 4
    checkpoint.vector("model.norm.weight")
    assert checkpoint.bytes_read == needed
    checkpoint.vector("model.norm.weight")
    assert checkpoint.bytes_read == needed + 16 * 4  # read again, and said so
    assert len(dict(checkpoint.tensors.items())) == len(tensors)
    with pytest.raises(KeyError):
        checkpoint.tensors["model.norm.bias"]


def test_a_missing_shard_matters_only_to_its_tensors(tmp_path):
    tensors = small_model("<f4")
    weight_map = split(tensors, tmp_path, 3)
    gone = weight_map["model.layers.0.norm.weight"]
    assert gone != weight_map["model.norm.weight"]
    (tmp_path / gone).unlink()
    checkpoint = SafetensorsCheckpoint.open(tmp_path)
    np.testing.assert_array_equal(checkpoint.vector("model.norm.weight"), tensors["model.norm.weight"])
    with pytest.raises(UnreachableError, match=rf"{gone}: no such file; model.safetensors.index.json says"):
        checkpoint.vector("model.layers.0.norm.weight")


def test_sixty_gigabytes_are_read_in_milliseconds(tmp_path):
    """Twelve sparse shards of five gigabytes: real headers, real norms, nothing else on the disk."""
    d, blocks, shards, shard_bytes = 8192, 60, 12, 5 * 10**9
    gains = {}
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, at, norms = {}, 0, []
        block_range = range(shard * blocks // shards, (shard + 1) * blocks // shards)
        keys = [f"model.layers.{block}.input_layernorm.weight" for block in block_range]
        for key in [*keys, "model.norm.weight"] if shard == shards - 1 else keys:
            gains[key] = np.random.default_rng(len(gains)).lognormal(size=d).astype(ml_dtypes.bfloat16)
            norms.append((at, gains[key].tobytes()))
            header[key] = {"dtype": "BF16", "shape": [d], "data_offsets": [at, at + 2 * d]}
            at += 2 * d
        rows = (shard_bytes - at) // (2 * d)
        header[f"matrix.{shard}"] = {"dtype": "BF16", "shape": [rows, d], "data_offsets": [at, at + 2 * d * rows]}
        raw = json.dumps(header).encode()
        with (tmp_path / name).open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            for start, values in norms:
                file.seek(8 + len(raw) + start)
                file.write(values)
            try:
                file.truncate(8 + len(raw) + at + 2 * d * rows)
            except OSError as error:
                pytest.skip(f"no sparse files here: {error}")
        weight_map |= dict.fromkeys(header, name)
    if os.stat(tmp_path / name).st_blocks * 512 > 10**9:
        pytest.skip("no sparse files here")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": d}))
    total = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert total > 59 * 10**9

    times = []
    for _ in range(3):
        started = time.perf_counter()
        checkpoint = SafetensorsCheckpoint.open(tmp_path)
        gain = checkpoint.vector("model.norm.weight")
        times.append(time.perf_counter() - started)
    np.testing.assert_array_equal(gain, gains["model.norm.weight"].astype(np.float64))
    small = sum((tmp_path / name).stat().st_size for name in ("config.json", "model.safetensors.index.json"))
    with (tmp_path / weight_map["model.norm.weight"]).open("rb") as file:
        header = 8 + struct.unpack("<Q", file.read(8))[0]
    assert checkpoint.bytes_read == small + header + 2 * d
    assert min(times) < 0.1  # a few milliseconds, on a machine that may be busy

    for key, values in gains.items():
        np.testing.assert_array_equal(checkpoint.vector(key), values.astype(np.float64))
    assert checkpoint.bytes_read < 2 * d * (len(gains) + 1) + 65536


def test_a_file_by_itself_uses_the_config_beside_it(tmp_path):
    path = tmp_path / "anything.safetensors"
    save_file(small_model("<f4"), path)
    assert SafetensorsCheckpoint.open(path).architecture is None
    assert SafetensorsCheckpoint.open(path).config == {}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert SafetensorsCheckpoint.open(path).architecture == "llama"
    assert SafetensorsCheckpoint.open(tmp_path).architecture == "llama"


@pytest.mark.parametrize("model_type", [None, 3, ["bert"]])
def test_a_model_type_that_is_no_name(model_type, tmp_path):
    save_file(small_model("<f4"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert SafetensorsCheckpoint.open(tmp_path).architecture is None


def test_the_transformer_of_a_sentence_encoder_in_its_folder(tmp_path):
    folder = tmp_path / "0_Transformer"
    folder.mkdir()
    save_file(small_model("<f4"), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    listed = json.dumps(modules)
    (tmp_path / "modules.json").write_text(listed)
    assert SafetensorsCheckpoint.recognises(tmp_path)
    checkpoint = SafetensorsCheckpoint.open(tmp_path)
    assert (checkpoint.path, checkpoint.architecture) == (tmp_path, "bert")
    header = header_bytes(folder / "model.safetensors")
    assert checkpoint.bytes_read == len(listed) + len('{"model_type": "bert"}') + header
    modules[0]["path"] = "../elsewhere"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert not SafetensorsCheckpoint.recognises(tmp_path)


def test_which_file_of_a_directory_is_read(tmp_path):
    one, two = small_model("<f4", 1), small_model("<f4", 2)
    save_file(one, tmp_path / "weights.safetensors")
    name = "model.norm.weight"
    np.testing.assert_array_equal(SafetensorsCheckpoint.open(tmp_path).vector(name), one[name])
    save_file(two, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(SafetensorsCheckpoint.open(tmp_path).vector(name), two[name])
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"2 candidates \(other.safetensors, weights.safetensors\)"):
        SafetensorsCheckpoint.open(tmp_path)
    (tmp_path / "any.safetensors.index.json").write_text(json.dumps({"weight_map": {name: "other.safetensors"}}))
    np.testing.assert_array_equal(SafetensorsCheckpoint.open(tmp_path).vector(name), two[name])


def test_a_hub_cache_is_links(tmp_path):
    """There a snapshot's files are links to blobs named by their hash, two folders up."""
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    tensors = small_model("<f4")
    split(tensors, snapshot, 2)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    gain = SafetensorsCheckpoint.open(snapshot).vector("model.norm.weight")
    np.testing.assert_array_equal(gain, tensors["model.norm.weight"])
    blob = (snapshot / "model-00001-of-00002.safetensors").resolve()
    assert SafetensorsCheckpoint.recognises(blob)  # no suffix: by its first bytes


@pytest.mark.slow
def test_agrees_with_a_sharded_save_of_transformers(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=100
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.5, 2.0, 32))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    checkpoint = SafetensorsCheckpoint.open(tmp_path)
    assert checkpoint.architecture == "llama"
    for name, values in model.state_dict().items():
        if values.ndim == 1:
            np.testing.assert_array_equal(checkpoint.vector(name), values.double().numpy())
        elif name in checkpoint.tensors:
            assert checkpoint.tensors[name].shape == tuple(values.shape)
