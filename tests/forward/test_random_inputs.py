"""Random inputs of every modality: models run on them, and as many placeholders stand for an image as it has tokens."""

import pytest
import torch
from torch import nn

from deadreckon.errors import UsageError
from deadreckon.forward import calibration, multimodal, shapes
from deadreckon.forward.anatomy import run
from deadreckon.forward.calibration import batched, first_row
from deadreckon.forward.modality import MODALITIES, modality
from deadreckon.forward.random_inputs import random_inputs
from deadreckon.forward.shapes import drawn
from deadreckon.forward.tiny import tiny_model
from deadreckon.verbs.measure import measure

SWIN = {"image_size": 56, "patch_size": 4, "embed_dim": 32, "window_size": 7, "depths": [1, 1], "num_heads": [2, 4]}
ROTARY = {"text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}

# Model type, settings, and the shape of one row of each input.
SHAPES = {
    "vit": ({}, {"pixel_values": (3, 32, 32)}),
    "dinov2": ({}, {"pixel_values": (3, 32, 32)}),
    "swin": (SWIN, {"pixel_values": (3, 56, 56)}),
    "clip_vision_model": ({}, {"pixel_values": (3, 32, 32)}),
    "clip_text_model": ({}, {"input_ids": (75,)}),
    "clip": ({}, {"input_ids": (75,), "pixel_values": (3, 32, 32)}),
    "siglip2_vision_model": (
        {},
        {"pixel_values": (256, 192), "spatial_shapes": (2,), "pixel_attention_mask": (256,)},
    ),
    "whisper": ({}, {"input_features": (80, 80), "decoder_input_ids": (38,)}),
    "wav2vec2": ({}, {"input_values": (512 * 320,)}),
    "wav2vec2-bert": ({}, {"input_features": (512, 160)}),
    "audio-spectrogram-transformer": ({}, {"input_values": (1024, 128)}),
    "videomae": ({}, {"pixel_values": (4, 3, 32, 32)}),
    "vjepa2": ({}, {"pixel_values_videos": (4, 3, 32, 32)}),
    "t5": ({}, {"input_ids": (512,), "decoder_input_ids": (512,)}),
    "bart": ({}, {"input_ids": (512,), "decoder_input_ids": (512,)}),
}


@pytest.mark.parametrize("model_type", SHAPES)
def test_models_run_on_rows_of_their_own_shape(model_type):
    settings, shapes = SHAPES[model_type]
    model = tiny_model(model_type, **settings)
    batch = next(random_inputs(model, seed=0, batch_size=2).batches())
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        name: (2, *shape) for name, shape in shapes.items()
    }
    with torch.no_grad():
        run(model, batch)  # raises where it does not run
    assert modality(batch, model.config) is None


def test_a_wrong_shape_does_not_run():
    """The control of the test above."""
    model = tiny_model("vit")
    batch = next(random_inputs(model, seed=0, batch_size=1).batches())
    with pytest.raises(UsageError, match="does not run"):
        run(model, {"pixel_values": batch["pixel_values"][..., :-8]})


@pytest.mark.parametrize(
    ("model_type", "settings", "tokens"),
    [
        ("vit", {}, 400),
        ("dinov2", {}, 400),
        ("clip_vision_model", {}, 400),
        ("clip_text_model", {}, 400),
        ("whisper", {}, 400),
        ("videomae", {"use_mean_pooling": False}, 400),
        ("vjepa2", {}, 400),
        ("gemma3", {}, 600),
        ("gemma4", {}, 600),
        ("t5", {}, 600),
    ],
)
def test_measure_runs_on_them(model_type, settings, tokens):
    model = tiny_model(model_type, **settings)
    norm = {"clip_vision_model": "post_layernorm"}.get(model_type)
    found = measure(model, tokens=tokens, norm=norm)
    assert found.data.startswith("random ")
    assert found.skipped_inputs == 0
    assert found.tokens == (tokens if norm is None else found.tokens)
    assert found.protocol.status == "ok"


