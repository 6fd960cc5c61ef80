"""ONNX graphs: the final norm as fused node and in primitive operations, external data, and hostile files."""

import json
import time

import numpy as np
import pytest

from deadreckon import classify, read
from deadreckon.checkpoint import protobuf
from deadreckon.checkpoint.onnx import OnnxCheckpoint
from deadreckon.checkpoint.source import open_model
from deadreckon.errors import InputError, UnreachableError, UsageError

D = 6
GAIN = np.linspace(0.5, 1.5, D, dtype=np.float32)
SHIFT = np.linspace(-1, 1, D, dtype=np.float32)
EPS = 1e-6


class Graph:
    """A graph that grows node by node; every method returns the name of what it makes."""

    def __init__(self, build):
        self.build, self.nodes, self.weights = build, [], []

    def node(self, op, inputs, *attributes, domain=""):
        self.nodes.append(self.build.onnx_node(op, inputs, out := f"v{len(self.nodes)}", *attributes, domain=domain))
        return out

    def weight(self, name, values, code=1):
        self.weights.append(self.build.onnx_weight(name, np.asarray(values), code))
        return name

    def scalar(self, value):
        """A constant node, as exporters write exponents and epsilons."""
        tensor = self.build.onnx_weight("", np.array(value, np.float32))
        return self.node("Constant", "", self.build.proto((1, "value"), (5, tensor), (20, 4)))

    def axes(self, *axes):
        return self.build.proto((1, "axes"), *((8, axis) for axis in axes), (20, 7))

    def eps(self):
        return self.build.proto((1, "epsilon"), (2, EPS), (20, 1))

    def parameters(self, name, gain=GAIN, shift=SHIFT):
        self.weight(f"{name}.weight", gain)
        return f"{name}.weight" + ("" if shift is None else " " + self.weight(f"{name}.bias", shift))

    def file(self, *outputs):
        for i, value in enumerate(outputs):
            self.nodes.append(self.build.onnx_node("Identity", value, f"out{i}"))
        return self.build.onnx(self.nodes, self.weights, tuple(f"out{i}" for i in range(len(outputs))))


def fused_layer(g, x, name):
    return g.node("LayerNormalization", f"{x} {g.parameters(name)}", g.eps())


def fused_layer_no_shift(g, x, name):
    return g.node("LayerNormalization", f"{x} {g.parameters(name, shift=None)}", g.eps())


def fused_skip_layer(g, x, name):
    return g.node("SkipLayerNormalization", f"{x} {x} {g.parameters(name)}", g.eps(), domain="com.microsoft")


def fused_rms(g, x, name):
    return g.node("RMSNormalization", f"{x} {g.parameters(name, shift=None)}", g.eps())


def fused_simplified(g, x, name):
    return g.node("SimplifiedLayerNormalization", f"{x} {g.parameters(name, shift=None)}", g.eps())


def fused_skip_simplified(g, x, name):
    return g.node(
        "SkipSimplifiedLayerNormalization", f"{x} {x} {g.parameters(name, shift=None)}", g.eps(), domain="com.microsoft"
    )


def built_layer(g, x, name, square="Pow", cast=False):
    centred = g.node("Sub", f"{x} {g.node('ReduceMean', x, g.axes(-1))}")
    kept = centred
    if cast:
        centred = g.node("Cast", centred)
    squares = g.node("Pow", f"{centred} {g.scalar(2)}") if square == "Pow" else g.node("Mul", f"{centred} {centred}")
    root = g.node("Sqrt", g.node("Add", f"{g.node('ReduceMean', squares, g.axes(-1))} {g.scalar(EPS)}"))
    normed = g.node("Div", f"{kept} {root}")
    gain, shift = g.parameters(name).split()
    return g.node("Add", f"{g.node('Mul', f'{normed} {gain}')} {shift}")


def built_layer_of_squares_by_product(g, x, name):
    return built_layer(g, x, name, square="Mul")


