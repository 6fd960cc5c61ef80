"""Every bit pattern of every float type, against its definition."""

import math
import warnings

import numpy as np
import pytest

from deadreckon.checkpoint.elements import PLAIN_TYPES, VECTOR_LIMIT, decode, read_vector
from deadreckon.checkpoint.format import TensorEntry
from deadreckon.errors import InputError


def by_definition(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """An IEEE-like float from its bits, with neither NaN nor infinity."""
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    if exponent == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * math.ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)


def ieee(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """The same with the top exponent for infinity (mantissa 0) and NaN."""
    if code >> mantissa_bits & ((1 << exponent_bits) - 1) == (1 << exponent_bits) - 1:
        if code & ((1 << mantissa_bits) - 1):
            return math.nan
        return -math.inf if code >> (exponent_bits + mantissa_bits) else math.inf
    return by_definition(code, exponent_bits, mantissa_bits, bias)


DEFINITIONS = {
    "F16": (16, lambda code: ieee(code, 5, 10, 15)),
    "BF16": (16, lambda code: ieee(code, 8, 7, 127)),
    "F8_E5M2": (8, lambda code: ieee(code, 5, 2, 15)),
    "F8_E4M3": (8, lambda code: math.nan if code & 0x7F == 0x7F else by_definition(code, 4, 3, 7)),
    "F8_E4M3FNUZ": (8, lambda code: math.nan if code == 0x80 else by_definition(code, 4, 3, 8)),
    "F8_E5M2FNUZ": (8, lambda code: math.nan if code == 0x80 else by_definition(code, 5, 2, 16)),
}


@pytest.mark.parametrize("dtype", DEFINITIONS)
def test_every_pattern(dtype):
    width, definition = DEFINITIONS[dtype]
    codes = np.arange(1 << width, dtype=np.uint64)
    raw = codes.astype("<u2" if width == 16 else "u1").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = decode(dtype, raw)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [definition(int(code)) for code in codes])


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_types_keep_every_bit_and_signalling_nan_is_silent(dtype):
    code = {"F32": "<f4", "F64": "<f8"}[dtype]
    values = np.random.default_rng(0).standard_normal(1000).astype(code)
    signalling = {"F32": np.uint32(0x7F800001), "F64": np.uint64(0x7FF0000000000001)}[dtype].tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(dtype, values.tobytes() + signalling)
    np.testing.assert_array_equal(decoded[:-1].astype(code), values)
    assert np.isnan(decoded[-1])


def test_definitions_cover_the_types_and_tell_them_apart():
    assert set(DEFINITIONS) | {"F32", "F64"} == PLAIN_TYPES
    raw = np.arange(0x3C00, 0x3D00, dtype="<u2").tobytes()
    assert not np.allclose(decode("F16", raw), decode("BF16", raw))
    raw = np.arange(0x20, 0x60, dtype="u1").tobytes()
    assert not np.allclose(decode("F8_E4M3", raw), decode("F8_E5M2", raw))
    np.testing.assert_array_equal(decode("F8_E4M3", raw), 2 * decode("F8_E4M3FNUZ", raw))  # one step of bias


@pytest.mark.parametrize("dtype", ["I8", "U8", "BOOL", "I64", "C64", "F4", "F8_E8M0", "Q4_1", "Q8_0", "nonsense"])
def test_types_without_plain_numbers_are_refused(dtype, tmp_path):
    with pytest.raises(InputError):
        decode(dtype, bytes(8))
    path = tmp_path / "file"
    path.write_bytes(bytes(8))
    with pytest.raises(InputError, match=rf"file: tensor 'gain' is stored as {dtype}, an integer or quantised type"):
        read_vector(TensorEntry("gain", dtype, (8,), path, 0, 8))


@pytest.mark.parametrize("shape", [(), (0,), (2, 2), (1, 4), (4, 1)])
def test_only_vectors_are_read(shape, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(16))
    with pytest.raises(InputError, match="tensor 'gain' has shape"):
        read_vector(TensorEntry("gain", "F32", shape, path, 0, 16))


def test_no_norm_is_millions_wide(tmp_path):
    path = tmp_path / "file"
    path.touch()
    count = VECTOR_LIMIT + 1
    with pytest.raises(InputError, match=f"tensor 'gain' has {count} entries"):
        read_vector(TensorEntry("gain", "F32", (count,), path, 0, 4 * count))


@pytest.mark.parametrize("scale", ["norm.weight_scale", "norm.weight_scale_inv", "norm.scale"])
def test_a_scale_beside_an_eight_bit_gain_refuses_it(scale, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\x38\x40")  # 1 and 2 in E4M3
    entry = TensorEntry("norm.weight", "F8_E4M3", (2,), path, 0, 2)
    np.testing.assert_array_equal(read_vector(entry, {"norm.weight", "other.weight_scale"}), [1.0, 2.0])
    with pytest.raises(InputError, match=f"with its scale in '{scale}'"):
        read_vector(entry, {"norm.weight", scale})


def test_a_scale_beside_a_wide_gain_says_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.array([1.5, 2.5], "<f4").tobytes())
    entry = TensorEntry("norm.weight", "F32", (2,), path, 0, 8)
    np.testing.assert_array_equal(read_vector(entry, {"norm.weight", "norm.scale"}), [1.5, 2.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_entry_that_is_not_finite_is_named(bad, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.array([1.0, 2.0, bad, 3.0], "<f4").tobytes())
    with pytest.raises(InputError, match=r"file: tensor 'gain': entry 2 is"):
        read_vector(TensorEntry("gain", "F32", (4,), path, 0, 16))
