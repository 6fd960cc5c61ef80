"""dead_directions and project_out on small models, against dense linear algebra and against what must follow."""

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from deadreckon import census, dead_directions, project_out
from deadreckon.errors import InputError, UsageError
from deadreckon.forward.probe import probe_norms
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.watching import redraw

WIDTH, WORDS, TOKENS = 8, 24, 6
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}}
SIZES = {
    "hidden_size": WIDTH, "n_embd": WIDTH, "d_model": WIDTH, "word_embed_proj_dim": WIDTH, "vocab_size": WORDS,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_attention_heads": 2, "n_head": 2, "n_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 10, "n_inner": 10, "ffn_dim": 10, "ffn_hidden_size": 10,
    "expansion_ratio": 1, "n_positions": TOKENS, "max_position_embeddings": TOKENS, "rotary_dim": 2, "head_dim": 4,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
EPSILON = np.finfo(float).eps


@dataclass(frozen=True)
class Case:
    name: str
    model_type: str
    settings: dict = field(default_factory=dict)
    zero_gains: int = 0
    zero_shifts: bool = False

    def __str__(self):
        return self.name


# What is held, by a part of its name: norms, what reads them, what writes, biases but those of norms, tables.
HELD = {
    "gpt2 untied": "ln_ ln_1 attn c_attn.weight c_attn.bias c_proj.bias c_proj.weight wpe wte mlp lm_head",
    "gpt2 tied": "ln_f c_fc wpe wte",
    "neox parallel untied": "layernorm final_layer_norm attention dense.bias mlp embed_in query_key_value.bias",
    "bert tied": "LayerNorm attention intermediate.dense.bias embed output.dense.weight",
    "mpt untied": "norm_1 attn ffn lm_head",
}
UNTIED = {"tie_word_embeddings": False}
CASES = [
    Case("gpt2 tied", "gpt2"),
    Case("gpt2 untied", "gpt2", UNTIED),
    Case("gpt2 two zero gains", "gpt2", UNTIED, zero_gains=2),
    Case("gpt2 without shifts", "gpt2", UNTIED, zero_shifts=True),
    Case("neox parallel untied", "gpt_neox", ROTARY),
    Case("neox two zero gains", "gpt_neox", ROTARY, zero_gains=2),
    Case("neox without shifts", "gpt_neox", ROTARY, zero_shifts=True),
    Case("neox sequential untied", "gpt_neox", {**ROTARY, "use_parallel_residual": False}),
    Case("neox parallel tied", "gpt_neox", {**ROTARY, "tie_word_embeddings": True}),
    Case("opt tied", "opt"),
    Case("opt untied", "opt", UNTIED),
    Case("opt post-norm", "opt", {"do_layer_norm_before": False}),
    Case("bert tied", "bert"),
    Case("bert untied", "bert", UNTIED),
    Case("phi", "phi", ROTARY),
    Case("mpt tied", "mpt"),
    Case("mpt untied", "mpt", UNTIED),
    Case("falcon tied", "falcon"),
    Case("falcon untied", "falcon", UNTIED),
    Case("falcon two zero gains", "falcon", UNTIED, zero_gains=2),
    Case("llama untied", "llama"),
    Case("llama tied", "llama", {"tie_word_embeddings": True}),
    Case("llama two zero gains", "llama", zero_gains=2),
]


def build(case, dtype=torch.float64):
    from transformers import CONFIG_MAPPING

    fields = CONFIG_MAPPING[case.model_type].__dataclass_fields__
    sizes = {name: size for name, size in SIZES.items() if name in fields} | case.settings
    model = tiny_model(case.model_type, head=True, **sizes).double()
    generator = torch.Generator().manual_seed(5)
    norms = probe_norms(model)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / p.shape[-1] ** 0.5)
        redraw(model, norms, seed=6)
        for path, probe in norms.items():
            module = model.get_submodule(path)
            getattr(module, probe.gain_name)[: case.zero_gains] = -(probe.gain_offset or 0.0)
            if case.zero_shifts and probe.shift_name:
                getattr(module, probe.shift_name).zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.padding_idx = None  # whose row autograd leaves out
    return model.to(dtype)


def noise(model, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for n, shape in shapes.items()}


def flat(model, step):
    parts = [step.get(n, torch.zeros_like(p)).detach().double().flatten() for n, p in model.named_parameters()]
    return torch.cat(parts)