def built_layer_with_casts(g, x, name):
    return built_layer(g, x, name, cast=True)


def built_rms(g, x, name, inverse="Div", offset=False):
    wide = g.node("Cast", x)
    axes = g.weight(f"{name}.axes", np.array([-1], np.int64), 7)
    mean = g.node("ReduceMean", f"{g.node('Pow', f'{wide} {g.scalar(2)}')} {axes}")  # axes as an input: since opset 18
    shifted = g.node("Add", f"{mean} {g.scalar(EPS)}")
    if inverse == "Pow":
        scale = g.node("Pow", f"{shifted} {g.scalar(-0.5)}")
    else:
        root = g.node("Sqrt", shifted)
        scale = g.node("Div", f"{g.scalar(1)} {root}") if inverse == "Div" else g.node("Reciprocal", root)
    normed = g.node("Cast", g.node("Mul", f"{wide} {scale}"))
    gain = g.parameters(name, GAIN - 1 if offset else GAIN, None)
    return g.node("Mul", f"{g.node('Add', f'{gain} {g.scalar(1)}') if offset else gain} {normed}")


def built_rms_by_reciprocal(g, x, name):
    return built_rms(g, x, name, "Reciprocal")


def built_rms_by_power(g, x, name):
    return built_rms(g, x, name, "Pow")


def built_rms_of_one_plus_gain(g, x, name):
    return built_rms(g, x, name, offset=True)


LAYER = (fused_layer, fused_layer_no_shift, fused_skip_layer)
LAYER += (built_layer, built_layer_of_squares_by_product, built_layer_with_casts)
RMS = (fused_rms, fused_simplified, fused_skip_simplified, built_rms, built_rms_by_reciprocal, built_rms_by_power)
RMS += (built_rms_of_one_plus_gain,)


def model(build, norm, **wrap):
    """Two blocks with norms of random gains, the final norm, a matrix behind it."""
    g = Graph(build)
    x = g.node("Gather", f"{g.weight('embedding', np.ones((9, D), np.float32))} ids")
    for i in range(2):
        inner = norm(g, x, f"h.{i}.norm")
        x = g.node("Add", f"{x} {g.node('MatMul', f'{inner} ' + g.weight(f'h.{i}.w', np.eye(D, dtype=np.float32)))}")
    x = norm(g, x, "model.norm")
    return g, x, g.node("MatMul", f"{x} {g.weight('head', np.ones((D, 9), np.float32))}")


@pytest.mark.parametrize("norm", LAYER + RMS)
def test_every_way_to_write_a_norm(norm, build, put):
    g, _, logits = model(build, norm)
    path = put("model.onnx", g.file(logits))
    found = read(path, norm="all")
    assert found.kind == ("layernorm" if norm in LAYER else "rmsnorm")
    assert [n.final_norm for n in found.norms] == ["model.norm.weight", "h.0.norm.weight", "h.1.norm.weight"]
    assert [n.role for n in found.norms] == ["final", "block", "block"]
    assert (found.smallest_gain, found.largest_gain) == (GAIN.min(), GAIN.max())
    assert found.gain_offset == (1.0 if norm is built_rms_of_one_plus_gain else 0.0)
    checkpoint = open_model(path)
    assert [n.eps for n in checkpoint.norms] == [pytest.approx(EPS)] * 3
    if norm in LAYER and norm is not fused_layer_no_shift:
        w = (1 / GAIN.astype(float)) / np.linalg.norm(1 / GAIN.astype(float))
        assert found.beta_projection == pytest.approx(float(w @ SHIFT), rel=1e-12)
    result = classify(path).results[0]
    assert (result.kind, result.contradictions) == (found.kind, [])
    assert any(e.name == "graph_node" and e.strength == "decisive" for e in result.evidence)


