"""The zoo's configurations against published parameter counts, and the norms that its models start with."""

import re
from dataclasses import replace

import numpy as np
import pytest

from deadreckon.checkpoint.zoo import ZooEntry, zoo_entry, zoo_names, zoo_norms
from deadreckon.errors import UsageError

QUICK = ("pythia-160m", "gpt2", "opt-350m", "dinov2-base", "qwen3-30b-a3b", "gemma-4-31b-multimodal")
REST = tuple(name for name in zoo_names() if name not in QUICK)


def count(entry: ZooEntry) -> int:
    """Parameters of the model built on the meta device, tied weights once."""
    import torch
    import transformers

    config = getattr(transformers, entry.config_class)(**entry.config_kwargs)
    with torch.device("meta"):
        model = getattr(transformers, entry.model_class)(config)
    text = config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers) == (entry.hidden_size, entry.layers)
    assert config.model_type == entry.model_type
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", QUICK)
def test_parameter_counts(name):
    assert count(zoo_entry(name)) == zoo_entry(name).parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_parameter_counts_of_the_rest(name):
    assert count(zoo_entry(name)) == zoo_entry(name).parameters


def test_a_wrong_configuration_would_be_counted_wrongly():
    """Negative control: one layer less, and the count is another."""
    entry = zoo_entry("gpt2")
    short = replace(entry, layers=11, config_kwargs={**entry.config_kwargs, "n_layer": 11})
    assert count(short) == entry.parameters - 7_087_872  # a GPT-2 block: 12 d^2 + 13 d at d = 768


def test_what_the_zoo_holds():
    names = zoo_names()
    assert len(names) == 47
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)
    for name in names:
        entry = zoo_entry(name)
        assert entry.provenance
        assert entry.published or entry.unconfirmed or entry.note, name
    assert {"gpt2", "opt-125m", "opt-350m", "vjepa2-vitl", "videomae-base", "gemma-4-31b-multimodal"} <= set(names)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("pythia", "pythia-160m"), ("gpt-2", "gpt2"), ("llama-3.1-8B", "llama-3.1-8b"), ("zzz", "there are")],
)
def test_an_unknown_name_gets_near_ones(name, hint):
    with pytest.raises(UsageError, match=re.escape(hint)):
        zoo_entry(name)


@pytest.mark.parametrize(
    ("name", "norm", "kind", "size", "shift", "offset"),
    [
        ("pythia-160m", "gpt_neox.final_layer_norm", "layernorm", 768, True, 0),
        ("gpt2-xl", "transformer.ln_f", "layernorm", 1600, True, 0),
        ("opt-125m", "model.decoder.final_layer_norm", "layernorm", 768, True, 0),
        ("mpt-7b", "transformer.norm_f", "layernorm", 4096, False, 0),
        ("dinov2-giant", "layernorm", "layernorm", 1536, True, 0),
        ("llama-3.1-8b", "model.norm", "rmsnorm", 4096, False, 0),
        ("gemma-3-27b", "model.norm", "rmsnorm", 5376, False, 1),
        ("qwen3.5-35b-a3b", "model.norm", "rmsnorm", 2048, False, 1),
        ("gemma-4-31b-multimodal", "model.language_model.norm", "rmsnorm", 5376, False, 0),
        ("vjepa2-vitl", "encoder.layernorm", "layernorm", 1024, True, 0),
        ("videomae-base", "layernorm", "layernorm", 768, True, 0),
        ("clip-vit-large-patch14", "post_layernorm", "layernorm", 1024, True, 0),
    ],
)
def test_norms_at_random_initialisation(name, norm, kind, size, shift, offset):
    first = zoo_norms(zoo_entry(name))[0]
    assert (first.name, first.kind.name, first.hidden_size, first.gain_offset) == (norm, kind, size, offset)
    assert np.array_equal(first.gain, np.ones(size))
    assert first.shift is None if not shift else np.array_equal(first.shift, np.zeros(size))


def test_every_entry_has_norms_but_the_one_that_ends_without():
    for name in zoo_names():
        entry = zoo_entry(name)
        if name == "opt-350m":
            with pytest.raises(UsageError, match="un-normed"):
                zoo_norms(entry)
        else:
            assert zoo_norms(entry)[0].hidden_size == entry.hidden_size


@pytest.mark.parametrize("name", zoo_names())
def test_a_shrunk_configuration_has_the_same_build(name):
    """Small enough for a laptop; and what does not depend on size, such as its norms, is as in the published one."""
    large, small = zoo_entry(name), zoo_entry(f"{name}-shrunk")
    assert small.hidden_size <= 512 < 2 * large.hidden_size
    assert small.layers <= 9
    assert small.config_kwargs.keys() == large.config_kwargs.keys()
    assert (small.parameters, small.published) == (None, False)
    assert count(small) < 200_000_000
    try:
        norms = zoo_norms(large)
    except UsageError:
        with pytest.raises(UsageError, match=f"{name}-shrunk"):
            zoo_norms(small)
        return
    for here, there in zip(zoo_norms(small), norms, strict=True):
        assert (here.kind, here.role, here.gain_offset, here.eps) == (
            there.kind,
            there.role,
            there.gain_offset,
            there.eps,
        )
    assert zoo_norms(small)[0].gain.size == small.hidden_size
