"""Verbs that run a model of the hub: its files are downloaded once, into huggingface_hub's own cache."""

import pytest
from hub_server import Repository

import deadreckon
from deadreckon.errors import UnreachableError
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