def matrix(model, dead):
    """The directions as rows, each of length one."""
    rows = torch.stack([flat(model, direction.tensors) for direction in dead])
    return rows / rows.norm(dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Dense:
    """The directions as rows of length one, an orthonormal basis of them as columns, and their condition number."""

    rows: torch.Tensor
    basis: torch.Tensor
    condition: float

    @classmethod
    def of(cls, rows):
        basis, triangle = torch.linalg.qr(rows.T)
        values = torch.linalg.svdvals(triangle)
        return cls(rows, basis, float(values[0] / values[-1]))

    def off(self, vector):
        """The vector off the rows' span; twice, so that it is right to rounding."""
        for _ in range(2):
            vector = vector - self.basis @ (self.basis.T @ vector)
        return vector

    @property
    def tolerance(self):
        """Rounding of a backward stable projection: the angle between nearly the same spans is eps times their
        condition number; 16 for the roundings of each."""
        return 16 * EPSILON * self.condition * self.rows.shape[1] ** 0.5


@pytest.fixture(scope="module")
def built():
    models = {}

    def get(case):
        if case.name not in models:
            model = build(case)
            dead = dead_directions(model)
            models[case.name] = model, dead, Dense.of(matrix(model, dead))
        return models[case.name]

    return get


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_the_dense_projection(case, built):
    model, dead, dense = built(case)
    assert dense.rows.shape[0] == len(dead) == census(model).dead_dimensions
    assert dense.condition < 1e3  # so they are independent
    step = noise(model)
    rest = flat(model, project_out(step, dead))
    before = flat(model, step)
    assert float((rest - dense.off(before)).norm()) <= dense.tolerance * float(before.norm())
    # Every direction, one by one: products of unit vectors with a vector of norm |before|.
    assert float((dense.rows @ rest).abs().max()) <= 8 * EPSILON * len(rest) ** 0.5 * float(before.norm())
    # The negative control: before, the largest of so many standard normal numbers is well above 1.
    assert float((dense.rows @ before).abs().max()) > 1.0
    again = flat(model, project_out(project_out(step, dead), dead))
    assert float((again - rest).norm()) <= dense.tolerance * float(before.norm())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dead_noise_goes_and_nothing_else(case, built):
    model, dead, dense = built(case)
    generator = torch.Generator().manual_seed(1)
    mixed = dense.rows.T @ torch.randn(len(dead), generator=generator, dtype=torch.float64)
    sizes = [p.numel() for p in model.parameters()]
    step = {n: v.view(p.shape) for (n, p), v in zip(model.named_parameters(), mixed.split(sizes), strict=True)}
    assert float(flat(model, project_out(step, dead)).norm()) <= dense.tolerance * float(mixed.norm())


@pytest.mark.parametrize("case", [c for c in CASES if c.model_type != "llama"], ids=str)
def test_a_gradient_has_no_dead_component(case, built):
    model, dead, dense = built(case)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, WORDS, (16, TOKENS), generator=generator)
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.roll(1, 1).flatten()).backward()
    step = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    before, after = flat(model, step), flat(model, project_out(step, dead))
    # Backpropagation sums some hundreds of terms through about ten maps; each loses as much as it grows.
    assert float((after - before).norm()) <= 1e4 * EPSILON * float(before.norm())
    shifted = before.roll(1)  # the same numbers, each beside its place
    assert float((shifted - dense.off(shifted)).norm()) > 0.05 * float(before.norm())


@pytest.mark.parametrize(("name", "left_out"), [(name, part) for name, parts in HELD.items() for part in parts.split()])
def test_held_parameters_stay_and_all_that_is_dead_without_them_goes(name, left_out, built):
    """As the dense projection off the directions' combinations that do not move what is held."""
    model, dead, dense = built(next(case for case in CASES if case.name == name))
    step = {n: v for n, v in noise(model).items() if left_out not in n}
    assert 0 < len(step) < len(noise(model))
    rest = project_out(step, dead)
    assert rest.keys() == step.keys()
    held = flat(model, {n: torch.ones_like(p) for n, p in model.named_parameters() if n not in step}) > 0
    basis = dense.basis.T
    values, combinations = torch.linalg.eigh(basis[:, held] @ basis[:, held].T)
    free = values <= 1e-12  # the square of how far a unit combination moves what is held
    assert not bool(((values > 1e-12) & (values < 1e-6)).any())
    expected = Dense.of(combinations[:, free].T @ basis).off(flat(model, step)) if free.any() else flat(model, step)
    assert float((flat(model, rest) - expected).norm()) <= 1e-10 * float(flat(model, step).norm())


