"""Checkpoints in other libraries' layouts: quantised ones, timm's, PEFT adapters, and what GGUF files say."""

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES
from safetensors.torch import save_file

from deadreckon import classify, read
from deadreckon.checkpoint.atlas import gguf_naming, lookup
from deadreckon.checkpoint.source import open_model
from deadreckon.errors import InputError, UsageError

D = 32
GAIN = torch.linspace(0.5, 1.5, D)


def packed(stem, method):
    """What a quantised linear layer of D by D leaves in a file, by method."""
    one = torch.ones
    tensors = {
        "gptq": {
            "qweight": one(D // 8, D, dtype=torch.int32),
            "qzeros": one(1, D // 8, dtype=torch.int32),
            "scales": one(1, D, dtype=torch.float16),
            "g_idx": torch.zeros(D, dtype=torch.int32),
        },
        "awq": {
            "qweight": one(D, D // 8, dtype=torch.int32),
            "qzeros": one(1, D // 8, dtype=torch.int32),
            "scales": one(1, D, dtype=torch.float16),
        },
        "bitsandbytes 4 bit": {
            "weight": one(D * D // 2, 1, dtype=torch.uint8),
            "weight.absmax": one(D * D // 64),
            "weight.quant_map": torch.linspace(-1, 1, 16),
            "weight.nested_absmax": one(1),
            "weight.quant_state.bitsandbytes__nf4": one(80, dtype=torch.uint8),
        },
        "bitsandbytes 8 bit": {
            "weight": one(D, D, dtype=torch.int8),
            "SCB": one(D),
            "weight_format": one((), dtype=torch.uint8),
        },
        "compressed-tensors": {
            "weight_packed": one(D, D // 8, dtype=torch.int32),
            "weight_scale": one(D, 1, dtype=torch.bfloat16),
            "weight_shape": torch.tensor([D, D]),
        },
        "fp8": {"weight": one(D, D).to(torch.float8_e4m3fn), "weight_scale_inv": one(1, 1)},
        "nvfp4": {
            "weight": one(D, D // 2, dtype=torch.uint8),
            "weight_scale": one(D, D // 16).to(torch.float8_e4m3fn),
            "weight_scale_2": one(()),
        },
        "hqq": {
            "W_q": one(D // 2, D, dtype=torch.uint8),
            "scale": one(D, 1, dtype=torch.float16),
            "zero": one(D, 1, dtype=torch.float16),
            "nbits": torch.tensor([4], dtype=torch.int32),
            "shape": torch.tensor([D, D]),
        },
    }[method]
    return {f"{stem}.{name}": tensor for name, tensor in tensors.items()}


METHODS = ("gptq", "awq", "bitsandbytes 4 bit", "bitsandbytes 8 bit", "compressed-tensors", "fp8", "nvfp4", "hqq")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_model_keeps_its_norms_plain(method, dtype, file, tmp_path, put):
    tensors = {"model.norm.weight": GAIN.to(dtype), "model.layers.0.input_layernorm.weight": GAIN.to(dtype) + 0}
    for linear in ("self_attn.q_proj", "mlp.up_proj"):
        tensors |= packed(f"model.layers.0.{linear}", method)
    (save_file if "safetensors" in file else torch.save)(tensors, tmp_path / file)
    quantised = {"quant_method": method.split()[0], "bits": 4}
    put(
        "config.json",
        {"model_type": "llama", "hidden_size": D, "num_hidden_layers": 1, "quantization_config": quantised},
    )
    found = read(tmp_path, norm="all")
    assert (found.kind, found.final_norm) == ("rmsnorm", "model.norm.weight")
    assert [n.role for n in found.norms] == ["final", "block"]
    assert found.smallest_gain == float(GAIN.to(dtype).min())
    checkpoint = open_model(tmp_path)
    assert [name for name in tensors if checkpoint.tensors[name].shape != tuple(tensors[name].shape)] == []


def test_a_norm_that_is_quantised_is_refused(tmp_path, put):
    """A control: a gain in 8 bits with its scale beside it is not taken for plain numbers."""
    scale = {"model.norm.weight_scale": torch.ones(1)}
    save_file({"model.norm.weight": GAIN.to(torch.float8_e4m3fn), **scale}, tmp_path / "model.safetensors")
    put("config.json", {"model_type": "llama", "hidden_size": D, "num_hidden_layers": 1})
    with pytest.raises(InputError, match=r"stored as F8_E4M3 with its scale in 'model\.norm\.weight_scale'"):
        read(tmp_path)


def timm(tmp_path, put, architecture, *stems, shift=True, **more):
    tensors = {"blocks.0.norm1.weight": GAIN.clone(), "blocks.0.norm1.bias": GAIN.clone(), **more}
    for i, stem in enumerate(stems):
        tensors[f"{stem}.weight"] = GAIN + i
        if shift:
            tensors[f"{stem}.bias"] = GAIN - 1
    save_file(tensors, tmp_path / "model.safetensors")
    put("config.json", {"architecture": architecture, "num_classes": 0, "num_features": D, "pretrained_cfg": {}})
    return tmp_path


@pytest.mark.parametrize(
    ("architecture", "stems", "shift", "kind"),
    [
        ("vit_base_patch16_224", ["norm"], True, "layernorm"),
        ("vit_base_patch16_clip_224", ["norm", "fc_norm"], True, "layernorm"),
        ("beit_base_patch16_224", ["fc_norm"], True, "layernorm"),
        ("convnext_tiny", ["head.norm"], True, "layernorm"),
        ("aimv2_large_patch14_224", ["norm"], False, "rmsnorm"),
    ],
)
def test_timm(architecture, stems, shift, kind, tmp_path, put):
    found = read(timm(tmp_path, put, architecture, *stems, shift=shift))
    assert (found.kind, found.final_norm) == (kind, f"{stems[0]}.weight")
    assert [n.role for n in found.norms] == ["final", "head"][: len(stems)]
    assert classify(tmp_path).results[0].kind == kind


@pytest.mark.parametrize("architecture", ["resnetv2_50x1_bit", "poolformer_s12", "some_new_net"])
def test_a_timm_family_that_is_not_known(architecture, tmp_path, put):
    """A gain and a shift may be a GroupNorm's there: nothing is concluded from them."""
    path = timm(tmp_path, put, architecture, "norm")
    with pytest.raises(
        UsageError, match=r"norm has a gain and a shift, and the atlas does not know it.*--kind layernorm"
    ):
        read(path)
    assert classify(path).results[0].kind == "undetermined"
    assert read(path, kind="layernorm").kind == "layernorm"


def test_a_timm_model_that_ends_in_a_batch_norm(tmp_path, put):
    path = timm(tmp_path, put, "vit_like_net", "norm", **{"norm.running_mean": torch.zeros(D)})
    with pytest.raises(UsageError, match="does not know the architecture 'vit_like_net'"):
        read(path)
    assert classify(path).results[0].kind == "undetermined"


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.1-8B", "modules_to_save": None}
LORA = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight": torch.ones(4, D) for x in "AB"}


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("named", ["directory", "file"])
def test_an_adapter_names_its_base_model(file, named, tmp_path, put):
    (save_file if "safetensors" in file else torch.save)(LORA, tmp_path / file)
    put("adapter_config.json", ADAPTER)
    path = tmp_path if named == "directory" else tmp_path / file
    words = "a LORA adapter: .*read its base model, 'meta-llama/Llama-3.1-8B'.*no tensor that looks like a norm's gain"
    with pytest.raises(UsageError, match=words):
        read(path)
    result = classify(path).results[0]
    assert result.kind == "undetermined"
    assert any(e.name == "adapter" and "meta-llama/Llama-3.1-8B" in e.value for e in result.evidence)


def test_the_norms_that_an_adapter_saves_are_read(tmp_path, put):
    save_file({**LORA, "base_model.model.model.norm.weight": GAIN}, tmp_path / "adapter_model.safetensors")
    put("adapter_config.json", ADAPTER | {"modules_to_save": ["norm"]})
    with pytest.raises(UsageError, match=r"choose with --norm NAME .*base_model.model.model.norm"):
        read(tmp_path)
    found = read(tmp_path, norm="norm", kind="rmsnorm")
    assert (found.final_norm, found.smallest_gain) == ("base_model.model.model.norm.weight", 0.5)


def test_a_model_beside_an_adapter_is_a_model(tmp_path, put):
    save_file({"model.norm.weight": GAIN}, tmp_path / "model.safetensors")
    put("adapter_config.json", ADAPTER)
    put("config.json", {"model_type": "llama", "hidden_size": D, "num_hidden_layers": 1})
    assert read(tmp_path).kind == "rmsnorm"


# GGUF: what a file says of the kind of its norms, by the same rule for read and classify.

BOTH = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")


def gguf_file(path, architecture, eps, *stems, shift=False):
    writer = gguf.GGUFWriter(path, architecture)
    for key in eps:
        writer.add_float32(f"{architecture}.{key}", 1e-5)
    writer.add_block_count(1)
    for stem in stems or ("output_norm",):
        writer.add_tensor(f"{stem}.weight", GAIN.numpy())
        if shift:
            writer.add_tensor(f"{stem}.bias", GAIN.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("shift", [False, True], ids=["gain", "gain and shift"])
@pytest.mark.parametrize("eps", [(), BOTH[:1], BOTH[1:], BOTH], ids=["no key", "ln key", "rms key", "both keys"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi2", "phimoe", "nothing_known"])
def test_read_and_classify_agree_on_gguf_files(architecture, eps, shift, tmp_path):
    path = gguf_file(tmp_path / "x.gguf", architecture, eps, shift=shift)
    verdict = classify(path).results[0].kind
    try:
        kind = read(path).kind
    except UsageError as error:
        kind = "undetermined" if "its kind cannot be told" in str(error) else str(error)
    assert kind == verdict
    known = {"llama": "rmsnorm", "gpt2": "layernorm", "phi2": "layernorm", "phimoe": "layernorm"}.get(architecture)
    said = {BOTH[:1]: "layernorm", BOTH[1:]: "undetermined" if shift else "rmsnorm"}
    by_shift = "layernorm" if shift else "undetermined"
    assert kind == (known or said.get(eps, by_shift))


def final_names(architecture):
    """Names that the official tables give the norms at the end of an architecture's streams."""
    names = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[architecture]}
    last = {name.format(bid=0) for name in names if name.endswith("layer_output_norm")}
    ends = names & {"output_norm", "enc.output_norm", "dec.output_norm", "v.post_ln"}
    return sorted(ends or last or names & {"token_embd_norm"})


@pytest.mark.parametrize(
    "architecture", sorted(MODEL_ARCH_NAMES), ids=lambda architecture: MODEL_ARCH_NAMES[architecture]
)
def test_every_architecture_of_llama_cpp_has_its_final_norm_found(architecture, tmp_path):
    name, stems = MODEL_ARCH_NAMES[architecture], final_names(architecture)
    row = lookup({"model_type": gguf_naming()["architectures"].get(name, name)})
    if not stems:
        assert name == "olmo"  # whose norms have no parameters
        return
    path = gguf_file(tmp_path / "x.gguf", name, BOTH[1:], *stems)
    found = read(path)
    assert {n.final_norm for n in found.norms} == {f"{stem}.weight" for stem in stems}
    assert found.kind == (row.final.kind if row and row.final else "rmsnorm")
    np.testing.assert_allclose(found.smallest_gain, 0.5)
