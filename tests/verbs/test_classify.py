"""Trained models without config and names are never called what they are not, and half-done conversions are named."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deadreckon import classify, read
from deadreckon.checkpoint.source import open_model
from deadreckon.errors import UnreachableError
from deadreckon.kernel.fingerprint import mean_share

NORM = "encoder.layer.5.attention.output.LayerNorm.weight"
READER = "encoder.layer.5.intermediate.dense.weight"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


def only(model, **options):
    (result,) = classify(str(model), **options).results
    return result


def fingerprint_of(result):
    return next((e for e in result.evidence if e.name == "weights_fingerprint"), None)


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint with or without a config; returns its directory or file."""

    def write(tensors, config=None):
        save_file(tensors, tmp_path / "model.safetensors")
        if config is None:
            return tmp_path / "model.safetensors"
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.fixture(scope="module")
def bert(minilm):
    return load_file(minilm / "model.safetensors"), json.loads((minilm / "config.json").read_text())


@pytest.fixture(scope="module")
def stored(smollm2):
    """SmolLM2's tensors as the gguf package reads them, which takes seconds."""
    return pytest.importorskip("gguf").GGUFReader(smollm2).tensors


@pytest.fixture(scope="module")
def llama(stored):
    """Every fourth block of SmolLM2 in half precision, under llama's names; its embedding's middle rows."""
    gguf = pytest.importorskip("gguf")
    tensors = {}
    for tensor in stored:
        *block, part, leaf = tensor.name.split(".")
        if block and int(block[1]) % 4:
            continue
        data = tensor.data[20_000:28_000] if part == "token_embd" else tensor.data
        name = f"model.layers.{int(block[1]) // 4}.{NAMES[part]}" if block else NAMES[part]
        tensors[f"{name}.{leaf}"] = gguf.dequantize(data, tensor.tensor_type).astype(np.float16)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_hidden_layers": 8}
    return tensors, {**config, "tie_word_embeddings": True}


def bare(tensors):
    return {f"t{index}": tensor for index, tensor in enumerate(tensors.values())}


def test_trained_models_are_what_they_are(minilm, smollm2):
    for model, kind in ((minilm, "layernorm"), (smollm2, "rmsnorm")):
        result = only(model)
        assert (result.kind, result.contradictions) == (kind, [])
        assert fingerprint_of(result).says == kind
        assert result.bytes_read < 64 << 20


def test_without_config_and_names_shapes_decide(bert, llama, save):
    for (tensors, _), kind in ((bert, "layernorm"), (llama, "rmsnorm")):
        result = only(save(bare(tensors)))
        assert (result.kind, result.contradictions) == (kind, [])


