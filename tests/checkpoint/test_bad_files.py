"""Damaged and hostile files: one clear error that names file and tensor, and no memory out of proportion."""

import json
import pickle
import struct
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deadreckon.checkpoint import pickles, zipped  # noqa: F401 - imported late otherwise, and counted as memory
from deadreckon.checkpoint.bounded import HEADER_LIMIT
from deadreckon.checkpoint.find import find_norms
from deadreckon.checkpoint.gguf import GgufCheckpoint
from deadreckon.checkpoint.onnx import OnnxCheckpoint
from deadreckon.checkpoint.safetensors import SafetensorsCheckpoint
from deadreckon.checkpoint.source import open_model
from deadreckon.checkpoint.torchfile import TorchCheckpoint
from deadreckon.errors import DeadreckonError, InputError, UnreachableError

MEGABYTE = 1 << 20


@contextmanager
def at_most(allowed):
    """Fail when the block allocates more than `allowed` bytes at its peak, NumPy's arrays included."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= allowed, f"{peak} bytes allocated, {allowed} allowed"


def refused(path, *expected, error=InputError, tensor="norm"):
    """Opening `path` and reading `tensor` raises one line that starts with a file and holds the `expected` words."""
    with at_most(MEGABYTE), pytest.raises(error) as caught:
        open_model(path).vector(tensor)
    message = str(caught.value)
    assert caught.value.exit_code == (3 if error is UnreachableError else 2)
    assert "\n" not in message
    assert str(path if path.is_dir() else path.parent) in message
    for words in expected:
        assert words in message


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DUPLICATE = b'{"norm": %s, "norm": %s}' % tuple(
    json.dumps(entry(offsets=offsets)).encode() for offsets in ((0, 8), (8, 16))
)

# what is wrong -> header, bytes of data, words that the error must hold
HEADERS = {
    "not JSON": (b'{"norm": ', 8, ["the header: not valid JSON"]),
    "not UTF-8": (b'{"\xff": 1}', 8, ["the header: not valid JSON"]),
    "UTF-16": ('{"norm": 1}'.encode("utf-16-le"), 8, ["the header: not valid JSON"]),
    "a list": (b"[1, 2, 3]", 8, ["its header starts with"]),
    "a key that is no string": (b'{1: {"dtype": "F32"}}', 8, ["the header: not valid JSON"]),
    "nested beyond reason": (b'{"norm":' + b"[" * 100_000, 8, ["the header: not valid JSON"]),
    "a number of 5000 digits": (b'{"norm":' + b"9" * 5000 + b"}", 8, ["the header: not valid JSON"]),
    "one name twice": (DUPLICATE, 16, ["the header: 'norm' appears twice"]),
    "an entry that is no object": ({"norm": 3}, 8, ["tensor 'norm'", "dtype, shape and data_offsets"]),
    "no shape": ({"norm": {"dtype": "F32", "data_offsets": [0, 8]}}, 8, ["tensor 'norm'", "dtype, shape"]),
    "unknown dtype": ({"norm": entry("F31")}, 8, ["tensor 'norm'", "unknown dtype 'F31'"]),
    "dtype of a wrong type": ({"norm": entry(["F32"])}, 8, ["tensor 'norm'", "unknown dtype"]),
    "negative size": ({"norm": entry(shape=(-2,))}, 8, ["tensor 'norm'", "shape [-2]"]),
    "fractional size": ({"norm": entry(shape=(2.0,))}, 8, ["tensor 'norm'", "shape [2.0]"]),
    "size true": ({"norm": entry(shape=(True,), offsets=(0, 4))}, 4, ["tensor 'norm'", "shape [True]"]),
    "shape of text": ({"norm": entry() | {"shape": "2"}}, 8, ["tensor 'norm'", "shape 2"]),
    "size of 2^63": ({"norm": entry(shape=(1 << 63,))}, 8, ["tensor 'norm'", "is not a list of sizes"]),
    "size of 2^62": ({"norm": entry(shape=(1 << 62,))}, 8, ["tensor 'norm'", "8 bytes do not hold shape"]),
    "shape larger than the data": ({"norm": entry(shape=(3,))}, 8, ["tensor 'norm'", "do not hold shape [3] of F32"]),
    "shape smaller than the data": ({"norm": entry(shape=(1,))}, 8, ["tensor 'norm'", "do not hold shape [1]"]),
    "half a byte": ({"norm": entry("F4", (3,), (0, 1))}, 1, ["tensor 'norm'", "1 bytes do not hold shape [3] of F4"]),
    "offsets beyond the file": ({"norm": entry()}, 4, ["tensor 'norm'", "cut short"]),
    "offsets reversed": ({"norm": entry(offsets=(8, 0))}, 8, ["tensor 'norm'", "two increasing offsets"]),
    "offsets negative": ({"norm": entry(offsets=(-8, 0))}, 8, ["tensor 'norm'", "two increasing offsets"]),
    "three offsets": ({"norm": entry(offsets=(0, 8, 8))}, 8, ["tensor 'norm'", "two increasing offsets"]),
    "offsets huge": ({"norm": entry(offsets=(1 << 62, (1 << 62) + 8))}, 8, ["tensor 'norm'", "cut short"]),
    "overlap": ({"norm": entry(), "other": entry(offsets=(4, 12))}, 12, ["'norm' and 'other' overlap"]),
    "the same bytes twice": ({"norm": entry(), "other": entry()}, 8, ["'norm' and 'other' overlap"]),
    "a hole": ({"norm": entry(offsets=(8, 16))}, 16, ["8 bytes between the header and 'norm' belong to no tensor"]),
    "a tail": ({"norm": entry()}, 12, ["4 bytes after 'norm' belong to no tensor"]),
    "a name with a line break": ({"no\nrm": entry("F31")}, 8, [r"tensor 'no\nrm'"]),
    "half of a surrogate pair": (b'{"\\ud800": 3}', 8, [r"tensor '\ud800'"]),
}


@pytest.mark.parametrize("what", HEADERS)
def test_safetensors_header(what, build, put):
    header, size, words = HEADERS[what]
    refused(put("x.safetensors", build.safetensors(header, bytes(size))), *words)


def test_the_table_of_headers_starts_from_a_good_one(build, put):
    path = put("x.safetensors", build.safetensors({"norm": entry(), "__metadata__": {"format": "pt"}}, bytes(8)))
    np.testing.assert_array_equal(open_model(path).vector("norm"), [0.0, 0.0])
    assert set(open_model(path).tensors) == {"norm"}


def test_a_product_of_sizes_that_would_take_minutes(build, put):
    """Its exact value has twelve million bits; the comparison with the data needs only the first few."""
    path = put("x.safetensors", build.safetensors({"norm": entry(shape=((1 << 62) + 1,) * 200_000)}, bytes(8)))
    started = time.perf_counter()
    with pytest.raises(InputError, match="tensor 'norm': 8 bytes do not hold shape"):
        open_model(path)
    assert time.perf_counter() - started < 2


def test_an_empty_tensor_may_have_a_long_axis(build, put):
    header = {"empty": entry(shape=(1 << 40, 0), offsets=(0, 0)), "norm": entry()}
    checkpoint = open_model(put("x.safetensors", build.safetensors(header, bytes(8))))
    assert checkpoint.tensors["empty"].shape == (1 << 40, 0)
    refused(checkpoint.path, "tensor 'empty' has shape (1099511627776, 0)", tensor="empty")


@pytest.mark.parametrize("kind", [SafetensorsCheckpoint, GgufCheckpoint, TorchCheckpoint, OnnxCheckpoint])
@pytest.mark.parametrize("name", ["missing", "a\0b", "a" * 5000])
def test_no_file_of_that_name(kind, name, tmp_path):
    with pytest.raises(UnreachableError):
        kind.open(tmp_path / name)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (2**64 - 1, "its header would be 18446744073709551615 bytes long"),
        (HEADER_LIMIT + 1, "its header would be 100000001 bytes long (the format allows 2 to 100000000)"),
        (HEADER_LIMIT, "its header should be 100000000 bytes long and only"),
        (1000, "its header should be 1000 bytes long and only"),
        (0, "its header would be 0 bytes long"),
        (1, "its header would be 1 bytes long"),
        (4, "the header: not valid JSON"),
    ],
)
def test_safetensors_header_length(length, words, build, put):
    refused(put("x.safetensors", build.safetensors({"norm": entry()}, bytes(8), length=length)), words)


@pytest.mark.parametrize("first", [b"", b"\0" * 9, b"\0" * 64, b"{", b"\2\0\0\0\0\0\0\0{"])
def test_safetensors_too_short(first, put):
    refused(put("x.safetensors", first), "not a safetensors file")


def test_a_sparse_file_of_zeros_costs_nothing(tmp_path):
    """It is large enough for any header it might claim, and holds none."""
    for name in ("x.safetensors", "x.gguf"):
        with (tmp_path / name).open("wb") as file:
            file.write(struct.pack("<Q", HEADER_LIMIT) if name == "x.safetensors" else b"")
            file.truncate(10 * HEADER_LIMIT)
        refused(tmp_path / name, "not a ")


def test_a_gain_that_would_fill_the_memory(build, tmp_path):
    count = 10**9
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(build.safetensors({"norm": entry(shape=(count,), offsets=(0, 4 * count))}))
        file.truncate(file.tell() + 4 * count)
    refused(path, "tensor 'norm' has 1000000000 entries")


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("I8", (8,), "is stored as I8, an integer or quantised type"),
        ("BOOL", (8,), "is stored as BOOL, an integer or quantised type"),
        ("F32", (1, 2), "has shape (1, 2); a norm's parameter is a non-empty vector"),
        ("F64", (), "has shape ()"),
    ],
)
def test_a_gain_of_wrong_type_or_shape(dtype, shape, words, build, put):
    path = put("x.safetensors", build.safetensors({"norm": entry(dtype, shape)}, bytes(8)))
    refused(path, "x.safetensors: tensor 'norm'", words)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gain_that_is_not_finite(bad, build, put):
    gain = np.array([1, bad, 1, bad], np.float32)
    words = ("tensor 'norm': entry 1 is", "2 of 4 entries are not finite")
    refused(put("x.safetensors", build.vectors(norm=gain)), *words)
    info = build.gguf_info("norm", (4,))
    refused(put("x.gguf", build.gguf(infos=info, tensor_count=1, data=gain.tobytes())), *words)


def test_a_tensor_that_is_not_there(build, put):
    path = put("x.safetensors", build.vectors(**{"model.norm.weight": np.ones(2)}))
    refused(path, "no tensor named 'model.norm.wieght'; the closest", "'model.norm.weight'", tensor="model.norm.wieght")


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf", "model.safetensors", "x.bin", "x.pt", "unnamed"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "zip"])
def test_a_pickle_is_never_opened(name, protocol, put, tmp_path):
    exploded = tmp_path / "exploded"
    content = b"PK\x03\x04" + bytes(100) if protocol == "zip" else pickle.dumps(Bomb(exploded), protocol)
    refused(put(name, content), "zip archive" if protocol == "zip" else "pickle")
    assert not exploded.exists()
    if protocol != "zip":
        pickle.loads(content)  # the bomb is live
        assert exploded.exists()


@pytest.mark.parametrize("length", range(4, 30))
def test_an_archive_shorter_than_its_own_end(length, put):
    content = (b"PK\x03\x04" + b"PK\x05\x06" + bytes(22))[:length]
    refused(put("x.pt", content), "x.pt")


INDEXES = {
    "not JSON": (b"{", "not valid JSON"),
    "a list": ([1], "no weight_map"),
    "no map": ({"metadata": {}}, "no weight_map"),
    "an empty map": ({"weight_map": {}}, "no weight_map"),
    "a map of a wrong type": ({"weight_map": ["norm"]}, "no weight_map"),
    "a shard that is no text": ({"weight_map": {"norm": 3}}, "tensor 'norm' is said to lie in 3"),
}
ESCAPES = [
    "../outside.safetensors",
    "/etc/outside.safetensors",
    "sub/outside.safetensors",
    "sub/../outside.safetensors",
    "..\\outside.safetensors",
    "C:\\outside.safetensors",
    "C:outside.safetensors",
    "..",
    ".",
    "",
    "outside\0.safetensors",
    "outside\n.safetensors",
    "./outside.safetensors",
]


@pytest.mark.parametrize("what", INDEXES)
def test_index(what, put):
    content, words = INDEXES[what]
    refused(put("model.safetensors.index.json", content), words)


@pytest.mark.parametrize("shard", ESCAPES)
def test_a_shard_outside_the_directory_is_refused(shard, build, put):
    """Even where a readable file lies there, and even when another tensor is asked for."""
    for place in ("outside.safetensors", "model/sub/outside.safetensors", "model/outside.safetensors"):
        put(place, build.vectors(norm=np.ones(2)))
    index = put("model/model.safetensors.index.json", {"weight_map": {"other": shard, "norm": "outside.safetensors"}})
    refused(index, "tensor 'other' is said to lie in", "bare file name")
    index.write_text(json.dumps({"weight_map": {"norm": "outside.safetensors"}}))
    np.testing.assert_array_equal(open_model(index).vector("norm"), [1.0, 1.0])


def test_shards_that_are_missing_damaged_or_incomplete(build, put):
    weight_map = {
        "norm": "a.safetensors",
        "other": "b.safetensors",
        "third": "c.safetensors",
        "fourth": "d.safetensors",
    }
    index = put("model.safetensors.index.json", {"weight_map": weight_map})
    put("b.safetensors", build.vectors(norm=np.ones(2)))
    put("c.safetensors", b"\x80\x02" + bytes(100))
    (index.parent / "d.safetensors").mkdir()
    named = "model.safetensors.index.json"
    for tensor, words, error in (
        ("norm", ("a.safetensors: no such file", named, "'norm'"), UnreachableError),
        ("other", ("b.safetensors: no tensor 'other'", named), InputError),
        ("third", ("c.safetensors: not a safetensors file: a pickle",), InputError),
        ("fourth", ("d.safetensors: not a regular file",), InputError),
    ):
        checkpoint = open_model(index)
        with pytest.raises(error) as caught:
            checkpoint.vector(tensor)
        assert all(part in str(caught.value) for part in words), str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "config.json: not valid JSON"),
        (b"\xff", "config.json: not valid JSON"),
        (b"[1]", "config.json: expected a JSON object"),
        (b" " * 10_000_001, "config.json: 10000001 bytes are too many"),
    ],
)
def test_config(content, words, build, put):
    path = put("model.safetensors", build.vectors(norm=np.ones(2)))
    put("config.json", content)
    refused(path.parent, words)
    refused(path, words)


def pair(build, key, kind, value):
    return build.gguf_string(key) + struct.pack("<I", kind) + value


def array(kind, count, content=b""):
    return struct.pack("<IQ", kind, count) + content


# what is wrong -> metadata pairs as (key, type, bytes), tensors as (name, shape, type, offset), data, words
METADATA = {
    "unknown type": ([("key", 13, b"")], "metadata 'key' has the unknown type 13"),
    "a string longer than the file": ([("key", 8, struct.pack("<Q", 2**63))], "metadata 'key' should end at byte"),
    "an array longer than the file": ([("key", 9, array(4, 2**62))], "claims 4611686018427387904 entries in metadata"),
    "strings longer than the file": ([("key", 9, array(8, 2**60))], "claims 1152921504606846976 strings in metadata"),
    "one endless string of many": ([("key", 9, array(8, 1, b"\xff" * 8))], "metadata 'key' should end at byte"),
    "arrays longer than the file": ([("key", 9, array(9, 2**60))], "claims 1152921504606846976 arrays in metadata"),
    "array of an unknown type": ([("key", 9, array(99, 1, bytes(64)))], "metadata 'key' has the unknown type 99"),
    "arrays nested beyond reason": ([("key", 9, array(9, 1) * 2000)], "nests arrays more than 4 deep"),
    "a key twice": ([("key", 0, b"\1"), ("key", 0, b"\2")], "metadata key 'key' appears twice"),
    "a key that is no text": ([(b"\xff\xfe", 0, b"\1")], "the key of metadata pair 0 is not UTF-8 text"),
    "a key without end": ([(b"k" * 70_000, 0, b"\1")], "the key of metadata pair 0 is 70000 bytes long"),
    "alignment zero": ([("general.alignment", 4, struct.pack("<I", 0))], "general.alignment is '0'"),
    "alignment 24": ([("general.alignment", 4, struct.pack("<I", 24))], "general.alignment is '24'"),
    "alignment of text": ([("general.alignment", 8, struct.pack("<Q", 2) + b"32")], "general.alignment is '32'"),
    "alignment true": ([("general.alignment", 7, b"\1")], "general.alignment is 'True'"),
    "huge alignment": ([("general.alignment", 10, struct.pack("<Q", 1 << 63))], "tensor 'norm' should end at byte"),
}
TENSORS = {
    "beyond the file": ([("norm", (9,), 0, 0)], "tensor 'norm' should end at byte"),
    "offset beyond the file": ([("norm", (2,), 0, 1 << 62)], "tensor 'norm' should end at byte"),
    "offset out of line": ([("norm", (2,), 0, 4)], "tensor 'norm': offset 4 is not a multiple of the alignment 32"),
    "overlap": ([("norm", (8,), 0, 0), ("other", (8,), 0, 0)], "tensors 'norm' and 'other' overlap"),
    "a name twice": ([("norm", (2,), 0, 0), ("norm", (2,), 0, 0)], "tensor 'norm' appears twice"),
    "unknown element type": ([("norm", (2,), 4, 0)], "tensor 'norm' has the unknown element type 4"),
    "torn block": ([("norm", (31,), 8, 0)], "tensor 'norm': rows of 31 do not split into Q8_0 blocks of 32"),
    "too many axes": ([("norm", (1,) * 9, 0, 0)], "tensor 'norm' has 9 axes"),
    "huge sizes": ([("norm", (2**63,) * 8, 0, 0)], "tensor 'norm' should end at byte"),
    "a matrix": ([("norm", (2, 2), 0, 0)], "tensor 'norm' has shape (2, 2)"),
    "quantised": ([("norm", (32,), 3, 0)], "tensor 'norm' is stored as Q4_1, an integer or quantised type"),
}


@pytest.mark.parametrize("what", METADATA)
def test_gguf_metadata(what, build, put):
    pairs, words = METADATA[what]
    raw = b"".join(pair(build, *item) for item in pairs)
    content = build.gguf(raw, len(pairs), build.gguf_info("norm", (2,)), 1, bytes(8))
    refused(put("x.gguf", content), words)


@pytest.mark.parametrize("what", TENSORS)
def test_gguf_tensors(what, build, put):
    infos, words = TENSORS[what]
    raw = b"".join(build.gguf_info(*info) for info in infos)
    refused(put("x.gguf", build.gguf(infos=raw, tensor_count=len(infos), data=bytes(32))), words)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "not a GGUF file"),
        (b"GGUF", "the version should end at byte 8, but the file has 4"),
        (b"GGML" + bytes(100), "not a GGUF file"),
        (b"<html>" + bytes(100), "an HTML or XML page: the download failed"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1; versions 2 and 3 are read"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version 4; versions 2 and 3 are read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "the header claims 9223372036854775808 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "the header claims 9223372036854775808 metadata pairs"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + bytes(22), "the header claims 1 tensors"),
    ],
)
def test_gguf_opening(head, words, put):
    refused(put("x.gguf", head), words)


def test_gguf_headers_of_hostile_length(build, tmp_path):
    """Sparse files of zeros behind an honest opening: the claims fit the file, and must not become memory or hours."""
    path = tmp_path / "x.gguf"
    claims = [
        (9, array(8, 10**9), "the header claims 1000000000 strings"),
        (9, array(8, 10**7), "the header holds more than 262144 values"),
        (9, array(0, 10**10), "the header claims 10000000000 entries"),
        (8, struct.pack("<Q", 10**10), "no header is longer than 100000000 bytes"),
    ]
    for kind, value, words in claims:
        with path.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair(build, "key", kind, value))
            file.truncate(20 * 10**9)
        refused(path, words)


def test_gguf_steps_are_counted(build, put):
    """Arrays in arrays are the one loop that a small file can make long: it ends at the limit on values."""
    content = build.gguf(pair(build, "key", 9, array(9, 300_000, bytes(12 * 300_000))), 1)
    with pytest.raises(InputError, match="the header holds more than 262144 values"):
        open_model(put("x.gguf", content))


def test_the_tables_of_gguf_files_start_from_a_good_one(build, put):
    raw = pair(build, "general.alignment", 4, struct.pack("<I", 64))
    content = build.gguf(raw, 1, build.gguf_info("norm", (2,)), 1, np.array([1, 2], "<f4").tobytes(), alignment=64)
    np.testing.assert_array_equal(open_model(put("x.gguf", content)).vector("norm"), [1.0, 2.0])


def valid_files(build):
    gain = np.array([1.0, 2.0, 3.0], "<f4")
    pairs = [
        pair(build, "general.architecture", 8, build.gguf_string("llama")),
        pair(build, "general.alignment", 4, struct.pack("<I", 32)),
        pair(
            build, "tokens", 9, array(8, 3, build.gguf_string("a") + build.gguf_string("") + build.gguf_string("bcd"))
        ),
        pair(build, "layers", 9, array(4, 2, struct.pack("<2I", 7, 8))),
        pair(build, "nested", 9, array(9, 1, array(0, 2, b"\1\2"))),
    ]
    infos = build.gguf_info("norm", (3,)) + build.gguf_info("matrix", (2, 32), 8, 32)
    gguf = build.gguf(b"".join(pairs), len(pairs), infos, 2, gain.tobytes() + bytes(20) + bytes(68))
    return {"x.safetensors": build.vectors(norm=gain, other=gain[:2]), "x.gguf": gguf}


_EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.sampled_from(["set", "flip", "cut", "insert", "delete", "number"]),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**8, 640]),
    ),
    min_size=1,
    max_size=4,
)


def edited(content, edits):
    raw = bytearray(content)
    for at, what, byte, number in edits:
        at %= len(raw) + 1
        if what == "cut":
            del raw[at:]
        elif what == "delete":
            del raw[at : at + 1 + byte % 8]
        elif what == "insert":
            raw[at:at] = bytes([byte])
        elif what == "number":
            raw[at : at + 8] = struct.pack("<Q", number)
        elif at < len(raw):
            raw[at] = byte if what == "set" else raw[at] ^ (1 << byte % 8)
    return bytes(raw)


def opens_or_is_refused(path):
    """Never another exception, never much memory, whichever tensor or norm is then asked for."""
    with at_most(50 * MEGABYTE):
        try:
            checkpoint = open_model(path)
            find_norms(checkpoint, kind="layernorm")
        except DeadreckonError:
            return
        for tensor in checkpoint.tensors:
            try:
                assert np.isfinite(checkpoint.vector(tensor)).all()
            except DeadreckonError:
                continue


@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf"])
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(edits=[(0, "set", 255, 0)])
@given(edits=_EDITS)
def test_an_edited_file_opens_or_is_refused(name, edits, build, tmp_path):
    path = tmp_path / name
    path.write_bytes(edited(valid_files(build)[name], edits))
    opens_or_is_refused(path)


# Small files that the formats' own libraries wrote; scripts/fuzz.py edits the same ones for longer.
CORPUS = Path(__file__).parent / "corpus"
EDITED = [
    "model.safetensors.index.json",
    "zip.pt",
    "zip5.pt",
    "sequential.pt",
    "fused.onnx",
    "built.onnx",
    "external.onnx",
]


@pytest.mark.parametrize("name", EDITED)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=_EDITS)
def test_an_edited_file_of_the_corpus_opens_or_is_refused(name, edits, tmp_path):
    for file in CORPUS.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / name
    np.testing.assert_array_equal(find_norms(open_model(path))[0].gain, [1.0, 2.0, 3.0])
    path.write_bytes(edited(path.read_bytes(), edits))
    opens_or_is_refused(path)


def test_an_index_of_a_million_entries(put):
    index = put(
        "model.safetensors.index.json", b'{"weight_map": {%s}}' % b",".join(b'"t%d":"a"' % i for i in range(1_000_000))
    )
    started = time.process_time()
    with pytest.raises(InputError, match="1000001 values are too many"):
        open_model(index)
    assert time.process_time() - started < 3  # 1 s on an idle machine
    put("model.safetensors.index.json", {"weight_map": {f"t{i}": f"shard{i}" for i in range(700_000)}})
    started = time.process_time()
    with pytest.raises(InputError, match="no tensor named 'norm'"):
        open_model(index).vector("norm")
    assert time.process_time() - started < 3


@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf"])
def test_a_file_cut_anywhere_is_refused(name, build, tmp_path):
    content = valid_files(build)[name]
    path = tmp_path / name
    path.write_bytes(content)
    np.testing.assert_array_equal(open_model(path).vector("norm"), [1.0, 2.0, 3.0])
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            open_model(path)
