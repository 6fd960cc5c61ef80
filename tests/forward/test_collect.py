"""One pass over a calibration: the figures do not depend on how the tokens come, and what goes wrong is named."""

import itertools

import pytest
import torch
from torch import nn

from deadreckon.errors import InputError, UsageError
from deadreckon.forward import batching, statistics
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.anatomy import named_norm
from deadreckon.forward.calibration import given
from deadreckon.forward.collect import collect
from deadreckon.forward.share import WHOLE, Share
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import LAYERS, WIDTH

U = torch.finfo(torch.float64).eps / 2
U32 = torch.finfo(torch.float32).eps / 2
NAN, INF = float("nan"), float("inf")


class Rowwise(nn.Module):
    """Embedding and two LayerNorms: no token sees another, so a token's bits do not depend on its batch."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.norm = nn.Embedding(60, 24), nn.LayerNorm(24), nn.LayerNorm(24)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        return self.norm(x + self.first(x))


@pytest.fixture
def rowwise():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Rowwise().eval()
    redraw_affine(model, "lognormal:0.5", 0)
    return model


@pytest.fixture(scope="module")
def neox():
    model = tiny_model("gpt_neox")
    redraw_affine(model, "lognormal:0.5", 0)
    return model.double()


def ids(rows=13, length=9, seed=0, high=60):
    return torch.randint(1, high, (rows, length), generator=torch.Generator().manual_seed(seed))


def lengths(rows, longest, seed=1):
    return torch.randint(1, longest + 1, (rows, 1), generator=torch.Generator().manual_seed(seed))


def run(model, batches, path="norm", tokens=None, **options):
    return collect(model, named_norm(model, path), given(batches), tokens=tokens, **options)


def assert_same(found, expected, *, extra=0, rounding=True):
    """Equal to what adding N terms in another order may change, plus `extra` roundings of the model's own.

    An entry of a scatter is a sum of N products: each of the N additions errs by at most u of the sum so far, which
    Cauchy-Schwarz bounds by the largest diagonal entry. Means err by N u of the largest |y|, which is at most the root
    of N times (variance + mean^2). Errors of a float32 norm are differences of nearby numbers: they carry the error of
    their float64 operands, u |y| each, and a sum of their squares N times that.
    """
    found, expected = found.statistics, expected.statistics
    count = expected.count
    assert found.count == count
    terms = (count + extra) * U
    for name in ("native", "exact", "projected", "projected_exact"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        whole = expected.native if name.startswith("pro") else theirs  # projections cancel: their terms are those of y
        power = float(whole.scatter().diagonal().max() + count * whole.mean.square().max())
        assert (mine.scatter() - theirs.scatter()).abs().max() <= 4 * terms * power, name
        assert (mine.mean - theirs.mean).abs().max() <= 4 * terms * (power / count) ** 0.5, name
    assert found.signal == pytest.approx(float(expected.signal), rel=4 * terms)
    if rounding:
        assert found.residual == pytest.approx(float(expected.residual), rel=4 * terms * U32 / U * U + 4 * terms)
        errors, truth = found.error.variance(), expected.error.variance()
        scale = float(expected.signal) / count  # of |y|^2
        assert (errors - truth).abs().max() <= 4 * terms * float(truth.max()) + 4 * U * U32 * scale


def truth(model, input_ids, mask=None, tokens=None):
    """The first tokens that count, row after row, straight from the model."""
    with torch.no_grad():
        out = model(input_ids=input_ids) if mask is None else model(input_ids=input_ids, attention_mask=mask)
    out = getattr(out, "last_hidden_state", out)
    chosen = out.flatten(0, 1) if mask is None else out[mask.bool()]
    return chosen[:tokens]


def in_order(vectors):
    """Rows in lexicographic order: what is left of a set of tokens when their order is forgotten."""
    return torch.tensor(sorted(vectors.tolist()), dtype=vectors.dtype)


# Invariances


@pytest.mark.parametrize("tokens", [None, 100, 75])
@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_batch_size(rowwise, batch_size, tokens):
    batches = [{"input_ids": part} for part in ids().split([5, 8])]
    found = run(rowwise, batches, batch_size=batch_size, tokens=tokens, keep_tokens=True)
    assert_same(found, run(rowwise, batches, batch_size=13, tokens=tokens))
    # And it is what the model makes of the first tokens, in their order.
    kept = torch.cat([native for native, _ in found.statistics.kept])
    expected = truth(rowwise, ids(), tokens=tokens).double()
    assert (kept - expected).abs().max() <= 2 * U * float(expected.abs().max())  # the shift is taken off and put back
    assert found.ids == frozenset(ids().flatten()[:tokens].tolist())


def test_residual_and_signal_are_those_of_the_tokens(rowwise):
    found = run(rowwise, plain(), batch_size=4, keep_tokens=True).statistics
    native, exact = (torch.cat(parts) for parts in zip(*found.kept, strict=True))
    with torch.no_grad():
        inputs = rowwise.embed(torch.cat([batch["input_ids"] for batch in plain()])).flatten(0, 1)
        _, magnified = found.reference(inputs + rowwise.first(inputs))
    error = native - found.reference.shift - exact
    # The shift is taken off in another order here: u |y| on errors of u32 |y|, relatively u/u32 a coordinate.
    assert found.residual == pytest.approx(float((error.square().sum(1) / magnified).sum()), rel=1e-6)
    assert found.residual > 0
    assert found.signal == pytest.approx(
        float((native - found.reference.shift).square().sum()), rel=4 * len(native) * U
    )


# Rounding of a float64 forward: LAYERS blocks of a few products of at most 4 WIDTH terms each.
MODEL = 4 * LAYERS * 4 * WIDTH


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_batch_size_of_a_transformer(neox, batch_size):
    batches = [{"input_ids": ids(16, 20)}]
    found, whole = (run(neox, batches, "final_layer_norm", batch_size=size) for size in (batch_size, 16))
    assert_same(found, whole, extra=MODEL, rounding=False)


def test_one_token_less_is_seen(rowwise):
    """The control of every comparison here: the smallest thing that could go wrong is far above the tolerance."""
    batches = [{"input_ids": ids()}]
    whole = run(rowwise, batches)
    short = run(rowwise, batches, tokens=13 * 9 - 1)
    short.statistics.native.count += 1
    with pytest.raises(AssertionError):
        assert_same(short, whole)


def test_order_of_batches(rowwise):
    batches = [{"input_ids": part} for part in ids(24).split(5)]
    assert_same(run(rowwise, batches[::-1]), run(rowwise, batches))


@pytest.mark.parametrize("chunk", [64, 100, 117])
def test_chunk_size(rowwise, monkeypatch, chunk):
    batches = [{"input_ids": ids(24)}]
    whole = run(rowwise, batches, batch_size=24)
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    assert_same(run(rowwise, batches, batch_size=24), whole)


def padded(side, rows=12, length=16):
    """The same sequences with pads on either side, and positions that do not count them."""
    real = torch.arange(length) < lengths(rows, length)
    tokens = torch.where(real, ids(rows, length), 0)
    if side == "left":
        order = real.long().argsort(dim=1, stable=True)  # pads first, the rest in order
        real, tokens = real.gather(1, order), tokens.gather(1, order)
    mask = real.long()
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_padding_side(neox, batch_size):
    left, right = (
        run(neox, [padded(side)], "final_layer_norm", batch_size=batch_size, keep_tokens=True)
        for side in ("left", "right")
    )
    assert left.statistics.count == int(lengths(12, 16).sum())
    assert left.ids == right.ids
    assert_same(left, right, extra=MODEL, rounding=False)


def test_a_wrong_mask_differs(neox):
    """Left-padded sequences under the mask of right-padded ones: the count agrees, nothing else does."""
    right = run(neox, [padded("right")], "final_layer_norm")
    wrong = run(neox, [{**padded("left"), "attention_mask": padded("right")["attention_mask"]}], "final_layer_norm")
    assert wrong.statistics.count == right.statistics.count
    difference = wrong.statistics.native.scatter() - right.statistics.native.scatter()
    assert difference.norm() > 1e-2 * right.statistics.native.scatter().norm()


# Shares


def plain():
    return [{"input_ids": part} for part in ids().split([5, 8])]


def masked():
    mask = (torch.arange(9) < lengths(13, 9)).long()
    mask[3] = 0  # a row without any token
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids().split([5, 8]), mask.split([5, 8]), strict=True)]


@pytest.mark.parametrize("batch_size", [2, None])
@pytest.mark.parametrize("tokens", [None, 40, 32])  # 40 ends in the middle of a row, 32 too where there are masks
@pytest.mark.parametrize("batches", [plain, masked])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_add_up_to_the_whole_token_by_token(rowwise, count, batches, tokens, batch_size):
    whole = run(rowwise, batches(), tokens=tokens, keep_tokens=True)
    parts = [
        run(rowwise, batches(), tokens=tokens, keep_tokens=True, batch_size=batch_size, share=Share(i, count))
        for i in range(count)
    ]
    kept = [torch.cat([native for native, _ in c.statistics.kept or [(torch.empty(0, 24),) * 2]]) for c in parts]
    assert torch.equal(in_order(torch.cat(kept)), in_order(torch.cat([n for n, _ in whole.statistics.kept])))
    input_ids, mask = (
        torch.cat([batch[name] for batch in batches()]) if name in batches()[0] else None
        for name in ("input_ids", "attention_mask")
    )
    assert whole.statistics.count == len(truth(rowwise, input_ids, mask, tokens))
    assert frozenset().union(*(part.ids for part in parts)) == whole.ids
    first, *others = parts
    for other in others:
        first.statistics.merge(other.statistics)
    assert_same(first, whole)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("tokens", [None, 60])
def test_shares_of_images(count, tokens):
    model = tiny_model("vit").double()
    pixels = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = [{"pixel_values": part} for part in pixels.split(4)]
    whole = run(model, batches, "layernorm", tokens=tokens)
    assert whole.statistics.count == (60 if tokens else 7 * 17)  # 16 patches and a class token
    parts = [run(model, batches, "layernorm", tokens=tokens, share=Share(i, count)) for i in range(count)]
    assert [part.ids for part in parts] == [None] * count
    for part in parts[1:]:
        parts[0].statistics.merge(part.statistics)
    assert_same(parts[0], whole, extra=MODEL, rounding=False)


class Packed(nn.Module):
    """Takes sequences laid end to end, with where each begins: tensors that do not agree on a number of rows."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(60, 24), nn.LayerNorm(24)

    def forward(self, packed, starts):
        assert int(starts[-1]) < packed.shape[1]
        return self.norm(self.embed(packed))