def test_a_norm_over_another_axis_is_none(build, put):
    g = Graph(build)
    squares = g.node("Pow", f"x {g.scalar(2)}")
    root = g.node("Sqrt", g.node("Add", f"{g.node('ReduceMean', squares, g.axes(1, 2))} {g.scalar(EPS)}"))
    out = g.node("Mul", f"{g.node('Div', f'x {root}')} {g.parameters('norm', shift=None)}")
    with pytest.raises(UsageError, match="no LayerNorm or RMSNorm leads to an output of the graph"):
        read(put("model.onnx", g.file(out)))
    assert classify(put("model.onnx", g.file(out))).results[0].kind == "undetermined"


def test_names_that_an_optimiser_gave(build, put):
    g = Graph(build)
    g.weight("onnx::Mul_17", GAIN)
    g.weight("1234", SHIFT)
    out = g.node("LayerNormalization", "x onnx::Mul_17 1234")
    found = read(put("model.onnx", g.file(out)))
    assert (found.final_norm, found.smallest_gain) == ("onnx::Mul_17", GAIN.min())
    assert found.files[0].name == "model.onnx"


def test_caches_and_unused_norms_do_not_end_the_stream(build, put):
    """Outputs of inner blocks depend on inner norms, behind which stands the final one; what none uses is not live."""
    g, x, logits = model(build, built_rms)
    cache = g.node("Identity", "v12")
    built_rms(g, x, "unused.norm")
    found = read(put("model.onnx", g.file(logits, cache)))
    assert [n.final_norm for n in found.norms] == ["model.norm.weight"]