def test_no_direction_is_made_before_it_is_asked_for():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        shaped = GPT2LMHeadModel(GPT2Config())
    model = shaped.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    dead = dead_directions(model)
    assert len(dead) == 148_505
    first, last = next(iter(dead)), dead[-1]
    assert (first.reason, first.index, first.tensors.keys()) == (
        "reader_with_bias", 0, {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias"}
    )  # fmt: skip
    assert (last.reason, last.index) == ("embedding_mean", 1023)


def test_selections_by_family_and_tensor(built):
    _, dead, _ = built(CASES[1])
    counts = {reason: len(dead.of(reason)) for reason in census(dead.model).by_reason}
    assert counts == census(dead.model).by_reason
    assert [d.index for d in dead.of("gain_scaling")] == list(range(counts["gain_scaling"]))
    chosen = dead.of("reader_with_bias", tensor="transformer.h.1.mlp.c_fc.weight")
    assert len(chosen) == 10
    assert {d.counted_under for d in chosen} == {"transformer.h.1.mlp.c_fc.weight"}
    # The index is the census's.
    emitted = census(dead.model, emit=f"reader_with_bias:{chosen[3].index}").vectors
    assert emitted.keys() == chosen[3].tensors.keys()
    assert all(np.array_equal(emitted[n], v.numpy()) for n, v in chosen[3].tensors.items())
    assert dead[len(dead) - 1].reason == dead[-1].reason
    with pytest.raises(IndexError):
        dead[len(dead)]


def test_the_model_and_the_step_are_left_alone_and_the_parameters_are_read_anew():
    model = build(CASES[0])
    before, step = copy.deepcopy(model.state_dict()), noise(model)
    kept = copy.deepcopy(step)
    dead = dead_directions(model)
    first = project_out(step, dead)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(torch.equal(v, step[n]) for n, v in kept.items())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight[0] *= 3
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(project_out(step, dead)[name], first[name])
    assert torch.equal(project_out(step, dead)[name], project_out(step, model)[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_short_numbers_lose_only_the_rounding_of_the_answer(dtype):
    model = build(CASES[4], dtype)
    step = noise(model, dtype=dtype)
    wide = copy.deepcopy(model).double()
    exact = project_out({n: v.double() for n, v in step.items()}, wide)
    for name, value in project_out(step, model).items():
        assert value.dtype == dtype
        # Half a unit in the last place of each entry.
        bound = torch.finfo(dtype).eps / 2 * exact[name].abs() + torch.finfo(dtype).tiny
        assert bool(((value.double() - exact[name]).abs() <= bound * 1.001).all())


def test_of_an_rmsnorm_model_only_scalings_and_the_softmax_go(built):
    model, dead, _ = built(next(c for c in CASES if c.name == "llama untied"))
    assert {d.reason for d in dead} == {"gain_scaling", "softmax_shift"}
    step = noise(model)
    rest = project_out(step, dead)
    untouched = {n for n in step if torch.equal(step[n], rest[n])}
    assert untouched == {n for n in step if any(part in n for part in ("embed_tokens", "o_proj", "down_proj"))}
    head = step["lm_head.weight"]
    assert not torch.allclose(rest["lm_head.weight"], head - head.mean(0))  # the final norm's scaling goes too


def test_parameters_that_no_family_moves_are_passed_on():
    model = build(CASES[0])
    step = {"transformer.wte.weight": torch.randn(WORDS, WIDTH)}
    rest = project_out(step, model)
    # Of the tied embedding a constant is dead; its readers and the norm are held.
    table = step["transformer.wte.weight"]
    torch.testing.assert_close(rest["transformer.wte.weight"], table - table.mean())
    assert project_out({}, model) == {}


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ({"transformer.wte": torch.ones(3)}, UsageError, "no parameter 'transformer.wte'; take the names of"),
        ({"lm_head.weight": torch.ones(WORDS, WIDTH)}, UsageError, "it is tied: name it transformer.wte.weight"),
        ({"transformer.ln_f.weight": torch.ones(3)}, UsageError, r"shape \(3,\), the parameter \(8,\)"),
        ({"transformer.ln_f.weight": torch.ones(8, dtype=torch.int64)}, UsageError, "real numbers"),
        ({"transformer.ln_f.weight": np.ones(8)}, UsageError, "real numbers"),
        ({"transformer.ln_f.weight": torch.full((8,), torch.nan)}, InputError, "ln_f.weight: the step is not finite"),
    ],
)
def test_bad_steps_are_refused(step, error, message, built):
    with pytest.raises(error, match=message):
        project_out(step, built(CASES[0])[0])


def test_bad_requests_are_refused(built):
    model, dead, _ = built(CASES[0])
    with pytest.raises(UsageError, match="no family"):
        dead.of("nothing")
    with pytest.raises(UsageError, match="no parameter"):
        dead.of(tensor="nothing")
    with pytest.raises(UsageError, match="projected out together"):
        project_out({}, dead.of("gain_scaling"))
    with pytest.raises(UsageError, match="loaded module"):
        dead_directions("gpt2")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.transformer.h[0].mlp.c_fc.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"h.0.ln_2: .* not finite"):
        project_out(noise(model), broken)