@pytest.mark.parametrize("tokens", [None, 70])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_batches_that_cannot_be_cut_are_dealt_whole(count, tokens):
    model = Packed().eval()
    batches = [{"packed": ids(1, 30, seed), "starts": torch.tensor([0, 10, 20])} for seed in range(3)]
    parts = [
        run(model, batches, tokens=tokens, keep_tokens=True, batch_size=2, share=Share(i, count)) for i in range(count)
    ]
    expected = [30, 30, 10 if tokens else 30]
    assert [p.statistics.count for p in parts] == [sum(expected[i::count]) for i in range(count)]
    kept = torch.cat([native for part in parts for native, _ in part.statistics.kept])
    with torch.no_grad():
        truth = torch.cat([model(**batch)[0] for batch in batches])[:tokens].double()
    assert torch.equal(in_order(kept), in_order(truth))


def test_a_share_without_rows_is_neutral(rowwise):
    for batches in (plain()[:1], masked()[:1]):
        whole, empty = (run(rowwise, batches, share=share) for share in (WHOLE, Share(6, 8)))
        assert (empty.statistics.count, empty.ids) == (0, frozenset())
        empty.statistics.merge(whole.statistics)
        assert_same(empty, whole)
        assert empty.statistics.dtype == torch.float32


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "", "1/0", "-1/4", "1/4/2", "1.0/2", "1 / 2"])
def test_shares_that_do_not_exist(text):
    with pytest.raises(UsageError, match="i/n"):
        Share.parse(text)


