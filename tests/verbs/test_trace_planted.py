"""Faults planted in real modules, each found at its block with its cause; and what is no fault, found quiet."""

from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import deadreckon
from deadreckon.forward.load import load_checkpoint
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.text import english_text, token_ids
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_sizes import WIDTH

BLOCKS, FAULT, VOCABULARY = 8, 4, 400
ROWS, LENGTH = 16, 64


def built(name="llama", layers=BLOCKS, **overrides):
    return tiny_model(name, num_hidden_layers=layers, vocab_size=VOCABULARY, **overrides)


def gemma4():
    return built("gemma4_text", vocab_size_per_layer_input=VOCABULARY)


def ids(rows=ROWS, length=LENGTH, distinct=VOCABULARY - 20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(5, 5 + distinct, (rows, length), generator=generator)}]


def direction(width=WIDTH, seed=5):
    return normalize(torch.randn(width, generator=torch.Generator().manual_seed(seed)), dim=0)


def traced(model, batches=None, **options):
    return deadreckon.trace(model, batches=batches or ids(), tokens=ROWS * LENGTH, **options)


def the_event(trace, block=FAULT, after=()):
    """The event of a trace that has no other, but for those that follow from it."""
    assert [event.block for event in trace.events] == [block, *after]
    return trace.events[0]


