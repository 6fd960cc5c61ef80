"""GGUF headers against the format's own reader and writer, and the walk over a vocabulary."""

import struct
import time

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from deadreckon.checkpoint import bounded
from deadreckon.checkpoint import gguf as ours
from deadreckon.checkpoint.bounded import Cursor
from deadreckon.checkpoint.gguf import GgufCheckpoint
from deadreckon.errors import InputError


def oracle_of(path):
    """What the official reader sees: name -> (type, shape, start, stop, data)."""
    return {
        tensor.name: (
            tensor.tensor_type.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            int(tensor.data_offset),
            int(tensor.data_offset + tensor.n_bytes),
            tensor.data,
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


def write(path, arch="llama", tensors=None, alignment=None, endianess=gguf.GGUFEndian.LITTLE, fill=None):
    writer = gguf.GGUFWriter(path, arch, endianess=endianess)
    if alignment:
        writer.add_custom_alignment(alignment)
    if fill:
        fill(writer)
    for name, (values, kind) in (tensors or {}).items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_smollm2(smollm2):
    checkpoint = GgufCheckpoint.open(smollm2)
    oracle = oracle_of(smollm2)
    assert set(checkpoint.tensors) == set(oracle)
    for name, (dtype, shape, start, stop, data) in oracle.items():
        entry = checkpoint.tensors[name]
        assert (entry.dtype, entry.shape, entry.start, entry.stop) == (dtype, shape, start, stop)
        if len(shape) == 1:
            np.testing.assert_array_equal(checkpoint.vector(name), data.astype(np.float64))
    assert checkpoint.tensors["token_embd.weight"].shape == (49152, 576)  # the file itself says (576, 49152)
    assert checkpoint.architecture == "llama"
    assert checkpoint.config["llama.block_count"] == 30
    assert "tokenizer.ggml.tokens" not in checkpoint.config
    with pytest.raises(InputError, match=r"gguf: tensor 'blk.0.ffn_down.weight' has shape \(576, 1536\)"):
        checkpoint.vector("blk.0.ffn_down.weight")


def test_smollm2_is_read_no_further_than_its_header(smollm2):
    times = []
    for _ in range(3):
        started = time.perf_counter()
        checkpoint = GgufCheckpoint.open(smollm2)
        times.append(time.perf_counter() - started)
    header = min(entry.start for entry in checkpoint.tensors.values())
    token_types = 4 * 49152  # the one long array of numbers: it is not read
    assert header - token_types - 2 * bounded._BLOCK <= checkpoint.bytes_read <= header + bounded._BLOCK
    assert min(times) < 0.1  # about 10 ms; the official reader takes seconds
    opened = checkpoint.bytes_read
    checkpoint.vector("output_norm.weight")
    assert checkpoint.bytes_read == opened + 576 * 4


def test_every_kind_of_metadata(tmp_path):
    values = {
        "u8": (gguf.GGUFValueType.UINT8, 200),
        "i8": (gguf.GGUFValueType.INT8, -100),
        "u16": (gguf.GGUFValueType.UINT16, 60000),
        "i16": (gguf.GGUFValueType.INT16, -30000),
        "u32": (gguf.GGUFValueType.UINT32, 4 * 10**9),
        "i32": (gguf.GGUFValueType.INT32, -(2 * 10**9)),
        "f32": (gguf.GGUFValueType.FLOAT32, 0.15625),
        "bool": (gguf.GGUFValueType.BOOL, True),
        "string": (gguf.GGUFValueType.STRING, "größe"),
        "empty": (gguf.GGUFValueType.STRING, ""),
        "u64": (gguf.GGUFValueType.UINT64, 2**63 + 1),
        "i64": (gguf.GGUFValueType.INT64, -(2**62)),
        "f64": (gguf.GGUFValueType.FLOAT64, 1 / 3),
    }

    def fill(writer):
        for key, (kind, value) in values.items():
            writer.add_key_value(f"x.{key}", value, kind)
        writer.add_array("x.per_layer", [1, 2, 3])
        writer.add_array("x.flags", [True, False])
        writer.add_array("x.words", ["a", "", "b" * 300, "\0\0\0\0\0\0\0\0\0"])
        writer.add_array("x.long", list(range(5000)))
        writer.add_array("x.nested", [[1, 2], [3]])
        writer.add_string("x.template", "t" * 100_000)
        writer.add_string("x.last", "reached")

    gain = np.linspace(0.5, 2, 7, dtype=np.float32)
    path = write(tmp_path / "x.gguf", "test", {"norm": (gain, None)}, fill=fill)
    checkpoint = GgufCheckpoint.open(path)
    expected = {f"x.{key}": value for key, (_, value) in values.items()} | {
        "general.architecture": "test",
        "x.per_layer": [1, 2, 3],
        "x.flags": [True, False],
        "x.last": "reached",
    }
    assert checkpoint.config == expected
    assert type(checkpoint.config["x.bool"]) is bool
    np.testing.assert_array_equal(checkpoint.vector("norm"), gain)


@pytest.mark.parametrize("alignment", [None, 8, 64, 1024])
@pytest.mark.parametrize("version", [2, 3])
def test_agrees_with_the_official_writer(alignment, version, tmp_path):
    random = np.random.default_rng(0)
    gain = random.standard_normal(96)
    kind = gguf.GGMLQuantizationType
    bf16 = (gain.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensors = {
        "norm.f32": (gain.astype(np.float32), None),
        "norm.f16": (gain.astype(np.float16), None),
        "norm.f64": (gain, None),
        "norm.bf16": (bf16.view(np.uint8), kind.BF16),
        "matrix": (gguf.quantize(random.standard_normal((5, 96)).astype(np.float32), kind.Q8_0), kind.Q8_0),
        "cube": (random.standard_normal((2, 3, 4)).astype(np.float32), None),
        "norm.quantised": (gguf.quantize(gain.astype(np.float32), kind.Q8_0), kind.Q8_0),
        "norm.integer": (np.arange(96, dtype=np.int32), None),
    }
    path = write(tmp_path / "x.gguf", "llama", tensors, alignment)
    raw = bytearray(path.read_bytes())
    raw[4:8] = struct.pack("<I", version)
    path.write_bytes(raw)
    checkpoint = GgufCheckpoint.open(path)
    oracle = oracle_of(path)
    assert {name: (e.dtype, e.shape, e.start, e.stop) for name, e in checkpoint.tensors.items()} == {
        name: fields[:4] for name, fields in oracle.items()
    }
    assert checkpoint.tensors["matrix"].shape == (5, 96)
    assert checkpoint.tensors["cube"].shape == (2, 3, 4)
    np.testing.assert_array_equal(checkpoint.vector("norm.f64"), gain)
    np.testing.assert_array_equal(checkpoint.vector("norm.f32"), gain.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(checkpoint.vector("norm.f16"), gain.astype(np.float16).astype(np.float64))
    truncated = (bf16.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(checkpoint.vector("norm.bf16"), truncated.astype(np.float64))
    for name, dtype in (("norm.quantised", "Q8_0"), ("norm.integer", "I32")):
        with pytest.raises(InputError, match=rf"x.gguf: tensor '{name}' is stored as {dtype}, an integer or quantised"):
            checkpoint.vector(name)


def test_the_table_of_types_is_that_of_the_official_package():
    official = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {code: row for code, row in ours._TYPES.items() if code in official} == official


def test_a_big_endian_file_is_refused(tmp_path):
    path = write(tmp_path / "x.gguf", "llama", {"norm": (np.ones(4, np.float32), None)}, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(InputError, match=r"x.gguf: a big-endian GGUF file"):
        GgufCheckpoint.open(path)


def test_a_part_of_a_split_model_says_so(tmp_path):
    def fill(writer):
        writer.add_key_value("split.no", 1, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.count", 3, gguf.GGUFValueType.UINT16)

    tensors = {"blk.0.attn_norm.weight": (np.ones(4, np.float32), None)}
    checkpoint = GgufCheckpoint.open(write(tmp_path / "x-00002-of-00003.gguf", "llama", tensors, fill=fill))
    np.testing.assert_array_equal(checkpoint.vector("blk.0.attn_norm.weight"), np.ones(4))
    with pytest.raises(InputError, match=r"no tensor named 'output_norm.weight'.*this is part 2 of 3 of a split model"):
        checkpoint.vector("output_norm.weight")
    whole = GgufCheckpoint.open(write(tmp_path / "x.gguf", "llama", tensors))
    with pytest.raises(InputError) as caught:
        whole.vector("blk.0.attn_norm.weigth")
    assert "this is part" not in str(caught.value)
    assert "the closest names are 'blk.0.attn_norm.weight'" in str(caught.value)


def test_recognised_by_name_or_first_bytes(tmp_path):
    path = write(tmp_path / "x.gguf", "llama", {"norm": (np.ones(4, np.float32), None)})
    blob = path.rename(tmp_path / "a1b2c3")
    assert GgufCheckpoint.recognises(blob)
    assert GgufCheckpoint.recognises(tmp_path / "missing.gguf")
    assert not GgufCheckpoint.recognises(tmp_path)
    blob.write_bytes(b"GGU")
    assert not GgufCheckpoint.recognises(blob)


# Texts that look like lengths (zeros, small bytes before zeros), empty ones, and ones too long for a single byte.
_TEXTS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.text("\0\1\5a", max_size=24).map(str.encode),
        st.integers(200, 700).map(lambda size: b"z" * size),
    ),
    max_size=60,
)


@given(texts=_TEXTS, block=st.sampled_from([16, 64, 512, 1 << 15]), extra=st.integers(0, 5))
def test_strings_are_stepped_over_exactly(texts, block, extra, tmp_path_factory):
    """Whatever the texts and wherever the blocks end, the cursor stops where adding up the lengths says."""
    path = tmp_path_factory.mktemp("cursor") / "strings"
    prefix = b"\7" * 5
    raw = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    path.write_bytes(prefix + raw + b"next" + bytes(extra * 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "_BLOCK", block)
        cursor = Cursor(path)
        assert cursor.take(5, "prefix") == prefix
        cursor.skip_strings(len(texts), "texts")
        assert cursor.position == len(prefix) + len(raw)
        assert cursor.take(4, "next") == b"next"
        assert cursor.bytes_read <= path.stat().st_size


def test_strings_past_the_end_are_refused(tmp_path):
    path = tmp_path / "strings"
    path.write_bytes(struct.pack("<Q", 3) + b"abc" + struct.pack("<Q", 2**64 - 1) + b"abc")
    cursor = Cursor(path)
    cursor.skip_strings(1, "texts")
    with pytest.raises(InputError, match="strings: texts should end at byte"):
        cursor.skip_strings(1, "texts")