def test_shares_are_written_as_they_are_read():
    assert [str(Share.parse(f"{i}/3")) for i in (1, 2, 3)] == ["1/3", "2/3", "3/3"]
    rows = sorted(row for i in range(3) for row in Share(i, 3).of(7, 11))
    assert rows == list(range(11))


# Memory


class Limited:
    """A hook on a module of a model that cannot hold more than some rows; counts what it sees."""

    def __init__(self, module, most):
        self.most, self.seen = most, []
        self.handle = module.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.seen.append(len(output))
        if len(output) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("where", ["embed", "norm", ""])  # before the norm ran, just after, at the very end
@pytest.mark.parametrize(("batch_size", "most"), [(8, 3), (8, 1), (4, 2), (None, 3), (None, 1)])
@pytest.mark.parametrize("tokens", [None, 75])
def test_running_out_of_memory_halves_the_batch_and_counts_nothing_twice(rowwise, where, batch_size, most, tokens):
    whole = run(rowwise, plain(), tokens=tokens)
    limited = Limited(rowwise.get_submodule(where), most)
    found = run(rowwise, plain(), tokens=tokens, batch_size=batch_size)
    assert_same(found, whole)
    assert found.ids == whole.ids
    assert max(limited.seen) > most  # it did run out
    failures = [rows for rows in limited.seen if rows > most]
    assert failures == sorted(failures, reverse=True)
    assert len(failures) <= 3  # and did not try again what had failed
    assert not rowwise.norm._forward_pre_hooks


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("can't allocate memory")])
def test_every_way_to_run_out_of_memory(rowwise, error):
    whole = run(rowwise, plain())

    def hook(module, args, output):
        if len(output) > 2:
            raise error

    rowwise.embed.register_forward_hook(hook)
    assert_same(run(rowwise, plain(), batch_size=8), whole)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_one_row_that_does_not_fit_is_an_error_that_says_what_would(rowwise, batch_size):
    Limited(rowwise.embed, 0)
    with pytest.raises(UsageError, match=r"one row \(input_ids \(1, 9\)\).*GB are free.*bfloat16.*device-map"):
        run(rowwise, plain(), batch_size=batch_size)


