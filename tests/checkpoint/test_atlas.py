"""The atlas against facts that are known of the architectures, and its lookup by config."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from deadreckon.checkpoint.atlas import (
    ATLAS_PATH,
    gguf_naming,
    known_name,
    lookup,
    lookup_text,
    model_types,
    why_absent,
)
from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.source import open_model
from deadreckon.errors import UsageError

# Rows that must be there whatever else is: final norm within the base model, kind, offset, has a shift, placement.
KNOWN = {
    "gpt2": ("ln_f", "layernorm", 0, True, "pre"),
    "gpt_neox": ("final_layer_norm", "layernorm", 0, True, "pre"),
    "gptj": ("ln_f", "layernorm", 0, True, "pre"),
    "gpt_neo": ("ln_f", "layernorm", 0, True, "pre"),
    "gpt_bigcode": ("ln_f", "layernorm", 0, True, "pre"),
    "opt": ("decoder.final_layer_norm", "layernorm", 0, True, "pre"),
    "falcon": ("ln_f", "layernorm", 0, True, "pre"),
    "bloom": ("ln_f", "layernorm", 0, True, "pre"),
    "mpt": ("norm_f", "layernorm", 0, False, "pre"),
    "phi": ("final_layernorm", "layernorm", 0, True, "pre"),
    "phi3": ("norm", "rmsnorm", 0, False, "pre"),
    "stablelm": ("norm", "layernorm", 0, True, "pre"),
    "starcoder2": ("norm", "layernorm", 0, True, "pre"),
    "bert": ("encoder.layer.{last}.output.LayerNorm", "layernorm", 0, True, "post"),
    "roberta": ("encoder.layer.{last}.output.LayerNorm", "layernorm", 0, True, "post"),
    "xlm-roberta": ("encoder.layer.{last}.output.LayerNorm", "layernorm", 0, True, "post"),
    "mpnet": ("encoder.layer.{last}.output.LayerNorm", "layernorm", 0, True, "post"),
    "electra": ("encoder.layer.{last}.output.LayerNorm", "layernorm", 0, True, "post"),
    "deberta-v2": ("encoder.layer.{last}.output.LayerNorm", "layernorm", 0, True, "post"),
    "distilbert": ("transformer.layer.{last}.output_layer_norm", "layernorm", 0, True, "post"),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm",
        "layernorm",
        0,
        True,
        "post",
    ),
    "vit": ("layernorm", "layernorm", 0, True, "pre"),
    "dinov2": ("layernorm", "layernorm", 0, True, "pre"),
    "clip": ("text_model.final_layer_norm", "layernorm", 0, True, "pre"),
    "clip_text_model": ("final_layer_norm", "layernorm", 0, True, "pre"),
    "siglip": ("text_model.final_layer_norm", "layernorm", 0, True, "pre"),
    "siglip_vision_model": ("post_layernorm", "layernorm", 0, True, "pre"),
    "whisper": ("decoder.layer_norm", "layernorm", 0, True, "pre"),
    "llama": ("norm", "rmsnorm", 0, False, "pre"),
    "mistral": ("norm", "rmsnorm", 0, False, "pre"),
    "mixtral": ("norm", "rmsnorm", 0, False, "pre"),
    "qwen2": ("norm", "rmsnorm", 0, False, "pre"),
    "qwen3": ("norm", "rmsnorm", 0, False, "pre"),
    "qwen3_moe": ("norm", "rmsnorm", 0, False, "pre"),
    "qwen3_5_moe": ("language_model.norm", "rmsnorm", 1, False, "pre"),
    "qwen3_5_moe_text": ("norm", "rmsnorm", 1, False, "pre"),
    "qwen3_next": ("norm", "rmsnorm", 1, False, "pre"),
    "olmo2": ("norm", "rmsnorm", 0, False, "branch"),
    "gemma": ("norm", "rmsnorm", 1, False, "pre"),
    "gemma2": ("norm", "rmsnorm", 1, False, "sandwich"),
    "gemma3": ("language_model.norm", "rmsnorm", 1, False, "sandwich"),
    "gemma3_text": ("norm", "rmsnorm", 1, False, "sandwich"),
    "gemma4": ("language_model.norm", "rmsnorm", 0, False, "sandwich"),
    "gemma4_text": ("norm", "rmsnorm", 0, False, "sandwich"),
    "t5": ("decoder.final_layer_norm", "rmsnorm", 0, False, "pre"),
    "cohere": ("norm", "layernorm", 0, False, "pre"),
    "cohere2": ("norm", "layernorm", 0, False, "pre"),
    "nemotron": ("norm", "layernorm", 1, True, "pre"),
    "modernbert": ("final_norm", "layernorm", 0, False, "pre"),
    "vjepa2": ("encoder.layernorm", "layernorm", 0, True, "pre"),
    "wav2vec2": ("encoder.layers.{last}.final_layer_norm", "layernorm", 0, True, "post"),
    "bart": ("decoder.layers.{last}.final_layer_norm", "layernorm", 0, True, "post"),
    "mamba": ("norm_f", "rmsnorm", 0, False, "pre"),
}


@pytest.mark.parametrize("model_type", KNOWN)
def test_rows_agree_with_what_is_known(model_type):
    architecture = lookup({"model_type": model_type})
    norm, main = architecture.final, architecture.stacks[0]
    assert (norm.module, norm.kind, norm.offset, norm.shift is not None, main.placement) == KNOWN[model_type]
    assert norm.gain == "weight"
    assert main.blocks is not None


def test_no_row_is_a_failure():
    for model_type in model_types():
        architecture = lookup({"model_type": model_type})
        assert architecture.stacks, model_type
        assert all(stack.norm or stack.why for stack in architecture.stacks), model_type


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("bert", "cls.predictions.transform.LayerNorm"),
        ("roberta", "lm_head.layer_norm"),
        ("mpnet", "lm_head.layer_norm"),
        ("electra", "generator_predictions.LayerNorm"),
        ("deberta-v2", "cls.predictions.transform.LayerNorm"),
        ("distilbert", "vocab_layer_norm"),
        ("albert", "predictions.LayerNorm"),
        ("modernbert", "head.norm"),
        ("gpt2", None),
        ("whisper", None),
        ("vit", None),
    ],
)
def test_norms_of_masked_language_heads(model_type, head):
    found = lookup({"model_type": model_type}).head
    assert (found and found.names) == (head and (head,))


def test_a_norm_without_parameters():
    norm = lookup({"model_type": "olmo", "hidden_size": 2048}).final
    assert (norm.kind, norm.gain, norm.shift, norm.names) == ("layernorm", None, None, ())
    assert lookup({"model_type": "olmo", "hidden_size": 2048}).stacks[0].hidden_size == 2048


def test_encoder_and_towers_have_roles():
    for name, roles in (
        ("t5", ["decoder", "encoder"]),
        ("whisper", ["decoder", "encoder"]),
        ("gemma3", ["final", "vision"]),
    ):
        assert [stack.role for stack in lookup({"model_type": name}).stacks] == roles
    vision = lookup({"model_type": "clip"}).stacks[1]
    assert (vision.role, vision.norm.module) == ("vision", "vision_model.post_layernorm")
    assert "pooled" in vision.note
    alone = lookup({"model_type": "clip_vision_model"}).stacks
    assert [(s.role, s.norm is None) for s in alone] == [("final", True), ("vision", False)]


OPT_350M = {
    "model_type": "opt",
    "hidden_size": 1024,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
    "num_hidden_layers": 24,
}


@pytest.mark.parametrize(
    ("config", "module"),
    [
        (OPT_350M, None),
        ({**OPT_350M, "do_layer_norm_before": True}, None),
        ({**OPT_350M, "word_embed_proj_dim": 1024}, "decoder.layers.{last}.final_layer_norm"),
        ({**OPT_350M, "word_embed_proj_dim": 1024, "do_layer_norm_before": True}, "decoder.final_layer_norm"),
        ({"model_type": "opt"}, "decoder.final_layer_norm"),
        ({"model_type": "wav2vec2", "do_stable_layer_norm": True}, "encoder.layer_norm"),
        ({"model_type": "wav2vec2", "do_stable_layer_norm": False}, "encoder.layers.{last}.final_layer_norm"),
        ({"model_type": "videomae", "use_mean_pooling": False}, "layernorm"),
        ({"model_type": "videomae", "use_mean_pooling": True}, None),
        ({"model_type": "beit", "use_mean_pooling": False}, "layernorm"),
    ],
)
def test_switches(config, module):
    final = lookup(config).final
    assert (final and final.module) == module


def test_a_stream_without_a_norm_says_why():
    assert "project_out" in lookup(OPT_350M).stacks[0].why


def test_sizes_and_eps_come_from_the_config():
    config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "layer_norm_epsilon": 3e-4}
    main = lookup(config).stacks[0]
    assert (main.hidden_size, main.layers, main.norm.eps) == (768, 12, 3e-4)
    assert lookup({"model_type": "gpt2"}).stacks[0].norm.eps == 1e-5
    assert lookup({"model_type": "gpt2"}).stacks[0].layers is None
    whisper = lookup({"model_type": "whisper", "encoder_layers": 4, "decoder_layers": 6, "d_model": 384})
    assert [(s.role, s.layers, s.hidden_size) for s in whisper.stacks] == [("decoder", 6, 384), ("encoder", 4, 384)]
    gemma = lookup({"model_type": "gemma3", "text_config": {"hidden_size": 2560, "rms_norm_eps": 1e-4}})
    assert (gemma.stacks[0].hidden_size, gemma.final.eps) == (2560, 1e-4)
    assert {row.eps for row in lookup(config).others} == {3e-4}  # block norms share the key


def test_odd_config_values_are_not_taken_for_sizes():
    for value in (None, -1, "768", 7.5, [768]):
        assert lookup({"model_type": "gpt2", "n_embd": value}).stacks[0].hidden_size is None


@pytest.mark.parametrize(
    ("spelled", "name"),
    [("gptneox", "gpt_neox"), ("GPT-NeoX", "gpt_neox"), ("gemma3", "gemma3"), ("t5", "t5")],
)
def test_names_of_gguf_files(spelled, name):
    assert known_name(spelled) == name
    assert lookup({"model_type": spelled}).model_type == name


def test_an_unknown_composite_falls_back_on_its_language_model():
    text = {"model_type": "llama", "hidden_size": 4096}
    assert lookup({"model_type": "new_vlm", "text_config": text}).model_type == "llama"
    assert lookup({"text_config": text}).stacks[0].hidden_size == 4096
    assert lookup_text({"model_type": "llama"}) is None


def test_a_composite_is_known_by_its_nested_language_model_or_its_decoder_or_else_by_its_images_part():
    text = {"model_type": "llama", "hidden_size": 4096}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152}
    assert lookup({"thinker_config": {"text_config": text}}).model_type == "llama"
    assert lookup({"encoder": vision, "decoder": text}).stacks[0].hidden_size == 4096
    assert lookup({"model_type": "new_segmenter", "vision_config": vision}).model_type == "siglip_vision_model"


def test_the_images_part_does_not_stand_in_for_an_unknown_language_model():
    vision = {"model_type": "siglip_vision_model"}
    assert lookup({"text_config": {"model_type": "nonsense"}, "vision_config": vision}) is None
    assert lookup({"text_config": {"hidden_size": 64}, "vision_config": vision}) is None


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}, {"model_type": "nonsense"}])
def test_what_the_atlas_does_not_know(config):
    assert lookup(config) is None


def test_the_file_is_small_and_read_without_torch():
    assert ATLAS_PATH.stat().st_size < 330_000
    code = (
        "import sys, deadreckon.checkpoint.find as find; find.lookup({'model_type': 'bert'});"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert set(gguf_naming()["kinds"]) == {"layernorm", "rmsnorm"}


def test_an_architecture_without_a_row_is_named_with_the_reason(tmp_path):
    save_file({"layer.ln.weight": np.ones(8, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "dinat"}')
    with pytest.raises(UsageError, match="does not know the architecture 'dinat' \\(when it was built: ImportError"):
        find_norms(open_model(tmp_path))
    assert why_absent("llama") is None
    assert why_absent(None) is None