def test_the_norm_of_a_head_with_and_without_a_config(build, put):
    """A masked-LM head has a norm of its own: it ends the graph, and the config tells that it is a head's."""
    g = Graph(build)
    hidden = fused_layer(g, "x", "bert.encoder.layer.0.output.LayerNorm")
    out = fused_layer(g, g.node("Gelu", hidden), "cls.predictions.transform.LayerNorm")
    path = put("model.onnx", g.file(out))
    assert [n.final_norm for n in read(path).norms] == ["cls.predictions.transform.LayerNorm.weight"]
    put("config.json", {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": D})
    assert [(n.role, n.final_norm.split(".")[0]) for n in read(path).norms] == [("final", "bert"), ("head", "cls")]


def test_the_graph_contradicts_the_config(build, put):
    g, _, logits = model(build, fused_rms)
    put("config.json", {"model_type": "gpt2"})
    result = classify(put("model.onnx", g.file(logits))).results[0]
    assert result.kind == "undetermined"
    assert any("graph_node says rmsnorm" in line for line in result.contradictions)


def test_two_towers(build, put):
    g = Graph(build)
    towers = [fused_layer(g, name, f"{name}.norm") for name in ("text", "image")]
    path = put("model.onnx", g.file(*towers))
    assert [n.final_norm for n in read(path).norms] == ["text.norm.weight", "image.norm.weight"]
    both = put("model.onnx", g.file(g.node("MatMul", " ".join(towers))))
    with pytest.raises(
        UsageError, match=r"2 norms lead to the first output .*text.norm, image.norm; choose with --norm"
    ):
        read(both)
    assert read(both, norm="image.norm").final_norm == "image.norm.weight"
    with pytest.raises(UsageError, match="'norm' names 2 norms"):
        read(both, norm="norm")
    with pytest.raises(UsageError, match="'nothing' is no norm of the graph"):
        read(both, norm="nothing")


def test_a_gain_that_is_not_stored(build, put):
    g = Graph(build)
    out = g.node("LayerNormalization", f"x {g.node('MatMul', 'condition w')}")
    with pytest.raises(UsageError, match=r"the final norm \(a LayerNormalization node\) has no stored gain"):
        read(put("model.onnx", g.file(out)))


@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [(1, "<f4", 9), (10, "<f2", 9), (11, "<f8", 9), (16, "bf16", 9), (1, "<f4", 4), (11, "<f8", 10)],
)
def test_where_numbers_stand(code, kind, number, build, put):
    raw = (GAIN.view(np.uint32) >> 16).astype("<u2").tobytes() if kind == "bf16" else GAIN.astype(kind).tobytes()
    tensor = build.proto((1, D), (2, code), (8, "norm.weight"), (number, raw))
    path = put("model.onnx", build.onnx([build.onnx_node("LayerNormalization", "x norm.weight", "out")], [tensor]))
    expected = (GAIN.view(np.uint32) & 0xFFFF0000).view(np.float32) if kind == "bf16" else GAIN.astype(kind)
    np.testing.assert_array_equal(open_model(path).vector("norm.weight"), expected.astype(float))


def external(build, name="norm.weight", **where):
    entries = [(13, build.proto((1, key), (2, value))) for key, value in where.items()]
    tensor = build.proto((1, D), (2, 1), (8, name), *entries, (14, 1))
    return build.onnx([build.onnx_node("LayerNormalization", "x norm.weight", "out")], [tensor])


def test_external_data(build, put):
    put("model.onnx_data", bytes(64) + GAIN.tobytes())
    put("weights/part.bin", GAIN.tobytes())
    for where in (
        {"location": "model.onnx_data", "offset": "64", "length": str(4 * D)},
        {"location": "model.onnx_data", "offset": "64"},
        {"location": "weights/part.bin"},
        {"location": "./weights/part.bin", "checksum": "0"},
    ):
        path = put("model.onnx", external(build, **where))
        np.testing.assert_array_equal(open_model(path).vector("norm.weight"), GAIN.astype(float))
    assert read(path).files[0].name == "part.bin"


@pytest.mark.parametrize(
    ("where", "words", "error"),
    [
        ({"location": "../outside.bin"}, "must lie in the model's own directory", InputError),
        ({"location": "sub/../../outside.bin"}, "must lie in the model's own directory", InputError),
        ({"location": "/etc/passwd"}, "must lie in the model's own directory", InputError),
        ({"location": "C:\\outside.bin"}, "must lie in the model's own directory", InputError),
        ({"location": "\\\\server\\outside.bin"}, "must lie in the model's own directory", InputError),
        ({"location": "..\\outside.bin"}, "must lie in the model's own directory", InputError),
        ({"location": ""}, "must lie in the model's own directory", InputError),
        ({"location": "a\0b"}, "must lie in the model's own directory", InputError),
        ({"location": "link.bin"}, "a link out of the model's directory", InputError),
        ({"location": "folder/outside.bin"}, "a link out of the model's directory", InputError),
        ({"location": "missing.bin"}, "missing.bin: no such file; model.onnx says", UnreachableError),
        ({"location": "short.bin"}, "should end at byte 24, but the file has 8", InputError),
        ({"location": "inside.bin", "offset": "-4"}, "the offset '-4' of its external data is no number", InputError),
        ({"location": "inside.bin", "offset": "9" * 30}, "is no number", InputError),
        ({"location": "inside.bin", "offset": "9" * 18}, "should end at byte", InputError),
        ({"location": "inside.bin", "length": "8"}, r"8 bytes do not hold shape \(6,\) of F32", InputError),
        ({"offset": "0"}, "which is not said", InputError),
        ({"location": "."}, "must lie in the model's own directory", InputError),
        ({"location": "folder2"}, "not a regular file", InputError),
    ],
)
def test_external_data_outside_is_refused(where, words, error, build, put, tmp_path):
    outside = put("outside.bin", GAIN.tobytes())
    put("model/short.bin", bytes(8))
    put("model/inside.bin", GAIN.tobytes())
    (tmp_path / "model/link.bin").symlink_to(outside)
    (tmp_path / "model/folder2").mkdir()
    (tmp_path / "model/folder").symlink_to(tmp_path)
    path = put("model/model.onnx", external(build, **where))
    with pytest.raises(error, match=words):
        open_model(path).vector("norm.weight")


def test_weights_are_stepped_over(build, put):
    g, _, logits = model(build, built_layer)
    for i in range(20):
        g.weight(f"large.{i}", np.zeros(100_000, np.float32))
    path = put("model.onnx", g.file(logits))
    checkpoint = open_model(path)
    assert path.stat().st_size > 8_000_000
    assert checkpoint.bytes_read < 40 * protobuf._BLOCK
    checkpoint.vector("large.3")
    assert 400_000 <= checkpoint.bytes_read < 400_000 + 40 * protobuf._BLOCK


def test_hostile_messages(build, put):
    ok = build.onnx(
        [build.onnx_node("LayerNormalization", "x norm.weight", "out")], [build.onnx_weight("norm.weight", GAIN)]
    )
    twice = build.onnx([], [build.onnx_weight("norm.weight", GAIN)] * 2)
    huge = build.proto(*[(1, (1 << 62) + 1)] * 16, (2, 1), (8, "norm.weight"), (9, b"\0" * 4))
    cases = {
        "no graph": (build.proto((1, 8)), "it holds 0 graphs"),
        "two graphs": (ok + ok, "it holds 2 graphs"),
        "a group": (b"\x0b" + bytes(8), "a field of the unknown type 3"),
        "field number zero": (b"\x02\x00", "claims 0 bytes"),
        "a length past the end": (b"\x3a" + b"\xff" * 8 + b"\x7f", "were? left|are left"),
        "an endless number": (b"\x08" + b"\xff" * 40, "no number at byte 1"),
        "a name twice": (twice, "tensor 'norm.weight' appears twice"),
        "sizes beyond reason": (build.onnx([], [huge]), "4 bytes do not hold shape"),
        "too many axes": (build.onnx([], [build.proto(*[(1, 1)] * 17, (2, 1))]), "is not a list of sizes"),
        "a negative size": (
            build.onnx([], [build.proto((1, -1), (2, 1), (8, "norm.weight"))]),
            "is not a list of sizes",
        ),
        "a name beyond reason": (build.onnx([], [build.proto((8, "n" * 70_000))]), "a tensor's name is not what"),
        "too many fields": (build.proto((7, b"\x08\x01" * 600_000)), "more than 262144 fields"),
        "a page": (b"<html>" + bytes(100), "an HTML or XML page"),
        "nothing": (b"", "it holds 0 graphs"),
        "an unknown element type": (
            build.onnx([], [build.proto((1, D), (2, 99), (8, "norm.weight"), (9, bytes(4)))]),
            "is stored as ONNX type 99",
        ),
    }
    for what, (content, words) in cases.items():
        path, started = put("model.onnx", content), time.process_time()
        with pytest.raises(InputError, match=words):
            open_model(path).vector("norm.weight")
        assert time.process_time() - started < 2, what
    np.testing.assert_array_equal(open_model(put("model.onnx", ok)).vector("norm.weight"), GAIN.astype(float))


def test_a_graph_that_bites_its_tail(build, put):
    nodes = [build.onnx_node("LayerNormalization", f"v{(i + 1) % 3} norm.weight", f"v{i}") for i in range(3)]
    nodes += [build.onnx_node("Identity", "v1", "out"), build.onnx_node("Cast", "c", "c")]
    path = put("model.onnx", build.onnx(nodes, [build.onnx_weight("norm.weight", GAIN)]))
    with pytest.raises(UsageError, match="no LayerNorm or RMSNorm leads to an output"):
        read(path)


def test_many_outputs_over_a_long_chain_take_bounded_time(build, put):
    """What an output depends on is followed once for all outputs that no norm is on the way of."""
    length = 4_000
    nodes = [build.onnx_node("Relu", f"v{i}", f"v{i + 1}") for i in range(length)]
    nodes += [build.onnx_node("LayerNormalization", "v0 norm.weight", "v0n"), build.onnx_node("Relu", "v0n", "out")]
    outputs = ("out", *(f"v{length}" for _ in range(length)))
    path = put("model.onnx", build.onnx(nodes, [build.onnx_weight("norm.weight", GAIN)], outputs))
    started = time.process_time()
    assert read(path).kind == "layernorm"
    assert time.process_time() - started < 2


def test_a_graph_in_which_everything_meets_takes_bounded_time(build, put):
    """Thousands of norms whose chains run into one value that thousands of operations take."""
    g, count = Graph(build), 6_000
    square, eps = g.node("Pow", f"x {g.scalar(2)}"), g.scalar(EPS)
    means = [g.node("ReduceMean", square, g.axes(-1)) for _ in range(count)]
    meeting = g.node("Add", f"{' '.join(means)} {eps}")
    shared = g.node("Sqrt", g.node("Add", f"{means[0]} {eps}"))
    for _ in range(count):
        g.node("Mul", f"{shared} {meeting}")
    path = put("model.onnx", g.file(shared))
    started = time.process_time()
    assert open_model(path).norms[0].kind == "rmsnorm"
    assert time.process_time() - started < 2


def test_cut_anywhere(build, put, tmp_path):
    g, _, logits = model(build, built_rms)
    content = g.file(logits)
    path = tmp_path / "model.onnx"
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            open_model(path).norms  # noqa: B018


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "external data"])
def test_against_the_official_package(apart, tmp_path):
    onnx = pytest.importorskip("onnx")
    random = np.random.default_rng(0)
    values = {
        "norm.weight": random.random(300).astype(np.float32),
        "norm.bias": random.random(300),
        "half": random.random(300).astype(np.float16),
        "matrix": random.random((20, 30)).astype(np.float32),
        "integers": np.arange(300),
    }
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    weights.append(onnx.helper.make_tensor("as floats", onnx.TensorProto.FLOAT, [3], [1.5, 2.5, 3.5]))
    norm = onnx.helper.make_node(
        "LayerNormalization", ["x", "norm.weight", "norm.bias"], ["out"], epsilon=1e-4, axis=-1
    )
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 300]) for name in ("x", "out")]
    proto = onnx.helper.make_model(onnx.helper.make_graph([norm], "g", ends[:1], ends[1:], weights))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=apart, location="model.data", size_threshold=0)
    checkpoint = OnnxCheckpoint.open(path)
    assert set(checkpoint.tensors) == {*values, "as floats"}
    for name, value in values.items():
        entry = checkpoint.tensors[name]
        assert entry.shape == value.shape
        assert entry.path.read_bytes()[entry.start : entry.stop] == value.tobytes()
    np.testing.assert_array_equal(checkpoint.vector("norm.weight"), values["norm.weight"].astype(float))
    np.testing.assert_array_equal(checkpoint.vector("as floats"), [1.5, 2.5, 3.5])
    assert checkpoint.norms[0].eps == np.float32(1e-4)
    assert (checkpoint.tensors["half"].path.name == "model.data") == apart


def test_a_varint_list_is_read_packed_or_not(build, put):
    packed = build.proto((1, bytes([2, 3])), (2, 1), (8, "a"), (9, bytes(24)))
    plain = build.proto((1, 2), (1, 3), (2, 1), (8, "b"), (9, bytes(24)))
    checkpoint = open_model(put("model.onnx", build.onnx([], [packed, plain])))
    assert [checkpoint.tensors[name].shape for name in "ab"] == [(2, 3), (2, 3)]


def test_the_config_beside_it_is_checked(build, put):
    path = put("model.onnx", build.onnx([], []))
    for content, words in ((b"[1]", "expected a JSON object"), (b"{", "not valid JSON")):
        put("config.json", content)
        with pytest.raises(InputError, match=words):
            open_model(path)
    put("config.json", json.dumps({"model_type": "vit"}).encode())
    assert open_model(path).architecture == "vit"