def test_wav2vec2_is_measured_on_waveforms():
    found = measure(tiny_model("wav2vec2", do_stable_layer_norm=True), tokens=400)
    assert (found.data, found.protocol.status) == ("random sound, seed 0", "ok")
    assert found.norm == "encoder.layer_norm"


MULTIMODAL = {"gemma3": {}, "gemma4": {}, "llava": {}, "qwen2_vl": ROTARY, "qwen3_5": {}}


@pytest.fixture(autouse=True)
def few_patches(monkeypatch):
    """Images of 12 x 12 patches for models that take patches: the usual 48 x 48 take seconds."""
    monkeypatch.setattr(shapes, "_SIDE", 12)


@pytest.fixture(params=MULTIMODAL)
def mixed(request):
    """A model with its head, and two rows of text and images."""
    model = tiny_model(request.param, head=True, **MULTIMODAL[request.param])
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma 3 begins with zeros: all images are the same to it
            nn.init.normal_(parameter)
    return model, next(random_inputs(model, seed=0, batch_size=2).batches())


def soft_tokens(model, batch):
    """What the model itself makes of the images."""
    names = ("pixel_values", "image_position_ids", "image_grid_thw")
    with torch.no_grad():
        made = model.base_model.get_image_features(**{k: batch[k] for k in names if k in batch}).pooler_output
    return sum(part.shape[:-1].numel() for part in made)


def test_labels_count_the_images_tokens(mixed):
    model, batch = mixed
    labels = modality(batch, model.config)
    assert labels.shape == batch["input_ids"].shape
    images = labels == MODALITIES.index("image")
    assert int(images.sum()) == soft_tokens(model, batch) > 0
    assert torch.equal(images, batch["input_ids"] == model.config.image_token_id)
    assert not (labels > 1).any()
    # Text before and after the image, at least half of the sequence.
    assert (labels[:, 0] == 0).all()
    assert (labels[:, -1] == 0).all()
    assert int(images.sum()) <= labels.numel() / 2
    with torch.no_grad():
        run(model, batch)


def test_one_placeholder_less_does_not_run(mixed):
    """The control: the models count, so a wrong number is an error and never a silent shift."""
    model, batch = mixed
    ids = batch["input_ids"].clone()
    ids[0, (ids[0] == model.config.image_token_id).nonzero()[0]] = 10
    if "mm_token_type_ids" in batch:
        batch = {**batch, "mm_token_type_ids": (ids == model.config.image_token_id).long()}
    with pytest.raises(UsageError, match="does not run"), torch.no_grad():
        run(model, {**batch, "input_ids": ids})


def test_images_reach_the_text_stream(mixed):
    model, batch = mixed
    with torch.no_grad():
        hidden, other = (
            model.base_model(**{**batch, "pixel_values": pixels}).last_hidden_state
            for pixels in (batch["pixel_values"], batch["pixel_values"].flip(0).roll(1, -1))
        )
    changed = (hidden != other).any(-1)
    assert changed[modality(batch, model.config) == 1].all()


def test_models_that_label_are_told_and_others_are_not():
    given = {}
    for model_type in ("gemma3", "gemma4", "llava", "paligemma"):
        model = tiny_model(model_type)
        batch = next(random_inputs(model, seed=0, batch_size=1).batches())
        given[model_type] = {name for name in batch if name.endswith("token_type_ids")}
    assert given == {
        "gemma3": {"token_type_ids"},
        "gemma4": {"mm_token_type_ids"},
        "llava": set(),
        "paligemma": set(),  # its token types say what is attended both ways
    }


def test_distinct_ids_are_not_counted_where_placeholders_stand_for_images():
    assert measure(tiny_model("gemma3"), tokens=600).distinct_inputs is None
    assert measure(tiny_model("llama"), tokens=600).distinct_inputs > 60