def changed(output, change):
    """A module's output with its first tensor changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def on_output(module, change):
    module.register_forward_hook(lambda _m, _a, output: changed(output, change))


def without(stream, u, amount=1.0, where=None):
    """The stream less its component along u, on some tokens."""
    u = u.to(stream.dtype)
    taken = amount * (stream @ u)[..., None] * u
    return stream - (taken if where is None else taken * where[..., None])


def cancels(writer, reads, u, amount=1.0, where=None):
    """Make `writer` write the negative of what the stream holds along u; `reads` is first to see the stream it adds to.

    One hook sees the stream, the other changes what is written: the writer is a module like any other that writes so.
    """
    seen = {}

    def see(_module, args, kwargs):
        seen["x"] = (args[0] if args else kwargs["hidden_states"]).clone()

    def write(written):
        aimed = without(written, u) - (seen["x"] - without(seen["x"], u, amount))
        return aimed if where is None else torch.where(where[..., None], aimed, written)

    reads.register_forward_pre_hook(see, with_kwargs=True)
    on_output(writer, write)


def silent(model, u, start=FAULT):
    """No write along u from a block on, by the weights."""
    with torch.no_grad():
        for block in model.layers[start:]:
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                linear.weight -= u[:, None] * (u @ linear.weight)


def parallel(evidence, u, model):
    """Whether the direction of an event is u: its heaviest coordinates are those of u, with their weights."""
    order = u.square().argsort(descending=True)[: len(evidence.top)]
    assert [c.coordinate for c in evidence.top] == order.tolist()
    # u is known to the share of the rounding of the stream in what the other directions hold: far below this.
    assert [c.weight for c in evidence.top] == pytest.approx(u.square()[order].tolist(), rel=1e-2)


# Faults.


def test_a_block_scalar_is_a_rescaling_and_no_direction_is_lost():
    model = gemma4()
    model.layers[FAULT].layer_scalar.fill_(1e-6)
    trace = traced(model)
    event = the_event(trace)
    assert (trace.verdict, event.kind, event.cause) == ("rescaled", "rescaled", "block_scalar")
    found = event.evidence
    assert found.scalar_tensor == f"layers.{FAULT}.layer_scalar"
    assert found.scalar_tensor in event.says
    assert found.scalar == pytest.approx(1e-6, rel=1e-5)
    assert found.step_ratio < 1e-5
    assert found.relative_step_ratio > 0.1
    assert [write.coefficient for write in found.writes] == pytest.approx([1e-6] * 3, rel=1e-5)
    assert found.remainder < 1e-5  # with the scalar taken out the equation holds


def test_a_relative_collapse_after_a_rescaling_is_attributed_to_it():
    model = gemma4()
    model.layers[FAULT].layer_scalar.fill_(1e-6)
    with torch.no_grad():  # what the scalar has made small is not written again in one coordinate
        for block in model.layers[FAULT + 1 :]:
            for norm in ("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm"):
                getattr(block, norm).weight[17] = 0.0
    trace = traced(model)
    first, second = trace.events
    assert trace.verdict == "rescaled"
    assert (first.block, first.kind, first.cause) == (FAULT, "rescaled", "block_scalar")
    assert (second.block, second.kind, second.cause) == (FAULT + 1, "collapsed", "block_scalar")
    assert second.evidence.attributed_to == FAULT
    assert second.direction.top[0].coordinate == 17
    assert f"block {FAULT} " in second.says


def test_a_later_collapse_of_its_own_is_not_attributed_to_a_rescaling():
    model = gemma4()
    model.layers[1].layer_scalar.fill_(1e-3)
    u = direction()
    on_output(model.layers[6], lambda x: without(x, u))
    trace = traced(model)
    assert [(e.block, e.cause, e.evidence.attributed_to) for e in trace.events] == [
        (1, "block_scalar", None),
        (6, "unexplained", None),
    ]
    assert trace.verdict == "collapsed"


def test_a_rescaling_without_a_tensor_says_so():
    model = built()
    on_output(model.layers[FAULT], lambda x: x * 1e-4)
    event = the_event(traced(model))
    assert (event.kind, event.cause, event.evidence.scalar_tensor) == ("rescaled", "block_scalar", None)
    assert event.evidence.scalar == pytest.approx(1e-4, rel=1e-4)


@pytest.mark.parametrize("amount", [1.0, 0.999])
@pytest.mark.parametrize("part", ["self_attn", "mlp"])
def test_a_branch_that_cancels_one_direction(part, amount):
    model, u = built(), direction()
    silent(model, u)
    block = model.layers[FAULT]
    cancels(getattr(block, part), block if part == "self_attn" else block.post_attention_layernorm, u, amount)
    trace = traced(model)
    event = the_event(trace)
    assert (trace.verdict, trace.worst_block) == ("collapsed", FAULT)
    assert (event.kind, event.cause) == ("collapsed", "branch_cancellation")
    assert event.says.startswith(f"layers.{FAULT}.{part} writes")
    parallel(event.direction, u, model)
    found = event.evidence
    assert found.correlation == pytest.approx(-1, abs=1e-4)
    shares = {write.module: write.share for write in found.writes}
    assert shares == pytest.approx({f"layers.{FAULT}.self_attn": 0.0, f"layers.{FAULT}.mlp": 0.0,
        f"layers.{FAULT}.{part}": amount}, abs=1e-3)  # fmt: skip
    assert found.after <= (1 - amount) * found.before * 1.01 + 2 * found.floor
    assert found.survives_to == BLOCKS - 1  # no later block writes it
    assert found.after_final_norm < 0.01


def test_a_direction_that_is_written_again_does_not_survive():
    model, u = built(), direction()
    block = model.layers[FAULT]
    cancels(block.mlp, block.post_attention_layernorm, u)
    found = the_event(traced(model)).evidence
    assert found.survives_to == FAULT
    assert found.last > 0.5 * found.before


def test_two_branches_that_cancel_together_are_both_named():
    model, u = built(), direction()
    silent(model, u)
    block = model.layers[FAULT]
    cancels(block.self_attn, block, u, 0.5)
    cancels(block.mlp, block.post_attention_layernorm, u, 1.0)
    event = the_event(traced(model))
    assert event.cause == "branch_cancellation"
    assert f"layers.{FAULT}.self_attn" in event.says
    assert f"layers.{FAULT}.mlp" in event.says


def test_parallel_branches():
    model, u = built("gpt_neox"), direction()
    block = model.layers[FAULT]
    with torch.no_grad():
        block.mlp.dense_4h_to_h.weight -= u[:, None] * (u @ block.mlp.dense_4h_to_h.weight)
    cancels(block.attention, block, u)
    event = the_event(traced(model))
    assert (event.cause, event.says.split()[0]) == ("branch_cancellation", f"layers.{FAULT}.attention")


def test_what_the_model_itself_takes_between_its_blocks():
    model, u = built(), direction()
    silent(model, u)
    model.layers[FAULT].register_forward_pre_hook(
        lambda _m, args, kwargs: ((without(args[0], u), *args[1:]), kwargs), with_kwargs=True
    )
    event = the_event(traced(model))
    assert (event.cause, event.says) == (
        "branch_cancellation",
        "layers (between blocks) writes the negative of what the direction held",
    )


@pytest.mark.parametrize("dead", [[17], [3, 17, 40]])
def test_coordinates_zeroed_from_a_block_on(dead):
    model = built()

    def zeroed(stream):
        stream = stream.clone()
        stream[..., dead] = 0.0
        return stream

    for block in model.layers[FAULT:]:
        on_output(block, zeroed)
    trace = traced(model)
    event = the_event(trace)
    assert (trace.verdict, event.kind, event.cause) == ("collapsed", "collapsed", "dead_coordinate")
    assert event.evidence.dead_coordinates == dead
    assert event.evidence.dead_weight == pytest.approx(1, abs=1e-6)
    assert ", ".join(map(str, dead)) in event.says
    assert event.evidence.survives_to == BLOCKS - 1


def test_a_coordinate_dead_from_the_start_is_no_event():
    model = built()
    with torch.no_grad():
        model.embed_tokens.weight[:, 17] = 0.0
        for block in model.layers:
            block.self_attn.o_proj.weight[17] = 0.0
            block.mlp.down_proj.weight[17] = 0.0
    trace = traced(model)
    assert {node.status for node in trace.blocks} == {"rank_limited"}
    assert (trace.events, trace.verdict) == ([], "not_applicable")


def carried_by(model, blocks, u, where):
    """Only the tokens of `where()` hold u, up to the blocks' fault, where they lose it."""
    blocks[0].register_forward_pre_hook(
        lambda _m, args, kwargs: ((without(args[0], u, where=~where()), *args[1:]), kwargs), with_kwargs=True
    )
    for index, block in enumerate(blocks):
        on_output(block, lambda x, lost=index >= FAULT: without(x, u, where=None if lost else ~where()))


