"""``trace`` against the singular values of the hidden states that models hand out."""

import json
import math

import pytest
import torch
from torch import nn

import deadreckon
from deadreckon.errors import InputError, UsageError
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import VOCABULARY, WIDTH
from deadreckon.results.trace import Trace
from deadreckon.verbs.trace import trace

ROWS, LENGTH = 40, 12
TOKENS = 4 * WIDTH


def inputs(seed=1, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(5, VOCABULARY - 8, (rows, LENGTH), generator=generator)}


def singular_values(hidden, keep=None):
    rows = hidden.double().flatten(0, -2) if keep is None else hidden.double()[keep]
    return torch.linalg.svdvals(rows) / len(rows) ** 0.5


def hidden_states(model, **given):
    """The stream at every node; the last entry that the model hands out has been through its final norm."""
    seen = []
    last = [module for path, module in model.named_modules() if path.endswith(("layers.3", "h.3"))][-1]
    handle = last.register_forward_hook(
        lambda _m, _a, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad():
        output = model(**given, output_hidden_states=True)
    handle.remove()
    return [hidden.detach() for hidden in output.hidden_states[:-1]] + seen


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "olmo2", "gemma2"])
def test_the_profile_is_that_of_the_hidden_states(family):
    model = tiny_model(family).eval()
    found = trace(model, tokens=TOKENS, batches=[inputs()])
    assert [node.index for node in found.blocks] == list(range(-1, 4))
    assert (found.tokens, found.hidden_size, found.role) == (TOKENS, WIDTH, "final")
    # The first rows are taken, and a part of one more.
    taken = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) < TOKENS
    expected = [singular_values(hidden, taken) for hidden in hidden_states(model, **inputs())]
    for node, sigma in zip(found.blocks, expected, strict=True):
        assert node.sigma_min == pytest.approx(float(sigma[-1]), rel=1e-5, abs=node.sigma_floor)
        assert node.sigma_max == pytest.approx(float(sigma[0]), rel=1e-5)
        if node.status == "ok":
            assert node.sigma_geomean == pytest.approx(float(sigma.log().mean().exp()), rel=1e-5)
    for before, node in zip(found.blocks, found.blocks[1:], strict=False):
        if before.status == "ok":
            assert node.step_ratio == pytest.approx(node.sigma_min / before.sigma_min)
            scale = before.sigma_geomean / node.sigma_geomean
            assert node.relative_step_ratio == pytest.approx(node.step_ratio * scale)
    assert found.verdict in {"preserved", "eased"}
    assert found.events == []


