"""Directional Fisher information and finite steps at readers of norms: what a kernel promises, and that it can fail."""

from dataclasses import replace
from functools import partial
from statistics import median

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from deadreckon.errors import UsageError
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.calibration import Calibration, first_row
from deadreckon.forward.differentiable import forward_mode
from deadreckon.forward.fisher import at_head, site_fisher, through_model
from deadreckon.forward.gauge import moved_outputs
from deadreckon.forward.outputs import portions
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.responses import response_to
from deadreckon.forward.sites import find_sites
from deadreckon.forward.steps import SiteSteps
from deadreckon.forward.tiny import tiny_model

DRAWS = 8
LAYERNORM = ["gpt2", "gpt_neox", "falcon", "opt", "bert", "albert", "vit", "whisper"]
RMS = ["llama", "qwen3", "gemma2"]


def drawn(model_type, dtype=torch.float64, head=True, **settings):
    model = tiny_model(model_type, head=head, **settings)
    redraw_affine(model, "lognormal:0.5", 0)
    return model.to(dtype)


def inputs_of(model):
    return random_inputs(model, seed=0, batch_size=2)


class Bench:
    """A model with its sites and portions of few tokens."""

    def __init__(self, model, wanted="all", tokens=24, calibration=None, **options):
        self.model = model
        calibration = calibration or inputs_of(model)
        self.sites = find_sites(model, first_row(next(calibration.batches())), wanted)
        norm = next((site.norm_path for site in self.sites if site.direct), None)
        self.parts = list(portions(model, calibration, tokens, norm=norm, **options))
        self.metric = self.parts[0].metric

    def through(self, site):
        return through_model(self.model, site, [part.through(self.model) for part in self.parts], self.metric)

    def at_head(self, site):
        return at_head(self.model, site, [part.norm_inputs for part in self.parts])

    def figures(self, site, evaluate=None, seed=0):
        steps = SiteSteps(site, self.model, seed)
        with forward_mode(self.model):
            return site_fisher(self.model, site, steps, DRAWS, evaluate or self.through(site))

    def moved(self, site, step):
        with forward_mode(self.model):
            return moved_outputs(self.model, site, step, self.parts[0].through(self.model), self.metric)


@pytest.fixture(autouse=True)
def few_threads():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("model_type", LAYERNORM)
def test_exact_steps_are_dead_and_naive_ones_shift(model_type):
    bench = Bench(drawn(model_type))
    assert bench.sites
    for site in bench.sites:
        figures = bench.figures(site)
        typical = median(figures.random)
        if typical == 0:  # a pooler: nothing that is put out depends on it
            continue
        assert site.has_kernel
        assert figures.exact <= 1e-24 * typical
        # The root of F is a seminorm, and naive = constant + what the exact step leaves.
        rest = 2 * (max(figures.floor, figures.exact) ** 0.5) + 1e-13 * figures.constant**0.5
        assert abs(figures.naive**0.5 - figures.constant**0.5) <= rest
        assert figures.floor <= 1e-24 * typical


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "falcon", "bert"])
def test_in_float32_the_floor_is_seen_and_explained(model_type):
    bench = Bench(drawn(model_type, torch.float32))
    for site in bench.sites:
        figures = bench.figures(site)
        assert figures.exact <= 1e-10 * median(figures.random)
        assert figures.exact <= 10 * figures.floor
        assert figures.floor <= 1e-10 * median(figures.random)


@pytest.mark.parametrize("model_type", RMS)
def test_the_same_construction_is_not_dead_without_a_mean(model_type):
    bench = Bench(drawn(model_type), "head")
    (site,) = bench.sites
    assert not site.has_kernel
    assert site.direct == (model_type != "gemma2")  # which caps its logits
    figures = bench.figures(site)
    assert 1e-2 <= figures.exact / median(figures.random) <= 1e2
    steps = SiteSteps(site, bench.model, 0)
    assert not any(step.is_gauge for step in bench.moved(site, steps.exact))


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "bert", "llama", "phi"])
def test_the_closed_form_at_the_head_is_the_derivative(model_type):
    bench = Bench(drawn(model_type), "head")
    (site,) = bench.sites
    assert site.direct
    closed, derived = bench.figures(site, bench.at_head(site)), bench.figures(site)
    # Sums over words in another order: each is right to its number of terms.
    tolerance = 1e-12
    assert closed.naive == pytest.approx(derived.naive, rel=tolerance)
    assert closed.constant == pytest.approx(derived.constant, rel=tolerance)
    assert closed.random == pytest.approx(derived.random, rel=tolerance)


