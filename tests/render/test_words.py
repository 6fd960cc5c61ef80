"""Numbers as a reader expects them, and names that tell results apart."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import PLACE, measurement

from deadreckon.render.gather import Entry
from deadreckon.render.labels import labels
from deadreckon.render.words import counted, listed, number, of, power, share, span

_PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1"),
        (0.0123456, "0.0123"),
        (12345.6, "12,346"),
        (999.9, "1,000"),
        (1e-3, "0.001"),
        (2.1e-75, "2.1·10⁻⁷⁵"),
        (1e-6, "1.0·10⁻⁶"),
        (9.99e-7, "1.0·10⁻⁶"),
        (-3e8, "-3.0·10⁸"),
        (5e-324, "4.9·10⁻³²⁴"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_mean_what_they_stand_for(value):
    text = number(value).replace(",", "")
    mantissa, _, exponent = text.partition("·10")
    # Compared as logarithms, since 10^324 is no float: two digits are shown at least.
    read = float(mantissa)
    assert math.copysign(1, read) == math.copysign(1, value) or value == 0
    if value:
        shown = math.log10(abs(read)) + int(exponent.translate(_PLAIN) or 0)
        assert shown == pytest.approx(math.log10(abs(value)), abs=math.log10(1.06))


def test_sentences():
    assert (power(1e-6), power(1e-3), power(2e-6)) == ("10⁻⁶", "0.001", "2.0·10⁻⁶")
    assert (counted(1, "model"), counted(2_000, "model"), counted(2, "is", "are")) == (
        "1 model",
        "2,000 models",
        "2 are",
    )
    assert (of(1, 1, "model"), of(1, 3, "model"), of(2, 3)) == ("1 of 1 model", "1 of 3 models", "2 of 3")
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(list("abcdef")) == "a, b, c and 3 more"
    assert (span([1.0, 2.0]), span([1.0, 1.0])) == ("1 to 2", "1")
    assert share(0.00258) == "0.258 %"


def test_labels_say_what_differs_within_a_model_and_no_more():
    bf16 = measurement(environment=type(PLACE)(**{**vars(PLACE), "dtype": "bfloat16"}))
    records = [
        measurement(),
        measurement(affine="lognormal:0.5"),
        bf16,
        measurement("other/name"),
        measurement("./runs/last"),
    ]
    found = labels([Entry(record, 0) for record in records])
    assert found == [
        "random:pythia-160m, plain, float32",
        "random:pythia-160m, lognormal:0.5, float32",
        "random:pythia-160m, plain, bfloat16",
        "name",
        "last",
    ]


def test_labels_are_never_the_same():
    records = [measurement(), measurement(), measurement("a/x"), measurement("b/x")]
    assert labels([Entry(r, 0) for r in records]) == ["random:pythia-160m", "random:pythia-160m (2)", "a/x", "b/x"]
    steps = labels([Entry(measurement("run"), 0, step) for step in (0, 512)])
    assert steps == ["run, step 0", "run, step 512"]