def test_masked_positions_do_not_count_wherever_they_are():
    model = tiny_model("llama").eval()
    given = inputs()
    right = torch.ones(ROWS, LENGTH, dtype=torch.long)
    right[::2, 7:] = 0
    ids = given["input_ids"]
    left_ids, left = ids.clone(), right.flip(1)
    for row in range(ROWS):  # the same tokens, their padding at the other end
        count = int(right[row].sum())
        left_ids[row, LENGTH - count :], left_ids[row, : LENGTH - count] = ids[row, :count], 5
    tokens = int(right.sum())
    first = trace(model, tokens=tokens, batches=[{"input_ids": ids, "attention_mask": right}])
    positions = (left.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": left_ids, "attention_mask": left, "position_ids": positions}
    second = trace(model, tokens=tokens, batches=[batch])
    wrong = trace(model, tokens=tokens, batches=[{"input_ids": ids, "attention_mask": right.roll(1, 0)}])
    assert first.tokens == second.tokens == tokens
    for a, b in zip(first.blocks, second.blocks, strict=True):
        assert a.sigma_min == pytest.approx(b.sigma_min, rel=1e-3)
    assert any(abs(a.sigma_min / b.sigma_min - 1) > 1e-2 for a, b in zip(first.blocks, wrong.blocks, strict=True))


def test_neither_batches_nor_passes_change_the_result():
    model = tiny_model("gpt_neox").eval()
    whole = trace(model, batches=[inputs()])
    gram = 8 * WIDTH**2
    split = [{"input_ids": part} for part in inputs()["input_ids"].split([3, 30, 7])]
    for options in ({"batch_size": 3}, {"memory": gram}, {"memory": 2 * gram + 1}, {"batches": split}):
        found = trace(model, **{"batches": [inputs()], **options})
        assert found.passes == math.ceil(5 / (options.get("memory", 9 * gram) // gram))
        for a, b in zip(whole.blocks, found.blocks, strict=True):
            assert a.sigma_min == pytest.approx(b.sigma_min, rel=1e-4)
    assert whole.passes == 1


def test_blocks_that_are_asked_for_bring_the_node_before():
    model = tiny_model("gpt_neox").eval()
    whole, some = trace(model, batches=[inputs()]), trace(model, batches=[inputs()], blocks=[2])
    assert [node.index for node in some.blocks] == [1, 2]
    assert some.blocks[1].step_ratio == whole.blocks[3].step_ratio
    assert some.blocks[1].cumulative_ratio is None
    with pytest.raises(UsageError, match=r"4 blocks, from 0: there is no block 7"):
        trace(model, batches=[inputs()], blocks=[7])


def test_directions_are_the_bottom_right_singular_vectors():
    model = tiny_model("gpt_neox").eval()
    found = trace(model, tokens=ROWS * LENGTH, batches=[inputs()], bottom=3)
    assert found.vectors["directions"].shape == (5, 3, WIDTH)
    assert found.vectors["sigma"].shape == (5, 3)
    for k, hidden in enumerate(hidden_states(model, **inputs())):
        rows = hidden.double().flatten(0, 1)
        directions = torch.from_numpy(found.vectors["directions"][k].copy())
        sigma = singular_values(hidden).flip(0)[:3]
        along = torch.linalg.vector_norm(rows @ directions.T, dim=0) / len(rows) ** 0.5
        assert torch.allclose(along, sigma, rtol=1e-6)
        assert torch.allclose(torch.from_numpy(found.vectors["sigma"][k].copy()), sigma, rtol=1e-6)
        assert torch.allclose(directions @ directions.T, torch.eye(3, dtype=torch.float64), atol=1e-9)


def test_both_stacks_of_an_encoder_decoder():
    found = trace(tiny_model("t5").eval(), data="random")
    assert [stream.role for stream in found.streams] == ["decoder", "encoder"]
    assert found.blocks == found.streams[0].blocks
    assert {"directions", "encoder.block.directions"} <= set(found.vectors)


def test_class_and_patch_tokens_of_an_image_model():
    model = tiny_model("vit").eval()
    pixels = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = trace(model, tokens=10**6, batches=[{"pixel_values": pixels}])
    with torch.no_grad():
        first = model(pixel_values=pixels, output_hidden_states=True).hidden_states[0]
    assert found.tokens == first.shape[0] * first.shape[1]
    assert any(f"only {found.tokens} of the 1000000 tokens" in warning for warning in found.warnings)
    assert found.blocks[0].sigma_min == pytest.approx(float(singular_values(first)[-1]), rel=1e-4)


def test_post_norm_is_not_judged_and_shown_centred():
    found = trace(tiny_model("bert").eval(), batches=[inputs()])
    assert found.verdict == "not_applicable"
    assert "ends in a norm" in found.why
    assert found.events == []
    for node in found.blocks:
        # gamma^-1 of its LayerNorm is an exact kernel about the mean; with a shift it is none of the stream itself.
        assert node.sigma_min_centred < 1e-6 * node.sigma_max


def test_too_few_distinct_ids_are_no_collapse():
    model = tiny_model("llama").eval()
    ids = inputs()["input_ids"] % 20 + 5
    found = trace(model, batches=[{"input_ids": ids}])
    assert found.distinct_inputs == 20
    assert found.blocks[0].status == "rank_limited"
    assert found.blocks[1].step_ratio is None
    assert found.events == []
    assert any("20 distinct ids" in warning for warning in found.warnings)


def test_the_model_is_left_as_it_was_and_memory_that_runs_out_starts_a_pass_anew():
    model = tiny_model("gpt_neox").train()
    model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    calm = trace(model, batches=[inputs()])
    rows = []

    def hungry(_module, args, kwargs):
        rows.append(len(kwargs.get("input_ids", args[0] if args else ())))
        if rows[-1] > 5:
            raise torch.OutOfMemoryError("no memory left")

    # Deep in the model: some nodes have taken the batch when it breaks off.
    handle = model.register_forward_pre_hook(hungry, with_kwargs=True)
    found = trace(model, batches=[inputs()])
    handle.remove()
    assert max(rows) > 5 >= rows[-1]
    for a, b in zip(calm.blocks, found.blocks, strict=True):
        assert a.sigma_min == pytest.approx(b.sigma_min, rel=1e-4)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_a_pass_that_breaks_off_half_way_is_not_counted_twice():
    model = tiny_model("gpt_neox").eval()
    calm = trace(model, batches=[inputs()])
    failed = []

    def hungry(_module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(hidden) > 1 and not failed:
            failed.append(len(hidden))
            raise torch.OutOfMemoryError("no memory left")

    handle = model.layers[2].register_forward_pre_hook(hungry, with_kwargs=True)
    found = trace(model, batches=[inputs()])
    handle.remove()
    assert failed
    assert found.tokens == calm.tokens
    for a, b in zip(calm.blocks, found.blocks, strict=True):
        assert a.sigma_min == pytest.approx(b.sigma_min, rel=1e-4)


def test_a_stream_that_is_not_finite_is_named():
    model = tiny_model("gpt_neox").eval()

    def spoil(_module, _args, output):
        stream = output if isinstance(output, torch.Tensor) else output[0]
        if len(stream) > 3:
            stream[3, 2] = math.nan
        return output

    handle = model.layers[1].register_forward_hook(spoil)
    with pytest.raises(InputError, match=r"batch 0, row 3, token 2: block 1 \(layers\.1\) is not finite"):
        trace(model, batches=[inputs()])
    handle.remove()


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 9), nn.Linear(9, 8)])

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


def test_a_model_without_a_stream_is_refused_with_its_lists():
    with pytest.raises(UsageError, match=r"Plain has no list of blocks.*layers \(2\).*--blocks-path"):
        trace(Plain(), batches=[{"x": torch.randn(4, 30, 8)}])
    with pytest.raises(UsageError, match=r"'other' is no list of blocks of GPTNeoXModel: choose one of layers"):
        trace(tiny_model("gpt_neox"), batches=[inputs()], blocks_path="other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": WIDTH - 1}, r"with N < d the smallest singular value is zero"),
        ({"memory": 8 * WIDTH**2 - 1}, r"one Gram of \d+ dimensions takes .*\(--memory\)"),
        ({"bottom": 0}, "bottom is 0"),
        ({"collapse_ratio": 1.0}, "collapse_ratio 1"),
        ({"affine": "lognormal:0.5"}, "never a trained one"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UsageError, match=message):
        trace(tiny_model("gpt_neox"), batches=[inputs()], **options)


def test_batches_that_hold_too_few_tokens_are_refused():
    with pytest.raises(UsageError, match=r"36 tokens in \d+ dimensions"):
        trace(tiny_model("gpt_neox"), batches=[inputs(rows=3)])


def test_the_record_is_its_json():
    found = deadreckon.trace(tiny_model("gpt_neox"), batches=[inputs()])
    data = json.loads(found.to_json())
    assert Trace.from_dict(data) == found
    assert data["schema"] == "deadreckon.trace/1"
    assert {"index", "sigma_min", "sigma_floor", "sigma_geomean", "sigma_max", "step_ratio"} <= set(data["blocks"][0])
    assert data["environment"]["dtype"] == "float32"
