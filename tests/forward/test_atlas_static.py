"""The atlas against two sources that are not its own: transformers' source code as text, and a list written by hand."""

import json
import re

import pytest
from static_norms import final_norm, norm_class
from torch import nn

from deadreckon.checkpoint.atlas import ATLAS_PATH
from deadreckon.forward.tiny_classes import base_class

ROWS = json.loads(ATLAS_PATH.read_text(encoding="utf-8"))["rows"]

# Where the two differ, the code was read and the atlas found right. Anything else that differs fails.
READ_WRONGLY = {
    "deberta-v2": "the convolution is called behind the first block alone, where the config asks for one",
    "flaubert": "the list of norms is appended to in a loop, which the reader does not follow",
    "xlm": "the list of norms is appended to in a loop, which the reader does not follow",
    "granite_docling_vision": "the connector follows the norm that ends the stream",
    "hunyuan_vl_vision": "the patch merger follows the stream's end",
    "lilt": "the last norm called is the layout stream's; the text stream's is the hidden state",
    "moonshine_streaming_encoder": "its norm holds a gain of its own around a norm without parameters",
    "ovis2_vision": "the head's norm acts on logits, behind the stream",
    **dict.fromkeys(
        ("got_ocr2_vision", "pp_chart2table_vision", "sam_hq_vision_model", "sam_vision_model", "slanext_vision"),
        "a convolution follows the stream, and the norm is the convolutions'",
    ),
    **dict.fromkeys(("eomt", "eomt_dinov3"), "the upscaling that is called last is the masks', not the stream's"),
    "bridgetower_vision_model": "a norm a block is used only where the config asks for it",
    "lxmert": "the last norm called is the images' stream's; the text's comes first in the output",
    "seggpt": "the norm is called on intermediate states; the last one is handed on without",
    "timesfm2_5": "the last norm makes what its block adds to the stream",
    "xmod": "the norm behind the blocks is left out by default: each block ends in one",
    "videomae": "the norm is left out where the config asks for a mean over tokens, as it does by default",
}

LAYERNORM, RMSNORM, ONE_PLUS = ("layernorm", 0.0), ("rmsnorm", 0.0), ("rmsnorm", 1.0)

# Name of the final norm within the base model, kind and gain offset, as the architectures' papers and code have it.
BY_HAND = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), ("norm", *RMSNORM)),
    **dict.fromkeys(("phi3", "olmo2", "olmo3", "olmoe", "granite", "granitemoe"), ("norm", *RMSNORM)),
    **dict.fromkeys(("glm", "glm4", "smollm3", "exaone4", "gpt_oss", "seed_oss"), ("norm", *RMSNORM)),
    **dict.fromkeys(("ernie4_5", "arcee", "minimax", "bitnet", "apertus", "dots1", "deepseek_v3"), ("norm", *RMSNORM)),
    **dict.fromkeys(("jetmoe", "diffllama", "deepseek_v2", "glm4_moe", "aria_text"), ("norm", *RMSNORM)),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen3_next", "vaultgemma"), ("norm", *ONE_PLUS)),
    "gemma3n_text": ("norm", *RMSNORM),
    "recurrent_gemma": ("final_norm", *ONE_PLUS),
    "nemotron": ("norm", "layernorm", 1.0),
    "cohere": ("norm", *LAYERNORM),
    "cohere2": ("norm", *LAYERNORM),
    "stablelm": ("norm", *LAYERNORM),
    "starcoder2": ("norm", *LAYERNORM),
    "persimmon": ("final_layernorm", *LAYERNORM),
    "phi": ("final_layernorm", *LAYERNORM),
    "olmo": ("norm", *LAYERNORM),
    "mamba": ("norm_f", *RMSNORM),
    "falcon_mamba": ("norm_f", *RMSNORM),
    "lfm2": ("embedding_norm", *RMSNORM),
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "gpt_bigcode", "falcon", "bloom", "codegen"), ("ln_f", *LAYERNORM)),
    "mpt": ("norm_f", *LAYERNORM),
    "gpt_neox": ("final_layer_norm", *LAYERNORM),
    "gpt_neox_japanese": ("final_layer_norm", *LAYERNORM),
    "biogpt": ("layer_norm", *LAYERNORM),
    "xglm": ("layer_norm", *LAYERNORM),
    "opt": ("decoder.final_layer_norm", *LAYERNORM),
    "ctrl": ("layernorm", *LAYERNORM),
    "rwkv": ("ln_out", *LAYERNORM),
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), ("decoder.final_layer_norm", *RMSNORM)),
    **dict.fromkeys(("bart", "marian"), ("decoder.layers.{last}.final_layer_norm", *LAYERNORM)),
    **dict.fromkeys(("mbart", "pegasus", "whisper", "m2m_100"), ("decoder.layer_norm", *LAYERNORM)),
    **dict.fromkeys(
        ("bert", "roberta", "electra", "xlm-roberta", "camembert", "layoutlm", "mpnet", "deberta", "deberta-v2"),
        ("encoder.layer.{last}.output.LayerNorm", *LAYERNORM),
    ),
    "distilbert": ("transformer.layer.{last}.output_layer_norm", *LAYERNORM),
    "modernbert": ("final_norm", *LAYERNORM),
    **dict.fromkeys(("vit", "deit", "dinov2", "vit_msn", "yolos", "ijepa"), ("layernorm", *LAYERNORM)),
    "vit_mae": ("layernorm", *LAYERNORM),
    "clip_text_model": ("final_layer_norm", *LAYERNORM),
    "siglip_vision_model": ("post_layernorm", *LAYERNORM),
    "wav2vec2": ("encoder.layers.{last}.final_layer_norm", *LAYERNORM),
    "hubert": ("encoder.layers.{last}.final_layer_norm", *LAYERNORM),
}


