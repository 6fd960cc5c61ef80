"""Which matrices write to the stream, and samples of them from plain and quantised files."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deadreckon.checkpoint.format import TensorEntry
from deadreckon.checkpoint.ggml_blocks import BLOCK_BYTES, decode_blocks
from deadreckon.checkpoint.matrices import sample
from deadreckon.checkpoint.source import open_model
from deadreckon.checkpoint.writers import find_writers
from deadreckon.errors import InputError
from deadreckon.kernel.fingerprint import mean_share


@pytest.mark.parametrize("dtype", sorted(BLOCK_BYTES))
def test_blocks_are_decoded_as_ggml_decodes_them(dtype):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[dtype]
    values = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    raw = gguf.quantize(values, kind)
    # The oracle multiplies in single precision: one rounding each of a product and a sum of at most 8 units.
    expected = gguf.dequantize(raw, kind)
    tolerance = 4 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(decode_blocks(dtype, raw.tobytes()).reshape(7, 96), expected, rtol=0, atol=tolerance)


def test_other_blocks_are_refused():
    with pytest.raises(InputError, match="Q4_K"):
        decode_blocks("Q4_K", bytes(144))


def saved(tmp_path, **tensors):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return open_model(path)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_sample_is_a_part_of_the_matrix(axis, dtype, tmp_path):
    matrix = np.arange(200 * 300).reshape(200, 300).astype(dtype) if dtype != np.float16 else None
    matrix = np.random.default_rng(0).standard_normal((200, 300)).astype(dtype) if matrix is None else matrix
    checkpoint = saved(tmp_path, w=matrix)
    before = checkpoint.bytes_read
    part = sample(checkpoint, checkpoint.tensors["w"], axis, entries=64 * matrix.shape[axis])
    whole = np.moveaxis(matrix, axis, 0).astype(np.float64)
    assert part.shape == (matrix.shape[axis], 64)
    assert checkpoint.bytes_read - before == 64 * matrix.shape[axis] * matrix.itemsize
    first = next(i for i in range(whole.shape[1]) if np.array_equal(whole[:, i], part[:, 0]))
    np.testing.assert_array_equal(part, whole[:, first : first + 64])
    everything = sample(checkpoint, checkpoint.tensors["w"], axis)
    np.testing.assert_array_equal(everything, whole)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sample_of_quantised_blocks_is_a_part_of_the_matrix(axis, smollm2):
    gguf = pytest.importorskip("gguf")
    checkpoint = open_model(smollm2)
    entry = checkpoint.tensors["blk.3.ffn_down.weight"]
    with smollm2.open("rb") as file:
        file.seek(entry.start)
        raw = np.frombuffer(file.read(entry.stop - entry.start), np.uint8)
    rows = raw.reshape(entry.shape[0], -1)
    whole = gguf.dequantize(rows, gguf.GGMLQuantizationType.Q4_1)
    part = sample(checkpoint, entry, axis, entries=64 * entry.shape[axis])
    whole = whole if axis == 0 else whole.T
    first = (whole.shape[1] - 64) // 2
    first = first // 32 * 32 if axis == 0 else first
    np.testing.assert_allclose(part, whole[:, first : first + 64], atol=1e-6 * np.abs(whole).max())


def test_what_holds_no_plain_numbers_is_not_sampled(tmp_path):
    checkpoint = saved(tmp_path, i=np.ones((64, 128), np.int8), n=np.full((64, 128), np.nan, np.float32))
    assert sample(checkpoint, checkpoint.tensors["i"], 0) is None
    assert sample(checkpoint, checkpoint.tensors["n"], 0) is None
    entry = checkpoint.tensors["n"]
    empty = TensorEntry("e", "F32", (0, 64), entry.path, entry.start, entry.start)
    assert sample(checkpoint, empty, 1) is None


def test_names_and_shapes_find_the_same_writers(minilm, tmp_path):
    named = find_writers(open_model(minilm))
    tensors = load_file(minilm / "model.safetensors")
    bare = find_writers(saved(tmp_path, **{f"t{i}": t for i, t in enumerate(tensors.values())}))
    assert named.named
    assert not bare.named
    assert bare.fingerprint.statistic == pytest.approx(named.fingerprint.statistic, rel=1e-12)
    direct = [mean_share(tensors[f"encoder.layer.{i}.output.dense.weight"].astype(float)) for i in range(6)]
    assert named.fingerprint.statistic == pytest.approx(np.median(direct), rel=1e-9)
    assert max(direct) < 0.3 < mean_share(tensors["encoder.layer.0.output.dense.weight"].T.astype(float))


@pytest.mark.parametrize("scale", ["layer_scale2.lambda1", "ls2.gamma", "lambda_2", "gamma_2", "layer_scale_2"])
def test_layer_scale_is_multiplied_in(scale, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for block in range(3):
        factor = np.exp(rng.standard_normal(64))
        writer = factor[:, None] * rng.standard_normal((64, 256))
        tensors[f"blocks.{block}.mlp.fc2.weight"] = (writer - writer.mean(0)) / factor[:, None]
        tensors[f"blocks.{block}.mlp.fc1.weight"] = rng.standard_normal((256, 64))
        tensors[f"blocks.{block}.{scale}"] = factor
        tensors[f"blocks.{block}.norm1.weight"] = np.ones(64)
    with_it = find_writers(saved(tmp_path, **tensors))
    assert with_it.scaled
    assert with_it.fingerprint.statistic < 1e-20
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith(scale)}
    assert find_writers(saved(tmp_path, **without)).fingerprint.statistic > 0.05


def test_more_vectors_than_norms_need_leave_an_rmsnorm_undetermined(smollm2, tmp_path):
    """Without names one of them may be a LayerScale, which hides the mean."""
    checkpoint = open_model(smollm2)
    tensors = {}
    for block in range(0, 30, 6):
        for part in ("ffn_down", "ffn_up", "ffn_gate"):
            entry = checkpoint.tensors[f"blk.{block}.{part}.weight"]
            tensors[f"t{len(tensors)}"] = sample(checkpoint, entry, 0).astype(np.float32)
        for _ in range(2):
            tensors[f"t{len(tensors)}"] = np.ones(576, np.float32)
    assert find_writers(saved(tmp_path, **tensors)).says == "rmsnorm"
    for _ in range(12):
        tensors[f"t{len(tensors)}"] = np.ones(576, np.float32)
    assert find_writers(saved(tmp_path, **tensors)).says == "undetermined"


def test_without_a_pair_of_rectangles_nothing_is_told(tmp_path):
    rng = np.random.default_rng(0)
    squares = {f"s{i}": rng.standard_normal((64, 64)) for i in range(4)}
    assert find_writers(saved(tmp_path, **squares, e=rng.standard_normal((1000, 64)))) is None