@pytest.mark.parametrize("first", [0, 40])
def test_a_range_of_positions_that_alone_carried_the_direction(first):
    model, u = built(), direction()
    where = torch.zeros(LENGTH, dtype=torch.bool)
    where[first : first + 8] = True
    carried_by(model, model.layers, u, lambda: where)
    event = the_event(traced(model))
    assert (event.kind, event.cause) == ("collapsed", "token_subset")
    assert all(f"positions {k}-{k + 3}" in event.says for k in (first, first + 4))
    assert event.evidence.carriers <= 8 / LENGTH
    held = {group.group: group.before for group in event.evidence.tokens}
    assert held[f"positions {first}-{first + 3}"] + held[f"positions {first + 4}-{first + 7}"] > 0.999


def test_a_modality_that_alone_carried_the_direction():
    model = tiny_model("gemma3", head=True, **{"text_config.num_hidden_layers": BLOCKS})
    u, seen = direction(), {}

    def note(_module, _args, kwargs):
        seen["image"] = kwargs["input_ids"] == model.config.image_token_id

    model.register_forward_pre_hook(note, with_kwargs=True)
    blocks = model.model.language_model.layers
    carried_by(model, blocks, u, lambda: seen["image"])
    calibration = random_inputs(model, seed=0, batch_size=8)
    batches = [batch for batch, _ in zip(calibration.batches(), range(8), strict=False)]
    trace = deadreckon.trace(model, batches=batches, tokens=2048)
    event = the_event(trace)
    assert (event.kind, event.cause) == ("collapsed", "token_subset")
    assert event.says == "only image tokens carried the direction"
    assert [group.group for group in event.evidence.tokens[:2]] == ["text", "image"]
    assert trace.streams[1].role == "vision"
    assert trace.streams[1].events == []


