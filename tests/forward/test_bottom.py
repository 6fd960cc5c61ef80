"""The bottom of prescribed spectra: every bound holds, nothing is damped, and what is missed is seen to be missing."""

import pytest
import torch

from deadreckon.forward import bottom as engine
from deadreckon.forward import spectrum
from deadreckon.forward.bottom import bottom
from deadreckon.forward.cholesky import Factor, cholesky, log_determinant, positive_definite
from deadreckon.forward.conclude import TAUS
from deadreckon.forward.krylov import Ritz, largest_eigenvalue
from deadreckon.forward.moments import Moments
from deadreckon.forward.smallest import smallest_eigenvalue
from deadreckon.forward.spectrum import eigensolver

U = torch.finfo(torch.float64).eps / 2


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def bulk(count):
    return torch.linspace(0.1, 1, count, dtype=torch.float64)


def marchenko_pastur(size, tokens):
    draw = torch.randn(tokens, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.linalg.eigvalsh(draw.T @ draw / tokens)


SPECTRA = {
    "sixteen decades": lambda d: torch.logspace(-16, 0, d, dtype=torch.float64),
    "one zero": lambda d: torch.cat([row(0), bulk(d - 1)]),
    "a hundred zeros": lambda d: torch.cat([row(*[0] * 100), bulk(d - 100)]),
    "more copies than asked for": lambda d: torch.cat([row(*[1e-5] * 20), bulk(d - 20)]),
    "five within 1e-6": lambda d: torch.cat([1e-5 * (1 + 1e-6 * torch.arange(5).double()), bulk(d - 5)]),
    "thirty within 1e-6": lambda d: torch.cat([1e-5 * (1 + 1e-6 * torch.arange(30).double()), bulk(d - 30)]),
    "noise, four tokens a dimension": lambda d: marchenko_pastur(d, 4 * d),
    "noise, hardly more tokens than dimensions": lambda d: marchenko_pastur(d, d + d // 5),
    "massive top": lambda d: torch.cat([row(1e-5, 1e-3), bulk(d - 3), row(1e6)]),
    "all equal": lambda d: torch.ones(d, dtype=torch.float64),
    "one direction": lambda d: torch.cat([row(*[0] * (d - 1)), row(1)]),
}
SINGULAR = {"sixteen decades", "one zero", "a hundred zeros", "one direction"}


def matrices(spectra, seed=0):
    """Symmetric matrices in random orthogonal frames with these eigenvalues, shape (b, d)."""
    batch, size = spectra.shape
    generator = torch.Generator().manual_seed(seed)
    frames = torch.linalg.qr(torch.randn(batch, size, size, generator=generator, dtype=torch.float64)).Q
    made = (frames * spectra[:, None]) @ frames.mT
    return (made + made.mT) / 2


def assert_bounds_hold(found, truth):
    """|theta_i - lambda_i| <= the reported error, for the truth that the rounding of the matrix itself leaves."""
    size = truth.shape[-1]
    # Making the matrix and a Ritz quotient: two inner products of length d, each d u lambda_max at most.
    rounding = 2 * size * U * truth[:, -1:]
    count = found.eigenvalues.shape[-1]
    nearest = (found.eigenvalues[..., None] - truth[:, None]).abs().amin(-1)
    same = (found.eigenvalues - truth[:, :count]).abs()
    for k in found.certified.nonzero()[:, 0]:
        assert (nearest[k] <= found.error[k] + rounding[k]).all()
        # That none was missed is proven to a thousandth of the last.
        assert (same[k] <= found.error[k] + rounding[k] + 1e-3 * truth[k, count - 1]).all()


@pytest.mark.parametrize("size", [301, 512])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_bound_holds(name, size):
    truth = SPECTRA[name](size)[None]
    made = matrices(truth)
    floor = size * U * truth[:, -1:]
    for count in (1, 8):
        found = bottom(made, count, complete=True)
        assert_bounds_hold(found, truth)
        assert found.complete.all()
        if name != "a hundred zeros":  # as many as this may need the whole solve
            assert found.certified.all()
            assert (found.error <= torch.maximum(1e-3 * found.eigenvalues, 4 * floor)).all()
        # Rayleigh quotients of orthonormal vectors lie above the sum of as many eigenvalues, but for rounding.
        overlap = found.eigenvectors.mT @ found.eigenvectors - torch.eye(count, dtype=torch.float64)
        assert overlap.abs().max() <= size * U
        assert found.eigenvalues.sum() >= truth[:, :count].sum() - count * floor
        if name in SINGULAR:
            assert found.log_det.isnan().all()
        else:
            # Each log lambda moves by d u lambda_max/lambda at most.
            assert abs(float(found.log_det - torch.logdet(made[0]))) <= 2 * float((floor / truth).sum())


def test_what_is_reported_is_not_what_was_factored():
    """The factored matrix is shifted by 4 d u lambda_max or more; values that small come out as they are."""
    size = 400
    exact = torch.cat([row(1e-20, 3e-18, 1e-16, 1e-15, 1e-14, 1e-13), bulk(size - 6)])
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    found = bottom(torch.diag(exact[order])[None], 6)  # a diagonal matrix has exactly these eigenvalues
    assert found.certified.all()
    floor = size * U
    assert (found.eigenvalues - exact[:6]).abs().max() <= floor / 8  # a thirtieth of the smallest shift
    found = bottom(matrices(exact[None]), 6)
    assert (found.eigenvalues - exact[:6]).abs().max() <= floor / 2


@pytest.fixture(params=["library", "by panels"])
def arranged(request):
    """Matrices that take the way of a host, or that of an accelerator."""

    class Pretending(torch.Tensor):
        is_cuda = True

    return (lambda made: made) if request.param == "library" else (lambda made: made.as_subclass(Pretending))


def test_a_mixed_batch_finds_what_each_finds_alone(arranged):
    size = 333
    names = ["sixteen decades", "one zero", "noise, four tokens a dimension", "massive top", "five within 1e-6"]
    truth = torch.stack([SPECTRA[name](size) for name in names])
    made = matrices(truth)
    found = bottom(arranged(made), 6, complete=True)
    assert found.certified.all()
    assert found.complete.all()
    assert_bounds_hold(found, truth)
    for k, name in enumerate(names):
        alone = bottom(made[k : k + 1], 6)
        rounding = 2 * size * U * truth[k, -1]
        assert ((found.eigenvalues[k] - alone.eigenvalues[0]).abs() <= found.error[k] + alone.error[0] + rounding).all()
        if name not in SINGULAR:
            expected = float(torch.logdet(made[k]))
            assert float(found.log_det[k]) == pytest.approx(expected, abs=float((rounding / truth[k]).sum()))


def test_a_matrix_of_zeros_has_no_certificate_and_spoils_no_other():
    truth = torch.stack([SPECTRA["one zero"](300), *[bulk(300)] * 3, torch.zeros(300, dtype=torch.float64)])
    found = bottom(matrices(truth), 4, complete=True)
    assert found.certified.tolist() == [True] * 4 + [False]
    assert_bounds_hold(found, truth)
    assert not bottom(torch.zeros(1, 300, 300, dtype=torch.float64), 1).certified


@pytest.mark.parametrize("size", [96, 257, 640])
def test_cholesky_of_many_and_what_it_solves(arranged, size):
    truth = torch.stack([bulk(size) for _ in range(4)])
    made = matrices(truth)
    made[2] -= 0.5 * torch.eye(size, dtype=torch.float64)  # indefinite
    lower, failed = cholesky(arranged(made))
    assert failed.tolist() == [False, False, True, False]
    good = [0, 1, 3]
    # Backward stable (Higham 10.3): |LL^T - A| <= (d + 1) u |L||L|^T, diagonal of A at most 1.
    assert (lower @ lower.mT - made)[good].abs().max() <= 2 * (size + 1) * U
    assert lower[good].triu(1).abs().max() == 0
    assert log_determinant(lower)[good].numpy() == pytest.approx(torch.logdet(made[good]).numpy(), abs=10 * size**2 * U)
    factor = Factor.of(lower)
    first = lower[:, : factor.inverses[0].shape[-1], : factor.inverses[0].shape[-1]]
    # cond(L) = sqrt(10).
    eye = torch.eye(first.shape[-1], dtype=torch.float64)
    assert (factor.inverses[0] @ first - eye)[good].abs().max() <= 4 * size * U * 10**0.5
    block = torch.randn(4, size, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solved = factor.solve(block)
    # cond(A) = 10, |x| <= 10 |b|.
    assert (made @ solved - block)[good].norm(dim=1).max() <= 10 * 4 * size * U * float(block.norm(dim=1).max())
    edges = truth[:, 0] - row(0, 0, 0.5, 0)
    assert positive_definite(arranged(made), 1e-9 - edges).all()
    assert not positive_definite(arranged(made), -1e-9 - edges).any()


@pytest.mark.parametrize("tolerance", [3e-2, 1e-3])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_smallest_value_lies_between_its_bounds(name, tolerance):
    size = 512
    truth = SPECTRA[name](size).sort().values
    found = smallest_eigenvalue(matrices(truth[None]), largest=truth[-1:], tolerance=tolerance)
    rounding = 2 * size * U * float(truth[-1])
    assert bool(found.proven) == (name not in SINGULAR)
    if found.proven:
        assert float(found.value - found.error) - rounding <= truth[0] <= float(found.value) + rounding
        assert float(found.error) <= (1e-1 if tolerance > 1e-2 else tolerance) * float(found.value) + rounding
        made = matrices(truth[None])[0]
        assert float(found.vector[0] @ made @ found.vector[0]) == pytest.approx(float(found.value), abs=rounding)


def test_a_smallest_value_that_the_search_missed_is_not_proven():
    """A search kept away from the bottom: what it finds is a Rayleigh quotient, and the proof fails."""
    truth = torch.cat([row(1.6e-2, 2e-2), bulk(298)])
    made = torch.diag(truth)[None]
    start = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start[0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deadreckon.forward.smallest.first_block", lambda *_: start[None])
        found = smallest_eigenvalue(made, largest=truth[-1:])
    assert float(found.value) == pytest.approx(2e-2, rel=1e-6)
    assert not found.proven
    assert smallest_eigenvalue(made, largest=truth[-1:]).proven


def test_a_close_bound_that_does_not_hold_is_not_claimed():
    """A search that missed a value within the wide bound and not within the close one."""
    truth = torch.cat([row(1.98e-2, 2e-2), bulk(298)])
    second = torch.zeros(1, 300, 1, dtype=torch.float64)
    second[0, 1] = 1.0
    with pytest.MonkeyPatch.context() as patch:
        missed = Ritz(row(2e-2)[None], second, row(0.0)[None])
        patch.setattr("deadreckon.forward.smallest._search", lambda *_: missed)
        found = smallest_eigenvalue(torch.diag(truth)[None], largest=truth[-1:], tolerance=1e-3)
    assert found.proven
    assert float(found.value) == 2e-2
    assert float(found.value - found.error) <= 1.98e-2


@pytest.mark.parametrize("missed", [0, 2, 5])
@pytest.mark.parametrize("name", ["five within 1e-6", "massive top", "noise, four tokens a dimension"])
def test_an_omission_is_seen(name, missed):
    truth = SPECTRA[name](300)[None]
    made = matrices(truth)
    values, vectors = torch.linalg.eigh(made)
    floor = 300 * U * truth[:, -1]
    kept = [k for k in range(7) if k != missed]
    assert engine._nothing_below(made, values[:, :7], vectors[..., :7], floor, None)
    if values[0, missed] < 0.999 * values[0, 6]:
        assert not engine._nothing_below(made, values[:, kept], vectors[..., kept], floor, None)
    ceiling = (values[:, 6] + values[:, 7]) / 2
    assert engine._nothing_below(made, values[:, :7], vectors[..., :7], floor, ceiling)
    assert not engine._nothing_below(made, values[:, kept], vectors[..., kept], floor, ceiling)


def test_a_ceiling_spares_work_above_it_and_proof_is_about_what_is_below():
    truth = torch.cat([row(1e-6, 1e-4), marchenko_pastur(398, 478)])[None]  # an edge that takes long
    made = matrices(truth)
    ceiling = row(1e-2)
    assert int((truth < 1e-2).sum()) == 4  # the edge has some there too
    found = bottom(made, 8, ceiling=ceiling, complete=True)
    assert found.certified
    assert found.complete
    rounding = 2 * 400 * U * truth[:, -1]
    low = truth[0, :8] <= 1e-2
    assert ((found.eigenvalues - truth[:, :8]).abs() <= found.error + rounding)[0, low].all()
    assert (found.eigenvalues[0, ~low] > 1e-2).all()
    assert (found.eigenvalues >= truth[:, :8] - rounding).all()  # upper bounds
    assert not bottom(made, 8, ceiling=row(0.05), complete=True).complete  # more than eight are below


@pytest.mark.parametrize("name", SPECTRA)
def test_largest_eigenvalue_from_below_within_its_error(name):
    truth = SPECTRA[name](301)
    for blocks in (8, 32):
        found = largest_eigenvalue(matrices(truth[None]), blocks=blocks)
        value, error, top = float(found.value), float(found.error), float(truth[-1])
        assert value <= top * (1 + 301 * U)
        assert float((truth - value).abs().min()) <= error + 301 * U * top
        assert error <= 0.05 * value
        assert value >= 0.97 * top


def tokens_with(spectrum_, count=1500, seed=0):
    """Moments of tokens whose covariance has these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    size = len(spectrum_)
    draw = torch.randn(count, size, generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(draw - draw.mean(0)).Q
    frame = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    moments = Moments(size)
    moments.update(left * spectrum_.sqrt() @ frame.T * (count - 1) ** 0.5 + 3)
    return moments


SOLVED = ["one zero", "five within 1e-6", "massive top", "noise, four tokens a dimension"]


@pytest.mark.parametrize("name", [*SOLVED, "a hundred zeros", "more copies than asked for"])
def test_the_bottom_solver_says_what_the_whole_solve_says(name):
    moments = tokens_with(SPECTRA[name](301))
    part, whole = (eigensolver(solver).solve(moments, None) for solver in ("bottom", "eigh"))
    # More dead directions than it solves for need the whole solve.
    assert (part.rest is not None) == (name in SOLVED and name != "massive top")
    assert [part.dead_count(tau) for tau in TAUS] == [whole.dead_count(tau) for tau in TAUS]
    assert part.mean == pytest.approx(whole.mean, rel=1e-12)
    assert part.participation_ratio() == pytest.approx(whole.participation_ratio(), rel=1e-10)
    # A lower bound on lambda_max to a few hundredths is an upper one on the stable rank.
    assert -1e-12 <= part.stable_rank() / whole.stable_rank() - 1 <= 0.05
    count = len(part.eigenvalues)
    assert (part.eigenvalues >= whole.eigenvalues[:count] - 4 * whole.floor).all()
    low = whole.eigenvalues[:count] <= 1e-2 * whole.mean
    off = (part.eigenvalues - whole.eigenvalues[:count]).abs()
    assert (off <= 1e-3 * whole.eigenvalues[:count] + 8 * whole.floor)[low].all()


def test_several_covariances_at_once_each_fall_back_on_their_own():
    names = ["one zero", "a hundred zeros", "five within 1e-6"]
    several = [tokens_with(SPECTRA[name](301)) for name in names]
    found = eigensolver("bottom").solve_all(several, [None] * 3)
    assert [one.rest is None for one in found] == [False, True, False]
    assert len(found[1].eigenvalues) == 301
    assert found[1].dead_count(1e-2) == 100


@pytest.mark.parametrize(("dead", "whole"), [(7, False), (8, True), (9, True)])
def test_as_many_dead_as_it_solves_for_need_the_whole_solve(dead, whole):
    """All of them dead, it cannot say that these are all."""
    found = eigensolver("bottom").solve(tokens_with(torch.cat([row(*[0] * dead), bulk(301 - dead)])), None)
    assert (found.rest is None) == whole
    assert found.dead_count(1e-2) == found.dead_count(1e-8) == dead


@pytest.mark.parametrize("broken", ["certified", "complete"])
def test_without_a_certificate_it_is_the_whole_solve(monkeypatch, broken):
    def failing(*args, **kwargs):
        found = bottom(*args, **kwargs)
        return engine.Bottom(**{**vars(found), broken: torch.zeros_like(found.certified)})

    moments = tokens_with(SPECTRA["one zero"](301))
    assert len(eigensolver("bottom").solve(moments, None).eigenvalues) == 8
    monkeypatch.setattr(spectrum, "bottom", failing)
    assert len(eigensolver("bottom").solve(moments, None).eigenvalues) == 301


def test_a_covariance_of_zeros_is_the_whole_solve():
    moments = Moments(300)
    moments.update(torch.ones(400, 300))
    found = eigensolver("bottom").solve(moments, None)
    assert len(found.eigenvalues) == 300
    assert found.dead_count(1e-8) == 300