def test_other_failures_are_not_taken_for_memory(rowwise):
    def hook(module, args, output):
        raise RuntimeError("shapes do not match")

    rowwise.embed.register_forward_hook(hook)
    with pytest.raises(UsageError, match="shapes do not match"):
        run(rowwise, plain(), batch_size=4)


@pytest.mark.parametrize("tokens", [None, 200])
@pytest.mark.parametrize("call", range(12))
def test_memory_that_runs_out_inside_an_update_counts_nothing_twice(rowwise, monkeypatch, call, tokens):
    """Every allocation of an update may be the one that fails, in the first chunk as in the second."""
    batches = [{"input_ids": ids(40)}]
    whole = run(rowwise, batches, tokens=tokens)
    monkeypatch.setattr(statistics, "CHUNK", 128)
    calls, centred = itertools.count(), statistics.Centred.of

    def failing(*args, **kwargs):
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return centred(*args, **kwargs)

    monkeypatch.setattr(statistics.Centred, "of", failing)
    assert_same(run(rowwise, batches, tokens=tokens, batch_size=40), whole)
    assert next(calls) > call


def test_no_memory_for_any_update(rowwise, monkeypatch):
    def failing(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(statistics.Centred, "of", failing)
    with pytest.raises(UsageError, match="batch-size"):
        run(rowwise, plain())


def test_auto_grows_while_memory_allows_and_stops_where_it_does_not(rowwise, monkeypatch):
    batches = [{"input_ids": ids(255, 9)}]
    for free, largest in ((1 << 40, 128), (1 << 20, 4)):
        # Each row is said to take 256 KiB: a batch of 4 leaves no room for twice as many.
        limited = Limited(rowwise.embed, 1000)
        monkeypatch.setattr(batching, "free_memory", lambda device, free=free: free)
        monkeypatch.setattr(batching, "memory_used", lambda device: 0)
        monkeypatch.setattr(batching, "memory_peak", lambda device, seen=limited.seen: max(seen) << 18)
        run(rowwise, batches)
        limited.handle.remove()
        assert max(limited.seen) == largest
        assert sum(limited.seen) == 255


def test_auto_grows_where_free_memory_is_not_known(rowwise, monkeypatch):
    monkeypatch.setattr(batching, "free_memory", lambda device: None)
    limited = Limited(rowwise.embed, 1000)
    run(rowwise, [{"input_ids": ids(64, 9)}])
    limited.handle.remove()
    assert max(limited.seen) > 1


def test_growth_stops_where_larger_batches_are_no_faster(rowwise, monkeypatch):
    monkeypatch.setattr(batching, "free_memory", lambda device: 1 << 50)
    limited = Limited(rowwise.embed, 10_000)
    run(rowwise, [{"input_ids": ids(64, 1024)}])
    assert max(limited.seen) * 1024 == 4096


# What is not finite


def neox_with_nan():
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.layers[2].mlp.dense_h_to_4h.weight[3, 5] = NAN
    return model


def test_a_nan_weight_is_named():
    with pytest.raises(InputError, match=r"batch 0, row 0, token 0: .* by layers\.2\.mlp\.dense_h_to_4h:"):
        run(neox_with_nan(), [{"input_ids": ids(6)}], "final_layer_norm")


@pytest.mark.parametrize("batch_size", [1, 2, 8, None])
@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_one_token_that_overflows_is_named(bad, batch_size):
    """It is named where it arose: attention has spread it over all of its row by the time it reaches the norm."""
    model = tiny_model("gpt_neox")
    batches = [{"input_ids": ids(4, high=59)}, {"input_ids": ids(8, high=59)}]
    batches[1]["input_ids"][5, 7] = 59  # and nowhere else

    def overflow(module, args, output):
        return torch.where((seen[-1] == 59)[..., None], bad, output)

    seen = []
    model.embed_in.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model.layers[1].mlp.register_forward_hook(overflow)
    with pytest.raises(InputError, match=r"batch 1, row 5, token 7: .* by layers\.1\.mlp:.*float32.*dtype"):
        run(model, batches, "final_layer_norm", batch_size=batch_size)


def test_nothing_of_a_model_that_is_not_finite_stays_hooked():
    model = neox_with_nan()
    with pytest.raises(InputError):
        run(model, [{"input_ids": ids(6)}], "final_layer_norm")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_masked_positions_hold_is_no_error(rowwise, bad):
    batch = masked()[0]
    clean = run(rowwise, [batch])
    with torch.no_grad():
        rowwise.embed.weight[0] = bad
    spoiled = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0)}
    assert_same(run(rowwise, [spoiled]), clean)
    with pytest.raises(InputError, match="by embed:"):  # the control: where it is not masked it is one
        run(rowwise, [{"input_ids": spoiled["input_ids"]}])


def test_what_masked_positions_hold_is_not_what_is_named(rowwise):
    """Row 0 is spoiled where it is masked, row 2 where it counts."""
    batch = {"input_ids": ids(4), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    batch["input_ids"][0, 6:], batch["attention_mask"][0, 6:] = 0, 0
    batch["input_ids"][2, 5] = 0
    with torch.no_grad():
        rowwise.embed.weight[0] = NAN
    with pytest.raises(InputError, match=r"batch 0, row 2, token 5: .* by embed:"):
        run(rowwise, [batch], batch_size=4)


def test_tokens_beyond_the_budget_are_not_looked_at(rowwise):
    batch = {"input_ids": ids(4)}
    batch["input_ids"][2, 5:] = 0
    with torch.no_grad():
        rowwise.embed.weight[0] = NAN
    assert run(rowwise, [batch], tokens=2 * 9 + 5).statistics.count == 23
    with pytest.raises(InputError, match="row 2, token 5"):
        run(rowwise, [batch], tokens=2 * 9 + 6)


def test_a_batch_without_rows_is_passed_over(rowwise):
    batches = [{"input_ids": ids(0)}, *plain()]
    assert_same(run(rowwise, batches), run(rowwise, plain()))