def test_tokens_that_merely_hold_the_most_are_not_the_cause():
    model, u = built(), direction()
    silent(model, u)

    def massive(stream):
        stream = stream.clone()
        stream[:, 0, [5, 40]] += 100.0
        return stream

    on_output(model.layers[1], massive)
    block = model.layers[FAULT]
    cancels(block.mlp, block.post_attention_layernorm, u, 0.999)
    event = the_event(traced(model))
    assert event.evidence.tokens[0].before > 0.99
    assert event.cause == "branch_cancellation"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_direction_that_sinks_under_rounding(dtype):
    model, u = built().to(dtype), direction()
    on_output(model.layers[FAULT].mlp, lambda x: without(1e6 * x.float(), u).to(dtype))
    event = the_event(traced(model))
    assert (event.kind, event.cause) == ("collapsed", "precision_floor")
    found = event.evidence
    assert found.before <= 2 * found.floor
    assert found.after <= 2 * found.floor
    model = built().to(dtype)  # the same growth in every direction loses none
    on_output(model.layers[FAULT].mlp, lambda x: (1e6 * x.float()).to(dtype))
    assert traced(model).events == []


class EndsInNorm(nn.Module):
    """A block whose output has been normed."""

    def __init__(self, block):
        super().__init__()
        self.block, self.norm = block, nn.LayerNorm(WIDTH)

    def forward(self, *args, **kwargs):
        return changed(self.block(*args, **kwargs), self.norm)


def test_a_block_that_ends_in_a_norm():
    model = built()
    for name, value in vars(model.layers[FAULT]).items():
        if not name.startswith("_") and name != "training":
            setattr(EndsInNorm, name, value)  # what the model asks its blocks for
    model.layers[FAULT] = EndsInNorm(model.layers[FAULT])
    with torch.no_grad():
        model.layers[FAULT].norm.weight.copy_(
            torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)).mul(0.5).exp()
        )
    event = the_event(traced(model.eval()))
    assert (event.kind, event.cause) == ("collapsed", "norm_node")
    assert event.evidence.norm_alignment > 0.99
    parallel(event.direction, normalize(1 / model.layers[FAULT].norm.weight.detach(), dim=0), model)


def test_what_no_candidate_explains_comes_with_all_their_numbers():
    model, u = built(), direction()
    on_output(model.layers[FAULT], lambda x: without(x, u, 0.999))
    event = the_event(traced(model))
    assert (event.kind, event.cause) == ("collapsed", "unexplained")
    numbers = asdict(event.evidence)
    absent = {name for name, value in numbers.items() if value is None}
    # No scalar, no norm at the end, no bound from parameters and nothing to attribute it to: that is said by None.
    assert absent == {"scalar", "scalar_tensor", "norm_alignment", "parameter_bound", "attributed_to"}
    assert numbers["remainder"] > 0.5
    assert numbers["unexplained_write"] < 1e-3  # in all other directions the parts explain the block
    assert numbers["correlation"] > -0.9
    assert [write["module"] for write in numbers["writes"]] == ["layers.4.self_attn", "layers.4.mlp"]
    assert len(numbers["tokens"]) == 16
    parallel(event.direction, u, model)


def test_a_small_write_against_the_direction_is_not_what_takes_it():
    model, u = built(), direction()
    silent(model, u)
    block = model.layers[FAULT]
    cancels(block.mlp, block.post_attention_layernorm, u, 0.01)
    on_output(block, lambda x: without(x, u, 0.999))
    event = the_event(traced(model))
    assert event.evidence.correlation == pytest.approx(-1, abs=0.05)
    assert event.evidence.write_ratio < 0.1 < 0.9 < event.evidence.remainder
    assert event.cause == "unexplained"


def test_others_that_grow_past_a_direction_lose_nothing_of_it():
    model, u = built(), direction()
    on_output(model.layers[FAULT].mlp, lambda x: without(3e4 * x, u))
    trace = traced(model)
    event = the_event(trace)
    assert (event.kind, event.cause) == ("rescaled", "unexplained")
    assert event.says == "the other directions grew past this one"
    assert event.evidence.step_ratio > 0.5
    assert trace.verdict in {"preserved", "eased"}