def test_an_image_classifier_reads_one_token_and_needs_derivatives():
    bench = Bench(drawn("vit"), "head", tokens=3)
    (site,) = bench.sites
    assert not site.direct
    assert bench.metric == "softmax"
    assert sum(part.count for part in bench.parts) == 3
    assert len(bench.parts[-1].shortened(2).through(bench.model)()) == 1


@pytest.mark.parametrize("model_type", ["gpt_neox", "opt"])
def test_against_derivatives_of_the_parameters_themselves(model_type):
    """The steps taken in the weights, the biases and the norm's shift, by another way through torch."""
    model = drawn(model_type, tie_word_embeddings=False)
    bench = Bench(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    part = bench.parts[0]
    with forward_mode(model):
        for site in bench.sites[:3] + bench.sites[-1:]:
            steps = SiteSteps(site, model, 3)
            for step in (steps.exact, steps.naive, steps.random(0)):
                tangents = {n: torch.zeros_like(p) for n, p in parameters.items()}
                for path, weight in step.weights.items():
                    shape = parameters[f"{path}.weight"]
                    tangents[f"{path}.weight"] += weight.added(torch.zeros_like(shape))
                for path, bias in step.biases.items():
                    tangents[f"{path}.bias"] += bias
                if step.shift is not None:
                    tangents[f"{site.norm_path}.bias"] += step.shift

                def outputs(values):
                    return functional_call(model, values, (), dict(part.inputs)).logits

                logits, change = jvp(outputs, (parameters,), (tangents,))
                logits, change = (t.reshape(-1, t.shape[-1])[: part.count] for t in (logits, change))
                p = torch.softmax(logits, -1)
                variance = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
                (mine,) = bench.through(site)([partial(response_to, site, step)])
                assert mine == pytest.approx(float(variance.mean()), rel=1e-9, abs=1e-28)


def test_a_tied_head_is_a_copy():
    tied = Bench(drawn("gpt2"), "head").sites[0]
    untied = Bench(drawn("gpt2", tie_word_embeddings=False), "head").sites[0]
    assert tied.virtual
    assert not untied.virtual


class TestControls:
    """The same checks on what is not a kernel, or not made up for."""

    @pytest.fixture
    def bench(self):
        return Bench(drawn("gpt2"), "h.1.mlp.c_fc")

    def test_a_gain_that_is_off(self, bench):
        (site,) = bench.sites
        vector = site.vector.copy()
        vector[0] *= 1.01
        figures = bench.figures(replace(site, vector=vector))
        assert figures.exact > 1e-10 * median(figures.random)
        assert figures.exact > 10 * figures.floor

    @pytest.mark.parametrize("factor", [0.0, 0.99, -1.0])
    def test_a_constant_that_is_off(self, bench, factor):
        (site,) = bench.sites
        wrong = replace(site, constant=factor * site.constant)
        figures = bench.figures(wrong)
        assert figures.exact > 1e-8 * median(figures.random)
        steps = SiteSteps(wrong, bench.model, 0)
        assert not any(step.is_gauge for step in bench.moved(wrong, steps.exact))

    def test_finite_steps(self, bench):
        (site,) = bench.sites
        steps = SiteSteps(site, bench.model, 0)
        exact, naive = (bench.moved(site, step) for step in (steps.exact, steps.naive))
        assert all(step.is_gauge for step in exact)
        assert not any(step.is_gauge for step in naive)
        # What changes by rounding has no more divergence than rounding squared.
        assert all(step.divergence <= 1e-26 for step in exact)
        changes = [step.change for step in naive]
        assert changes == sorted(changes)
        # The smallest steps are linear: ten times as far, ten times the change.
        assert changes[1] / changes[0] == pytest.approx(10, rel=0.1)


def test_finite_steps_of_a_module_that_runs_several_times():
    bench = Bench(drawn("albert", num_hidden_layers=3), "ffn")
    (site,) = bench.sites
    steps = SiteSteps(site, bench.model, 0)
    exact, naive = (bench.moved(site, step) for step in (steps.exact, steps.naive))
    assert all(step.is_gauge for step in exact)
    assert not any(step.is_gauge for step in naive)
    assert all(step.rounding <= 1e-12 for step in (*exact, *naive))


def test_a_reader_without_a_bias_needs_a_norm_that_nothing_else_sees():
    class Residual(nn.Module):
        """Its norm's output goes on along a skip, so the shift cannot be moved."""

        main_input_name = "x"

        def __init__(self, skip):
            super().__init__()
            self.norm, self.read, self.head = nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 5)
            self.skip = skip

        def forward(self, x):
            y = self.norm(x)
            return {"logits": self.head(torch.tanh(self.read(y)) + (y if self.skip else 0.0))}

    for skip, remedy in ((True, "none"), (False, "shift")):
        torch.manual_seed(0)
        model = Residual(skip).double().eval()
        nn.init.normal_(model.norm.bias)
        batches = [{"x": torch.randn(4, 6, 8, dtype=torch.float64)}]
        bench = Bench(model, "read", calibration=Calibration("own", lambda batches=batches: iter(batches)))
        (site,) = bench.sites
        assert site.remedy == remedy
        figures = bench.figures(site)
        assert (figures.exact is None) == skip
        if not skip:
            assert figures.exact <= 1e-24 * median(figures.random)


