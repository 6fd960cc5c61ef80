"""Writers of small checkpoint files, and the trained models where their packages are installed."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deadreckon.checkpoint.demo import demo_path
from deadreckon.errors import UnreachableError


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header at all: a JSON value, or raw bytes; `length` overrides the length field."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def vector_file(**vectors: np.ndarray) -> bytes:
    """A valid safetensors file of float32 vectors."""
    header, data = {}, b""
    for name, values in vectors.items():
        raw = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return safetensors_bytes(header, data)


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_bytes(
    pairs: bytes = b"",
    pair_count: int = 0,
    infos: bytes = b"",
    tensor_count: int = 0,
    data: bytes = b"",
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file from its raw parts, the data aligned after the header."""
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count) + pairs + infos
    return head + bytes(-len(head) % alignment) + data


def gguf_info(name: str, shape: tuple[int, ...], code: int = 0, offset: int = 0) -> bytes:
    """One tensor's entry; `shape` slowest axis first."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return gguf_string(name) + sizes + struct.pack("<IQ", code, offset)


class Build:
    """The builders above, as one fixture."""

    safetensors = staticmethod(safetensors_bytes)
    vectors = staticmethod(vector_file)
    gguf = staticmethod(gguf_bytes)
    gguf_info = staticmethod(gguf_info)
    gguf_string = staticmethod(gguf_string)


@pytest.fixture(scope="session")
def build() -> type[Build]:
    return Build


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes | object], Path]:
    """Write one file of the test's directory: bytes as they are, anything else as JSON."""

    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def _installed(name: str) -> Path:
    try:
        return demo_path(name)
    except UnreachableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def minilm() -> Path:
    return _installed("minilm")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return _installed("smollm2")
