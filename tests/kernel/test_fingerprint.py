"""The fingerprint's null is what simulation gives, and it takes a side only where the other kind is ruled out."""

import math

import numpy as np
import pytest

from deadreckon.kernel.fingerprint import combine, fingerprint, gamma_tail, mean_share


@pytest.mark.parametrize(
    ("variance", "exact"),
    [
        (2.0, lambda x: math.erf(math.sqrt(x / 2))),  # chi-squared of one degree: a writer of rank one
        (1.0, lambda x: 1 - math.exp(-x)),
        (0.5, lambda x: 1 - math.exp(-2 * x) * (1 + 2 * x)),
    ],
)
def test_gamma_tail_is_near_the_exact_one(variance, exact):
    # Wilson and Hilferty's error falls with the number of degrees 2/variance; 0.02 is its worst for a single one.
    for x in (0.3, 0.6, 1.0, 2.0, 4.0):
        assert gamma_tail(x, variance) == pytest.approx(exact(x), abs=0.02 * variance / 2)


DRAWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "student": lambda rng, shape: rng.standard_t(5, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
}


def shares(spectrum, rng, draws):
    """R of W = U S V' for Haar-distributed U, whose rows are directions uniform on the sphere."""
    u = rng.standard_normal((draws, spectrum.size))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return spectrum.size * (u**2 @ spectrum) / spectrum.sum()


@pytest.mark.parametrize("power", [0.0, 0.3, 0.7, 1.0])
def test_null_has_the_stated_moments_and_its_p_values_hold(power):
    rng, width, draws = np.random.default_rng(0), 256, 20_000
    spectrum = np.arange(1, width + 1.0) ** -power  # eigenvalues of WW'
    drawn = shares(spectrum, rng, draws)
    u, _ = np.linalg.qr(rng.standard_normal((width, width)))
    found = fingerprint(u * np.sqrt(spectrum))
    # Five standard errors of a mean, and of a standard deviation: the fourth moment of heavy spectra is below 12.
    assert drawn.mean() == pytest.approx(1.0, abs=5 * found.deviation / math.sqrt(draws) + 1e-9)
    assert drawn.std() == pytest.approx(found.deviation, rel=5 * math.sqrt(12 / draws), abs=1e-3)
    for level in (0.05, 0.01, 0.001):
        share = np.mean([gamma_tail(r, found.deviation**2) <= level for r in drawn]) if power else 0.0
        assert share <= level + 5 * math.sqrt(level / draws)  # never oftener than it says, but for chance


def test_identical_layers_get_no_smaller_p_value_than_one():
    one = fingerprint(np.random.default_rng(1).standard_normal((64, 256)))
    assert combine([one] * 9).p_unrelated >= one.p_unrelated


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (384, 1536)])
def test_untrained_matrices_say_nothing(draw, shape):
    for seed in range(6):
        values = DRAWS[draw](np.random.default_rng(seed), shape)
        found = combine([fingerprint(values), fingerprint(np.roll(values, 1, 0))])
        assert found.says == "undetermined"
        assert found.initial_share > 0.8


@pytest.mark.parametrize("width", [128, 384])
@pytest.mark.parametrize("learned", [0.05, 0.5, 1.0, 3.0])
def test_what_training_adds_without_a_mean_is_never_taken_for_an_rmsnorm(learned, width):
    """An initial matrix, and on top of it `learned` times its energy with even or uneven rows and columns."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        size = 4 * width
        first = rng.standard_normal((width, size))
        added = np.exp(rng.normal(0, seed / 4, (width, 1))) * rng.standard_normal((width, size))
        added *= np.exp(rng.normal(0, seed / 4, (1, size)))
        centred, plain = added - added.mean(0), added
        of_layernorm, of_rmsnorm = (
            fingerprint(first + math.sqrt(learned) * a * np.linalg.norm(first) / np.linalg.norm(a))
            for a in (centred, plain)
        )
        assert of_layernorm.says != "rmsnorm"
        assert of_rmsnorm.says != "layernorm"
        # What only initialisation left along 1 is its share of the energy, and the estimate does not fall below it.
        assert of_layernorm.initial_share >= 0.9 / (1 + learned)
        if learned == 3.0 and seed in (1, 2):  # the fewer effective directions of later seeds are no evidence
            assert of_layernorm.says == "layernorm"
            assert of_rmsnorm.says == "rmsnorm"


def test_scaling_rows_changes_the_answer():
    rng = np.random.default_rng(3)
    writer = rng.standard_normal((64, 256))
    scale = np.exp(rng.standard_normal(64))[:, None]
    centred = writer * scale
    centred = (centred - centred.mean(0)) / scale  # centred only once LayerScale is multiplied in
    assert mean_share(scale * centred) < 1e-20
    assert mean_share(centred) > 0.1


def test_a_matrix_of_zeros_says_nothing_and_huge_entries_do_not_overflow():
    assert fingerprint(np.zeros((64, 32))).says == "undetermined"
    rng = np.random.default_rng(5)
    writer = rng.standard_normal((64, 128))
    # Scaling by a power of two is exact.
    assert fingerprint(writer * 2.0**600) == fingerprint(writer)


def test_a_small_share_is_no_evidence_where_few_directions_write():
    """A writer of rank one has R below 0.5 in half of the cases: only its p-value says that this is chance."""
    small = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        writer = np.outer(rng.standard_normal(128), rng.standard_normal(512)) + 0.01 * rng.standard_normal((128, 512))
        found = fingerprint(writer)
        small += found.statistic <= 0.5
        assert found.says != "layernorm"
    assert small >= 3