def test_where_images_cannot_be_made_tokens_of_text_are_left(monkeypatch):
    def refuse(*_, **__):
        raise UsageError("no")

    monkeypatch.setattr(multimodal.Weaver, "row", refuse)
    made = random_inputs(tiny_model("llava"), seed=0, batch_size=1)
    assert made.describe == "random token ids, seed 0"
    assert set(next(made.batches())) == {"input_ids"}


def test_the_model_stays_as_it_was():
    model = tiny_model("gemma3").train()
    model.vision_tower.eval()
    next(random_inputs(model, seed=0, batch_size=1).batches())
    assert model.training
    assert not model.vision_tower.training


def test_rows_do_not_depend_on_the_batch():
    model = tiny_model("whisper")
    whole, parts = (random_inputs(model, seed=3, batch_size=size).batches() for size in (4, 1))
    first = next(whole)
    for row in range(4):
        one = next(parts)
        assert all(torch.equal(one[name][0], first[name][row]) for name in first)
    other = next(random_inputs(model, seed=4, batch_size=4).batches())
    assert not torch.equal(first["input_features"], other["input_features"])


def test_floating_inputs_have_the_models_dtype():
    for dtype in (torch.bfloat16, torch.float64):
        model = tiny_model("whisper").to(dtype)
        batch = next(random_inputs(model, seed=0, batch_size=1).batches())
        assert batch["input_features"].dtype == dtype
        assert batch["decoder_input_ids"].dtype == torch.int64
        with torch.no_grad():
            run(model, batch)


def test_large_rows_make_small_batches_and_shapes_do_not_mix(monkeypatch):
    model = tiny_model("vit")
    monkeypatch.setattr(calibration, "_MOST_NUMBERS", 100)
    large = [{"x": torch.zeros(1, 26)}] * 7
    assert [len(batch["x"]) for batch in batched(large, 64, model)] == [3, 3, 1]
    rows = [{"x": torch.zeros(1, size)} for size in (2, 2, 3, 3, 3, 2)]
    assert [tuple(batch["x"].shape) for batch in batched(rows, 2, model)] == [(2, 2), (2, 3), (1, 3), (1, 2)]
    # A row that is a list of patches cannot be cut off a batch again.
    flat = [{"x": torch.zeros(6, 2), "grid": torch.ones(1, 3)}] * 2
    assert [len(batch["x"]) for batch in batched(flat, 64, model)] == [6, 6]


def test_the_first_row_of_sound_is_not_cut():
    ids, sound = torch.zeros(3, 100, dtype=torch.long), torch.zeros(3, 100)
    assert first_row({"input_ids": ids})["input_ids"].shape == (1, 32)
    assert first_row({"input_values": sound})["input_values"].shape == (1, 100)


def test_what_cannot_be_derived_asks_for_batches():
    model = tiny_model("vit")
    model.main_input_name = "bool_masked_pos"
    with pytest.raises(UsageError, match="takes bool_masked_pos: pass batches="):
        random_inputs(model, seed=0, batch_size=1)
    assert drawn(tiny_model("llama").config, "input_features", {"input_features"}) is None
    with pytest.raises(UsageError, match="pass batches="):
        random_inputs(torch.nn.Linear(2, 2), seed=0, batch_size=1)


def test_labels_of_batches_of_ones_own():
    config = tiny_model("gemma4").config
    ids = torch.tensor([[5, config.image_token_id, config.audio_token_id, config.video_token_id, 7]])
    assert modality({"input_ids": ids}, config).tolist() == [[0, 1, 3, 2, 0]]
    # What a processor says counts for more than what can be seen.
    told = torch.tensor([[0, 1, 1, 1, 0]])
    assert modality({"input_ids": ids, "mm_token_type_ids": told}, config).tolist() == told.tolist()
    assert modality({"input_ids": ids}, tiny_model("llama").config) is None
    assert modality({"pixel_values": torch.zeros(1, 3, 8, 8)}, config) is None
