"""Files of torch.save against torch itself, and what no such file may do."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from deadreckon import classify, read
from deadreckon.checkpoint.pickles import STEPS_LIMIT, Unknown, load
from deadreckon.checkpoint.source import open_model
from deadreckon.checkpoint.torchfile import TorchCheckpoint
from deadreckon.errors import InputError, UnreachableError, UsageError

D = 8


def gains(seed=0, size=D, dtype=torch.float32):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)).to(dtype) + 0.5


def gpt2(**more):
    return {
        "transformer.wte.weight": torch.randn(50, D),
        "transformer.ln_f.weight": gains(0),
        "transformer.ln_f.bias": gains(1),
        **more,
    }


CONFIG = {"model_type": "gpt2", "n_embd": D, "n_layer": 1}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "sequential"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_layout_and_type(zipped, protocol, dtype, tmp_path):
    tensors = {f"norm.{i}": gains(i, D + i, getattr(torch, dtype)) for i in range(3)}
    tensors |= {
        "matrix": torch.randn(4, 6),
        "integers": torch.arange(5),
        "empty": torch.empty(0),
        "one": torch.ones(()),
    }
    torch.save(tensors, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    checkpoint = open_model(tmp_path / "x.pt")
    assert isinstance(checkpoint, TorchCheckpoint)
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        entry = checkpoint.tensors[name]
        assert entry.shape == tuple(tensor.shape)
        raw = (tmp_path / "x.pt").read_bytes()[entry.start : entry.stop]
        assert raw == tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.ndim else len(raw) == 4
    for i in range(3):
        np.testing.assert_array_equal(checkpoint.vector(f"norm.{i}"), tensors[f"norm.{i}"].double().numpy())
    with pytest.raises(InputError, match="'integers' is stored as I64, an integer"):
        checkpoint.vector("integers")
    with pytest.raises(InputError, match=r"'matrix' has shape \(4, 6\)"):
        checkpoint.vector("matrix")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "sequential"])
def test_views(zipped, tmp_path):
    base = torch.randn(6, 5)
    views = {
        "row": base[2],
        "column": base[:, 3],
        "every other": base[1, ::2],
        "backwards": base[0].flip(0),
        "constant": torch.tensor([2.5]).expand(7),
        "transposed": base.T,
        "rows": base[1:3],
        "parameter": torch.nn.Parameter(gains()),
    }
    torch.save(views, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    checkpoint = open_model(tmp_path / "x.pt")
    for name, view in views.items():
        if view.ndim == 1:
            np.testing.assert_array_equal(checkpoint.vector(name), view.detach().double().numpy(), err_msg=name)
    assert checkpoint.tensors["transposed"].step is None
    assert checkpoint.tensors["rows"].step == 1


def test_only_the_norms_bytes_are_read(tmp_path):
    torch.save(gpt2(big=torch.zeros(3_000_000)), tmp_path / "x.pt")
    torch.save(gpt2(big=torch.zeros(3_000_000)), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name, most in (("x.pt", 8_000), ("old.pt", (1 << 16) + 1_000)):
        checkpoint = open_model(tmp_path / name)
        checkpoint.vector("transformer.ln_f.weight")
        assert checkpoint.bytes_read < most


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda tensors: tensors, ""),
        (lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": gains()}}}}, ""),
        (lambda tensors: {"model": tensors, "model_ema": tensors, "args": Path("x")}, ""),
        (lambda tensors: {"module": {"module." + name: tensor for name, tensor in tensors.items()}}, "module."),
        (lambda tensors: {"model": {"state_dict": OrderedDict(tensors)}}, ""),
        (lambda tensors: {"weights": defaultdict(dict, tensors), "lr": 0.1}, ""),
        (lambda tensors: {"_orig_mod." + name: tensor for name, tensor in tensors.items()}, "_orig_mod."),
    ],
)
def test_training_checkpoints(wrap, prefix, tmp_path, put):
    tensors = gpt2()
    put("config.json", CONFIG)
    torch.save(wrap(tensors), tmp_path / "x.ckpt")
    found = read(tmp_path / "x.ckpt")
    assert (found.final_norm, found.kind) == (f"{prefix}transformer.ln_f.weight", "layernorm")
    assert found.smallest_gain == float(tensors["transformer.ln_f.weight"].min())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"student": gpt2(), "teacher": gpt2()}, "2 mappings of tensors, under 'student', 'teacher'; save the one"),
        ({"epoch": 3, "lr": [1, 2]}, "no mapping of names to tensors, only 'epoch', 'lr'"),
        ([gains()], "holds a list, not a mapping"),
        (torch.nn.Linear(2, 2), "holds an object of class torch.nn.modules.linear.Linear, not a mapping"),
        ({"model": {"model": {"model": {"model": {"model": {}}}}}}, "nested too deep"),
    ],
)
def test_what_holds_no_one_state_dict(value, words, tmp_path):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(InputError, match=words):
        open_model(tmp_path / "x.pt")


def test_a_directory_and_its_shards(tmp_path, put):
    tensors = gpt2()
    names = list(tensors)
    put("config.json", CONFIG)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    torch.save({"unrelated": 1}, tmp_path / "training_args.bin")
    whole = read(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    for i, name in enumerate(names):
        torch.save({name: tensors[name]}, tmp_path / f"pytorch_model-{i}.bin")
    put(
        "pytorch_model.bin.index.json", {"weight_map": {name: f"pytorch_model-{i}.bin" for i, name in enumerate(names)}}
    )
    (tmp_path / "pytorch_model-0.bin").unlink()  # the embedding's shard is not needed
    sharded = read(tmp_path)
    assert sharded.predicted_eigenvalues == whole.predicted_eigenvalues
    assert [stamp.name for stamp in sharded.files] == ["pytorch_model-1.bin"]
    assert classify(tmp_path).results[0].kind == "layernorm"
    with pytest.raises(UnreachableError, match=r"pytorch_model-0.bin: no such file; .* holds tensor"):
        open_model(tmp_path).tensors["transformer.wte.weight"]
    put("pytorch_model.bin.index.json", {"weight_map": dict.fromkeys(names, "../pytorch_model-1.bin")})
    with pytest.raises(InputError, match="a shard must be named by its bare file name"):
        open_model(tmp_path)


def test_safetensors_come_first(tmp_path, build, put):
    torch.save({"norm": gains()}, tmp_path / "pytorch_model.bin")
    put("model.safetensors", build.vectors(norm=np.ones(2)))
    assert open_model(tmp_path).format == "safetensors"


# Pickles that would run something: what they name must be refused by that name, and nothing may happen.


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, "touch {}", rf"{os.system.__module__}\.system"),
        (exec, "open({!r}, 'w')", r"(builtins|__builtin__)\.exec"),
        (eval, "open({!r}, 'w')", r"(builtins|__builtin__)\.eval"),
        (getattr, "__class__", r"(builtins|__builtin__)\.getattr"),
        (__import__, "os", r"(builtins|__builtin__)\.__import__"),
        (Path.touch, "{}", r"(builtins|__builtin__|pathlib)\.(getattr|Path.touch)"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "sequential"])
def test_a_function_is_refused_by_name(zipped, protocol, function, arguments, named, tmp_path):
    exploded = tmp_path / "exploded"
    bomb = Runs(function, arguments.format(str(exploded)))
    torch.save(
        {**gpt2(), "bomb": bomb}, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(InputError, match=rf"x.pt: its pickle names {named}, which no checkpoint needs"):
        open_model(tmp_path / "x.pt")
    assert not exploded.exists()


def test_the_bomb_is_live(tmp_path):
    """A control: unpickled, the pickle of the test above does run its function."""
    exploded = tmp_path / "exploded"
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {exploded}")))
    assert exploded.exists()


def test_classes_of_other_libraries_are_left_out(tmp_path):
    """A stand-in is made of them: neither the class nor its module is touched."""
    raw = b"\x80\x02}(X\1\0\0\0acno_such_library.models\nConfig\n)R}X\1\0\0\0bK\1sbX\1\0\0\0cK\2u."
    value, end = load(raw, 0, "x")
    assert value == {"a": Unknown("no_such_library.models.Config"), "c": 2}
    assert end == len(raw)


def test_opcodes_one_by_one():
    """Against Python's own unpickler, on plain values of every protocol."""
    values = {
        "texts": ["", "a", "ü" * 300, b"bytes", b"b" * 300, bytearray(b"array")],
        "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**40, 2**2100, 1.5, -0.0, True, False, None],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [[]], {}, {"a": {1: 2}}],
        "twice": [shared := ["shared"], shared],
        "mapping": OrderedDict(a=1, b=OrderedDict(c=2)),
    }
    for protocol in range(6):
        value, _ = load(pickle.dumps(values, protocol), 0, "x")
        unlike = (3, 4, 5) if protocol < 3 else (5,) if protocol < 5 else ()
        for i in unlike:  # bytes of older protocols are called up by name
            assert isinstance(value["texts"][i], Unknown)
            value["texts"][i] = values["texts"][i]
        assert value == values, protocol
        assert value["twice"][0] is value["twice"][1]