def _main(row):
    norms = [stack["norm"] for stack in row["stacks"] if stack["norm"]]
    return (norms[0]["module"], norms[0]["kind"], norms[0].get("offset", 0.0)) if norms else None


def _starred(path):
    return re.sub(r"\{last\}|\b\d+\b", "*", path)


def _compare(names):
    """The rows that the source agrees with, and those where it plainly says otherwise."""
    agree, differ = [], {}
    for name in names:
        found, ours = final_norm(base_class(name)), _main(ROWS[name])
        if found is None:
            continue
        if ours is not None and (found.path, found.kind, found.offset) == (_starred(ours[0]), *ours[1:]):
            agree.append(name)
        else:
            differ[name] = (found, ours)
    return agree, differ


def test_the_source_code_of_a_sample_says_the_same():
    names = ("bert", "gemma2", "gpt2", "llama", "nemotron", "olmo", "t5", "vit")
    assert _compare(names) == (list(names), {})


@pytest.mark.slow  # imports every modelling file
def test_the_source_code_says_the_same_wherever_it_says_it_plainly():
    agree, differ = _compare(ROWS)
    assert differ.keys() <= READ_WRONGLY.keys(), differ
    assert len(agree) >= 0.7 * len(ROWS)  # else the reader has gone blind, and its silence proves nothing


@pytest.mark.parametrize("edit", [("gemma2", "offset", 0.0), ("olmo", "kind", "rmsnorm"), ("bert", "module", "pooler")])
def test_a_wrong_row_is_seen(monkeypatch, edit):
    name, key, value = edit
    row = json.loads(json.dumps(ROWS[name]))
    row["stacks"][0]["norm"][key] = value
    monkeypatch.setitem(ROWS, name, row)
    assert list(_compare([name])[1]) == [name]


@pytest.mark.parametrize("name", sorted(BY_HAND.keys() & ROWS.keys()))
def test_rows_are_what_was_written_by_hand(name):
    assert _main(ROWS[name]) == BY_HAND[name]


def test_the_list_written_by_hand_is_long_enough():
    assert len(BY_HAND.keys() & ROWS.keys()) >= 60


def test_the_reader_tells_kinds_and_offsets_apart():
    """Negative controls: a reader that always said the same would agree with most rows."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
    from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

    assert norm_class(nn.LayerNorm) == LAYERNORM
    assert norm_class(LlamaRMSNorm) == RMSNORM
    assert norm_class(GemmaRMSNorm) == ONE_PLUS
    assert norm_class(NemotronLayerNorm1P) == ("layernorm", 1.0)
    assert norm_class(LlamaMLP) is None
