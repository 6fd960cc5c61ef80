"""Calibration inputs: the right shapes, nothing special among random ids, padding masked, the same twice."""

import pytest
import torch

from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.text import english_text, text_calibration
from deadreckon.forward.tiny import tiny_model


class Words:
    """A tokenizer with the interface that text uses: one id a word, an opening mark a sequence."""

    model_max_length = 16

    def __call__(self, texts, *, truncation, max_length, return_overflowing_tokens, return_attention_mask):
        assert truncation
        assert return_overflowing_tokens
        sequences = []
        for text in texts:
            words = [10 + len(word) for word in text.split()]
            sequences += [[1, *words[i : i + max_length - 1]] for i in range(0, len(words), max_length - 1)]
        return {"input_ids": sequences}


@pytest.fixture(scope="module")
def neox():
    return tiny_model("gpt_neox")


def test_text_is_cut_to_length_padded_at_its_end_and_masked(neox):
    made = text_calibration(Words(), ["a " * 40, "b " * 3], neox.config, describe="x", batch_size=3)
    batches = list(made.batches())
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    assert sum(lengths) == 40 + 3 + len(lengths)
    assert max(lengths) == 16
    for batch in batches:
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        # Pads only follow: positions of real tokens are those of the text.
        assert (batch["attention_mask"].diff(dim=1) <= 0).all()
    again = list(made.batches())
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))


def test_random_ids_hold_no_special_id_and_follow_the_seed():
    model = tiny_model("bert")
    model.config.pad_token_id, model.config.mask_token_id = 7, 11
    first, other = (next(random_inputs(model, seed=s, batch_size=64).batches()) for s in (0, 1))
    again = next(random_inputs(model, seed=0, batch_size=64).batches())
    ids = first["input_ids"]
    assert torch.equal(ids, again["input_ids"])
    assert not torch.equal(ids, other["input_ids"])
    assert not {7, 11} & set(ids.unique().tolist())
    assert ids.max() < model.config.vocab_size


def test_encoder_decoders_get_both_sides():
    batch = next(random_inputs(tiny_model("t5"), seed=0, batch_size=2).batches())
    assert torch.equal(batch["input_ids"], batch["decoder_input_ids"])


def test_random_pixels_have_the_models_shape():
    model = tiny_model("vit")
    batch = next(random_inputs(model, seed=0, batch_size=2).batches())
    size = model.config.image_size
    assert batch["pixel_values"].shape == (2, 3, size, size)


def test_english_text_is_long_and_english():
    text = english_text()
    assert len(text) > 300_000
    assert " the " in text
