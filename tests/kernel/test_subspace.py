"""The dead subspace against dense float64, exact arithmetic where float64 cannot decide, and hostile gains."""

import time

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deadreckon.errors import InputError, UsageError
from deadreckon.kernel.norm import LAYERNORM, Norm, effective_gain
from deadreckon.kernel.subspace import DeadSubspace

U = np.finfo(np.float64).eps / 2
RNG = np.random.default_rng(20260619)

HEALTHY = np.exp(0.5 * RNG.normal(size=192))
GAINS = {
    "healthy": HEALTHY,
    "negative": HEALTHY * RNG.choice([-1.0, 1.0], size=192),
    "equal": np.full(64, 0.7),
    "equal up to sign": RNG.choice([-1.0, 1.0], size=64),
    "clustered": np.round(RNG.normal(size=256) * 40) / 40 + 0.0125,
    "one ulp apart": 1.0 + 2.0**-52 * RNG.integers(0, 6, size=64),
    "zeros": np.where(RNG.random(128) < 0.1, 0.0, RNG.normal(size=128)),
    "one zero": np.r_[0.0, HEALTHY[:40]],
    "all zero": np.zeros(9),
    "near zero": np.r_[4.8e-33, 6.0e-33, 1.5e-9, RNG.uniform(0.25, 0.8, 189)],
    "two": np.array([3.0, -0.25]),
    "three": np.array([1.0, 1.0, 2.0]),
}


def covariance(gain: np.ndarray, *, centred: bool, groups: int = 1) -> np.ndarray:
    """A of the definition, formed densely."""
    matrix = np.diag(gain**2)
    width = gain.size // groups
    if centred:
        for start in range(0, gain.size, width):
            part = slice(start, start + width)
            matrix[part, part] -= np.outer(gain[part], gain[part]) / width
    return matrix


def centred_output(gain: np.ndarray, tokens: np.ndarray, groups: int = 1) -> np.ndarray:
    """A LayerNorm's output for these inputs, before its shift."""
    x = tokens.reshape(len(tokens), groups, -1)
    z = x - x.mean(-1, keepdims=True)
    return (z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5)).reshape(tokens.shape) * gain


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_spectrum_and_vectors_against_dense(name, kind):
    gain = GAINS[name]
    matrix = covariance(gain, centred=kind == "layernorm")
    subspace = DeadSubspace.from_gain(gain, kind)
    values, vectors = subspace._bottom(gain.size, vectors=True)
    scale = np.abs(matrix).max()
    mean = np.trace(matrix) / gain.size
    # Dense eigh errs by about d u |A|; ours must agree to that.
    allowed = 8 * gain.size * U * scale
    assert np.abs(values * mean - np.linalg.eigvalsh(matrix)).max() <= allowed
    assert np.abs(matrix @ vectors - vectors * (values * mean)).max() <= allowed
    assert np.abs(vectors.T @ vectors - np.eye(gain.size)).max() <= 1e-12


@pytest.mark.parametrize("name", ["healthy", "negative", "near zero", "two", "equal"])
def test_kernel_kills_every_input(name):
    gain = GAINS[name]
    direction = DeadSubspace.from_gain(gain).direction
    for spread in (1e-3, 1.0, 1e3):
        tokens = RNG.normal(size=(50, gain.size)) * spread + RNG.normal(size=gain.size)
        projected = centred_output(gain, tokens) @ direction
        # w_i gain_i = 1/|gain^-1| for all i: what is left is the rounding of sum(z), d entries of size |z| <= sqrt(d),
        # and that of the mean, which the division by the token's own deviation magnifies.
        unit = abs(direction[0] * gain[0])
        magnified = 1 + np.abs(tokens).max(1) / tokens.std(1)
        assert np.all(np.abs(projected) <= 4 * gain.size**1.5 * U * unit * magnified)


def test_kernel_of_another_kind_is_not_killed():
    """The negative control: the same direction has variance under an RMSNorm, and with a gain off by 1%."""
    direction = DeadSubspace.from_gain(HEALTHY).direction
    tokens = RNG.normal(size=(4000, HEALTHY.size))
    rms = tokens / np.sqrt((tokens**2).mean(-1, keepdims=True)) * HEALTHY
    wrong = centred_output(HEALTHY * (1 + 0.01 * RNG.normal(size=HEALTHY.size)), tokens)
    typical = np.mean(HEALTHY**2)
    assert np.var(rms @ direction) > 1e-2 * typical
    assert np.var(wrong @ direction) > 1e-6 * typical


