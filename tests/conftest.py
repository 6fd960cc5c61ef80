"""Trained models and small helpers that several tests share."""

import pytest
from hub_server import HubServer

from deadreckon.checkpoint import remote
from deadreckon.checkpoint.demo import demo_path
from deadreckon.cli import main as cli
from deadreckon.errors import UnreachableError

QUICK = remote.Patience(attempts=4, first_wait=0.01, longest_wait=2.0, silence=0.5, grace=1.5, slowest=1e6)


def _path(name):
    try:
        return demo_path(name)
    except UnreachableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def minilm():
    """Directory of all-MiniLM-L6-v2: LayerNorm, trained, three gains near zero."""
    return _path("minilm")


@pytest.fixture(scope="session")
def smollm2():
    """GGUF file of SmolLM2-135M-Instruct: RMSNorm, trained."""
    return _path("smollm2")


@pytest.fixture
def called(capfd):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that huggingface_hub is pointed to, with an empty cache and without a token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    with HubServer().running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(remote, "PATIENCE", QUICK)
        monkeypatch.chdir(tmp_path)
        yield server