def test_masked_tokens_do_not_count_and_portions_do_not_matter():
    model = drawn("gpt_neox")
    ids = torch.randint(0, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    padded = [{"input_ids": ids, "attention_mask": mask}]
    cut = [{"input_ids": ids[:, :8]}]

    def figures(batches, **options):
        calibration = Calibration("own", lambda: iter(batches))
        bench = Bench(model, "layers.1.mlp", calibration=calibration, tokens=24, **options)
        assert sum(part.count for part in bench.parts) == 24
        return bench.figures(bench.sites[0])

    whole = figures(cut)
    for other in (figures(padded), figures(cut, batch_size=1), figures(padded, batch_size=2)):
        assert other.random == pytest.approx(whole.random, rel=1e-9)
    # Padded on the left, and a first row of nothing else: fewer tokens than a row is long.
    left = torch.cat([torch.zeros_like(ids[:1]), ids[:1].roll(4, 1)])
    left_mask = torch.zeros_like(left)
    left_mask[1, 4:] = 1
    calibration = Calibration("own", lambda: iter([{"input_ids": left, "attention_mask": left_mask}]))
    bench = Bench(model, "layers.1.mlp", calibration=calibration, tokens=6)
    assert sum(part.count for part in bench.parts) == 6
    assert len(bench.parts[0].shortened(4).through(model)()) > 0
    mask[:, 8:] = 1  # the deliberately wrong mask
    assert figures(padded).random != pytest.approx(whole.random, rel=1e-3)


def test_sites_that_do_not_exist():
    model = drawn("gpt2")
    first = first_row(next(inputs_of(model).batches()))
    with pytest.raises(UsageError, match=r"h\.9.*nearest.*transformer\.h\."):
        find_sites(model, first, "h.9.mlp.c_fc")
    with pytest.raises(UsageError, match="reads no norm through a plain weight"):
        find_sites(model, first, "h.1.mlp.c_proj")
    base = drawn("gpt2", head=False)
    with pytest.raises(UsageError, match=r"has no head.*--site all"):
        find_sites(base, first, "head")
    assert len(find_sites(model, first, ["h.1", "head"])) == 3


@pytest.mark.parametrize("where", ["run", "step"])
def test_the_model_is_left_as_it_was_after_an_interrupt(where):
    model = drawn("qwen3_moe", torch.float32)
    model.config._experts_implementation = "grouped_mm"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    bench = Bench(model, "layers.1.self_attn.q_proj", tokens=8)
    site = bench.sites[0]

    def interrupted():
        raise KeyboardInterrupt

    def work():
        with forward_mode(model):
            assert model.config._experts_implementation == "eager"
            if where == "run":
                moved_outputs(model, site, SiteSteps(site, model, 0).naive, interrupted, "softmax")
            through_model(model, site, [interrupted], "softmax")([lambda: None])

    with pytest.raises(KeyboardInterrupt):
        work()
    assert model.config._experts_implementation == "grouped_mm"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_quantised_module_on_the_way_is_refused_and_the_head_is_not():
    model = drawn("gpt_neox", torch.float32)
    model.gpt_neox.layers[3].mlp.dense_4h_to_h = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(model.gpt_neox.layers[3].mlp.dense_4h_to_h), {nn.Linear}, dtype=torch.qint8
    )[0]
    bench = Bench(model, ["head", "layers.1.mlp"], tokens=8)
    inner, head = bench.sites
    with pytest.raises(UsageError, match=r"derivative .*dense_4h_to_h passes none on.*--site head"):
        bench.figures(inner)
    figures = bench.figures(head, bench.at_head(head))
    assert figures.exact <= 1e-10 * median(figures.random)