@pytest.mark.parametrize(
    ("gain", "kind", "groups", "dim"),
    [
        (HEALTHY, "layernorm", 1, 1),
        (HEALTHY, "rmsnorm", 1, 0),
        (np.r_[0.0, 0.0, HEALTHY], "layernorm", 1, 2),
        (np.r_[0.0, 0.0, HEALTHY], "rmsnorm", 1, 2),
        (HEALTHY, "layernorm", 4, 4),
        (np.r_[0.0, HEALTHY[:47], HEALTHY[:144]], "layernorm", 4, 4),
        (np.r_[0.0, 0.0, HEALTHY[:46], HEALTHY[:144]], "layernorm", 4, 5),
        (HEALTHY, "rmsnorm", 4, 0),
        (np.ones(5), "layernorm", 5, 5),
        (np.zeros(7), "layernorm", 1, 7),
        (np.zeros(7), "rmsnorm", 1, 7),
        (np.array([2.0]), "layernorm", 1, 1),
        (np.array([2.0]), "rmsnorm", 1, 0),
        (np.array([0.0]), "layernorm", 1, 1),
    ],
)
def test_kernel_dimension_is_the_null_space_of_the_covariance(gain, kind, groups, dim):
    subspace = DeadSubspace.from_gain(gain, kind, groups)
    matrix = covariance(gain, centred=kind == "layernorm", groups=groups)
    assert subspace.kernel_dim == dim
    assert np.linalg.matrix_rank(matrix, tol=gain.size * U * max(np.abs(matrix).max(), 1e-300) * 8) == gain.size - dim
    kernel = subspace.kernel()
    assert kernel.shape == (gain.size, dim)
    assert np.abs(kernel.T @ kernel - np.eye(dim)).max(initial=0.0) <= 1e-12
    assert np.abs(matrix @ kernel).max(initial=0.0) <= 8 * gain.size * U * max(np.abs(matrix).max(), 1.0)
    assert subspace.dead_count() >= dim


def test_kernel_lies_in_the_dead_subspace():
    for groups in (1, 4):
        subspace = DeadSubspace.from_gain(np.r_[GAINS["near zero"]], "layernorm", groups)
        basis, kernel = subspace.dead_basis(), subspace.kernel()
        assert np.abs(kernel - basis @ (basis.T @ kernel)).max() <= 1e-12


def test_near_zero_gains_open_directions_that_a_single_vector_cannot_show():
    subspace = DeadSubspace.from_gain(GAINS["near zero"])
    assert (subspace.kernel_dim, subspace.dead_count(1e-6), subspace.dead_count(1e-20)) == (1, 3, 2)
    assert np.all(np.isfinite(subspace.direction))
    assert DeadSubspace.from_gain(GAINS["near zero"], "rmsnorm").dead_count(1e-6) == 3


def test_no_affine_is_the_uniform_direction():
    assert np.allclose(DeadSubspace.from_gain(np.ones(25)).direction, 0.2, rtol=4 * U, atol=0)


def exact_spectrum(gain: np.ndarray) -> list[mpmath.mpf]:
    """Eigenvalues of A relative to their mean with 400 digits: what float64 cannot form."""
    with mpmath.workdps(400):
        g = [mpmath.mpf(float(v)) for v in gain]
        d = len(g)
        matrix = mpmath.matrix(d, d)
        for i in range(d):
            for j in range(d):
                matrix[i, j] = (g[i] ** 2 if i == j else 0) - g[i] * g[j] / d
        mean = sum(matrix[i, i] for i in range(d)) / d
        return [value / mean for value in mpmath.eigsy(matrix, eigvals_only=True)]


@pytest.mark.parametrize(
    "gain",
    [
        np.array([1e-38, 1.0, 1e38]),
        np.array([1e-38, -1e-20, 3e-20, 1.0, 2.0, 1e38]),
        np.array([1e-45, 1e-38, 1e38, 1e38]),
        np.array([0.0, 1e-30, 1e-30, 1.0, 1e10]),
        np.array([1.0, 1.0 + 2.0**-52, 1.0 + 2.0**-51, 5.0]),
    ],
)
def test_small_eigenvalues_are_accurate_relative_to_themselves(gain):
    """Where eigenvalues span 150 decades a dense float64 solve has none of the small ones right; these must be."""
    found = DeadSubspace.from_gain(gain).predicted_eigenvalues(gain.size)
    for value, true in zip(found, exact_spectrum(gain), strict=True):
        # Exactly zero eigenvalues come out of 400 digits as noise around 1e-400.
        assert abs(value - true) <= 64 * U * abs(true) + mpmath.mpf(10) ** -300


hostile = st.one_of(
    st.floats(1e-38, 1e38),
    st.floats(-1e38, -1e-38),
    st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, 5e-324, 1e-310, 1e-45, -1e-45, 1e38]),
)
hostile_gains = hnp.arrays(np.float64, st.integers(1, 24), elements=hostile)