def test_a_block_that_runs_several_times_is_told_apart():
    model, u = built(), direction()
    model.layers = nn.ModuleList([model.layers[0]] * BLOCKS)
    block, fired = model.layers[0], []

    def write(written):
        fired.append(1)
        return without(written + fired_input["x"], u) - fired_input["x"] if len(fired) % BLOCKS == 4 else written

    fired_input = {}
    block.post_attention_layernorm.register_forward_pre_hook(lambda _m, args: fired_input.update(x=args[0].clone()))
    on_output(block.mlp, write)
    event = the_event(traced(model), block=3)
    assert (event.cause, event.says.split()[0]) == ("branch_cancellation", "layers.0.mlp")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_either_stack_of_an_encoder_decoder(stack):
    model, u = tiny_model("t5", num_layers=6, num_decoder_layers=6, vocab_size=VOCABULARY), direction()
    last = getattr(model, stack).block[3].layer[-1]
    cancels(last.DenseReluDense, last, u, 0.999)
    batches = [{**ids()[0], "decoder_input_ids": ids(seed=1)[0]["input_ids"]}]
    batches[0]["attention_mask"] = torch.ones(ROWS, LENGTH, dtype=torch.long)
    batches[0]["attention_mask"][::2, LENGTH // 2 :] = 0
    trace = traced(model, batches)
    streams = {stream.role: stream for stream in trace.streams}
    event = the_event(streams.pop(stack), block=3)
    assert (event.cause, event.kind) == ("branch_cancellation", "collapsed")
    assert event.says.startswith(f"{stack}.block.3.layer.{2 if stack == 'decoder' else 1}.DenseReluDense writes")
    assert [other.events for other in streams.values()] == [[]]


# No faults.


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "opt", "olmo2", "granite"])
def test_models_as_they_are_initialised_are_quiet(name):
    trace = traced(built(name))
    assert (trace.events, trace.warnings) == ([], [])
    assert trace.verdict in {"preserved", "eased"}


@pytest.mark.parametrize("distinct", [8, 40])
def test_too_few_distinct_ids_limit_the_rank_and_lose_nothing(distinct):
    trace = traced(built(), ids(distinct=distinct))
    assert trace.blocks[0].status == "rank_limited"
    assert trace.blocks[1].step_ratio is None
    assert (trace.events, trace.distinct_inputs) == ([], distinct)
    assert trace.verdict in {"preserved", "eased", "not_applicable"}
    assert any(f"{distinct} distinct ids" in warning for warning in trace.warnings)


