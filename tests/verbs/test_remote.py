"""Verbs that run a model of the hub: its files are downloaded once, into huggingface_hub's own cache."""

import pytest
import torch
from hub_server import Repository

import deadreckon
from deadreckon.errors import UnreachableError, UsageError
from deadreckon.forward.tiny import tiny_model

TOKENS = 600


@pytest.fixture
def tiny(hub, tmp_path):
    folder = tmp_path / "tiny"
    tiny_model("gpt_neox").save_pretrained(folder)
    files = {path.name: path for path in folder.iterdir()}
    hub.repositories["org/tiny"] = Repository({**files, "consolidated.safetensors": b"a copy", "notes.pdf": b"large"})
    return folder


def test_measure_and_trace_download_what_they_run(tiny, hub, monkeypatch):
    commit = hub.repositories["org/tiny"].commit
    measured, local = (deadreckon.measure(model, tokens=TOKENS) for model in ("org/tiny", tiny))
    assert (measured.revision, local.revision) == (commit, None)
    assert measured.model == "org/tiny"
    assert measured.protocol.status == "ok"
    assert measured.lambda_2 == local.lambda_2
    assert [f.sha256 for f in measured.files] == [f.sha256 for f in local.files]
    asked = " ".join(a.path for a in hub.asked)
    assert "pdf" not in asked
    assert "consolidated" not in asked

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    traced = deadreckon.trace("org/tiny", tokens=TOKENS)
    assert (traced.revision, hub.asked) == (commit, [])
    assert len(traced.blocks) > 1


def test_what_cannot_be_downloaded(tiny, hub, monkeypatch):
    hub.repositories["org/tiny"].gated = True
    with pytest.raises(UnreachableError, match=r"gated: accept its conditions at .*/org/tiny"):
        deadreckon.trace("org/tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnreachableError, match=r"org/tiny: not in the cache"):
        deadreckon.measure("org/tiny", tokens=TOKENS)


def test_timm_s_names_are_models_of_its_organisation(hub, tmp_path):
    """Run where timm is installed, which needs a torchvision that fits torch."""
    timm = pytest.importorskip("timm")
    hub_layout = pytest.importorskip("timm.models._hub")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    hub_layout.save_for_hf(model, tmp_path / "vit", model_config={"num_classes": 1000}, safe_serialization=True)
    files = {path.name: path for path in (tmp_path / "vit").iterdir()}
    hub.repositories["timm/vit_tiny_patch16_224.mine"] = Repository(files)
    found = deadreckon.read("timm:vit_tiny_patch16_224.mine")
    assert (found.kind, found.hidden_size, found.final_norm) == ("layernorm", 192, "norm.weight")
    measured = deadreckon.measure("timm:vit_tiny_patch16_224.mine", seed=1)
    assert (measured.protocol.status, measured.kind, measured.described_by) == ("ok", "layernorm", "checkpoint")
    assert measured.alignment > 0.9999
    assert len(deadreckon.trace("timm:vit_tiny_patch16_224.mine").blocks) == 13


def test_reading_by_timm_s_name_needs_no_timm(hub, tmp_path):
    import json

    from safetensors.torch import save

    norm = {"norm.weight": torch.rand(64) + 0.5, "norm.bias": torch.zeros(64)}
    config = json.dumps({"architecture": "vit_tiny_patch16_224", "num_features": 64}).encode()
    hub.repositories["timm/vit.mine"] = Repository({"config.json": config, "model.safetensors": save(norm)})
    found = deadreckon.read("timm:vit.mine@main")
    assert (found.model, found.kind, found.hidden_size) == ("timm/vit.mine@main", "layernorm", 64)
    with pytest.raises(UsageError, match="not a name on the hub"):
        deadreckon.read("timm:")