# Hostile pickles -> words of the error, and how they are made. None may take long or much memory.
OPEN = b"\x80\x04"
HOSTILE = {
    "a list in itself": (OPEN + b"]\x94h\0a.", "holds a list"),
    "a dict in itself": (OPEN + b"}\x94\x8c\1ah\0s.", "no mapping of names to tensors"),
    "a state dict in itself": (OPEN + b"}\x94\x8c\5modelh\0s.", "nested too deep"),
    "tuples a hundred thousand deep": (OPEN + b")" + b"\x85" * 100_000 + b".", "holds a tuple"),
    "such a tuple as a key": (OPEN + b"})" + b"\x85" * 100_000 + b"K\1s.", "no mapping of names"),
    "lists a hundred thousand deep": (OPEN + b"(" * 100_000 + b"l" * 100_000 + b".", "holds a list"),
    "too many steps": (OPEN + b"K\1" * STEPS_LIMIT + b".", f"of more than {STEPS_LIMIT} steps"),
    "a doubling of doublings": (OPEN + b")" + b"2\x86" * 100_000 + b".", "holds a tuple"),
    "a list copied again and again": (
        OPEN + b"](" + b"K\1" * 5_000 + b"e\x940" + b"ccollections\nOrderedDict\nh\0\x85R0" * 5_000 + b"N.",
        f"of more than {STEPS_LIMIT} steps",
    ),
    "a text longer than the file": (OPEN + b"X\xff\xff\xff\x7fabc", "its pickle ends too early"),
    "bytes longer than any memory": (OPEN + b"\x8e" + b"\xff" * 7 + b"\x7f", "its pickle ends too early"),
    "no stop": (OPEN + b"K\1", "its pickle ends too early"),
    "nothing": (b"", "its pickle ends too early"),
    "an opcode that is none": (OPEN + b"\xff.", "a damaged pickle"),
    "an empty stack": (OPEN + b"a.", "a damaged pickle"),
    "no mark": (OPEN + b"t.", "a damaged pickle"),
    "a memo that was not put": (OPEN + b"h\7.", "a damaged pickle"),
    "a persistent id in text": (OPEN + b"Pstorage\n.", "the opcode PERSID"),
    "an extension": (OPEN + b"\x82\1.", "the opcode EXT1"),
    "a buffer out of band": (b"\x80\5\x97.", "the opcode NEXT_BUFFER"),
    "a number of 5000 digits": (b"I" + b"9" * 5000 + b"\n.", "a damaged pickle"),
    "a name that is no text": (OPEN + b"K\1K\2\x93.", "a damaged pickle"),
    "a name that is built": (OPEN + b"\x8c\2os\x8c\6system\x93.", "its pickle names os.system"),
    "a name within a name": (OPEN + b"\x8c\x08builtins\x8c\x0deval.__call__\x93.", "its pickle names builtins.eval"),
    "an instance": (b"(S'ls'\nios\nsystem\n.", "its pickle names os.system"),
    "an object": (b"(cos\nsystem\nS'ls'\no.", "its pickle names os.system"),
    "the old name of builtins": (b"c__builtin__\neval\n.", "its pickle names __builtin__.eval"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles(what, build, put):
    raw, words = HOSTILE[what]
    path = put("x.pt", build.torch_zip(raw))
    started = time.process_time()
    with pytest.raises(InputError, match=words):
        open_model(path)
    assert time.process_time() - started < 2


def torch_pickle(storage=("FloatStorage", "0", D), offset=0, shape=(D,), strides=(1,), function="_rebuild_tensor_v2"):
    """The pickle of one tensor, spelled out."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.identity if isinstance(value, Place) else None

    class Place:
        identity = ("storage", getattr(torch, storage[0]), storage[1], "cpu", storage[2])

    stream = io.BytesIO()
    arguments = (Place(), offset, shape, strides, False, OrderedDict())
    Pickler(stream, 2).dump({"norm": Runs(getattr(torch._utils, function), *arguments)})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"shape": (D + 1,)}, "reaches 4 bytes past the end of its storage"),
        ({"offset": 1}, "reaches 4 bytes past"),
        ({"strides": (2,)}, "reaches 28 bytes past"),
        ({"shape": (1 << 40,), "strides": (0,)}, "has 1099511627776 entries"),
        ({"shape": (-1,)}, "a damaged pickle"),
        ({"shape": (D, 1)}, "a damaged pickle"),
        ({"offset": -1}, "a damaged pickle"),
        ({"shape": (1 << 64,)}, "a damaged pickle"),
        ({"shape": (float(D),)}, "a damaged pickle"),
        ({"storage": ("FloatStorage", "9", D)}, "no record 'archive/data/9'"),
        ({"storage": ("FloatStorage", "0/../0", D)}, "no record"),
        ({"storage": ("FloatStorage", 0, D)}, "a damaged pickle"),
        ({"storage": ("FloatStorage", "0", -1)}, "a damaged pickle"),
    ],
)
def test_tensors_that_do_not_fit(described, words, build, put):
    content = np.arange(1, D + 1, dtype="<f4").tobytes()
    path = put("good.pt", build.torch_zip(torch_pickle(), **{"0": content}))
    np.testing.assert_array_equal(open_model(path).vector("norm"), np.arange(1.0, D + 1))
    path = put("x.pt", build.torch_zip(torch_pickle(**described), **{"0": content}))
    with pytest.raises(InputError, match=words):
        open_model(path).vector("norm")


def archive(path, method=zipfile.ZIP_STORED, twice=False, order=b"little", folder="archive"):
    content = np.arange(1, D + 1, dtype="<f4").tobytes()
    with zipfile.ZipFile(path, "w", method) as file:
        for name, raw in (("data.pkl", torch_pickle()), ("byteorder", order), ("data/0", content)):
            file.writestr(f"{folder}/{name}", raw)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate"):
                file.writestr(f"{folder}/data/0", content)
    return path


def patched(path, *edits):
    """The file with what follows the last occurrence of each text changed."""
    raw = bytearray(path.read_bytes())
    for text, offset, value in edits:
        at = raw.rindex(text) + offset
        raw[at : at + len(value)] = value
    path.write_bytes(raw)
    return path


def test_archives(tmp_path):
    good = archive(tmp_path / "x.pt")
    np.testing.assert_array_equal(open_model(good).vector("norm"), np.arange(1.0, D + 1))
    size = good.stat().st_size
    entry = b"archive/data/0"  # its last occurrence is in the directory, 46 bytes behind the entry's start
    for make, words in (
        (lambda: archive(good, zipfile.ZIP_DEFLATED), "is compressed, and is not unpacked here"),
        (lambda: archive(good, twice=True), "record 'archive/data/0' appears twice"),
        (lambda: archive(good, order=b"big"), "saved on a big-endian machine"),
        (lambda: archive(good, folder="a/b"), "a zip archive without a model's data.pkl"),
        (lambda: patched(archive(good), (entry, 8 - 46, b"\1")), "record 'archive/data/0' is encrypted"),
        (lambda: patched(archive(good), (entry, 24 - 46, struct.pack("<I", 99))), "is 99 bytes and takes up 32"),
        (
            lambda: patched(archive(good), (entry, 20 - 46, struct.pack("<2I", 9999, 9999))),
            "record 'archive/data/0' should",
        ),
        (lambda: patched(archive(good), (entry, 42 - 46, struct.pack("<I", 0))), "calls itself b'archive/data.pkl'"),
        (lambda: patched(archive(good), (entry, 42 - 46, struct.pack("<I", 7))), "no such record where"),
        (lambda: patched(archive(good), (entry, 42 - 46, struct.pack("<I", size - 3))), "should end at byte"),
        (
            lambda: patched(archive(good), (b"PK\5\6", 10, struct.pack("<H", 65000))),
            "claims 65000 records in a directory",
        ),
        (
            lambda: patched(archive(good), (b"PK\5\6", 12, struct.pack("<I", 1 << 30))),
            "the archive's directory should end",
        ),
        (lambda: patched(archive(good), (b"PK\5\6", 10, b"\xff\xff")), "64-bit directory is missing"),
        (lambda: patched(archive(good), (b"PK\5\6", 4, b"\1")), "an archive in several parts"),
    ):
        make()
        with pytest.raises(InputError, match=words):
            open_model(good).vector("norm")


def test_a_zip_of_64_bit_sizes(tmp_path):
    """As archives over 4 GB have them, here forced on a small one."""
    content = np.arange(1, D + 1, dtype="<f4").tobytes()
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name, raw in (("data.pkl", torch_pickle()), ("data/0", content)):
            with file.open(f"archive/{name}", "w", force_zip64=True) as member:
                member.write(raw)
    raw = bytearray((tmp_path / "x.pt").read_bytes())
    end = raw.rindex(b"PK\5\6")
    count, length, begin = struct.unpack_from("<HLL", raw, end + 10)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    last = bytearray(raw[end:])
    last[8:20] = b"\xff" * 12
    (tmp_path / "x.pt").write_bytes(bytes(raw[:end]) + wide + locator + bytes(last))
    np.testing.assert_array_equal(open_model(tmp_path / "x.pt").vector("norm"), np.arange(1.0, D + 1))


def test_a_comment_behind_the_directory(tmp_path):
    path = archive(tmp_path / "x.pt")
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"c" * 3000
    np.testing.assert_array_equal(open_model(path).vector("norm"), np.arange(1.0, D + 1))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "sequential"])
def test_cut_anywhere(zipped, tmp_path):
    stream = io.BytesIO()
    torch.save({"norm": gains()}, stream, _use_new_zipfile_serialization=zipped)
    content, path = stream.getvalue(), tmp_path / "x.pt"
    path.write_bytes(content)
    open_model(path).vector("norm")
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            open_model(path).vector("norm")


def test_other_old_layouts_say_what_to_do(tmp_path, put):
    tar = bytearray(1024)
    tar[257:262] = b"ustar"
    for content, words in (
        (bytes(tar), "a tar archive, as torch wrote before version 0.1.10: load it where you trust it"),
        (pickle.dumps({"norm": [1.0]}), "a bare pickle, which holds objects"),
    ):
        with pytest.raises(InputError, match=words):
            open_model(put("x.pt", content))


def test_a_script_is_no_state_dict(tmp_path):
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.save(torch.jit.script(torch.nn.LayerNorm(4)), tmp_path / "x.pt")
    with pytest.raises(InputError, match="a TorchScript program, not a state dict"):
        open_model(tmp_path / "x.pt")


def test_the_last_norm_of_a_file_without_config(tmp_path):
    torch.save(gpt2(), tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"there is no config naming one; choose with --norm NAME"):
        read(tmp_path / "x.pt")
    assert read(tmp_path / "x.pt", norm="ln_f").kind == "layernorm"


def test_a_tensor_of_unknown_kind_spoils_nothing(tmp_path):
    sparse = torch.eye(3).to_sparse()
    torch.save({**gpt2(), "sparse": sparse, "float8": gains().to(torch.float8_e4m3fn)}, tmp_path / "x.pt")
    checkpoint = open_model(tmp_path / "x.pt")
    np.testing.assert_array_equal(checkpoint.vector("transformer.ln_f.weight"), gains(0).double().numpy())
    np.testing.assert_array_equal(checkpoint.vector("float8"), gains().to(torch.float8_e4m3fn).double().numpy())
    assert "sparse" not in checkpoint.tensors