def test_short_and_long_sequences_get_one_verdict():
    model = tiny_model("gpt2", n_layer=BLOCKS, vocab_size=VOCABULARY)
    verdicts = {length: traced(model, ids(ROWS * LENGTH // length, length)) for length in (16, 64, 256)}
    assert [trace.events for trace in verdicts.values()] == [[], [], []]
    assert len({trace.verdict for trace in verdicts.values()}) == 1


def test_massive_activations_in_two_coordinates():
    model = built()

    def massive(stream):
        stream = stream.clone()
        stream[:, 0, [5, 40]] += 1e4 * 0.02  # of the embeddings' standard deviation
        return stream

    on_output(model.layers[2].mlp, massive)
    trace = traced(model)
    assert trace.blocks[3].sigma_max > 100 * trace.blocks[2].sigma_max
    assert trace.events == []
    assert trace.verdict in {"preserved", "eased"}


def test_a_smooth_growth_of_the_whole_stream():
    model = built()
    for block in model.layers:
        on_output(block, lambda x: x * 100 ** (1 / BLOCKS))
    trace = traced(model)
    assert trace.blocks[-1].sigma_geomean > 100 * trace.blocks[0].sigma_geomean
    assert (trace.events, trace.verdict) == ([], "preserved")


def test_a_wide_spread_of_singular_values():
    model = built()
    scale = torch.logspace(0, -3, WIDTH)
    with torch.no_grad():
        model.embed_tokens.weight *= scale
        for block in model.layers:
            block.self_attn.o_proj.weight *= scale[:, None]
            block.mlp.down_proj.weight *= scale[:, None]
    trace = traced(model)
    assert all(node.sigma_max > 1000 * node.sigma_min for node in trace.blocks)
    assert trace.events == []
    assert trace.verdict in {"preserved", "eased"}


# What a trace leaves behind.


def hooks(model):
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_model_is_left_as_it_was(interrupted):
    model, u = built().train(), direction()
    block = model.layers[FAULT]
    cancels(block.mlp, block.post_attention_layernorm, u)
    before = hooks(model), {name: value.clone() for name, value in model.state_dict().items()}
    passes = []

    def progress(done, wanted):
        passes.append(done)
        if interrupted and passes.count(wanted) == 1 and passes[-1] != wanted:
            raise KeyboardInterrupt  # in the pass that follows the direction

    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            traced(model, batch_size=ROWS // 2, progress=progress)
    else:
        traced(model, batch_size=ROWS // 2, progress=progress)
        assert passes.count(ROWS * LENGTH) == 2
    assert hooks(model) == before[0]
    assert model.training
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())


def test_batches_and_the_rows_of_a_forward_do_not_matter():
    model, u = built(), direction()
    block = model.layers[FAULT]
    cancels(block.mlp, block.post_attention_layernorm, u, 0.999)
    one, other = (the_event(traced(model, batch_size=size)).evidence for size in (ROWS, 5))
    assert (one.before, one.after) == pytest.approx((other.before, other.after), rel=1e-3)
    assert [g.group for g in one.tokens] == [g.group for g in other.tokens]


# On a trained model.


@pytest.fixture(scope="module")
def text(smollm2):
    """Token ids of the text that measurements take by default."""
    tokenizer = load_checkpoint(smollm2, dtype=None, device=torch.device("cpu")).tokenizer()
    return token_ids(tokenizer, [english_text()[:40_000]])


@pytest.fixture
def trained(smollm2):
    """A freshly loaded model, to be spoilt."""
    return load_checkpoint(smollm2, dtype=None, device=torch.device("cpu")).model


def sequences(text, length, tokens=2304):
    return [{"input_ids": row[None]} for row in text[:tokens].view(-1, length)]


@pytest.mark.slow
@pytest.mark.parametrize("length", [128, 256, 512])
def test_a_trained_model_gets_one_verdict_at_all_lengths(trained, text, length):
    trace = deadreckon.trace(trained, batches=sequences(text, length, 9 * 512), tokens=9 * 512)
    assert (trace.verdict, trace.events) == ("eased", [])
    assert 0.2 < min(node.step_ratio for node in trace.blocks[1:]) < 1  # as measured; a fault is below 0.1


@pytest.mark.slow
def test_massive_coordinates_of_a_trained_model_are_quiet(trained, text):
    def massive(stream):
        stream = stream.clone()
        stream[..., [100, 200]] += 1e4
        return stream

    on_output(trained.layers[12].mlp, massive)
    trace = deadreckon.trace(trained, batches=sequences(text, 256), tokens=2304)
    assert trace.blocks[13].sigma_max > 5 * trace.blocks[12].sigma_max  # which is massive as it is
    assert trace.events == []


@pytest.mark.slow
def test_a_planted_cancellation_in_a_trained_model(trained, text):
    u, amount = direction(trained.config.hidden_size), 1 - 1e-5
    block = trained.layers[12]
    cancels(block.mlp, block.post_attention_layernorm, u, amount)
    trace = deadreckon.trace(trained, batches=sequences(text, 256), tokens=2304)
    event = the_event(trace, block=12)
    node = trace.blocks[13]
    assert node.step_ratio < 1e-2
    assert node.relative_step_ratio == pytest.approx(node.step_ratio, rel=0.5)  # no other direction moved
    assert (event.kind, event.cause) == ("collapsed", "branch_cancellation")
    assert event.says.startswith("layers.12.mlp writes")
    parallel(event.direction, u, trained)


@pytest.mark.slow
def test_a_planted_scalar_in_a_trained_model(trained, text):
    on_output(trained.layers[12], lambda x: x * 1e-4)
    trace = deadreckon.trace(trained, batches=sequences(text, 256), tokens=2304)
    event, node = trace.events[0], trace.blocks[13]
    assert (event.block, event.kind, event.cause) == (12, "rescaled", "block_scalar")
    assert node.step_ratio == pytest.approx(1e-4, rel=0.7)  # the block's own step is between 0.3 and 1.7
    assert node.relative_step_ratio > 0.3
    assert {other.evidence.attributed_to for other in trace.events[1:]} <= {12}
    assert trace.verdict == "rescaled"
