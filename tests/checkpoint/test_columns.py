"""Largest magnitudes of columns, read by slices."""

import ml_dtypes
import numpy as np
import pytest

from deadreckon.checkpoint import columns
from deadreckon.checkpoint.columns import column_maxima
from deadreckon.checkpoint.source import open_model
from deadreckon.errors import InputError

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}


@pytest.fixture
def stored(put, build):
    def store(values, dtype="F32", shape=None):
        raw = values.astype(TYPES[dtype]).tobytes() if dtype in TYPES else values.tobytes()
        entry = {"dtype": dtype, "shape": list(shape or values.shape), "data_offsets": [0, len(raw)]}
        return open_model(str(put("x.safetensors", build.safetensors({"e": entry}, raw))))

    return store


@pytest.fixture(params=[1, 64, 1 << 22])
def slices(request, monkeypatch):
    """One row at a time, a few, all."""
    monkeypatch.setattr(columns, "SLICE_BYTES", request.param)


@pytest.mark.parametrize("dtype", TYPES)
def test_maxima_are_those_of_the_whole_matrix(stored, slices, dtype):
    table = (np.random.default_rng(0).standard_cauchy(size=(37, 5)) * [1, -1, 1e-3, 0, 1]).astype(TYPES[dtype])
    table[3, 4] = -1000.0
    checkpoint = stored(table, dtype)
    before = checkpoint.bytes_read
    wide = table.astype(np.float64)
    assert column_maxima(checkpoint, "e").tolist() == np.abs(wide).max(0).tolist()
    assert checkpoint.bytes_read - before == table.nbytes
    rms = np.sqrt((wide**2).mean(1, keepdims=True))
    normalised = column_maxima(checkpoint, "e", normalised=True)
    np.testing.assert_allclose(normalised, np.abs(wide / rms).max(0), rtol=1e-14)


def test_rows_of_zeros_and_of_huge_numbers_have_a_normalised_form(stored):
    assert column_maxima(stored(np.zeros((3, 2))), "e", normalised=True).tolist() == [0, 0]
    huge = column_maxima(stored(np.array([[1e300, 0.0], [0.0, 1e-320]]), "F64"), "e", normalised=True)
    np.testing.assert_allclose(huge, np.sqrt(2), rtol=1e-15)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("normalised", [False, True])
def test_what_is_not_finite_is_refused(stored, dtype, bad, normalised):
    table = np.ones((4, 3))
    table[2, 1] = bad
    with pytest.raises(InputError, match=r"'e'.*not finite"):
        column_maxima(stored(table, dtype), "e", normalised=normalised)


def test_what_is_no_matrix_of_plain_numbers_is_refused(stored):
    with pytest.raises(InputError, match="one row a token"):
        column_maxima(stored(np.ones(4)), "e")
    with pytest.raises(InputError, match="one row a token"):
        column_maxima(stored(np.ones((0, 4))), "e")
    with pytest.raises(InputError, match="stored as I8"):
        column_maxima(stored(np.ones((2, 2), np.int8), "I8"), "e")
