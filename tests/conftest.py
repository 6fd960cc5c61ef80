"""Trained models and small helpers that several tests share."""

import pytest

from deadreckon.checkpoint.demo import demo_path
from deadreckon.cli import main as cli
from deadreckon.errors import UnreachableError


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
