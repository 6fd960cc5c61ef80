"""The equation of a block, for many architectures: which modules write to the stream, and with which factors."""

import pytest
import torch
from torch import nn

from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.blocks import find_block_stacks
from deadreckon.forward.precision import unit_roundoff
from deadreckon.forward.tiny import tiny_model
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.writers import GIVEN, MADE, block_equation, inside

NORMED = ["post_attention_layernorm", "post_feedforward_layernorm"]
MODELS = {
    "gpt2": ["attn", "mlp"],
    "gpt_neox": ["attention", "mlp"],
    "falcon": ["self_attention", "mlp"],
    "llama": ["self_attn", "mlp"],
    "phi": ["self_attn", "mlp"],
    "gemma2": NORMED,
    "gemma3_text": NORMED,
    "gemma4_text": [*NORMED, "post_per_layer_input_norm"],
    "granite": ["self_attn", "mlp"],
    "olmo2": NORMED,
    "qwen3_moe": ["self_attn", "mlp"],
    "mixtral": ["self_attn", "mlp"],
    "opt": ["self_attn", "fc2"],
    "bloom": ["self_attention.dense", "mlp.dense_4h_to_h"],
    "mpt": ["attn.out_proj", "ffn.down_proj"],
    "mamba": ["mixer"],
    "vit": ["attention", "mlp"],
    "clip": ["self_attn", "mlp"],
    "dinov2": ["layer_scale1", "layer_scale2"],
    "whisper": ["self_attn", "fc2"],
    "t5": ["layer.0.SelfAttention", "layer.1.DenseReluDense"],
}
DECODERS = {
    "whisper": ["self_attn", "encoder_attn", "fc2"],
    "t5": ["layer.0.SelfAttention", "layer.1.EncDecAttention", "layer.2.DenseReluDense"],
}


def built(name, dtype=torch.float32, **overrides):
    model = tiny_model(name, **overrides)
    given = tiny_inputs(model)
    redraw_affine(model, "lognormal:0.5", 0)  # a norm with a gain of ones may write what its input says
    for path, parameter in model.named_parameters():
        if "lambda1" in path:  # DINOv2's layer scale: 1 at the start
            parameter.data = torch.linspace(0.01, 0.3, len(parameter))
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    return model.to(dtype), given


def equations(model, given, block=1):
    return {s.role: block_equation(model, given, s, block) for s in find_block_stacks(model, given)}


def check(equation, names, dtype, factor=1.0, skip=1.0):
    assert [writer.name for writer in equation.writers] == names
    assert equation.solved
    assert equation.residual <= 2 * unit_roundoff(dtype)
    # The residual spread over a coefficient: no more than it over the writer's own share of the output.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert equation.coefficient == pytest.approx(skip, rel=tolerance)
    assert [writer.coefficient for writer in equation.writers] == pytest.approx([factor] * len(names), rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_modules_that_write(name, dtype):
    model, given = built(name, dtype)
    found = equations(model, given)
    for role, equation in found.items():
        check(equation, DECODERS[name] if role == "decoder" and name in DECODERS else MODELS[name], dtype)
        assert equation.scalar is None
    assert len(found) == (2 if name in DECODERS or name == "clip" else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scalar", [1e-6, 0.3, 1.7])
def test_a_factor_of_the_whole_block(scalar, dtype):
    model, given = built("gemma4_text", dtype)
    model.layers[1].layer_scalar.fill_(scalar)
    equation = equations(model, given)["final"]
    check(equation, MODELS["gemma4_text"], dtype, factor=scalar, skip=scalar)
    assert equation.scalar == pytest.approx(scalar, rel=1e-2)


def test_a_factor_of_the_writes_alone_is_none_of_the_block():
    model, given = built("granite", residual_multiplier=0.22)
    equation = equations(model, given)["final"]
    check(equation, MODELS["granite"], torch.float32, factor=0.22)
    assert equation.scalar is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_post_norm_block_has_no_such_equation(dtype):
    model, given = built("bert", dtype)
    for block in range(2):
        equation = equations(model, given, block)["final"]
        assert not equation.solved
        assert equation.scalar is None


def test_massive_activations_do_not_hide_the_writers():
    model, given = built("llama")

    def massive(_module, _args, output):
        output = output.clone()
        output[:, 0, [5, 40]] += 1e4
        return output

    model.embed_tokens.register_forward_hook(massive)
    check(equations(model, given)["final"], MODELS["llama"], torch.float32)


def test_a_module_that_fires_twice_in_a_block_writes_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x):
            x = x + self.linear(x.sin())
            return x + 0.5 * self.linear(x.cos())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Twice() for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    model = Model().eval()
    equation = equations(model, {"x": torch.randn(1, 200, 64)})["final"]
    assert [writer.name for writer in equation.writers] == ["linear", "linear@2"]
    assert [writer.coefficient for writer in equation.writers] == pytest.approx([1.0, 0.5], rel=1e-5)
    assert [writer.path for writer in equation.writers] == ["layers.1.linear"] * 2


@pytest.mark.parametrize("place", [0, 2])
def test_of_a_block_with_several_places_one_firing_is_shown(place):
    model, given = built("llama")
    model.layers = nn.ModuleList([model.layers[0]] * 4)
    stack = find_block_stacks(model, given)[-1]
    nodes, seen = [], []
    handle = model.layers[0].register_forward_hook(lambda _m, _a, output: nodes.append(output))
    with torch.no_grad(), inside(stack, place, lambda name, x: seen.append((name, x.clone())), [GIVEN, "mlp", MADE]):
        model(**given)
        model(**given)
    handle.remove()
    assert [name for name, _ in seen] == [GIVEN, "mlp", MADE] * 2
    after = nodes[place][0] if isinstance(nodes[place], tuple) else nodes[place]
    assert torch.equal(seen[2][1], after)
    assert torch.equal(seen[5][1], after)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.layers[0].modules())


def test_hooks_leave_a_pass_that_broke_off():
    model, given = built("llama")
    stack = find_block_stacks(model, given)[-1]

    def breaks(name, _stream):
        if name == "mlp":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.no_grad(), inside(stack, 1, breaks):
        model(**given)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
