"""The table of streams against the real modules: a block writes through the norms that its row lists and no others."""

import json
import math
import re

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING

from deadreckon.checkpoint.stream_table import TABLE_PATH
from deadreckon.forward.affine import redraw_affine
from deadreckon.forward.probe import probe_norm
from deadreckon.forward.stream_bound import stream_of_module
from deadreckon.forward.tiny import tiny_config, tiny_model
from deadreckon.forward.tiny_inputs import tiny_inputs
from deadreckon.forward.tiny_sizes import VOCABULARY
from deadreckon.kernel.stream_bound import NoBound, stream_bound

TABLE = json.loads(TABLE_PATH.read_bytes())
U32, UBF16 = 2.0**-24, 2.0**-8

# Settings that a row reads, at values other than their defaults.
SETTINGS = {
    "molmo2_text": {"norm_after": True},
    "afmoe": {"mup_enabled": True},
    "hyperclovax": {"residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "gemma4_text+moe": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
}
TEXT = [*TABLE["rows"], "gemma4_text+moe"]
NAMES = [*TEXT, *TABLE["composites"]]


def need(name):
    if name not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {name}")


def built(name, seed=0):
    """A tiny model with log-normal gains, block scalars of both signs and an embedding of uneven columns."""
    need(name.partition("+")[0])
    settings = SETTINGS.get(name, {})
    if name == "paligemma":  # whose own text model is a Gemma 1
        settings = {"text_config": {**tiny_config("gemma2").to_dict(), "model_type": "gemma2"}}
    model = tiny_model(name.partition("+")[0], **settings)
    redraw_affine(model, "lognormal:0.5", seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("layer_scalar"):
                buffer.copy_(2 * torch.rand(1, generator=generator) - 1)
        for parameter_name, parameter in model.named_parameters():
            if "embed_tokens" in parameter_name:
                parameter.mul_(torch.rand(parameter.shape[-1], generator=generator) * 3)
            if parameter_name.endswith("eoi_embedding"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def watched(model, parts, inputs):
    """The stream before and after every block, tokens x d, in float64."""
    path = parts.norms[0].partition(".*")[0]
    seen, handles = [], []
    blocks = model.get_submodule(path)
    for block in blocks:

        def hook(_, args, kwargs, made):
            given = args[0] if args else kwargs["hidden_states"]
            seen.append(flat(given) if not seen else None)
            seen.append(flat(made[0] if isinstance(made, tuple) else made))

        handles.append(block.register_forward_hook(hook, with_kwargs=True))
    # A block may scale its input in place after its writes: the embedding is copied before the first one runs.
    handles.append(blocks[0].register_forward_pre_hook(lambda *a: keep(seen, a), with_kwargs=True))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [s for s in seen if s is not None]


def keep(seen, arguments):
    _, args, kwargs = arguments
    seen.append(flat(args[0] if args else kwargs["hidden_states"]))


def flat(tensor):
    return tensor.detach().double().reshape(-1, tensor.shape[-1]).numpy().copy()


def every_id(model):
    """Inputs that hold every token id once."""
    inputs = tiny_inputs(model)
    key = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    return {**inputs, key: torch.arange(model.get_input_embeddings().num_embeddings)[None]}


def writers(model, parts, pattern):
    """The modules of one kind of write, block by block, with the stored value of a zero gain."""
    modules = [model.get_submodule(pattern.replace("*", str(b))) for b in range(len(parts.writes))]
    return [(module, -(probe_norm(module).gain_offset or 0.0)) for module in modules]


def silence(model, parts, patterns):
    with torch.no_grad():
        for pattern in patterns:
            for module, zero in writers(model, parts, pattern):
                module.weight.fill_(zero)


@pytest.mark.parametrize("name", NAMES)
def test_the_stream_stays_within_the_bound_after_every_block(name):
    model = built(name)
    parts = stream_of_module(model)
    assert not isinstance(parts, NoBound)
    bound, slack = parts.bound(), parts.rounding(U32)
    stream = watched(model, parts, tiny_inputs(model))
    assert len(stream) == len(bound) == len(parts.writes) + 1
    for row, hidden in zip(bound, stream, strict=True):
        assert (np.abs(hidden).max(0) <= row * slack).all()
        assert np.abs(hidden).max() >= row.max() / 60  # and it is no idle bound


@pytest.mark.parametrize("name", TEXT)
def test_the_embedding_reaches_its_term(name):
    model = built(name)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e3)  # a norm's eps is then nothing beside it
        table = model.get_input_embeddings()
        if hasattr(table, "eoi_token_index"):  # a token with a vector of its own beside the table
            table.weight[table.eoi_token_index] = 0.0
            table.eoi_embedding.mul_(1e4)
    parts = stream_of_module(model)
    reached = np.abs(watched(model, parts, every_id(model))[0]).max(0)
    np.testing.assert_allclose(reached, parts.embedding, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_with_the_listed_gains_at_zero_a_block_only_scales(name):
    model = built(name)
    parts = stream_of_module(model)
    silence(model, parts, parts.norms)
    stream = watched(model, parts, tiny_inputs(model))
    scalars = np.ones(len(parts.writes)) if parts.scalars is None else parts.scalars
    for before, after, scalar in zip(stream, stream[1:], scalars, strict=False):
        np.testing.assert_allclose(after, scalar * before, rtol=4 * U32, atol=0)
    assert not stream_of_module(model).writes.any()


@pytest.mark.parametrize("name", TEXT)
def test_each_listed_gain_is_needed_and_writes_in_proportion(name):
    """With all other listed norms silent, the first block writes what one makes: twice as much at twice the gain."""
    for pattern in stream_of_module(built(name)).norms:
        model = built(name)
        parts = stream_of_module(model)
        silence(model, parts, [other for other in parts.norms if other != pattern])
        inputs = tiny_inputs(model)
        scalar = 1.0 if parts.scalars is None else parts.scalars[0]
        module, zero = writers(model, parts, pattern)[0]
        made = []
        with module.register_forward_hook(lambda _module, _args, y, made=made: made.append(flat(y))):
            before, after = watched(model, parts, inputs)[:2]
        written = after / scalar - before
        gain = (module.weight - zero).detach().double().numpy()
        multiplier = stream_of_module(model).writes[0] / (math.sqrt(gain.size) * np.abs(gain))
        with torch.no_grad():
            module.weight.copy_(zero + 2 * (module.weight - zero))
        twice = watched(model, parts, inputs)[1] / scalar - before
        # Sums and their difference are rounded relative to the stream.
        atol = 16 * U32 * (np.abs(before).max() + np.abs(twice).max())
        np.testing.assert_allclose(twice, 2 * written, rtol=1e-5, atol=atol)
        np.testing.assert_allclose(written, multiplier * made[0], rtol=1e-5, atol=atol)
        # Leaving it out breaks the bound: a stream that is all this write exceeds what is left of it.
        assert np.abs(written).max() > 100 * atol
        left_out = np.abs(scalar) * np.abs(before)
        assert (np.abs(after) > left_out + 100 * atol).any()


@pytest.mark.parametrize("name", ["gemma2", "gemma4_text", "glm4", "t5gemma"])
def test_a_bound_without_one_write_fails(name):
    """Negative control of the first test: small embedding, one loud write, and that one not counted."""
    model = built(name)
    parts = stream_of_module(model)
    loud = parts.norms[-1]
    silence(model, parts, [other for other in parts.norms if other != loud])
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "embed_tokens" in parameter_name and parameter.shape[0] == VOCABULARY:
                parameter.mul_(1e-3)
    parts = stream_of_module(model)
    stream = watched(model, parts, tiny_inputs(model))
    assert all((np.abs(h) <= b * parts.rounding(U32)).all() for h, b in zip(stream, parts.bound(), strict=True))
    without = np.zeros_like(parts.writes)
    short = stream_bound(parts.embedding, without, parts.scalars)
    assert all((np.abs(h) > b * parts.rounding(U32)).any() for h, b in zip(stream[1:], short[1:], strict=True))


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_text", "glm4", "olmo2"])
def test_a_stream_in_bfloat16_stays_within_the_bound_and_its_rounding(name):
    model = built(name).bfloat16()
    parts = stream_of_module(model)
    slack = parts.rounding(UBF16)
    assert 1 < slack < 1.2
    for row, hidden in zip(parts.bound(), watched(model, parts, every_id(model)), strict=True):
        assert (np.abs(hidden).max(0) <= row * slack).all()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("llama", "no norm has bounded"),
        ("gpt2", "no norm has bounded"),
        ("bert", "ends in a norm of the whole stream"),
        ("olmo_hybrid", "without a norm"),
        ("molmo2_text", "no norm has bounded"),
        ("paligemma", "no norm has bounded"),
    ],
)
def test_other_streams_get_a_reason(name, why):
    need(name)
    found = stream_of_module(tiny_model(name))
    assert isinstance(found, NoBound)
    assert why in found.why


@pytest.mark.parametrize(("name", "key"), [("hyperclovax", "use_post_norm"), ("lfm3", "use_sandwich_norm")])
def test_a_setting_that_takes_the_norms_away_takes_the_bound_away(name, key):
    need(name)
    assert isinstance(stream_of_module(tiny_model(name, **{key: False})), NoBound)


def test_a_module_without_a_config_gets_a_reason():
    assert "no config" in stream_of_module(torch.nn.Linear(2, 2)).why


def test_the_module_is_left_as_it_was_and_tables_of_wide_rows_are_read_by_slices(monkeypatch):
    model = built("muse_glimmer_text")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = stream_of_module(model)
    monkeypatch.setattr("deadreckon.forward.stream_bound._SLICE", 1)
    assert (stream_of_module(model).embedding == whole.embedding).all()
    assert whole.embedding.max() <= math.sqrt(64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_composite_and_default_of_the_table_is_that_of_the_installed_code():
    for name, row in TABLE["rows"].items():
        if name not in CONFIG_MAPPING:
            continue
        for said in (row.get("write_scale"), row.get("embedding_scale")):
            if isinstance(said, dict):
                key = said.get("key") or said["sqrt_width_if"]
                assert getattr(CONFIG_MAPPING[name](), key) == said["default"], (name, key)
    for name, inner in TABLE["composites"].items():
        if inner is not None and name in CONFIG_MAPPING:
            assert re.fullmatch(inner, CONFIG_MAPPING[name]().get_text_config().model_type)