@settings(max_examples=300, deadline=None)
@given(hostile_gains, st.sampled_from(["layernorm", "rmsnorm"]), st.sampled_from([1e-2, 1e-6, 1e-12]))
def test_hostile_gains(gain, kind, tau):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        subspace = DeadSubspace.from_gain(gain, kind)
        values = subspace.predicted_eigenvalues(gain.size)
        basis, kernel = subspace.dead_basis(tau), subspace.kernel()
    zeros = int((gain == 0).sum())
    assert subspace.kernel_dim == (zeros or int(kind == "layernorm"))
    assert np.all(np.isfinite(values))
    assert np.all(values >= 0)
    assert np.all(np.diff(values) >= 0)
    assert basis.shape == (gain.size, subspace.dead_count(tau))
    assert subspace.kernel_dim <= basis.shape[1]
    assert np.abs(basis.T @ basis - np.eye(basis.shape[1])).max(initial=0.0) <= 1e-12
    assert np.abs(kernel - basis @ (basis.T @ kernel)).max(initial=0.0) <= 1e-12
    # Interlacing: the k-th eigenvalue is at most the k-th squared gain (relative to the same mean).
    if subspace.mean_variance() > 0:
        squares = np.sort((gain / np.abs(gain).max()) ** 2) / subspace.mean_variance()
        assert np.all(values <= squares * (1 + 64 * U) + 1e-250)


@settings(max_examples=60, deadline=None)
@given(hostile_gains, st.floats(1.0, 1e3))
def test_dead_subspace_does_not_see_the_scale_of_the_gain(gain, scale):
    one = DeadSubspace.from_gain(gain).predicted_eigenvalues(gain.size)
    other = DeadSubspace.from_gain(gain * 2.0 ** round(np.log2(scale))).predicted_eigenvalues(gain.size)
    # A power of two rescales normal numbers without rounding; subnormal gains may lose bits, at values of 1e-290.
    assert np.allclose(one, other, rtol=64 * U, atol=1e-250)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_gain_is_refused_by_index(bad):
    gain = np.ones(10)
    gain[7] = bad
    with pytest.raises(InputError, match="entry 7"):
        DeadSubspace.from_gain(gain)


@pytest.mark.parametrize("bad", [np.ones((2, 2)), [], "abc", [1.0, "x"], [1 + 2j]])
def test_not_a_vector_is_refused(bad):
    with pytest.raises(InputError):
        DeadSubspace.from_gain(bad)


@pytest.mark.parametrize("tau", [0.0, 1.0, -1e-6, float("nan")])
def test_tau_outside_its_range_is_refused(tau):
    with pytest.raises(UsageError, match="tau"):
        DeadSubspace.from_gain(HEALTHY).dead_count(tau)


def test_unknown_kind_groups_and_lengths_are_refused():
    with pytest.raises(UsageError, match="layernorm"):
        DeadSubspace.from_gain(HEALTHY, "batchnorm")
    with pytest.raises(InputError, match="groups"):
        DeadSubspace.from_gain(HEALTHY, "layernorm", 5)
    with pytest.raises(InputError, match="equally long"):
        Norm("n", LAYERNORM, np.ones(3), np.ones(4))


def test_offset_is_part_of_the_gain():
    stored = np.array([-1.0, 0.0, 0.5], dtype=np.float32)
    assert effective_gain(stored, 1.0).tolist() == [0.0, 1.0, 1.5]
    assert DeadSubspace.from_gain(effective_gain(stored, 1.0), "rmsnorm").kernel_dim == 1
    assert DeadSubspace.from_gain(effective_gain(stored), "rmsnorm").zero_gains.tolist() == [1]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_dead_count_counts_the_eigenvalues(kind, groups):
    """Counted without solving for them; solved for, they must say the same, also where half of the gains are tiny."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gain = np.where(rng.random(64) < 0.5, 10.0 ** rng.uniform(-6, 0, 64), rng.choice([0.0, 0.5, 1.0, -1.0], 64))
        subspace = DeadSubspace.from_gain(gain, kind, groups)
        for tau in (1e-1, 1e-2, 1e-4, 1e-6, 1e-8):
            assert subspace.dead_count(tau) == int((subspace.predicted_eigenvalues(64) <= tau).sum())


def test_many_dead_directions_are_counted_at_once():
    gain = np.where(RNG.random(16384) < 0.5, 1e-9 * RNG.random(16384), 1.0)
    started = time.perf_counter()
    assert DeadSubspace.from_gain(gain).dead_count() == int((gain < 1).sum())
    assert time.perf_counter() - started < 0.5


def test_bottom_of_a_very_wide_norm_takes_well_under_a_second():
    gain = np.exp(0.5 * RNG.normal(size=16384))
    started = time.perf_counter()
    subspace = DeadSubspace.from_gain(gain)
    count, values = subspace.dead_count(), subspace.predicted_eigenvalues(32)
    assert time.perf_counter() - started < 0.9
    assert count == 1
    squares = np.sort(gain**2)
    mean = np.mean(gain**2) * (1 - 1 / gain.size)
    assert np.all(values[1:] * mean >= squares[:31] * (1 - 1e-12))
    assert np.all(values[1:] * mean <= squares[1:32] * (1 + 1e-12))