def test_a_gguf_file_without_architecture_and_names(stored, tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "unheard-of")
    for index, tensor in enumerate(stored):
        writer.add_tensor(f"t{index}", tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert only(tmp_path / "bare.gguf").kind == "rmsnorm"


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_a_hardly_trained_layernorm_is_undetermined(bert, save, keep):
    """Initialisation put back over trained matrices, so that it has most of the energy (then: much less)."""
    rng = np.random.default_rng(0)
    mixed = {}
    for name, tensor in bert[0].items():
        size = float(np.std(tensor)) if tensor.ndim == 2 else 0.0
        noise = rng.standard_normal(tensor.shape) * 5 * keep * size if tensor.ndim == 2 else 0.0
        mixed[name] = (tensor + noise).astype(np.float32) if tensor.ndim == 2 else tensor
    assert only(save(bare(mixed))).kind == "undetermined"


@pytest.mark.parametrize("gated", [False, True])
def test_random_weights_are_undetermined(gated, save):
    rng = np.random.default_rng(0)
    tensors = {"e": rng.standard_normal((2000, 256), np.float32)}
    for block in range(6):
        for part in ("up", "gate")[: 1 + gated]:
            tensors[f"{block}{part}"] = 0.02 * rng.standard_normal((1024, 256), np.float32)
        tensors[f"{block}down"] = 0.02 * rng.standard_normal((256, 1024), np.float32) / 12**0.5
        tensors[f"{block}norm"] = np.ones(256, np.float32)
    result = only(save(bare(tensors)))
    assert result.kind == "undetermined"
    assert fingerprint_of(result).strength == "weak"


def test_centred_embeddings_of_an_rmsnorm_are_named(llama, save):
    tensors, config = llama
    name = "model.embed_tokens.weight"
    assert only(save(tensors, config)).contradictions == []
    embedding = tensors[name].astype(np.float64)
    centred = (embedding - embedding.mean(1, keepdims=True)).astype(np.float16)
    result = only(save({**tensors, name: centred}, config))
    assert result.kind == "rmsnorm"
    (said,) = result.contradictions
    assert name in said
    assert "mean-centred" in said


@pytest.mark.parametrize("bits", ["Q8_0", "Q4_0"])
def test_centring_is_seen_through_quantisation(llama, bits):
    """What rounding adds along 1 stays below the threshold, and what is trained stays above it."""
    gguf = pytest.importorskip("gguf")
    from deadreckon.checkpoint.conversions import CENTRED_BELOW

    kind = gguf.GGMLQuantizationType[bits]
    embedding = llama[0]["model.embed_tokens.weight"].astype(np.float32)
    centred = embedding - embedding.mean(1, keepdims=True)
    stored = gguf.dequantize(gguf.quantize(centred, kind), kind)
    assert mean_share(stored.T.astype(float)) < CENTRED_BELOW
    assert mean_share(embedding.T.astype(float)) > 10 * CENTRED_BELOW


def test_a_half_folded_block_is_named(bert, save):
    tensors, config = bert
    folded = {**tensors, READER: tensors[READER] * tensors[NORM]}
    result = only(save({**folded, NORM: np.ones_like(tensors[NORM])}, config))
    assert result.kind == "layernorm"
    (said,) = result.contradictions
    assert said.startswith("half-folded")
    assert NORM.removesuffix(".weight") in said


def test_a_gain_that_was_folded_and_left_is_named(bert, save):
    tensors, config = bert
    (said,) = only(save({**tensors, READER: tensors[READER] * tensors[NORM]}, config)).contradictions
    assert said.startswith("folded twice")
    assert NORM.removesuffix(".weight") in said


def test_a_forgotten_offset_is_named(llama, save):
    """Stored as gain - 1, under a config that adds no 1; with a config that does, nothing is wrong."""
    tensors, config = llama
    shifted = {n: (t.astype(np.float32) - 1) if n.endswith("norm.weight") else t for n, t in tensors.items()}
    (said,) = only(save(shifted, config)).contradictions
    assert "stored as gain - 1" in said
    assert only(save(shifted, {**config, "model_type": "gemma", "architectures": None})).contradictions == []


def test_a_fresh_gemma_under_a_llama_config_is_named(save):
    tiny = pytest.importorskip("deadreckon.forward.tiny")
    model = tiny.tiny_model("gemma", head=True)
    tensors = {name: p.detach().numpy() for name, p in model.named_parameters()}
    config = model.config.to_dict() | {"dtype": None}
    assert only(save(tensors, config)).contradictions == []
    (said,) = only(save(tensors, {**config, "model_type": "llama"})).contradictions
    assert "stored as gain - 1" in said


def test_a_config_that_says_another_kind_is_contradicted(bert, llama, save):
    renamed = {k.replace("encoder.layer.5.output.LayerNorm", "model.norm"): v for k, v in bert[0].items()}
    wrong = only(save(renamed, {"model_type": "llama", "hidden_size": 384}))
    assert [said.split()[0] for said in wrong.contradictions] == ["shift_tensor", "weights_fingerprint"]
    renamed = {k.replace("model.norm", "gpt_neox.final_layer_norm"): v for k, v in llama[0].items()}
    renamed["gpt_neox.final_layer_norm.bias"] = np.zeros(576, np.float16)
    wrong = only(save(renamed, {"model_type": "gpt_neox", "hidden_size": 576}))
    (said,) = wrong.contradictions
    assert said.startswith("weights_fingerprint says rmsnorm")


def test_a_pattern_stands_for_the_checkpoints_it_matches(llama, bert, tmp_path):
    for name, (tensors, config) in (("a", bert), ("b", llama)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "notes.txt").write_text("no model")
    results = classify(f"{tmp_path}/*").results
    assert [(r.model[-2:], r.kind) for r in results] == [("/a", "layernorm"), ("/b", "rmsnorm")]
    with pytest.raises(UnreachableError, match="none of them is a checkpoint"):
        classify(f"{tmp_path}/*.txt")


def test_functional_evidence(minilm):
    pytest.importorskip("transformers")
    result = only(minilm, functional=True)
    assert [e.says for e in result.evidence if e.name == "functional"] == ["layernorm"]
    assert result.contradictions == []


def test_read_looks_at_no_matrix(minilm):
    assert read(str(minilm)).bytes_read < 20_000
    assert open_model(minilm).bytes_read < 20_000
