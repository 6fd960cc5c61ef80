"""Writers of small checkpoint files, and the trained models where their packages are installed."""

import io
import json
import struct
import zipfile
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


def proto(*fields: tuple[int, object]) -> bytes:
    """A protobuf message of numbered fields: whole numbers, floats (32 bits), and text or bytes."""
    raw = b""
    for number, value in fields:
        if isinstance(value, int):
            raw += varint(number << 3) + varint(value % (1 << 64))
        elif isinstance(value, float):
            raw += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            content = value.encode() if isinstance(value, str) else value
            raw += varint(number << 3 | 2) + varint(len(content)) + content
    return raw


def varint(value: int) -> bytes:
    raw = b""
    while value > 127:
        raw += bytes([value & 127 | 128])
        value >>= 7
    return raw + bytes([value])


def onnx_weight(name: str, values: np.ndarray, code: int = 1) -> bytes:
    """A TensorProto with raw data."""
    return proto(*((1, size) for size in values.shape), (2, code), (8, name), (9, values.tobytes()))


def onnx_node(op: str, inputs: str, output: str, *attributes: bytes, domain: str = "") -> bytes:
    """A NodeProto; its inputs separated by spaces."""
    named = [(1, name) for name in inputs.split()]
    return proto(*named, (2, output), (4, op), *((5, attribute) for attribute in attributes), (7, domain))


def onnx_model(nodes: list[bytes], weights: list[bytes], outputs: tuple[str, ...] = ("out",)) -> bytes:
    """A ModelProto."""
    parts = [*((1, node) for node in nodes), *((5, weight) for weight in weights)]
    return proto((1, 8), (7, proto(*parts, *((12, proto((1, name))) for name in outputs))))


def torch_zip(pickled: bytes, folder: str = "archive", **records: bytes) -> bytes:
    """A file of torch.save's layout around any pickle; its storages as records."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        archive.writestr(f"{folder}/byteorder", b"little")
        for key, content in records.items():
            archive.writestr(f"{folder}/data/{key}", content)
    return stream.getvalue()


class Build:
    """The builders above, as one fixture."""

    proto = staticmethod(proto)
    onnx = staticmethod(onnx_model)
    onnx_node = staticmethod(onnx_node)
    onnx_weight = staticmethod(onnx_weight)
    torch_zip = staticmethod(torch_zip)

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
